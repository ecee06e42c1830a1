"""Guards against launches that go wrong without a word: each of them says so, and sound launches pass."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_trainer import VOCABULARY, make_rows, make_trainer
from torch import nn

from coh.arguments import ConfigError
from coh.train_args import CoHTrainArgs
from coh.world import (
    COUNTS,
    RANKS,
    RunError,
    check_engine,
    check_sharding,
    early_problems,
    gather_when_saving,
    launch_problems,
    num_launched,
    saved_once,
)

ROOT = Path(__file__).parents[1]
TORCHRUN = {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node0"}


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in (*COUNTS, *RANKS, "LOCAL_WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)


def asked(**changes):
    options = {"use_cpu": False, "deepspeed": None, "fsdp": None, "world_size": 1}
    options |= {"accelerator_config": SimpleNamespace(), "deepspeed_plugin": None}
    return SimpleNamespace(**options | changes)


def zero3(tmp_path, gather):
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    text = (ROOT / "ds_config" / "zero3.json").read_text()
    (tmp_path / "zero3.json").write_text(text.replace('model_save": true', f'model_save": {gather}'))
    return SimpleNamespace(hf_ds_config=HfDeepSpeedConfig(str(tmp_path / "zero3.json")))


def messages(tmp_path):
    """What each wrong launch is told."""
    alone = asked()
    found = [
        launch_problems(alone, TORCHRUN | {"WORLD_SIZE": "2"}),
        early_problems(asked(use_cpu=True), {"WORLD_SIZE": "2"}, 0),
        early_problems(alone, TORCHRUN, 1),
        early_problems(asked(deepspeed="zero2.json"), {}, 1),
        launch_problems(asked(deepspeed_plugin=zero3(tmp_path, "false")), {}),
        launch_problems(asked(accelerator_config=SimpleNamespace(split_batches=True)), {}),
        launch_problems(asked(accelerator_config=SimpleNamespace(dispatch_batches=True)), {}),
    ]
    return [sentence for problems in found for sentence in problems]


def test_each_is_said_once(tmp_path):
    said = messages(tmp_path)
    assert len(said) == 7
    assert all(sentence.endswith(".") and ":" in sentence for sentence in said)


def test_the_page_lists_what_is_said(tmp_path):
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").split("## What the program refuses")[1]
    rows = re.findall(r"^\| (.*?) \| .* \| .* \|$", page, re.M)[1:]
    elsewhere = ["one process sees 2 GPUs", "fsdp was asked for, but", "--fsdp: one process has nobody"]
    for row in rows:
        assert any(text.startswith(row) or row.startswith(text) for text in [*messages(tmp_path), *elsewhere]), row
    assert len(rows) == 9


@pytest.mark.parametrize("gpus", [8, 0])
def test_sound_launches_pass(tmp_path, gpus):
    for args, environment in [
        (asked(), {}),
        (asked(world_size=16), TORCHRUN),
        (asked(world_size=16), TORCHRUN | {"SLURM_STEP_NUM_TASKS": "2"}),
        (asked(use_cpu=True, world_size=16), TORCHRUN),
        (asked(use_cpu=True, world_size=4), {"OMPI_COMM_WORLD_SIZE": "4", "MASTER_ADDR": "node0"}),
        (asked(deepspeed="x", deepspeed_plugin=zero3(tmp_path, "true"), world_size=16), TORCHRUN),
        (asked(), {"SLURM_STEP_NUM_TASKS": "1"}),
    ]:
        assert [*early_problems(args, environment, gpus), *launch_problems(args, environment)] == []


@pytest.mark.parametrize("variable", COUNTS)
def test_whoever_launched_several(variable):
    assert num_launched({variable: "3"}) == (3, variable)
    (sentence,) = launch_problems(asked(), {variable: "3"})
    assert (
        f"start them with torchrun, once on each node (docs/scaling.md) if {variable} comes from elsewhere" in sentence
    )
    assert num_launched({variable: "many"}) == (1, "")


def test_the_options_say_it_before_anything_is_joined(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, but nothing says where these processes meet"):
        CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2(.|\n)*a launcher has to number") as said:
        CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True, deepspeed="ds_config/zero2.json", fcm_min_ratio=2.0)
    assert "--fcm_min_ratio" in str(said.value), "with all other problems"


def test_batches_that_are_dealt_otherwise_are_refused(tmp_path):
    for name in ("split_batches", "dispatch_batches"):
        with pytest.raises(ConfigError, match=f"--accelerator_config {name}"):
            CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True, accelerator_config={name: True})


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_wrappers_by_their_real_types(process_group):
    from torch.distributed.fsdp import fully_shard

    plain, copies, sharded = nn.Linear(2, 2), nn.parallel.DistributedDataParallel(nn.Linear(2, 2)), nn.Linear(2, 2)
    fully_shard(sharded, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    fsdp, deepspeed = asked(fsdp=True), asked(deepspeed="zero2.json")
    check_engine(fsdp, sharded)
    for model in (plain, copies, sharded):
        check_engine(asked(), model)
        with pytest.raises(RunError, match="deepspeed was asked for, but the model is wrapped as"):
            check_engine(deepspeed, model)
    with pytest.raises(RunError, match="fsdp was asked for, but the model is wrapped as DistributedDataParallel"):
        check_engine(fsdp, copies)
    with pytest.raises(RunError, match="wrapped as Linear"):
        check_engine(fsdp, plain)


def test_deepspeed_s_wrapper_has_the_name_that_is_looked_for():
    from deepspeed.runtime.engine import DeepSpeedEngine

    check_engine(asked(deepspeed="zero2.json"), DeepSpeedEngine.__new__(DeepSpeedEngine))


def test_training_does_not_begin_under_another_engine(monkeypatch, tiny_llama, tmp_path):
    """accelerate's launcher asks for FSDP; a process without GPU gets none, and nobody says so."""
    trainer = make_trainer(tiny_llama(VOCABULARY), tmp_path, make_rows(8))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RunError, match="fsdp was asked for, but the model is wrapped as LlamaForCausalLM"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_one_process_has_nothing_to_share_out(tmp_path):
    args = CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True, fsdp=True)  # fine for a look at the rows
    with pytest.raises(RunError, match="--fsdp: one process has nobody to share its model with"):
        check_sharding(args)
    check_sharding(CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True))


def test_fsdp_saves_whole_weights_whatever_the_launcher_set():
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    assert "SHARDED" in str(plugin.state_dict_type), "so Trainer would save no weights"
    gather_when_saving(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    assert "FULL" in str(plugin.state_dict_type)
    gather_when_saving(SimpleNamespace(state=SimpleNamespace()))


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_tied_head_is_saved_once(tiny_llama, is_tied):
    model = tiny_llama(VOCABULARY, tie_word_embeddings=is_tied)
    copies = {name: value.clone() for name, value in model.state_dict().items()}
    left = saved_once(model, copies)
    assert copies.keys() - left.keys() == ({"lm_head.weight"} if is_tied else set())
    copies["lm_head.weight"] += 1  # no longer the same
    assert saved_once(model, copies).keys() == copies.keys()
    assert saved_once(torch.nn.Linear(1, 1), copies).keys() == copies.keys()
