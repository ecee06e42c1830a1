"""A run as its output folder tells it: curves, figures before and after, outputs, data, and how it was started.

In: a folder that `coh.coh_train` wrote. Out: a `Run`; what is not in the folder is named in `missing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE, ABOUT, EVALUATION = "trainer_state.json", "coh.json", "evaluation.json"
MOMENTS = {"before": "base", "after": "model"}  # and what `coh.evaluate --json` calls the model then
SERIES = {  # that every run logs
    "loss": "the loss of training",
    "loss_feedback": "the loss on feedback",
    "learning_rate": "the learning rate",
    "grad_norm": "the gradient norm",
    "tokens_per_second": "tokens per second",
    "num_tokens_seen": "the number of tokens read",
    "train_runtime": "the time of training",
}


class ReportError(ValueError):
    """A folder that gives no report; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    `series[name]` are (step, value) pairs, by the names of the log. `about` is coh.json: words, data, arguments,
    versions, and how the run was started. `measured[moment]` has, for before and after, what `coh.evaluate` found, if
    it was told to write it into the folder as evaluation.json. `num_steps` and `num_tokens` are those of the whole run,
    which the last point of a curve falls short of; `num_tokens` is 0 where it is not known.
    """

    name: str
    folder: Path
    series: dict[str, list[tuple[int, float]]]
    about: dict[str, Any]
    measured: dict[str, dict[str, Any]]
    missing: tuple[str, ...] = field(default=())
    num_steps: int = 0
    num_tokens: int = 0

    def curve(self, name: str) -> list[tuple[int, float]]:
        """The (step, value) pairs of a series; none where it was not logged."""
        return self.series.get(name, [])

    def evaluated(self, measure: str) -> dict[str, list[tuple[int, float]]]:
        """The curves of one measure in evaluation, by source; "" is all feedback together."""
        found = re.compile(rf"eval_(?:(.+)_)?{measure}")
        matches = ((found.fullmatch(name), curve) for name, curve in self.series.items())
        return {match[1] or "": curve for match, curve in matches if match}

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
    num_steps, num_tokens = _read_so_far(state, series)
    about, measured = _read(folder / ABOUT) or {}, _read(folder / EVALUATION) or {}
    moments = {moment: measured.get(name) for moment, name in MOMENTS.items()}
    return Run(
        name or folder.resolve().name,
        folder,
        series,
        about,
        {moment: found for moment, found in moments.items() if found},
        tuple(_missing(series if not num_tokens else {"num_tokens_seen": num_tokens, **series}, about, moments)),
        num_steps,
        num_tokens,
    )


def _read_so_far(state: Mapping[str, Any], series: Mapping[str, list[tuple[int, float]]]) -> tuple[int, int]:
    """Steps and tokens of a run: the state counts on after the last log, and an older one knows the log alone."""
    steps = [step for curve in series.values() for step, _ in curve]
    tokens = [int(value) for _, value in series.get("num_tokens_seen", [])]
    return (
        max([state.get("global_step") or 0, *steps]),
        max([state.get("num_input_tokens_seen") or 0, *tokens]),
    )


def _missing(series: Mapping[str, Any], about: Mapping[str, Any], moments: Mapping[str, Any]) -> Iterator[str]:
    """Everything that a report of this run could show, and that was not recorded."""
    has_text = _has_text(about.get("arguments") or {})
    evaluated = [name for name in series if re.fullmatch("eval_.*loss", name)]
    wanted = {
        **{what: name in series for name, what in SERIES.items()},
        "the loss on pretraining text": "loss_pretrain" in series or not has_text,
        "losses of evaluation (--eval_strategy)": bool(evaluated),
        "the loss on held-out text in evaluations": "eval_pretrain_loss" in evaluated or not (evaluated and has_text),
        f"data, arguments and versions ({ABOUT})": bool(about),
        **_of_start(about),
        f"figures before training (coh.evaluate --base, {EVALUATION})": bool(moments["before"]),
        f"figures after training (coh.evaluate, {EVALUATION})": bool(moments["after"]),
        **{
            f"the loss on held-out text {moment} training (coh.evaluate --pretrain_data)": bool(found.get("text_loss"))
            for moment, found in moments.items()
            if found and has_text
        },
        **_of_outputs(moments),
    }
    return (what for what, is_there in wanted.items() if not is_there)


def _has_text(arguments: Mapping[str, Any]) -> bool:
    """Whether the run learned plain text beside the feedback."""
    return arguments.get("pretrain_data", "none") != "none" and (arguments.get("pretrain_ratio", 1) or 0) > 0


def _of_start(about: Mapping[str, Any]) -> dict[str, bool]:
    """What tells how the run was started; a run from Python has no command."""
    run = about.get("run")
    if not run:
        return {"how it was started: command, commit, device": False}
    return {"coh's commit (known where coh runs from a checkout of its repository)": bool(run.get("commit"))}


def _of_outputs(moments: Mapping[str, Any]) -> dict[str, bool]:
    """Outputs, and their ROUGE where there are any."""
    of_sources = [own for found in moments.values() for own in ((found or {}).get("written") or {}).values()]
    written = [own for own in of_sources if own["outputs"]]
    figures = [figures for own in written for figures in own["figures"].values()]
    return {
        "outputs (coh.evaluate --num_prompts)": bool(written),
        "ROUGE of the outputs (pip install rouge-score, then measure)": all("rouge1" in own for own in figures),
    }


def _read(path: Path) -> Any:
    """What a JSON file holds, or None where there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error
