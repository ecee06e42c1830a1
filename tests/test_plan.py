"""The plan's laws: nothing lost, nothing twice, no needless cut, little padding, and any row found without the
others.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coh.data.plan import PACKINGS, Layout, RowStream, Stretches, pack_chunk, pack_fit, permute, tokens_of
from coh.data.records import FeedbackError

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=200).map(lambda values: np.array(values, np.int64))


def all_spans(layout: Layout):
    return [span for row in range(layout.num_rows) for span in layout.spans(row)]


def check_conservation(layout: Layout, lengths, capacity):
    """Every token of every document stands in exactly one span; no row holds too much."""
    tokens = sorted((document, token) for document, start, stop in all_spans(layout) for token in range(start, stop))
    assert tokens == [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    assert all(
        0 < sum(stop - start for _, start, stop in layout.spans(row)) <= capacity for row in range(layout.num_rows)
    )


@given(LENGTHS, st.integers(7, 64), st.sampled_from(sorted(PACKINGS)))
@settings(max_examples=150, deadline=None)
def test_conservation(lengths, capacity, packing):
    check_conservation(PACKINGS[packing](lengths, capacity), lengths, capacity)


@given(LENGTHS, st.integers(7, 64))
@settings(max_examples=80, deadline=None)
def test_fit_cuts_only_what_is_longer_than_a_row(lengths, capacity):
    layout = pack_fit(lengths, capacity)
    pieces = np.bincount(layout.document, minlength=len(lengths))
    assert (pieces == np.maximum(1, -(-lengths // capacity))).all()


@given(LENGTHS, st.integers(7, 64))
@settings(max_examples=80, deadline=None)
def test_chunk_is_the_stream_cut_at_row_ends(lengths, capacity):
    layout = pack_chunk(lengths, capacity)
    stream = [(document, token) for document, length in enumerate(lengths) for token in range(length)]
    rows = [stream[start : start + capacity] for start in range(0, len(stream), capacity)]
    found = [
        [(document, token) for document, start, stop in layout.spans(row) for token in range(start, stop)]
        for row in range(layout.num_rows)
    ]
    assert found == rows


def test_a_small_case_by_hand():
    # 6 and 4 fill a row, so do 5, 3 and 2; first-come would have needed a third row.
    layout = pack_fit(np.array([6, 5, 3, 4, 2]), 10)
    rows = sorted(sorted(document for document, *_ in layout.spans(row)) for row in range(layout.num_rows))
    assert rows == [[0, 3], [1, 2, 4]]


def test_padding_of_lengths_like_real_ones_is_at_most_half_a_percent():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.6, 60_000).astype(np.int64), 5, 512)
    for capacity in (512, 1024, 2048):
        layout = pack_fit(lengths, capacity)
        assert 1 - lengths.sum() / (layout.num_rows * capacity) <= 0.005


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation(size, key):
    found = permute(np.arange(size), size, key)
    assert sorted(found.tolist()) == list(range(size))
    assert (permute(np.arange(size)[::2], size, key) == found[::2]).all()


def test_permute_mixes_and_keys_differ():
    size = 10_000
    one, other = permute(np.arange(size), size, 1), permute(np.arange(size), size, 2)
    assert (one == other).mean() < 0.01
    assert abs(np.corrcoef(np.arange(size), one)[0, 1]) < 0.05
    # Neighbours are torn apart: the mean distance of two random places is a third of the whole.
    assert abs(np.abs(np.diff(one)).mean() / size - 1 / 3) < 0.02


@dataclass
class Numbers:
    """Documents whose tokens tell the pass, the window, the document and the place; each begins with a word, -7."""

    epoch: int
    base: int
    lengths: np.ndarray
    words = np.array([-9, -7], np.int32)

    @property
    def source(self):
        return np.arange(len(self.lengths)) % 3

    @property
    def values(self):
        return [np.concatenate([self.ids(number) for number in range(len(self.lengths))]).astype(np.int32)]

    def ids(self, number):
        ids = (self.epoch * 1000 + self.base + number) * 1000 + np.arange(self.lengths[number])
        ids[0] = -7
        return ids

    def stretches(self, spans):
        starts = (np.cumsum(self.lengths) - self.lengths)[spans.document]
        is_first = spans.start == 0
        begin, end = spans.start + is_first, spans.stop
        span = np.repeat(np.arange(len(begin)), 2)
        address = np.stack([np.full(len(begin), -1), starts + begin], axis=1).ravel()
        length = np.stack([is_first.astype(np.int64), end - begin], axis=1).ravel()
        kept = length > 0
        return Stretches(span[kept], address[kept], length[kept], (np.arange(len(span)) % 2 == 1)[kept])


def stream_of(num_windows=3, packing="fit", seed=0):
    def window(epoch, number):
        rng = np.random.default_rng(100 * epoch + number)
        return Numbers(epoch, 50 * number, rng.integers(1, 30, 40))

    return RowStream(window, num_windows, 32, packing, seed, "test")


def row_tokens(stream, row):
    found = stream.read([row], pad_id=-1)
    return found.ids[found.source >= 0].tolist()


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_rows_are_pure_functions_of_their_number(packing):
    forwards = stream_of(packing=packing)
    total = forwards.rows_until(2)
    rows = [row_tokens(forwards, row) for row in range(total)]
    backwards = stream_of(packing=packing)
    assert [row_tokens(backwards, row) for row in reversed(range(total))] == rows[::-1]


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_a_pass_holds_every_token_once(packing):
    stream = stream_of(packing=packing)
    for epoch in range(2):
        rows = range(stream.rows_until(epoch), stream.rows_until(epoch + 1))
        found = sorted(token for row in rows for token in row_tokens(stream, row))
        expected = []
        for number in range(3):
            documents = stream._window(epoch, number)
            expected += [token for document in range(40) for token in documents.ids(document).tolist()]
        assert found == sorted(expected) and len(found) > 1000


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_rows_read_together_are_those_read_one_by_one(packing):
    """In any order, over the borders of windows, with padding, positions and sources as they stand in each."""
    stream = stream_of(packing=packing)
    for rows in (list(range(stream.rows_until(2))), [5, 6, 2, 40, 41, 0], [3]):
        together = stream.read(rows, pad_id=-1)
        for name in ("ids", "targets", "source", "position"):
            alone = [getattr(stream.read([row], pad_id=-1), name) for row in rows]
            assert np.array_equal(getattr(together, name), np.concatenate(alone)), name


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_a_row_is_its_spans_and_padding(packing):
    stream = stream_of(packing=packing)
    for row in range(stream.rows_until(1)):
        number, inside = stream.locate(row)
        documents, layout, order = stream.plan(number)
        ids, sources, positions, targets = [], [], [], []
        for document, start, stop in layout.spans(int(order[inside])):
            ids += documents.ids(document)[start:stop].tolist()
            sources += [document % 3] * (stop - start)
            positions += range(stop - start)
            targets += [place > 0 for place in range(start, stop)]
        padding = 32 - len(ids)
        found = stream.read([row], pad_id=-1)
        assert found.ids.tolist() == ids + [-1] * padding
        assert found.source.tolist() == sources + [-1] * padding
        assert found.position.tolist() == [*positions, *range(padding)]
        assert found.targets.tolist() == targets + [False] * padding


def test_one_document_by_itself():
    documents = Numbers(0, 0, np.array([3, 5, 1]))
    assert [ids.tolist() for ids, _, _ in (tokens_of(documents, n) for n in range(3))] == [
        [-7, 1, 2],
        [-7, 1001, 1002, 1003, 1004],
        [-7],
    ]
    assert tokens_of(documents, 1)[2] == 1 and tokens_of(documents, 1)[1].tolist() == [False, *[True] * 4]


def test_seed_and_pass_change_the_order():
    one, other = stream_of(seed=0), stream_of(seed=1)
    assert [row_tokens(one, row) for row in range(20)] != [row_tokens(other, row) for row in range(20)]


def test_plans_in_memory_are_few():
    stream = stream_of(num_windows=8)
    for row in range(stream.rows_until(2)):
        stream.read([row], pad_id=0)
    assert len(stream._plans) <= 2


def test_a_stream_without_documents_says_so():
    empty = RowStream(lambda epoch, number: Numbers(0, 0, np.zeros(0, np.int64)), 1, 32, "fit", 0, "feedback")
    with pytest.raises(FeedbackError, match=r"no feedback fits a row of \d+ tokens: raise --seq_length"):
        empty.rows_until(1)
