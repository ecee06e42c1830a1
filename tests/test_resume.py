"""Stopped and gone on with is never stopped, to the last bit; and whatever would make that untrue is refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_coh_train import options
from toys import pairs, tiny_model_folder, training_folder, write_rows

from coh import coh_train
from coh.trainer import CoHTrainer

TIMES = (
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "train_runtime",
    "total_flos",
    "tokens_per_second",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = training_folder(tmp_path_factory.mktemp("resume"))
    shutil.rmtree(folder / "model")
    tiny_model_folder(folder / "model", attention_dropout=0.2, initializer_range=0.1)
    return folder


def wanted(folder, output, **changes):
    """A run of 9 steps over about two epochs, with dropout, and a log and an evaluation that straddle checkpoints."""
    values = {"max_steps": 9, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1, "pretrain_data": "none"}
    values |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    return options(folder, output, **(values | changes))


class Stopping(CoHTrainer):
    """Sends SIGTERM to its own process at some steps, once each, and keeps which rows each step saw."""

    stops: tuple[int, ...] = ()
    rows: dict[int, list[int]]

    def compute_loss(self, model, inputs, *args, **kwargs):
        step = self.state.global_step
        if step in type(self).stops:
            type(self).stops = tuple(other for other in self.stops if other != step)
            os.kill(os.getpid(), signal.SIGTERM)
        type(self).rows.setdefault(step, []).extend(inputs["row"].tolist())
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.fixture
def stopping(monkeypatch):
    """Runs the command with stops, resuming it until it ends; gives logs, final weights and rows of each step."""
    monkeypatch.setattr("coh.coh_train.CoHTrainer", Stopping)

    def run(words, *stops):
        Stopping.stops, Stopping.rows = stops, {}
        for number in range(len(stops) + 1):
            more = [] if number == 0 else ["--resume_from_checkpoint", "auto"]
            if number < len(stops):
                with pytest.raises(SystemExit) as stop:
                    coh_train.main([*words, *more])
                assert stop.value.code == 143
                assert not (output_of(words) / "model.safetensors").exists(), "a run that was stopped has no model"
            else:
                coh_train.main([*words, *more])
        return outcome(output_of(words)), Stopping.rows

    return run


def output_of(words):
    return Path(words[words.index("--output_dir") + 1])


def outcome(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logs = [
        {name: value for name, value in log.items() if name not in TIMES} for log in history if "train_loss" not in log
    ]
    return logs, load_file(output / "model.safetensors")


def assert_same(one, other):
    (logs, weights), (other_logs, other_weights) = one, other
    assert logs == other_logs
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


# The law


def test_stopped_twice_is_never_stopped(folder, tmp_path, stopping):
    """Checkpoints, logs and evaluations straddle each other, and rows forget; test_resume_slow.py has other runs."""
    changes = {"logging_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4, "fcm_max_ratio": 0.3}
    whole = stopping(wanted(folder, tmp_path / "whole", **changes))
    parts = stopping(wanted(folder, tmp_path / "parts", **changes), 2, 6)
    assert_same(whole[0], parts[0])
    assert parts[1] == whole[1] and list(whole[1]) == list(range(9))
    assert [row for rows in whole[1].values() for row in rows] == list(range(36))
    # Dropout is on, and the test would see it: a run that draws otherwise differs.
    tiny_model_folder(tmp_path / "still", initializer_range=0.1)
    words = wanted(folder, tmp_path / "other", max_steps=4, model_name=tmp_path / "still", **changes)
    (logs, _), _ = stopping(words)
    first, second = (next(log["loss"] for log in found if "loss" in log) for found in (logs, whole[0][0]))
    assert first != second


# What is refused, and what is not


@pytest.fixture(scope="module")
def stopped(folder, tmp_path_factory):
    """A run that was stopped behind step 3."""
    output = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coh.coh_train.CoHTrainer", Stopping)
        Stopping.stops, Stopping.rows = (3,), {}
        with pytest.raises(SystemExit):
            coh_train.main(wanted(folder, output, save_steps=2, warmup_steps=2))
    assert {path.name for path in output.glob("*")} >= {"checkpoint-2", "checkpoint-4"}
    return output


def refused(words):
    with pytest.raises(SystemExit) as stop:
        coh_train.main(words)
    return str(stop.value)


def test_every_difference_is_named_with_both_values(folder, stopped, tmp_path):
    tiny_model_folder(tmp_path / "model", hidden_size=64)
    write_rows(tmp_path / "pairs.jsonl", pairs(81, length=3))
    other = {
        "learning_rate": "1e-3", "seed": 7, "seq_length": 128, "templates": "prose", "per_device_train_batch_size": 4,
        "feedback_data": f"mine={tmp_path / 'pairs.jsonl'}", "save_steps": 2, "max_steps": 10, "warmup_steps": 2,
    }  # fmt: skip
    said = refused([*wanted(folder, stopped, **other), "--resume_from_checkpoint", "auto"])
    assert f"{stopped / 'checkpoint-4'} belongs to another run:" in said and "or insist by --force_resume" in said
    for words in (
        "--learning_rate was 0.003 and is 0.001", "--seed was 42 and is 7", "--seq_length was 256 and is 128",
        "--max_steps was 9 and is 10", "rows of a step was 4 and is 8", "feedback mine was 5", "templates was ['marker",
    ):  # fmt: skip
        assert words in said, said
    assert said.count(" was ") == 7
    same = wanted(folder, stopped, save_steps=2, warmup_steps=2, model_name=tmp_path / "model")
    said = refused([*same, "--resume_from_checkpoint", str(stopped / "checkpoint-2")])
    assert "checkpoint-2 is of another model: its " in said and ", 32), the model's " in said, said


def test_forced_it_goes_on_at_its_row_at_the_new_rate(folder, stopped, tmp_path, stopping):
    output = tmp_path / "forced"
    changes = {"learning_rate": "1e-3", "gradient_accumulation_steps": 1, "max_steps": 6, "warmup_steps": 2}
    words = wanted(folder, output, lr_scheduler_type="constant", **changes)
    (logs, _), rows = stopping([*words, "--resume_from_checkpoint", str(stopped), "--force_resume", "true"])
    assert rows == {4: [16, 17], 5: [18, 19]}, "four steps of four rows, then steps of two"
    assert [log["learning_rate"] for log in logs if "loss" in log][4:] == [1e-3, 1e-3]


def test_a_folder_with_a_run_is_refused_and_a_finished_run_stays_as_it_is(folder, tmp_path, stopping, caplog):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("logs and notes of people do no harm")
    words = wanted(folder, output, max_steps=2)
    with caplog.at_level("WARNING", "coh"):
        stopping([*words, "--resume_from_checkpoint", "auto"])
    assert f"{output} has no complete checkpoint: training starts anew" in caplog.text
    said = refused(words)
    assert "holds an earlier run (checkpoint-2, coh.json, complete.json, model.safetensors, ...)" in said
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with caplog.at_level("WARNING", "coh"):
        coh_train.main([*words, "--resume_from_checkpoint", "auto"])
    assert "is finished, at step 2: there is nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_folder_that_cannot_be_written_is_refused_before_anything_loads(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("coh.coh_train.load_datasets", lambda *_, **__: pytest.fail("it began"))
    said = refused(wanted(folder, tmp_path / "file" / "out"))
    assert "file/out cannot be written to (Not a directory): choose another one" in said


def test_no_room_for_a_checkpoint_is_said_at_the_start(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=100_000))
    monkeypatch.setattr(CoHTrainer, "train", lambda *_, **__: pytest.fail("it began"))
    said = refused(wanted(folder, tmp_path / "out"))
    assert "a checkpoint takes about 4" in said and "has 100.0 kB left" in said


# What is no number


def test_exploding_gradients_stop_and_their_rows_are_kept(folder, tmp_path, monkeypatch):
    class Exploding(CoHTrainer):
        def compute_loss(self, *args, **kwargs):
            factor = 1e7 if self.state.global_step == 18 else 1
            return super().compute_loss(*args, **kwargs) * factor

    monkeypatch.setattr("coh.coh_train.CoHTrainer", Exploding)
    words = wanted(folder, tmp_path / "out", max_steps=20, gradient_accumulation_steps=1, save_steps=5)
    said = refused(words)
    assert "the gradients explode: their norm is" in said and "over 1000 times" in said
    assert f"The last complete checkpoint is {tmp_path / 'out' / 'checkpoint-15'}" in said
    kept = [json.loads(line) for line in (tmp_path / "out" / "stopped_rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in kept] == [36, 37] and all("User:" in row["text"] for row in kept)
