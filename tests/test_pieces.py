"""Pieces: encoded once, found again, made anew where a run was stopped or the words or the tokenizer changed."""

import numpy as np
import pytest
from toys import byte_tokenizer, pairs, store_of, write_rows

from coh.data.encoding import BulkEncoder, Encoder
from coh.data.forms import make_form
from coh.data.pieces import GroupPieces, IdTable, Joints
from coh.data.records import FeedbackGroup, Message, Segment
from coh.data.sources import load_groups, parse_source
from coh.data.templates import load_family

JOINTS = Joints((" ",), (" ", "\n\n"), (" ",))


@pytest.fixture
def store(tmp_path):
    return load_groups(parse_source(write_rows(tmp_path / "pairs.jsonl", pairs(30))), cache_dir=tmp_path)["train"]


@pytest.fixture
def encoded(monkeypatch):
    """How many texts have been encoded so far, as a list with a number for each batch."""
    sizes, encode = [], BulkEncoder.encode
    monkeypatch.setattr(BulkEncoder, "encode", lambda bulk, texts: sizes.append(len(texts)) or encode(bulk, texts))
    return sizes


def pieces_of(dataset, tokenizer=None, joints=JOINTS):
    form = make_form(load_family("marker"), "plain", None)
    return GroupPieces(dataset, Encoder(tokenizer or byte_tokenizer()), form, joints)


def test_every_piece_is_where_its_number_says(store):
    groups = [store.group(number) for number in range(len(store))]
    groups.append(FeedbackGroup("any", (Message("user", "Why?"),), ("a b",), (1,), ("it is short",)))
    own_words = (Segment("Say", False), Segment("it", True))
    groups.append(FeedbackGroup("any", (), ("it",), (1,), verbatim=own_words))
    groups.append(FeedbackGroup("any", (Message("user", "So?"),), ("c", "d", "e"), (1, 2, 2)))
    pieces, encoder = pieces_of(store_of(groups).dataset), Encoder(byte_tokenizer())

    def text(number):
        return encoder.tokenizer.decode(pieces.table[int(number)])

    for number, group in enumerate(groups):
        at = np.array([number])
        if group.prompt:
            assert text(pieces.prompt(at, np.array([0]))[0]) == " " + group.prompt[0].content
        for place, output in enumerate(group.outputs):
            for joint, space in enumerate(JOINTS.output):
                assert text(pieces.output(at, np.array([place]), np.array([joint]))[0]) == space + output
        if group.critiques:
            assert text(pieces.critique(at, np.array([0]), np.array([0]))[0]) == " it is short"
        for place, segment in enumerate(group.verbatim):
            assert text(pieces.verbatim(at, np.array([place]))[0]) == " " * bool(place) + segment.text
    total = np.arange(len(pieces.table))
    assert pieces.table.lengths(total).tolist() == [len(pieces.table[int(number)]) for number in total]


def test_pieces_are_encoded_once(store, encoded):
    first, again = pieces_of(store.dataset), pieces_of(store.dataset)
    assert len(encoded) == 1 and np.array_equal(first.table.values, again.table.values)
    pieces_of(store.dataset, joints=Joints((" ",), (" ",), ()))
    pieces_of(store.dataset, tokenizer=byte_tokenizer(merges=False))
    assert len(encoded) == 3


def test_a_run_that_was_stopped_is_made_good(store, encoded, tmp_path):
    expected = pieces_of(store.dataset).table.values.copy()
    (folder,) = (found for found in tmp_path.glob("coh_groups/*/coh-ids-*") if found.is_dir())
    (folder / "values").write_bytes(b"half")
    folder.rename(f"{folder}.partial")  # as if the process had ended while it wrote
    assert np.array_equal(pieces_of(store.dataset).table.values, expected) and len(encoded) == 2
    assert not list(tmp_path.glob("coh_groups/*/*.partial"))


def test_groups_in_memory_leave_no_files(store, encoded):
    in_memory = store_of([store.group(number) for number in range(5)]).dataset
    one, other = pieces_of(in_memory), pieces_of(in_memory)
    assert np.array_equal(one.table.values, other.table.values) and len(encoded) == 2
    assert isinstance(one.table, IdTable) and len(one.table) == 5 * (1 + 2 * 3)
