"""How a run is done again: the command that started it, or the call from Python, and the facts around it.

In: a `Run`. Out: a `Start`, words and code alike for page and text, and a table of facts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from coh.data.data_args import CoHDataArgs
from coh.experiment import ExperimentArgs
from coh.report.record import Run
from coh.report.tables import command
from coh.train_args import CoHTrainArgs

NOTHING = (None, False, "", "none", "no")
# Secrets, what Trainer fills in by itself, and what says nothing about a run.
NOT_GIVEN = ("hub_token", "accelerator_config", "disable_tqdm", "do_eval", "local_rank", "logging_dir")
IN_MEMORY = re.compile(r"coh-rows-[^/\\]*[/\\]rows_\d+\.jsonl")  # where `coh.train` lays the rows that it is given


class Start(NamedTuple):
    """What started a run: a title, a remark (may be empty), and code in a language (may be empty)."""

    title: str
    remark: str
    code: str
    language: str


def start(run: Run) -> Start | None:
    """How the run was started; None where that is not known."""
    if command(run):
        return Start("Command", "", command(run), "sh")
    if not run.about.get("run"):
        return None
    if not run.arguments:
        return Start("Call", "It was called from Python, and coh.json has no arguments.", "", "")
    remark = "It was called from Python, so there is no command. These options differ from their defaults:"
    if IN_MEMORY.search(str(run.arguments.get("feedback_data"))):
        remark = f"{remark[:-1]} (rows were given in memory, and the files that are named for them are gone):"
    return Start("Call", remark, call(run.arguments), "python")


def call(arguments: Mapping[str, Any]) -> str:
    """The call from Python with the options that differ from their defaults.

    >>> print(call({"model_name": "gpt2", "seed": 7, "chains": ["p"], "hub_token": "secret", "bf16": False}))
    import coh
    <BLANKLINE>
    coh.train(
        chains=['p'],
        seed=7,
    )
    """
    lines = [
        f"    {name}={arguments[name]!r},\n"
        for name, default in _defaults()
        if name in arguments and name not in NOT_GIVEN and not _is_same(arguments[name], default)
    ]
    return f"import coh\n\ncoh.train(\n{''.join(lines)})"


def _defaults() -> Iterator[tuple[str, Any]]:
    for owner in (ExperimentArgs, CoHDataArgs, CoHTrainArgs):
        for option in dataclasses.fields(owner):
            if option.init:
                made = option.default_factory
                yield option.name, option.default if made is dataclasses.MISSING else made()


def _is_same(value: Any, default: Any) -> bool:
    """Whether a value that went through JSON is the default; nothing is nothing, however it is written."""
    is_nothing = [one in NOTHING or one == [] or one == {} for one in (value, default)]
    return value == default or all(is_nothing)
