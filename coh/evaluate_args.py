"""The options of `coh.evaluate`, and the groups that they choose to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coh.arguments import ConfigError
from coh.data.data_args import CoHDataArgs
from coh.data.records import FeedbackError, FeedbackGroup
from coh.data.sources import Part, load_groups, parse_columns, parse_sources, split_groups
from coh.measuring import is_measured
from coh.modeling import DTYPES

SAMPLE_SEED = 0
LEAST = {
    "max_pairs": 1,
    "max_length": 16,
    "pretrain_docs": 20,
    "num_prompts": 0,
    "max_new_tokens": 1,
    "lm_eval_limit": 1,
}


@dataclass
class EvaluateArgs:
    """Which model is measured, on what."""

    model: str = field(metadata={"help": "Folder of a trained model, a hub id or a .gguf file."})
    feedback_data: list[str] = field(metadata={"help": "Feedback to measure on, named as for coh.coh_train."})
    base: str | None = field(
        default=None,
        metadata={
            "help": "A model to measure beside it, such as the one that training began with; told the same words."
        },
    )
    split: Literal["validation", "test", "held_out", "all"] = field(
        default="test",
        metadata={"help": "Groups that count: held out for validation, for test, for either (held_out), or all."},
    )
    feedback_format: str = field(
        default="auto",
        metadata={"help": "Format of all feedback that is no built-in name; auto finds it from the columns."},
    )
    feedback_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Your columns under the names of a format, as in training: prompt=question chosen=good."},
    )
    tie_margin: float = field(
        default=0.0, metadata={"help": "Scores that differ by no more than this are a tie; in the units of the scores."}
    )
    attributes: list[str] = field(
        default_factory=lambda: ["helpfulness"],
        metadata={"help": "Attributes that make the score of rows rated by attributes, as for coh.coh_train."},
    )
    webgpt_dataset_test_size: float = field(
        default=0.1, metadata={"help": "Share held out of sources with one split, as it was in training."}
    )
    templates: str | None = field(
        default=None,
        metadata={"help": "Other words than the model's own: prose, marker, marker_varied or a YAML file."},
    )
    max_pairs: int | None = field(
        default=None,
        metadata={
            "help": "Measure on at most so many groups of each source, a random sample that is always the same; 300 "
            "tell differences of 6 points of accuracy."
        },
    )
    max_length: int = field(
        default=1024, metadata={"help": "Tokens of prompt and output; longer prompts lose their beginning."}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": f"Number format of the weights, one of {', '.join(DTYPES)}; auto is how they were saved."},
    )
    device: str = field(default="auto", metadata={"help": "Where to compute: auto takes a GPU where there is one."})
    pretrain_data: str = field(
        default="none",
        metadata={"help": "Plain text whose loss tells how far general skill drifted, named as for coh.coh_train."},
    )
    pretrain_docs: int = field(
        default=CoHDataArgs.pretrain_docs,
        metadata={"help": "Texts read of it, as in training; of these every twentieth was held out, and counts here."},
    )
    num_prompts: int = field(
        default=0,
        metadata={
            "help": "Prompts of each source, with room for an output, for which some are written; 0 writes none."
        },
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Longest output that is written, in tokens."})
    temperature: float = field(
        default=0.0, metadata={"help": "Temperature of what is written; 0 takes the likeliest token, without chance."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of what is written at a temperature."})
    judge: str | None = field(
        default=None,
        metadata={
            "help": "Who decides which output is better: a model with coh.json, a reward model, or the address of a "
            "server that speaks OpenAI's protocol (its key in OPENAI_API_KEY). Needs --num_prompts."
        },
    )
    judge_model: str | None = field(default=None, metadata={"help": "For a server, the name of the model that judges."})
    lm_eval: list[str] = field(
        default_factory=list, metadata={"help": "Tasks of the installed lm-eval harness to run too, such as piqa."}
    )
    lm_eval_tasks: str | None = field(
        default=None, metadata={"help": "Folder with further tasks of the harness, as YAML files."}
    )
    lm_eval_limit: int | None = field(default=None, metadata={"help": "Examples of each of its tasks, at most."})
    json: str | None = field(
        default=None,
        metadata={
            "help": "File that the figures are written to as JSON, after each part of the work; what it says of a "
            "model that is not measured now stays."
        },
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and prepared data are kept."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code that lies with the model, which some models need. Read it first."},
    )

    def __post_init__(self) -> None:
        problems = []
        try:
            parse_sources(self.feedback_data)
        except FeedbackError as error:
            problems += [f"--feedback_data: {line}" for line in str(error).split("\n")]
        try:
            parse_columns(self.feedback_columns)
        except FeedbackError as error:
            problems.append(f"--feedback_columns: {error}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                problems.append(f"--{name} {value}: give {least} or more.")
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"--temperature {self.temperature}: give 0 (no chance) or a positive number.")
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        if self.judge and not self.num_prompts:
            problems.append(f"--judge {self.judge} has nothing to judge without --num_prompts: give both, or neither.")
        if self.judge_model and not self.judge:
            problems.append(f"--judge_model {self.judge_model} has no effect without --judge.")
        if (self.lm_eval_tasks or self.lm_eval_limit is not None) and not self.lm_eval:
            problems.append("--lm_eval_tasks and --lm_eval_limit have no effect without --lm_eval.")
        if self.json and not Path(self.json).absolute().parent.is_dir():
            problems.append(f"--json {self.json}: there is no such folder: make it, or choose another.")
        if problems:
            raise ConfigError(problems)


def held_out_groups(args: EvaluateArgs) -> dict[str, list[FeedbackGroup]]:
    """The groups of each source that are to be measured: those in which people preferred one output to another."""
    stores = [
        load_groups(
            spec,
            feedback_format=args.feedback_format,
            cache_dir=args.cache_dir,
            tie_margin=args.tie_margin,
            attributes=args.attributes,
            columns=args.feedback_columns,
        )
        for spec in parse_sources(args.feedback_data)
    ]
    splits = split_groups(stores, test_size=args.webgpt_dataset_test_size)
    held_out = [*splits.validation, *splits.test]
    named = {
        "validation": splits.validation,
        "test": splits.test,
        "held_out": held_out,
        "all": [*splits.train, *held_out],
    }
    parts: dict[str, list[Part]] = {}
    for part in named[args.split]:
        parts.setdefault(part.name, []).append(part)
    found = {name: preferred_groups(own, args.max_pairs) for name, own in parts.items()}
    return {name: groups for name, groups in found.items() if groups}


def preferred_groups(parts: Sequence[Any], most: int | None = None) -> list[FeedbackGroup]:
    """The groups of a source in which people preferred one output to another, or gave a verdict on a single one, in the
    order of their file.

    Of more than `most` a random sample is taken, since a file may be sorted; it is the same in every process and for
    every model.

    Args:
        parts: each with a `store` of groups and the `indices` of those that count.
    """
    ends = np.cumsum([len(part.indices) for part in parts])
    order = np.arange(ends[-1])
    if most is not None:
        order = np.random.default_rng(SAMPLE_SEED).permutation(order)
    found: dict[int, FeedbackGroup] = {}
    for place in map(int, order):
        if len(found) == most:
            break
        number = int(np.searchsorted(ends, place, side="right"))
        part = parts[number]
        group = part.store.group(int(part.indices[place - ends[number]]))  # counted from the part's end
        if is_measured(group):
            found[place] = group
    return [found[place] for place in sorted(found)]
