"""Two processes are one: the same losses, weights and figures, under DDP and under DeepSpeed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # torchrun starts this file by itself
from test_trainer import VOCABULARY, cut, make_rows, make_trainer

FORGET = {"fcm_min_ratio": 0.2, "fcm_max_ratio": 0.5}
ROOT = Path(__file__).parents[1]


def zero(stage):
    return {"deepspeed": str(ROOT / "ds_config" / f"zero{stage}.json")}


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *map(str, arguments)], timeout=280, env=environment, **options)


def train_and_measure(folder, **options):
    """Two steps of eight rows, the second with two too few; weights, logs and figures are left in the folder."""
    from transformers import AutoModelForCausalLM

    def load():  # after the arguments, so that ZeRO-3 finds out
        return AutoModelForCausalLM.from_pretrained(folder.parent / "start")

    trainer = make_trainer(load, folder, make_rows(14), make_rows(11, seed=1), max_steps=2, **options)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        figures = {name: value for log in [*trainer.state.log_history[:2], metrics] for name, value in log.items()}
        logs = [{name: value for name, value in log.items() if "loss" in name} for log in trainer.state.log_history[:2]]
        text = json.dumps({"figures": figures, "logs": logs, "world_size": trainer.args.world_size})
        (folder / "told.json").write_text(text)
    trainer.accelerator.wait_for_everyone()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, FORGET, zero(2), zero(3)], ids=["ddp", "ddp_that_forgets", "zero2", "zero3"])
def test_two_ranks_of_two_by_two_are_one_batch_of_eight(tiny_llama, tmp_path, options):
    import torch
    from transformers import AutoModelForCausalLM

    tiny_llama(VOCABULARY, tie_word_embeddings=True).save_pretrained(tmp_path / "start")
    alone, together = tmp_path / "alone", tmp_path / "together"
    train_and_measure(alone, **cut(8, 1), **options if options is FORGET else {})
    settings = {**cut(2, 2), "per_device_eval_batch_size": 2, **options}
    torchrun(together, json.dumps(settings), check=True)
    one, two = (json.loads((folder / "told.json").read_text()) for folder in (alone, together))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for ours, theirs in zip(two["logs"], one["logs"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
        assert ours.keys() == {"loss", "loss_feedback", "loss_pretrain"}
    same = [
        name for name in one["figures"] if "loss" in name or "accuracy" in name or "token" in name or "share" in name
    ]
    assert len(same) > 12
    assert {name: two["figures"][name] for name in same} == pytest.approx(
        {name: one["figures"][name] for name in same}, rel=2e-5
    )
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (alone, together))
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=2e-6, rtol=2e-5)


@pytest.mark.slow
def test_ranks_that_would_train_alone_are_stopped(tmp_path):
    """Without use_cpu on a machine without GPUs, every rank would believe that it is the only one."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("here the ranks find their GPUs")
    run = torchrun(tmp_path / "out", json.dumps({"use_cpu": False}), capture_output=True, text=True)
    assert run.returncode != 0
    assert "2 processes were launched, but each would train a model of its own: pass --use_cpu" in run.stderr


if __name__ == "__main__":
    train_and_measure(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    from accelerate import PartialState

    PartialState().destroy_process_group()
