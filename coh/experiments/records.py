"""The folder of an experiment: a folder for each run, whose `result.json` is there whole or not at all.

Any number of processes may fill one folder at once. Who works at a run holds a lock on its folder, which the system
takes back when the process ends in whatever way; what a killed one leaves is swept away by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coh.data.records import FeedbackError
from coh.experiments.arms import Run
from coh.experiments.comparing import Measured

RESULT, SETTINGS, LOCK, WORK = "result.json", "settings.json", "lock", "work"


def write_json(path: Path, content: Any) -> None:
    """The file is there whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes down what all results of the folder have in common.

    Raises:
        FeedbackError: those that are there came about otherwise, so they cannot stand in one table with new ones.
    """
    path, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    found = read_json(path)
    changed = [name for name in settings if found.get(name, settings[name]) != settings[name]]
    if changed:
        told = "; ".join(f"{name} was {found.get(name)}, now {settings[name]}" for name in changed)
        raise FeedbackError(f"{folder} holds results with other settings ({told}): choose another --output_dir")


def read_json(path: Path) -> Any:
    """What a file of ours holds.

    Raises:
        FeedbackError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeedbackError(f"{path} cannot be read ({error}): delete it, and run again") from None


def is_done(folder: Path, run: Run) -> bool:
    """Whether a run's result is there."""
    return (folder / run.name / RESULT).is_file()


@contextmanager
def claim(folder: Path, run: Run) -> Iterator[Path | None]:
    """A place to work in, empty, which is gone afterwards; None where the run is done, or another process is at it."""
    own = folder / run.name
    own.mkdir(parents=True, exist_ok=True)
    with (own / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if is_done(folder, run):
            yield None
            return
        for remains in [own / WORK, *own.glob("*.partial")]:
            shutil.rmtree(remains) if remains.is_dir() else remains.unlink(missing_ok=True)
        try:
            (own / WORK).mkdir()
            yield own / WORK
        finally:
            shutil.rmtree(own / WORK, ignore_errors=True)


def read_results(folder: Path) -> dict[Run, dict[str, Any]]:
    """All results of a folder.

    Raises:
        FeedbackError: two of them are not of the same pairs in the same order, so that no difference can be had.
    """
    paths = sorted(folder.glob(f"*/{RESULT}"))
    found = [read_json(path) for path in paths]
    for path, one in zip(paths[1:], found[1:]):
        if _pairs(one) != _pairs(found[0]):
            raise FeedbackError(
                f"{paths[0].parent} and {path.parent} were not measured on the same pairs: the feedback changed in "
                "between. Delete the one that is of the old feedback, and run again, or choose another --output_dir"
            )
    return {Run(one["arm"], one["seed"]): one for one in found}


def _pairs(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which pairs a result is of."""
    return [(pair["source"], pair["prompt"]) for pair in result["pairs"]]


def measured(result: Mapping[str, Any]) -> Measured:
    """What a result says of each pair and text."""
    pairs = result["pairs"]
    return Measured(
        np.array([pair["log_p"] for pair in pairs], float).reshape(-1, 2, 2),
        np.array([pair["num_tokens"] for pair in pairs], float).reshape(-1, 2),
        tuple(pair["source"] for pair in pairs),
        np.array(result["texts"], float).reshape(-1, 2),
        tuple(pair["prompt"] for pair in pairs),
    )
