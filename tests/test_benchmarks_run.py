"""The programs that measure whole runs: both sides learn the same, and a place without their needs is told so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import start  # noqa: E402
import training  # noqa: E402


def test_documents_of_rows():
    """Cut where positions restart, apart where the output begins; padding is none."""
    row = {
        "input_ids": np.array([5, 6, 7, 8, 9, 1, 2, 0]),
        "labels": np.array([-100, -100, 7, -100, 9, -100, 2, -100]),
        "position_ids": np.array([0, 1, 2, 0, 1, 0, 1, 0]),
        "source_id": np.array([0, 0, 0, 1, 1, 0, 0, -1]),
    }
    row["labels"][3] = -100
    assert training.documents([row]) == [([5, 6], [7]), ([8], [9]), ([1], [2])]


def test_texts_give_the_ids_and_targets_of_coh(tokenizers, tmp_path):
    """What SFTTrainer tokenises is what coh trains: prompt, then the whole, then what lies between."""
    from coh.data.coh_data import CoHDataArgs, load_datasets

    (run,) = training.SMALLEST
    told = training.write_texts(tmp_path / "texts.jsonl", tokenizers.folder("smollm2"), run)
    tokenizer = tokenizers("smollm2")
    args = CoHDataArgs(**training.CHAINS, seq_length=run.length, webgpt_dataset_test_size=0)
    train = load_datasets(args, tokenizer, cache_dir=str(tmp_path / "cache"))["train"]
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert told["documents"] == len(texts) > 100
    num_targets = num_same = 0
    for text in texts:
        prompt = tokenizer(text["prompt"]).input_ids
        whole = tokenizer(text["prompt"] + text["completion"]).input_ids
        num_same += whole[: len(prompt)] == prompt
        num_targets += len(whole) - len(prompt)
        assert whole[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in prompt
    assert num_same >= 0.99 * len(texts)
    assert num_targets == told["targets"] == sum((train[row]["labels"] != -100).sum() for row in range(len(train)))


def test_marks_take_what_lies_between_two_logs(monkeypatch):
    ticks = iter([10.0, 12.5, 13.0])
    monkeypatch.setattr(training, "clock", lambda: next(ticks))
    marks = training.Marks()
    callback = marks.callback()()
    for logs in ({"loss": 1.0, "num_tokens_seen": 100}, {"eval_loss": 1}, {"loss": 1.0, "num_tokens": 350}):
        callback.on_log(None, None, None, logs=logs)
    found = marks.as_dict()
    assert (found["seconds"], found["tokens"]) == (2.5, 250)
    assert found["memory"] > 10


def test_both_sides_have_the_same_rows_in_a_step(tmp_path):
    for run in training.RUNS + training.SMALLEST:
        assert run.sides[0] == training.Side("coh", run.rows)
        steps = set()
        for side in run.sides:
            options = training.shared_options(run, side.micro_rows)
            steps.add(options["per_device_train_batch_size"] * options["gradient_accumulation_steps"])
        assert steps == {run.rows}
        assert len({side.name for side in run.sides}) == len(run.sides)


def test_figures_are_against_the_better_setting():
    run = training.RUNS[0]
    speeds = {side: 100.0 * number for number, side in enumerate(run.sides, start=1)}
    found = {
        side: [{"seconds": 1000 / speed, "tokens": 1000, "whole": 5.0, "memory": 1.0}] for side, speed in speeds.items()
    }
    figures = [figure for side in run.sides for figure in training.compared(run, side, found, {})]
    values = {figure.name.removeprefix("training/small-"): figure.value for figure in figures}
    # coh 100, SFTTrainer 200 and 300 tokens a second; made to skip positions 400; compiled 500
    assert values == pytest.approx({"steady": 1 / 3, "whole": 1.0, "targets-only": 1 / 4, "compiled": 5.0})
    assert "1 row at once" in figures[0].what
    assert not any(figure.is_best_low for figure in figures)


@pytest.mark.parametrize("program", [training, start])
def test_what_is_missing_is_named(program, monkeypatch, capsys):
    for module in (training, start):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == "datasets" else object())
    assert program.main([]) == 0
    assert "nothing is measured, since it needs datasets: pip install datasets" in capsys.readouterr().out


def test_seconds_are_those_of_the_whole_process(tmp_path):
    busy = "import time; start = time.process_time()\nwhile time.process_time() < start + 0.3: pass"
    taken = start.seconds([sys.executable, "-c", busy], tmp_path)
    assert taken["cpu"] > 0.3 and taken["wall"] > 0.3
    with pytest.raises(SystemExit, match=r"failed:[\s\S]*what went wrong"):
        start.seconds([sys.executable, "-c", "raise SystemExit('what went wrong')"], tmp_path)


@pytest.mark.slow
def test_the_first_step_ends_a_run(tmp_path):
    """The start is measured up to there, and no further."""
    from toys import training_folder

    training_folder(tmp_path)
    start.write_pairs(tmp_path / "pairs.jsonl", 20)
    start.seconds([sys.executable, "-c", start.FIRST_STEP, *start.options(tmp_path, "out")], tmp_path)
    assert "20 groups from" in (tmp_path / "log").read_text()
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("COH_TEST_BENCHMARKS"), reason="takes minutes: COH_TEST_BENCHMARKS=1 runs it")
@pytest.mark.parametrize("program", ["training", "start"])
def test_the_programs_run(program, tmp_path):
    if program == "training" and training.missing():
        pytest.skip(f"it needs {training.missing()}")
    output = tmp_path / "figures.json"
    found = subprocess.run(
        [sys.executable, f"benchmarks/{program}.py", "--smoke", "--output", str(output)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    figures = json.loads(output.read_text())["figures"]
    assert all(name.startswith(f"{program}/") and figure["value"] > 0 for name, figure in figures.items())
    if program == "training":
        details = figures["training/tiny-steady"]["details"]
        assert details["chains"]["targets"] == details["trl's chains"]["targets"] > 1000
    else:
        assert {name.split("/")[1] for name in figures} == {
            f"{what}-{clock}" for what in ("first-step", "help") for clock in ("cpu", "wall")
        }
