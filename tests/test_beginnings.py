"""Rows of documents that begin alike: nothing is lost or doubled, and sharing pays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coh.beginnings import LONGEST, share_beginnings


@st.composite
def families(draw):
    """Documents, some with a beginning of others, each with one run of targets at its end or with none."""
    begins = draw(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=3))
    documents = []
    for _ in range(draw(st.integers(0, 12))):
        ids = [*draw(st.sampled_from(begins)), *draw(st.lists(st.integers(0, 3), min_size=1, max_size=8))]
        first = draw(st.integers(1, len(ids)))
        documents.append((np.array(ids, np.int64), np.arange(len(ids)) >= first))
    return documents


@given(families(), st.integers(1, 60))
def test_every_document_stands_in_one_row_whole(documents, longest):
    rows = share_beginnings(documents, longest)
    found = {}
    for row in rows:
        tokens = np.full(len(row), -1)
        tokens[: row.num_shared] = documents[row.numbers[0]][0][: row.num_shared]
        positions, owners = np.array(row.positions()), np.array(row.owners())
        for turn, (number, place) in enumerate(row.places(), 1):
            tokens[place] = documents[number][0][row.num_shared :]
            seen = np.flatnonzero((owners == 0) | (owners == turn))
            assert positions[seen].tolist() == list(range(len(documents[number][0])))
            found[number] = tokens[seen].tolist()
        assert len(positions) == len(owners) == len(row)
    assert sum(len(row.numbers) for row in rows) == len(documents)
    assert [found[number] for number in range(len(documents))] == [ids.tolist() for ids, _ in documents]


@given(families(), st.integers(1, 60))
def test_targets_and_what_predicts_them_are_nobodys_but_their_documents(documents, longest):
    for row in share_beginnings(documents, longest):
        if row.num_shared:
            assert not any(documents[number][1][: row.num_shared + 1].any() for number in row.numbers)


@given(families(), st.integers(1, 60))
def test_rows_are_short_enough_and_each_document_shares_half_of_itself(documents, longest):
    for row in share_beginnings(documents, longest):
        if len(row.numbers) > 1:
            assert len(row) <= min(longest, LONGEST * max(row.lengths))
            assert 2 * row.num_shared >= max(row.lengths)
        else:
            assert row.num_shared == 0


def test_outputs_of_one_prompt_stand_in_one_row_whatever_their_order():
    prompts = [np.arange(20) + 100 * n for n in range(3)]
    documents = [(np.append(prompt, [7, output, 9]), np.arange(23) > 20) for output in range(4) for prompt in prompts]
    rows = share_beginnings(documents, 200)
    assert sorted(sorted(row.numbers) for row in rows) == [[n, n + 3, n + 6, n + 9] for n in range(3)]
    assert {row.num_shared for row in rows} == {20}  # not the 7, which predicts each one's first target
