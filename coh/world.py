"""How a run was launched, and guards against launches that would go wrong without a word.

In: the variables that launchers set, the training arguments, the model as an engine has wrapped it. Out: sentences for
a person to act on, and `RunError`. `docs/scaling.md` has the commands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import TrainerCallback

# Who launches says how many processes there are in one of these: torchrun (and deepspeed, accelerate), MPI, srun.
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANKS = ("LOCAL_RANK", "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
GATHER = "stage3_gather_16bit_weights_on_model_save"
WITH_TORCHRUN = "start them with torchrun, once on each node (docs/scaling.md)"
# Classes of the wrappers, by the engine that was asked for.
WRAPPERS = {"fsdp": {"FSDPModule", "FullyShardedDataParallel"}, "deepspeed": {"DeepSpeedEngine"}}


class RunError(ValueError):
    """A run that cannot start as it was launched; the message says why and what to do."""


def num_launched(environment: Mapping[str, str]) -> tuple[int, str]:
    """How many processes were launched together, and the variable that says so.

    >>> num_launched({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "16"})
    (16, 'WORLD_SIZE')
    >>> num_launched({})
    (1, '')
    """
    for name in COUNTS:
        if environment.get(name, "").isdigit():
            return int(environment[name]), name
    return 1, ""


def early_problems(args: Any, environment: Mapping[str, str], num_gpus: int) -> Iterator[str]:
    """What is wrong with the launch, before processes look for each other: joining them might fail or wait."""
    launched, variable = num_launched(environment)
    if args.use_cpu and launched > 1 and variable != COUNTS[-1] and "MASTER_ADDR" not in environment:
        yield (
            f"{variable} is {launched}, but nothing says where these processes meet (MASTER_ADDR): {WITH_TORCHRUN}, "
            f"or unset {variable}."
        )
    here = int(environment.get("LOCAL_WORLD_SIZE", 1))
    if not args.use_cpu and 0 < num_gpus < here:
        yield (
            f"{here} processes were launched on this machine, and each of them sees {num_gpus} of its GPUs: launch "
            f"{num_gpus}, or let every process see all GPUs (CUDA_VISIBLE_DEVICES; under SLURM one task a node)."
        )
    if args.deepspeed and not any(name in environment for name in RANKS):
        yield (
            "--deepspeed: a launcher has to number the processes, even one: sh llama_train.sh, deepspeed --num_gpus 1, "
            "or torchrun --nproc_per_node 1 (docs/scaling.md)."
        )


def launch_problems(args: Any, environment: Mapping[str, str]) -> Iterator[str]:
    """What is wrong between the launch and the process group, and between the options and either."""
    launched, variable = num_launched(environment)
    if launched > 1 and args.world_size == 1:
        yield (
            f"{launched} processes were launched, but each would train a model of its own: pass --use_cpu if the "
            f"machine has no GPU, {WITH_TORCHRUN} if {variable} comes from elsewhere, or launch one process."
        )
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name, False):
            yield f"--accelerator_config {name}: every process reads its own rows by itself, so leave it out."
    config = getattr(args.deepspeed_plugin, "hf_ds_config", None)
    if config is not None and config.is_zero3() and not config.get_value(f"zero_optimization.{GATHER}", False):
        yield (
            f"--deepspeed: with ZeRO-3 and without {GATHER} no process ever holds the whole model, so none could be "
            'saved: set it to true under "zero_optimization", as ds_config/zero3.json does.'
        )


def join_deepspeed_on_cpu() -> None:
    """DeepSpeed's own process group for --use_cpu, over gloo.

    Transformers makes one without use_cpu; with it, ZeRO-3 would load the weights as if each rank were alone.
    """
    import deepspeed  # slow to import, and optional

    # DeepSpeed would compile a shared-memory transport first: a minute, a compiler, and where the build is killed, a
    # lock for which every later run waits. Gloo is there already, and between machines too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def check_sharding(args: Any) -> None:
    """Raises RunError where a single process is to share its model out. Looking at rows alone may go on."""
    if args.fsdp and args.world_size == 1:
        raise RunError("--fsdp: one process has nobody to share its model with: launch several, or leave it out")


def check_engine(args: Any, wrapped: torch.nn.Module) -> None:
    """Raises RunError unless the model is sharded by the engine that was asked for, here or from accelerate's launcher.

    On a device that accelerate has no FSDP for, such as the CPU, it takes DistributedDataParallel and says nothing.
    """
    by_launcher = {name: os.environ.get(f"ACCELERATE_USE_{name.upper()}", "") == "true" for name in WRAPPERS}
    whole = getattr(wrapped, "_orig_mod", wrapped)  # torch.compile's shell
    classes = [kind.__name__ for kind in type(whole).__mro__]
    for engine, names in WRAPPERS.items():
        if (getattr(args, engine, None) or by_launcher[engine]) and not names.intersection(classes):
            raise RunError(
                f"{engine} was asked for, but the model is wrapped as {classes[0]}, so that every process holds all of "
                f"it: {engine} needs a GPU for each process, and --use_cpu left out. Or leave --{engine} out."
            )


class EngineGuard(TrainerCallback):
    """Checks, when training begins, that the trainer's model is wrapped as was asked for."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_engine(args, self.trainer.model_wrapped)


def gather_when_saving(accelerator: Any) -> None:
    """Makes FSDP save whole weights from here on: as accelerate's launcher sets it up, it would silently save none."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")


def saved_once(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights less those that are another's: DeepSpeed copies each, so that a tied head would be saved twice."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {
        name: value
        for name, value in weights.items()
        if tied.get(name) not in weights or not torch.equal(value, weights[tied[name]])
    }
