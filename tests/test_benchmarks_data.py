"""The programs that measure data: their sides do the same work, and a place without their needs is told so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from toys import byte_tokenizer, pairs, write_rows

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import data  # noqa: E402
import padding  # noqa: E402

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")


@pytest.fixture(scope="module")
def feedback(tmp_path_factory):
    return Path(write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs(80)))


def test_the_sides_make_as_many_tokens_of_the_same_feedback(feedback):
    """They draw other chains, and the naive way leaves off what does not fill its last batch."""
    tokenizer = byte_tokenizer()
    ours = data.coh_epoch(feedback, tokenizer)
    assert ours == pytest.approx(data.naive_epoch(feedback, tokenizer) + data.LENGTH * data.BATCH / 2, rel=0.2)


@needs_trl
def test_trl_gets_the_same_texts(feedback):
    tokenizer = byte_tokenizer()
    texts = data.trl_texts(feedback)
    segments = list(data.chains(feedback, seed=0))
    assert [text["prompt"] + text["completion"] for text in texts] == [
        "".join(segment.text for segment in own) for own in segments
    ]
    ids = [tokenizer(text["prompt"] + text["completion"], add_special_tokens=False).input_ids for text in texts]
    assert data.trl_epoch(texts, tokenizer) == sum(map(len, ids)) + len(ids)  # and an end-of-text token each


def test_chains_are_those_of_the_templates(feedback):
    found = ["".join(segment.text for segment in own) for own in data.chains(feedback, seed=1)]
    assert len(found) == 80 and all(text.startswith("User: Question") for text in found)
    outputs = [sum(segment.is_target for segment in own) for own in data.chains(feedback, seed=1)]
    assert set(outputs) == {1, 2}
    assert found != ["".join(segment.text for segment in own) for own in data.chains(feedback, seed=2)]


def test_pairs_are_as_many_and_as_different_as_asked(tmp_path):
    rows = [json.loads(line) for line in data.write_pairs(tmp_path / "pairs.jsonl", 50).read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 50 and len({row["chosen"] for row in rows}) == 50


def test_rates_are_tokens_for_each_second(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(data, "cpu_seconds", lambda: float(next(ticks)))
    found = data.rates({"coh": lambda: 60, "other": lambda: 20}, rounds=2)
    assert found == {"coh": [60.0, 60.0], "other": [20.0, 20.0]}
    figure = data.against("first-epoch-other", "", found, "other", "first-epoch")
    assert figure.value == 3 and not figure.is_best_low and figure.meets(figure.moonshot)


@needs_trl
def test_packings_are_counted():
    lengths = np.array([6, 5, 3, 4, 2, 9])
    assert padding.trl_rows(lengths, 10, "bfd") == padding.Packed(num_rows=3, num_tokens=29, num_cut=0)
    wrapped = padding.trl_rows(lengths, 10, "wrapped")
    assert (wrapped.num_rows, wrapped.num_tokens, wrapped.num_cut) == (3, 29, 1)  # the second; 20 is a border
    assert padding.Packed(3, 29, 0).padding(10) == pytest.approx(100 / 30)
    long = np.array([25, 3])
    assert padding.trl_rows(long, 10, "bfd").num_tokens == 13  # the rest of the first is lost
    assert padding.trl_rows(long, 10, "bfd_split") == padding.Packed(3, 28, 0)


def test_rows_of_coh_are_counted(feedback, tmp_path):
    dataset = data.coh_dataset(feedback, byte_tokenizer(), str(tmp_path), seq_length=256)
    lengths, packed = padding.coh_rows(dataset)
    assert len(lengths) == 80 and packed.num_cut == 0 and packed.num_rows == len(dataset)
    assert packed.num_tokens == data.read_rows(dataset, 0, len(dataset)) == lengths.sum()
    cut, packed = padding.coh_rows(
        data.coh_dataset(feedback, byte_tokenizer(), str(tmp_path), seq_length=256, packing="chunk")
    )
    assert packed.num_cut > 0 and packed.num_tokens == cut.sum()


@pytest.mark.parametrize("program", [data, padding])
def test_what_is_missing_is_named(program, monkeypatch, capsys):
    monkeypatch.setattr(program, "find_spec", lambda name: None if name == "datasets" else object())
    assert program.main([]) == 0
    assert "nothing is measured, since it needs datasets: pip install datasets" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("COH_TEST_BENCHMARKS"), reason="takes minutes: COH_TEST_BENCHMARKS=1 runs it")
@pytest.mark.parametrize("program", ["data", "padding"])
def test_the_programs_run(program, tmp_path):
    output = tmp_path / "figures.json"
    command = [sys.executable, f"benchmarks/{program}.py", "--smoke", "--output", str(output)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert found.returncode == 0, found.stderr[-3000:]
    figures = json.loads(output.read_text())["figures"]
    expected = {"first-epoch-naive", "later-epochs", "row", "long-document", "memory", "memory-growth"}
    assert {name.split("/")[1] for name in figures} >= (expected if program == "data" else {"512", "512-cut"})
