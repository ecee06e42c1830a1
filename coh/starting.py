"""Before a run trains: where it begins, and everything that would make going on wrong or impossible, as a sentence.

In: the training arguments, the facts of the run, the model. Out: the checkpoint to begin from, the same in all
processes, or `RunError`, raised by all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from coh import checkpoints
from coh.checkpoints import Checkpoint
from coh.identity import differences, installed_versions
from coh.world import RunError

logger = logging.getLogger("coh")


def agreed(look: Callable[[], Any]) -> Any:
    """What the first process finds, for all of them; where it raises a RunError, all raise it."""
    found: list[Any] = [None, None]
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if is_first:
        try:
            found = [look(), None]
        except RunError as error:
            found = [None, str(error)]
    broadcast_object_list(found)
    if found[1] is not None:
        raise RunError(found[1])
    return found[0]


def find_start(args: Any) -> Checkpoint | None:
    """The checkpoint that a run begins from, if any, as `args.resume_from_checkpoint` says; the same in all processes.

    Raises:
        RunError: the output folder is not writable, or holds another run; or there is nothing to resume.
    """

    def look() -> Checkpoint | None:
        checkpoints.check_writable(Path(args.output_dir))
        found, told = checkpoints.choose(Path(args.output_dir), args.resume_from_checkpoint)
        for sentence in told:
            logger.warning("%s", sentence)
        if found is not None:
            logger.info("Going on from %s, behind step %d", found.path, found.step)
        return found

    found = agreed(look)
    if found is not None and not found.path.is_dir():
        raise RunError(f"rank {args.process_index} does not see {found.path}: --output_dir has to be a shared folder")
    return found


def is_finished(args: Any, start: Checkpoint | None) -> bool:
    """Whether a run that is to be resumed has come to its end already, which is said.

    Raises:
        RunError: it has, but more steps are wanted now, and there is no checkpoint to go on from.
    """
    last = agreed(lambda: checkpoints.finished_step(Path(args.output_dir)))
    if not args.resume_from_checkpoint or last is None:
        return False
    if last >= args.max_steps:
        logger.warning("The run in %s is finished, at step %d: there is nothing to do", args.output_dir, last)
        return True
    if start is None:
        raise RunError(f"the run in {args.output_dir} is finished, at step {last}, and has no checkpoint to go on from")
    return False


def check_same_run(start: Checkpoint, facts: Mapping[str, Any], is_forced: bool) -> None:
    """Raises RunError where a checkpoint belongs to another run, unless that is forced; says what is different."""

    def look() -> None:
        then = start.about.get("run", {})
        different = differences(then, facts)
        versions = differences(start.about.get("versions", {}), installed_versions())
        if versions:
            logger.warning("%s: %s; results may differ in the last digits", start.path, "; ".join(versions))
        if different and not (is_forced and facts.get("engine") == then.get("engine")):
            remedy = "give what it had, choose another --output_dir for a new run, or insist by --force_resume"
            if facts.get("engine") != then.get("engine"):
                remedy = "each engine has checkpoints of its own: give what it had"
            lines = "".join(f"\n  {sentence}" for sentence in different)
            raise RunError(f"{start.path} belongs to another run:{lines}\n{remedy}")
        for sentence in different:
            logger.warning("--force_resume: %s", sentence)

    agreed(look)


def check_room(model: Any, args: Any) -> None:
    """Raises RunError where the disk has no room for one checkpoint, and warns where it has too little for all."""
    planned = {"no": 0, "steps": args.max_steps / args.save_steps if args.save_steps >= 1 else 1 / args.save_steps}
    number = math.ceil(planned.get(str(getattr(args.save_strategy, "value", args.save_strategy)), 1))
    if args.save_total_limit:
        number = min(number, args.save_total_limit + 1)  # a new one is complete before an old one goes
    needed = checkpoints.checkpoint_bytes(model, args.optim)
    if warning := agreed(lambda: checkpoints.check_space(Path(args.output_dir), needed, number)):
        logger.warning("%s", warning)


def check_shapes(model: Any, checkpoint: Path) -> None:
    """Raises RunError unless the weights in a checkpoint have the names and shapes of the model's."""
    from safetensors import safe_open

    own = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters(remove_duplicate=False)}
    found: dict[str, tuple[int, ...]] = {}
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    for name, shape in found.items():
        if name in own and own[name] != shape:
            raise RunError(
                f"{checkpoint} is of another model: its {name} has the shape {shape}, the model's {own[name]}: give "
                "the --model_name with which the run began"
            )
    # What is tied is saved under one of its names.
    tied = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in found}
    absent = [n for n, p in model.named_parameters(remove_duplicate=False) if n not in found and id(p) not in tied]
    if found and absent:
        raise RunError(f"{checkpoint} is of another model: it has no {absent[0]}: give the --model_name of its run")
