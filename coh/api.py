"""Training from Python: the options of `coh.coh_train` by keyword, and feedback from memory besides files.

train(model_name="gpt2", feedback_data=[{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}], output_dir="out")
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coh import coh_train
from coh.arguments import SUCCESSORS, ConfigError
from coh.data.data_args import CoHDataArgs
from coh.experiment import ExperimentArgs, cross_problems
from coh.train_args import CoHTrainArgs

TYPES = (ExperimentArgs, CoHDataArgs, CoHTrainArgs)
LISTS = ("feedback_data", "eval_feedback_data")


def train(**options: Any) -> str:
    """Trains as `python -m coh.coh_train` does, and returns the folder of the trained model.

    Args:
        options: of `ExperimentArgs`, `CoHDataArgs` and `CoHTrainArgs` by their names. In `feedback_data` and
            `eval_feedback_data` rows may stand in the place of a source: a list of dicts, in any format of feedback.
            A single value may stand for a list of one.

    Raises:
        ConfigError: everything that is wrong with the options, before any weights load.
        FeedbackError, ModelError: what is wrong with the data or the model.
    """
    with tempfile.TemporaryDirectory(prefix="coh-rows-") as scratch:
        options |= {name: _sources(options[name], Path(scratch), name) for name in LISTS if options.get(name)}
        experiment, data, train_args = arguments(options)
        coh_train.run(experiment, data, train_args)
    return str(train_args.output_dir)


def arguments(options: Mapping[str, Any]) -> tuple[ExperimentArgs, CoHDataArgs, CoHTrainArgs]:
    """The three dataclasses that own the options, checked one by one and against each other.

    >>> arguments({"model_nmae": "gpt2"})
    Traceback (most recent call last):
    coh.arguments.ConfigError: model_nmae is not an option: did you mean model_name?
    """
    fields = {one: {f.name: f for f in dataclasses.fields(one) if f.init} for one in TYPES}
    known = [name for names in fields.values() for name in names]
    problems = [_unknown(name, known) for name in options if name not in known]
    if problems:
        raise ConfigError(problems)
    made: list[Any] = []
    for one, names in fields.items():
        given = {name: _as_list(options[name], names[name]) for name in names if name in options}
        try:
            made.append(one(**given))
        except ConfigError as error:
            problems += error.problems
        except (ValueError, TypeError, ImportError, OSError) as error:  # the checks of transformers
            problems.append(f"{one.__name__}: {error}")
    if not problems:
        problems += cross_problems(*made)
    if problems:
        raise ConfigError(problems)
    experiment, data, train_args = made
    return experiment, data, train_args


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if name in SUCCESSORS:
        return f"{name} is not an option: use {SUCCESSORS[name]}."
    remedy = f"did you mean {near[0]}?" if near else "python -m coh.coh_train --help lists all options."
    return f"{name} is not an option: {remedy}"


def _as_list(value: Any, field: dataclasses.Field[Any]) -> Any:
    """A single value as the list that an option takes."""
    takes_list = str(field.type).startswith("list[")
    return [value] if takes_list and isinstance(value, (str, int, float)) else value


def _sources(given: Any, scratch: Path, name: str) -> list[str]:
    """Sources as texts; rows are written to a file, which is named after their place."""
    given = [given] if isinstance(given, str) else list(given)
    if given and all(isinstance(item, Mapping) for item in given):
        given = [given]
    sources = []
    for place, item in enumerate(given):
        if isinstance(item, str):
            sources.append(item)
            continue
        rows = list(item) if isinstance(item, Sequence) else []
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise ConfigError(f"{name}[{place}] is {str(item)[:40]!r}: give the name of a source, or a list of dicts.")
        path = scratch / f"rows_{place}.jsonl"
        lines = [json.dumps(dict(row), ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        sources.append(str(path))
    return sources
