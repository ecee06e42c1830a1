"""How a run was started, for its report: the command, the commit it ran at, when, on what.

In: the training arguments and the command line. Out: plain values, as `coh.json` keeps them under "run". A token of the
hub is never among them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from coh.identity import engine

HIDDEN = "..."


def provenance(train: Any, argv: Sequence[str] | None) -> dict[str, Any]:
    """The facts of a run that begins now; without a command line, as from Python, no command is among them."""
    found = {
        "command": "" if argv is None else command(argv, os.environ),
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(train.device) if train.device.type == "cuda" else train.device.type,
        "processes": train.world_size,
        "engine": engine(train),
        "commit": commit(),
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


def commit() -> str:
    """The commit of the working directory, "-dirty" where files differ from it; empty outside of a repository."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
