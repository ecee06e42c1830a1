"""The launchers themselves, several processes, DeepSpeed, and a real pretrained model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_coh_train import options
from toys import training_folder

from coh.coh_train import main
from coh.saved import load_words

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("launch"))


def launch(*words, **environment):
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    found = subprocess.run(["sh", *words], capture_output=True, text=True, cwd=ROOT, env=env, timeout=280)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    return found.stdout


def without(words, *names):
    """The options without these ones and their values."""
    return [
        word for place, word in enumerate(words) if word not in names and (place == 0 or words[place - 1] not in names)
    ]


def losses(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [(log["loss"], log["grad_norm"]) for log in history if "loss" in log]


def evaluated(output):
    return json.loads((output / "test_results.json").read_text())


@pytest.fixture(scope="module")
def alone(folder):
    """The same six steps in one process, by the entry point itself."""
    main(options(folder, folder / "alone", max_steps=6, logging_steps=1, per_device_train_batch_size=4))
    return folder / "alone"


def test_llama_train_is_zero3_in_two_processes_and_learns_the_same(folder, alone):
    output = folder / "zero3"
    words = options(folder, output, max_steps=6, logging_steps=1, per_device_train_batch_size=2)
    said = launch("llama_train.sh", "", str(folder / "model"), *without(words, "--model_name"))
    assert "ds_config/zero3.json" in said and "--nproc_per_node 2" in said
    for (loss, norm), (expected_loss, expected_norm) in zip(losses(output), losses(alone), strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-4) and norm == pytest.approx(expected_norm, rel=1e-3)
    assert evaluated(output)["test_mine_loss"] == pytest.approx(evaluated(alone)["test_mine_loss"], rel=1e-4)
    assert evaluated(output)["test_mine_tokens"] == evaluated(alone)["test_mine_tokens"]
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(output)
    assert load_words(output).family.name == "marker"


def test_train_sh_with_ids_is_two_processes_and_learns_the_same(folder, alone):
    output = folder / "ddp"
    words = options(folder, output, max_steps=6, logging_steps=1, per_device_train_batch_size=2)
    said = launch("train.sh", "0,1", *words, COH_ALLOW_CPU_IDS="1")
    assert "CUDA_VISIBLE_DEVICES=0,1" in said and "--nproc_per_node 2" in said
    for (loss, _), (expected, _) in zip(losses(output), losses(alone), strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
    assert evaluated(output)["test_mine_loss"] == pytest.approx(evaluated(alone)["test_mine_loss"], rel=1e-5)


def test_train_sh_without_ids_runs_on_whatever_is_there(folder, alone):
    output = folder / "plain"
    launch(
        "train.sh", *options(folder, output, max_steps=6, logging_steps=1, per_device_train_batch_size=4, use_cpu=None)
    )
    assert losses(output)[0][0] == pytest.approx(losses(alone)[0][0], rel=1e-5)


def test_the_demonstration_in_short(tmp_path):
    """`make demo` with few rows: the real model, from its GGUF file to a table of figures."""
    command = [sys.executable, "-m", "coh.demo", "--epochs", "0.15", "--pairs_per_source", "1"]
    found = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT, timeout=290
    )
    assert found.returncode == 0, found.stderr[-3000:]
    for words in ("before     after", "loss on good outputs", "pair accuracy", "steering gap", "after, bad words:"):
        assert words in found.stdout, found.stdout
    line = next(line for line in found.stdout.splitlines() if line.startswith("loss on good outputs"))
    before, after = map(float, line.split()[-2:])
    assert after < before
