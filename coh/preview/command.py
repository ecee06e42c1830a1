"""The command: the options of training go in, rows and figures come out; no weights are loaded, nothing is trained."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from coh.arguments import ConfigError, parse
from coh.data.coh_data import CoHDataArgs, load_datasets
from coh.data.pretrain import TextError
from coh.data.records import FeedbackError
from coh.experiment import ExperimentArgs, cross_problems
from coh.modeling import ModelError, load_tokenizer
from coh.preview.figures import figures_of, problems_of, warnings_of
from coh.preview.page import page
from coh.preview.rows import view_row
from coh.preview.terminal import Terminal, has_color
from coh.train_args import CoHTrainArgs


@dataclass
class PreviewArgs:
    """What is shown of the data, and where."""

    rows: int = field(default=4, metadata={"help": "Rows to show; 4 fill some screens. 0 shows the figures alone."})
    first_row: int = field(default=0, metadata={"help": "Number of the first row, in the order of training, from 0."})
    split: Literal["train", "validation", "test"] = field(
        default="train", metadata={"help": "Split to show; whether training would go wrong is said of train as well."}
    )
    html: str | None = field(
        default=None, metadata={"help": "File for the same as one page of HTML that needs nothing beside it."}
    )
    json: str | None = field(default=None, metadata={"help": "File for the figures, problems and warnings as JSON."})
    token_ids: bool = field(default=False, metadata={"help": "Show the id of every token behind its text."})
    color: Literal["auto", "always", "never"] = field(
        default="auto",
        metadata={"help": "Colour on the terminal; auto means yes, unless output goes elsewhere or NO_COLOR is set."},
    )

    def __post_init__(self) -> None:
        problems = [
            f"--{name} {getattr(self, name)}: give 0 or more."
            for name in ("rows", "first_row")
            if getattr(self, name) < 0
        ]
        for name in ("html", "json"):
            file = getattr(self, name)
            if file is not None and (not file or Path(file).is_dir() or not Path(file).resolve().parent.is_dir()):
                problems.append(f"--{name} {file or '(empty)'}: give a file, in a folder that is there.")
        if problems:
            raise ConfigError(problems)


def main(argv: Sequence[str] | None = None) -> None:
    """Looks at the data that the same options would train on; exits with status 1 where that would go wrong."""
    experiment, data, train, view = parse(
        [ExperimentArgs, CoHDataArgs, CoHTrainArgs, PreviewArgs],
        argv,
        prog="python -m coh.preview",
        description="Look at the rows that the same options would train on, and at what they are made of.",
        checks=lambda experiment, data, train, _: cross_problems(experiment, data, train),
    )
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        problems = run(experiment, data, train, view)
    except (FeedbackError, ModelError) as error:
        raise SystemExit(f"coh.preview: {error}") from error
    except BrokenPipeError:  # whoever was reading, such as `less`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    if problems:
        count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        raise SystemExit(f"coh.preview: {count} that would make training wrong, listed above the rows")


def run(experiment: ExperimentArgs, data: CoHDataArgs, train: CoHTrainArgs, view: PreviewArgs) -> list[str]:
    """Load, look, show; gives the problems."""
    name, trust = experiment.tokenizer_name or experiment.model_name, experiment.trust_remote_code
    tokenizer = load_tokenizer(name, experiment.cache_dir, trust_remote_code=trust)
    seed = train.seed if train.data_seed is None else train.data_seed
    load = partial(
        load_datasets, tokenizer=tokenizer, seed=seed, prepend_bos=train.prepend_bos, cache_dir=experiment.cache_dir
    )
    try:
        unread, datasets = [], load(data)
    except TextError as error:  # the feedback can be looked at all the same
        unread, datasets = [f"{error}; what is shown is without it"], load(replace(data, pretrain_data="none"))
    numbers = _numbers(datasets, view)
    views = [view_row(datasets[view.split], tokenizer, number, view.token_ids) for number in numbers]
    figures = figures_of(datasets, tokenizer, view.split, numbers)
    problems, warnings = [*unread, *problems_of(figures)], warnings_of(figures)
    if view.split != "train":
        training = figures_of(datasets, tokenizer, "train")
        problems = list(dict.fromkeys([*unread, *problems_of(training), *problems]))

    terminal = Terminal(has_color(view.color))
    print(terminal.figures(figures, problems, warnings))
    if views:
        print(f"\n{terminal.rows(views)}")
    sys.stdout.flush()
    if view.html:
        title = f"{experiment.model_name} · {', '.join(figures.sources)}"
        Path(view.html).write_text(page(title, figures, views, problems, warnings), encoding="utf-8")
    if view.json:
        content: dict[str, Any] = {"figures": asdict(figures), "problems": problems, "warnings": warnings}
        Path(view.json).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return problems


def _numbers(datasets: dict[str, Any], view: PreviewArgs) -> list[int]:
    """The numbers of the rows to show."""
    if view.split not in datasets:
        raise FeedbackError(f"--split {view.split}: there is none; there are {', '.join(datasets)}")
    size = len(datasets[view.split])
    if view.first_row >= size:
        raise FeedbackError(f"--first_row {view.first_row}: {view.split} has {size} rows, 0 to {size - 1}")
    return list(range(view.first_row, min(view.first_row + view.rows, size)))
