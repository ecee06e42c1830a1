"""Checkpoints that are complete or absent, and the folder of a run: what lies there, what may be resumed, what fits.

A checkpoint is written to `unfinished/checkpoint-N` beside the others. When every process is done, a marker with the
name and size of every file is added, all of it is flushed to the disk, and the folder is renamed to `checkpoint-N`. So
whatever has that name and a marker that fits is whole, and everything else is skipped by name.

In: folders. Out: `Checkpoint`, sentences about what is torn, and `RunError`. Nothing here knows about training.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coh.world import RunError

MARKER = "complete.json"
UNFINISHED = "unfinished"  # the folder in which checkpoints are made and unmade
# What a run leaves in its folder. Logs are not among it: they do no harm to another run, nor it to them.
REMAINS = ("checkpoint-*", "*.safetensors", "pytorch_model*.bin", "coh.json", "trainer_state.json", MARKER)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, and what its marker tells: `step`, `rows_per_step`, the `run` it belongs to, and more."""

    path: Path
    about: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.about["step"])


def complete(made: Path, final: Path, about: Mapping[str, Any]) -> None:
    """Gives a folder that is written its marker and its name, so that it is complete at once or not at all.

    Whatever had that name is moved aside first, and removed.
    """
    files = {str(file.relative_to(made)): file.stat().st_size for file in sorted(made.rglob("*")) if file.is_file()}
    for path in [*(made / name for name in files), *(folder for folder in made.rglob("*") if folder.is_dir())]:
        _flush(path)
    marker = made / MARKER
    marker.write_text(json.dumps({**about, "time": time.time(), "files": files}, indent=1) + "\n", encoding="utf-8")
    _flush(marker)
    _flush(made)
    if final.exists():
        remove(final)
    made.rename(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that it outlives a machine that stops."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint, which loses its name first: what is killed meanwhile leaves nothing torn under it."""
    aside = checkpoint.parent / UNFINISHED / f"{checkpoint.name}-{time.time_ns()}"
    aside.parent.mkdir(exist_ok=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        RunError: it is not complete; the message says what is missing.
    """
    try:
        about = json.loads((path / MARKER).read_text(encoding="utf-8"))
        files = {name: int(size) for name, size in about["files"].items()}
        step = int(about["step"])
    except FileNotFoundError:
        raise RunError(f"{path} is no complete checkpoint: it has no {MARKER}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RunError(f"{path} is no complete checkpoint: its {MARKER} cannot be read ({error})") from error
    for name, size in files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes of {size}"
            raise RunError(f"{path} is no complete checkpoint: {name} {state}")
    if about.get("is_model_only"):
        raise RunError(f"{path} holds step {step} of the model alone (--save_only_model): nothing can go on from it")
    return Checkpoint(path, about)


def checkpoints_in(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """The complete checkpoints of a run's folder, the one completed last at the end, and why others are not."""
    found, torn = [], []
    for path in sorted(folder.glob("checkpoint-*")):
        if path.is_dir() and re.fullmatch(r"checkpoint-\d+", path.name):
            try:
                found.append(read_checkpoint(path))
            except RunError as error:
                torn.append(str(error))
    # By the time of completion: a higher number may be left from a run that was not gone on with.
    return sorted(found, key=lambda one: (one.about.get("time", 0), one.step)), torn


def rotate(folder: Path, limit: int | None, keep: str | None) -> None:
    """Removes the oldest complete checkpoints beyond `limit`, never the newest, nor the one at the path `keep`."""
    found, _ = checkpoints_in(folder)
    kept = {found[-1].path.name, Path(keep).name if keep else ""} if found else set()
    old = [one for one in found if one.path.name not in kept]
    for one in old[: max(0, len(found) - limit)] if limit and limit > 0 else ():
        remove(one.path)


def clean(folder: Path) -> None:
    """Removes what a stopped run had not finished writing."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def remains(folder: Path) -> list[str]:
    """Names of what an earlier run left in a folder."""
    return sorted({path.name for pattern in REMAINS for path in folder.glob(pattern)})


def remove_remains(folder: Path) -> None:
    """Removes what an earlier run left in a folder, and nothing else."""
    for name in remains(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    clean(folder)


def finish(folder: Path, step: int) -> None:
    """Notes that a run has come to its end: its model and its figures are written."""
    clean(folder)
    scratch = folder / f"{MARKER}.new"
    scratch.write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    scratch.replace(folder / MARKER)


def finished_step(folder: Path) -> int | None:
    """The last step of a run that has come to its end, if one has in this folder."""
    path = folder / MARKER
    return int(json.loads(path.read_text(encoding="utf-8"))["step"]) if path.is_file() else None


def check_writable(folder: Path) -> None:
    """Makes a folder and tries to write into it.

    Raises:
        RunError: that does not work; better at the start than at the first checkpoint.
    """
    probe = folder / f".written-by-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"written")
        probe.unlink()
    except OSError as error:
        raise RunError(f"--output_dir {folder} cannot be written to ({error.strerror}): choose another one") from error


def choose(output_dir: Path, resume: str | bool | None) -> tuple[Checkpoint | None, list[str]]:
    """What a run begins from, and what to tell about it.

    `resume` is a checkpoint, the folder of a run (then its newest complete checkpoint), or "auto": the newest complete
    one in `output_dir`, or nothing where there is none.

    Raises:
        RunError: the folder of a new run has the remains of another; or there is nothing to resume.
    """
    if not resume:
        if found := remains(output_dir):
            shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
            raise RunError(
                f"--output_dir {output_dir} holds an earlier run ({shown}): go on with it by "
                "--resume_from_checkpoint auto, choose another folder, or empty this one"
            )
        return None, []
    is_auto = resume is True or resume == "auto"
    folder = output_dir if is_auto else Path(str(resume))
    if not is_auto and not folder.is_dir():
        raise RunError(f"--resume_from_checkpoint {resume}: there is no such folder")
    if not is_auto and not list(folder.glob("checkpoint-*")):
        return read_checkpoint(folder), []
    found_here, torn = checkpoints_in(folder)
    told = [f"skipped: {sentence}" for sentence in torn]
    if found_here:
        return found_here[-1], told
    if is_auto and finished_step(folder) is not None:
        return None, told
    if is_auto and all(name.startswith("checkpoint-") for name in remains(folder)):
        return None, [*told, f"{folder} has no complete checkpoint: training starts anew"]
    raise RunError(". ".join([f"{folder} has no complete checkpoint to resume from", *told]))


def checkpoint_bytes(model: Any, optimizer_name: Any) -> int:
    """About how many bytes a checkpoint takes: the weights that are saved, and the optimizer's numbers for them.

    >>> import torch
    >>> checkpoint_bytes(torch.nn.Linear(10, 100), "adamw_torch")  # 1100 weights and two moments, four bytes each
    13200
    """
    is_adapter = hasattr(model, "peft_config")
    weights = moments = 0
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 holds only a part of each here
        if parameter.requires_grad or not is_adapter:
            weights += count * parameter.element_size()
        if parameter.requires_grad:
            moments += count
    name = str(getattr(optimizer_name, "value", optimizer_name))
    per_weight = {"sgd": 0, "adafactor": 0}.get(name, 2 if "8bit" in name else 8)
    return weights + moments * per_weight


def check_space(folder: Path, needed: int, number: int) -> str | None:
    """A warning where a disk has no room for `number` checkpoints of `needed` bytes.

    Raises:
        RunError: there is no room for a single one.
    """
    free = shutil.disk_usage(folder).free
    if number and free < needed:
        raise RunError(
            f"a checkpoint takes about {size(needed)}, and {folder} has {size(free)} left: free some, choose another "
            "--output_dir, or do without checkpoints by --save_strategy no"
        )
    if free < number * needed:
        return (
            f"{number} checkpoints of about {size(needed)} are planned, and {folder} has {size(free)} left: "
            f"--save_total_limit {max(1, free // needed - 1)} keeps what fits"
        )
    return None


def size(count: int) -> str:
    """Bytes for people.

    >>> size(512), size(3_200_000), size(13_000_000_000)
    ('512 bytes', '3.2 MB', '13.0 GB')
    """
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"
