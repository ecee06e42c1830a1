"""A run as its output folder tells it: curves, figures before and after, outputs, data, and how it was started.

In: a folder that `coh.coh_train` wrote. Out: a `Run`; what is not in the folder is named in `missing`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE, ABOUT, EVALUATION = "trainer_state.json", "coh.json", "evaluation.json"
MOMENTS = {"before": "base", "after": "model"}  # and what `coh.evaluate --json` calls the model then


class ReportError(ValueError):
    """A folder that gives no report; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    `series[name]` are (step, value) pairs, by the names of the log. `about` is coh.json: words, data, arguments,
    versions, and how the run was started. `measured[moment]` has, for before and after, what `coh.evaluate` found, if
    it was told to write it into the folder as evaluation.json.
    """

    name: str
    folder: Path
    series: dict[str, list[tuple[int, float]]]
    about: dict[str, Any]
    measured: dict[str, dict[str, Any]]
    missing: tuple[str, ...] = field(default=())

    def curve(self, name: str) -> list[tuple[int, float]]:
        """The (step, value) pairs of a series; none where it was not logged."""
        return self.series.get(name, [])

    def evaluated(self, measure: str) -> dict[str, list[tuple[int, float]]]:
        """The curves of one measure in evaluation, by source; "" is all feedback together."""
        start, end = "eval_", measure
        names = [name for name in self.series if name.startswith(start) and name.endswith(end)]
        return {name[len(start) : len(name) - len(end)].strip("_"): self.series[name] for name in names}

    @property
    def summary(self) -> dict[str, Any]:
        """What the data is made of, as `coh.data.summary` says it."""
        return self.about.get("data") or {}

    @property
    def arguments(self) -> dict[str, Any]:
        return self.about.get("arguments") or {}


def read_run(folder: str | Path, name: str = "") -> Run:
    """The run in a folder.

    Raises:
        ReportError: it holds no run, or a file that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(f"{folder}: there is no such folder: give the --output_dir of a training run")
    state = _read(folder / STATE)
    if state is None:
        raise ReportError(
            f"{folder} has no {STATE}: it is no --output_dir of a training run, or that run has not ended"
        )
    series: dict[str, list[tuple[int, float]]] = {}
    for entry in state.get("log_history", []):
        for key, value in entry.items():
            if key not in ("step", "epoch") and isinstance(value, (int, float)):
                series.setdefault(key, []).append((int(entry.get("step", 0)), float(value)))
    about, measured = _read(folder / ABOUT) or {}, _read(folder / EVALUATION) or {}
    moments = {moment: measured.get(name) for moment, name in MOMENTS.items()}
    wanted = {
        "the loss of training": "loss" in series,
        "losses of evaluation (--eval_strategy)": any(re.fullmatch("eval_.*loss", key) for key in series),
        "the gradient norm": "grad_norm" in series,
        f"data, arguments and versions ({ABOUT})": bool(about),
        f"figures before training (coh.evaluate --base, {EVALUATION})": bool(moments["before"]),
        f"figures after training (coh.evaluate, {EVALUATION})": bool(moments["after"]),
        "outputs (coh.evaluate --num_prompts)": any((found or {}).get("written") for found in moments.values()),
    }
    return Run(
        name or folder.resolve().name,
        folder,
        series,
        about,
        {moment: found for moment, found in moments.items() if found},
        tuple(what for what, is_there in wanted.items() if not is_there),
    )


def _read(path: Path) -> Any:
    """What a JSON file holds, or None where there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error
