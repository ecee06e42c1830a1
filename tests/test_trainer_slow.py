"""Two processes are one where rows forget, too: the same losses, weights and figures. Engines: test_engines_slow.py."""

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


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *map(str, arguments)], timeout=280, env=environment, **options)


def train_and_measure(folder, **options):
    """Two steps of eight rows, the second with two too few; weights, logs and figures are left in the folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder.parent / "start")
    trainer = make_trainer(model, folder, make_rows(14), make_rows(11, seed=1), max_steps=2, **options)
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
def test_two_ranks_of_two_by_two_are_one_batch_of_eight(tiny_llama, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    tiny_llama(VOCABULARY, tie_word_embeddings=True).save_pretrained(tmp_path / "start")
    alone, together = tmp_path / "alone", tmp_path / "together"
    train_and_measure(alone, **cut(8, 1), **FORGET)
    settings = {**cut(2, 2), "per_device_eval_batch_size": 2, **FORGET}
    torchrun(together, json.dumps(settings), check=True)
    one, two = (json.loads((folder / "told.json").read_text()) for folder in (alone, together))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for ours, theirs in zip(two["logs"], one["logs"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
        assert ours.keys() == {"loss", "loss_feedback", "loss_pretrain"}
    words = ("loss", "accuracy", "token", "share")
    same = [name for name in one["figures"] if "second" not in name and any(word in name for word in words)]
    assert len(same) > 12
    assert {name: two["figures"][name] for name in same} == pytest.approx(
        {name: one["figures"][name] for name in same}, rel=2e-5
    )
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (alone, together))
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=2e-6, rtol=2e-5)


if __name__ == "__main__":
    train_and_measure(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    from accelerate import PartialState

    PartialState().destroy_process_group()
