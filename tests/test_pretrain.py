"""Pretraining text: read from anywhere, every token once a pass, a fixed part held out."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from toys import byte_tokenizer, write_rows

from coh.data.encoding import Encoder
from coh.data.pretrain import Texts, load_texts
from coh.data.records import FeedbackError

ROWS = [{"text": f" Text number {number}.\n"} for number in range(45)]


@pytest.fixture
def texts_file(tmp_path):
    return write_rows(tmp_path / "text.jsonl", ROWS)


def test_every_kind_of_file(tmp_path, texts_file):
    import pandas

    expected = [f"Text number {number}." for number in range(45)]
    pandas.DataFrame(ROWS).to_csv(tmp_path / "t.csv", index=False)
    pandas.DataFrame(ROWS).rename(columns={"text": "story"}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    (tmp_path / "t.txt").write_text("\n\n".join(expected))
    for name in ("text.jsonl", "t.csv", "t.parquet", "t.json", "t.txt"):
        assert list(load_texts(str(tmp_path / name), 1000, str(tmp_path / "cache"))["text"]) == expected, name


def test_a_folder_in_the_layout_of_the_hub_is_streamed_once_to_so_many_texts(tmp_path, monkeypatch):
    folder = tmp_path / "c4" / "en"
    folder.mkdir(parents=True)
    for part in range(3):
        write_rows(
            folder / f"c4-train.{part:05d}-of-00003.jsonl", [{"text": f"{part}/{n}", "url": "u"} for n in range(10)]
        )
    monkeypatch.setattr("coh.data.pretrain.HUB_NAMES", {"c4": (str(tmp_path / "c4" / "en"), None)})
    assert list(load_texts("c4", 12, str(tmp_path / "cache"))["text"]) == [f"0/{n}" for n in range(10)] + ["1/0", "1/1"]
    for file in folder.iterdir():
        file.unlink()
    assert len(load_texts("c4", 12, str(tmp_path / "cache"))) == 12  # from the disk: nothing is left to stream


def test_the_sample_has_forty_kilobytes_of_different_texts(tmp_path):
    texts = list(load_texts("sample", 1000, str(tmp_path))["text"])
    assert sum(len(text.encode()) for text in texts) > 40_000
    sentences = [sentence for text in texts for sentence in text.split(". ") if len(sentence.split()) > 5]
    assert len(set(texts)) == len(texts) and len(set(sentences)) == len(sentences)


def test_a_pass_holds_every_text_once_and_none_that_is_held_out(tmp_path, texts_file):
    dataset = load_texts(texts_file, 1000, str(tmp_path / "cache"))
    encoder = Encoder(byte_tokenizer())
    found = {}
    for held_out in (False, True):
        texts = Texts(dataset, encoder, held_out=held_out, source=4, seed=0)
        for epoch in (0, 1):
            documents = texts.window(epoch, 0)
            decoded = []
            for number in range(len(documents.lengths)):
                ids, targets, source = documents.tokens(number)
                assert targets.all() and source == 4 and len(ids) == documents.lengths[number]
                assert ids[-1] == encoder.eos[0]
                decoded.append(encoder.tokenizer.decode(ids[:-1]))
            found[held_out, epoch] = decoded
    assert sorted(found[False, 0]) == sorted(found[False, 1]) and found[False, 0] != found[False, 1]
    assert sorted(found[False, 0] + found[True, 0]) == sorted(row["text"].strip() for row in ROWS)
    assert len(found[True, 0]) == 2


@pytest.mark.parametrize("column", ["text", "story"])
def test_rows_without_text_are_left_out_and_counted(tmp_path, caplog, column):
    values = [None, "one", "  ", None, "two", "\ud800", "three"]
    path = str(tmp_path / "text.jsonl")
    Path(path).write_text("".join(json.dumps({column: value}) + "\n" for value in values))
    with caplog.at_level(logging.INFO, logger="coh"):
        dataset = load_texts(path, 10, str(tmp_path / "c"))
    assert list(dataset["text"]) == ["one", "two", "three"]
    assert "text.jsonl: 4 rows are left out (null text: " in caplog.text
    assert list(load_texts(path, 2, str(tmp_path / "c"))["text"]) == ["one", "two"]
    texts = Texts(dataset, Encoder(byte_tokenizer()), held_out=False, source=0, seed=0)
    assert len(texts) == 3 and np.all(texts.window(0, 0).lengths > 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("T.JSONL", '{"text": "one"}\n{"text": "two"}\n'),
        ("T.TXT", "one\n\ntwo"),
        ("t.txt", "\ufeffone\r\n\r\n\r\n\r\ntwo\r\n"),
    ],
)
def test_endings_in_capitals_and_the_signs_of_other_systems(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert list(load_texts(str(tmp_path / name), 10, str(tmp_path / "c"))["text"]) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "there is no such file"),
        ("text.md", "words", "the name must end in one of"),
        ("text.jsonl", '{"a": "x", "b": "y"}\n', "no column `text` among 'a', 'b': rename the one to learn from"),
        ("text.jsonl", '{"text": "x"}\n{"text": \n', "line 2, column"),
        ("text.jsonl", "", "is empty"),
        ("text.jsonl", '{"text": "x"}\n\n{"txt": "y"}\n', r"text\.jsonl, line 3: field 'text' is missing: the nearest"),
        (
            "text.json",
            '[{"text": "x"}, {"text": 4}]',
            r"text\.json, row 2: field 'text' is a number \(4\), but must be",
        ),
        ("text.jsonl", '{"text": 4}\n', r"line 1: field 'text' is a number"),
        ("text.jsonl", '{"a": 4}\n', r"line 1: no column `text` among 'a'"),
        (
            "text.jsonl",
            '{"text": null}\n{"text": " "}\n',
            "text.jsonl holds no text: give another file, sample, or none",
        ),
        ("text.jsonl", '{"a": null}\n', "holds no text"),
        ("text.txt", "\n\n \n\n", "holds no text"),
        ("text.txt", "", "holds no text"),
        ("text.txt", b"caf\xe9", r"text\.txt: not UTF-8 \(byte 4 is 0xe9\)"),
        ("GONE.JSONL", None, "there is no such file"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FeedbackError, match=message):
        load_texts(str(path), 10, str(tmp_path / "cache"))


def test_a_hub_data_set_out_of_reach_names_the_way_out(tmp_path):
    with pytest.raises(
        FeedbackError, match="--pretrain_data c4 cannot be read: check the name and the network, or give"
    ):
        load_texts("c4", 10, str(tmp_path))
