"""How a run was started, for its report: the command, the commit of coh, when, on what.

In: the training arguments and the command line. Out: plain values, as `coh.json` keeps them under "run". A token of the
hub is never among them. `commit` is coh's own; what a run was started beside (recipes, data) may lie in a repository of
its own, whose commit is `commit_of_working_folder`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from coh.identity import engine

HIDDEN = "..."
PACKAGE = Path(__file__).resolve().parent
PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")  # by which hooks tell git where it is


def provenance(train: Any, argv: Sequence[str] | None) -> dict[str, Any]:
    """The facts of a run that begins now; without a command line, as from Python, no command is among them."""
    own, here = commit_of_package(PACKAGE), commit()
    found = {
        "command": "" if argv is None else command(argv, os.environ),
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(train.device) if train.device.type == "cuda" else train.device.type,
        "processes": train.world_size,
        "engine": engine(train),
        "commit": own,
        "commit_of_working_folder": "" if here == own else here,
    }
    return {name: value for name, value in found.items() if value}


def command(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command line as it can be pasted into a shell, without secrets.

    >>> command(["--seed", "1", "--run_name", "a b", "--hub_token", "hf_x"], {})
    "python -m coh.coh_train --seed 1 --run_name 'a b' --hub_token ..."
    >>> command(["--seed", "1"], {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    'torchrun --nnodes 2 --nproc_per_node 2 -m coh.coh_train --seed 1'
    """
    words = list(argv)
    for place, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name.startswith("--") and name.endswith("token"):
            if equals:
                words[place] = f"{name}={HIDDEN}"
            elif place + 1 < len(words):
                words[place + 1] = HIDDEN
    processes, on_this_machine = (int(environment.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    start = "python"
    if processes > 1:
        start = f"torchrun --nnodes {max(1, processes // on_this_machine)} --nproc_per_node {on_this_machine}"
    return f"{start} -m coh.coh_train {shlex.join(words)}".rstrip()


def commit(folder: str | Path = ".") -> str:
    """The commit of a folder, "-dirty" where files differ from it; empty outside of a repository, or without git."""
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def commit_of_package(folder: Path) -> str:
    """The commit that holds the code in a folder; empty where it is installed, in whatever repository that lies."""
    return commit(folder) if _git(folder, "ls-files", "--", "__init__.py") else ""


def _git(folder: str | Path, *words: str) -> str:
    """What git says of a folder; nothing where it has nothing to say, or is not there."""
    environment = {name: value for name, value in os.environ.items() if name not in PLACES}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
    try:
        return subprocess.run(["git", *words], cwd=folder, env=environment, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
