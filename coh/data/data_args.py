"""The options that say which feedback and text a run learns from, and how they become rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from coh.arguments import ConfigError
from coh.data.forms import PROMPT_FORMATS
from coh.data.plan import PACKINGS
from coh.data.records import FeedbackError
from coh.data.sources import check_format, parse_columns, parse_sources
from coh.data.sources.scores import parse_attributes
from coh.data.templates import POLARITIES, RANKINGS, Family, load_family

# Ties and rankings are worded where pairs are.
CHAINS = tuple(polarity for polarity in POLARITIES if polarity not in ("tie", *RANKINGS.values()))
LEAST_RATIO = 0.001  # of text to feedback: a run would hardly meet any
MAX_OUTPUTS = 8  # a ranking of 8 has 127 patterns of ties, each with words of its own


@dataclass
class CoHDataArgs:
    """Feedback and pretraining text, and how they become rows."""

    seq_length: int = field(
        default=512,
        metadata={"help": "Tokens of a row; 512 holds most pairs of short outputs, longer rows cost memory."},
    )
    feedback_data: list[str] = field(
        default_factory=lambda: ["webgpt", "hh_rlhf", "summarize"],
        metadata={
            "help": "Feedback to learn from: built-in names (webgpt, webgpt_quotes, hh_rlhf, summarize, sample), "
            "files (.jsonl .json .csv "
            ".parquet), folders or hub ids org/name[:config]; NAME=WHAT names one, WHAT@N takes its first N groups. "
            "The default is what the paper used."
        },
    )
    feedback_weights: list[float] | None = field(
        default=None,
        metadata={
            "aliases": ["--hf_weights"],
            "help": "Share of each source in the chains of an epoch, one number per source; by default their "
            "sizes, as in the paper.",
        },
    )
    feedback_format: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "Format of all feedback that is no built-in name, or one for each source; auto finds it from the "
            "columns."
        },
    )
    feedback_columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Your columns under the names of a format, where they are called otherwise: prompt=question "
            "chosen=good_answer rejected=bad_answer. Of every source that is no built-in name."
        },
    )
    tie_margin: float = field(
        default=0.0,
        metadata={"help": "Scores that differ by no more than this are a tie; in the units of the scores."},
    )
    attributes: list[str] = field(
        default_factory=lambda: ["helpfulness"],
        metadata={
            "help": "Attributes that make the score of rows rated by attributes (HelpSteer), with weights if several "
            "count: helpfulness=0.7,verbosity=-0.3."
        },
    )
    eval_feedback_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Feedback to evaluate on, named as in --feedback_data; by default the held-out splits of the "
            "training sources."
        },
    )
    webgpt_dataset_test_size: float = field(
        default=0.1,
        metadata={
            "help": "Share of prompts, by hash, held out from webgpt and from every other source with one split, half "
            "for validation and half for test; 0.1 leaves about a thousand webgpt pairs in each."
        },
    )
    pretrain_data: str = field(
        default="c4",
        metadata={
            "help": "Plain text that keeps the model's language: c4 (as in the authors' code), sample, none, a "
            "hub id or a file with a text column."
        },
    )
    pretrain_docs: int = field(
        default=100_000,
        metadata={
            "help": "Most texts taken from a file or a hub data set (streamed once and cached); 100000 of c4 are about "
            "55M tokens."
        },
    )
    pretrain_ratio: float = field(
        default=1.0,
        metadata={"help": "Pretraining rows per feedback row; 1 measures both losses equally well (the paper took 4)."},
    )
    templates: list[str] = field(
        default_factory=lambda: ["marker"],
        metadata={
            "help": "Words around the outputs: marker, marker_varied, prose or a YAML file, for all sources or one for "
            "each. marker, one phrase for each quality, is learned soonest (docs/results.md); prose varies most, which "
            "served the paper best. The first is what steers the model afterwards."
        },
    )
    prompt_format: Literal["plain", "chat"] = field(
        default="plain",
        metadata={
            "help": "How prompts are written: plain, with the templates' role names, or chat, by the tokenizer's own "
            "chat template, with the feedback words behind its generation prompt (for chat models)."
        },
    )
    chains: list[str] = field(
        default_factory=lambda: ["p", "n", "pn", "np", "critique", "refine", "revision"],
        metadata={
            "help": "Kinds of chain, drawn equally often from those that a group gives: p one better output, n one "
            "worse, pn and np both in that order, question which is better (prose only); critique an output behind "
            "what was said of it, refine a worse output, what was said, a better one, revision the same where the "
            "better one was written from it. p alone is supervised fine-tuning."
        },
    )
    max_outputs: int = field(
        default=2,
        metadata={
            "help": f"Most outputs of a pn or np chain, up to {MAX_OUTPUTS}; above 2, rankings are chains from best to "
            "worst or back. Rows must be long enough for them."
        },
    )
    train_on: Literal["all", "last"] = field(
        default="all",
        metadata={"help": "Outputs of a chain that are targets: all, or the last only; all wastes none of them."},
    )
    packing: Literal["fit", "chunk"] = field(
        default="fit",
        metadata={
            "help": "fit never cuts a chain that fits a row; chunk cuts wherever a row ends, as earlier "
            "implementations did."
        },
    )
    isolate_documents: bool = field(
        default=True,
        metadata={
            "help": "Whether documents in a row are hidden from each other; without it a chain is read after strangers."
        },
    )

    def __post_init__(self) -> None:
        for name in ("feedback_data", "feedback_format", "eval_feedback_data", "attributes", "templates", "chains"):
            if isinstance(getattr(self, name), str):  # CoHDataArgs(templates="marker") in Python
                setattr(self, name, [getattr(self, name)])
        problems = []
        if self.seq_length < 16:
            problems.append(f"--seq_length {self.seq_length}: a row needs 16 tokens or more.")
        for name, texts in (("feedback_data", self.feedback_data), ("eval_feedback_data", self.eval_feedback_data)):
            try:
                specs = parse_sources(texts or [])
            except FeedbackError as error:
                problems += [f"--{name}: {line}" for line in str(error).split("\n")]
                continue
            if name == "feedback_data":
                problems += self._weight_problems(len(specs))
                problems += self._count_problems(len(specs))
        if not self.feedback_data:
            problems.append("--feedback_data is empty: name at least one source.")
        problems += [f"--feedback_format: {fault}" for fault in _faults(_check_formats, self.feedback_format)]
        problems += [f"--feedback_columns: {fault}" for fault in _faults(parse_columns, self.feedback_columns)]
        problems += [f"--attributes: {fault}" for fault in _faults(parse_attributes, self.attributes)]
        if not 0 <= self.tie_margin < float("inf"):
            problems.append(f"--tie_margin {self.tie_margin}: give a number of 0 or more.")
        if not 2 <= self.max_outputs <= MAX_OUTPUTS:
            problems.append(f"--max_outputs {self.max_outputs}: give a number from 2 to {MAX_OUTPUTS}.")
        if self.prompt_format not in PROMPT_FORMATS:
            problems.append(f"--prompt_format {self.prompt_format}: give one of {', '.join(PROMPT_FORMATS)}.")
        if not 0 <= self.webgpt_dataset_test_size < 1:
            problems.append(
                f"--webgpt_dataset_test_size {self.webgpt_dataset_test_size}: give a share from 0 to below 1."
            )
        if self.pretrain_docs < 1:
            problems.append(f"--pretrain_docs {self.pretrain_docs}: give 1 or more, or --pretrain_data none.")
        if self.pretrain_ratio and not LEAST_RATIO <= self.pretrain_ratio < math.inf:
            problems.append(
                f"--pretrain_ratio {self.pretrain_ratio}: give {LEAST_RATIO} or more; --pretrain_data none leaves the "
                "text out."
            )
        for kind in self.chains:
            if kind not in CHAINS:
                problems.append(f"--chains {kind}: give some of {', '.join(CHAINS)}.")
        if not self.chains or len(set(self.chains)) < len(self.chains):
            problems.append(f"--chains {','.join(self.chains) or '(empty)'}: give one or more kinds, each once.")
        if self.packing not in PACKINGS:
            problems.append(f"--packing {self.packing}: give one of {', '.join(PACKINGS)}.")
        problems += self._template_problems(is_sound=not problems)
        if problems:
            raise ConfigError(problems)

    def _weight_problems(self, num_sources: int) -> list[str]:
        weights = self.feedback_weights
        if weights is None:
            return []
        given = ",".join(f"{weight:g}" for weight in weights)
        if len(weights) != num_sources:
            return [
                f"--feedback_weights {given}: {len(weights)} numbers for {num_sources} sources, give one each "
                f"(sample counts as four)."
            ]
        if not all(0 <= weight < math.inf for weight in weights) or not max(weights) > 0:
            return [f"--feedback_weights {given}: give numbers of 0 or more, at least one above 0."]
        return []

    def _count_problems(self, num_sources: int) -> list[str]:
        return [
            f"--{name} {','.join(given)}: {len(given)} for {num_sources} sources, give one for all or one each (sample "
            f"counts as four)."
            for name, given in (("templates", self.templates), ("feedback_format", self.feedback_format))
            if len(given) not in (1, num_sources)
        ]

    def _template_problems(self, is_sound: bool) -> list[str]:
        problems = []
        for name in dict.fromkeys(self.templates):
            try:
                family = load_family(name)
            except FeedbackError as error:
                problems += [f"--templates: {line.strip()}" for line in str(error).split("\n")]
                continue
            if is_sound and not any(template.polarity in self.chains for template in family.templates):
                problems.append(f"--chains {','.join(self.chains)}: templates {name} have none of these.")
        return problems

    def families(self, num_sources: int) -> list[Family]:
        """The words of each source."""
        return [load_family(name) for name in spread(self.templates, num_sources)]

    def eval_formats(self, num_sources: int) -> list[str]:
        """The format of each evaluation source: what all sources have, or else what its columns say."""
        return spread(self.feedback_format if len(self.feedback_format) == 1 else ["auto"], num_sources)

    @property
    def has_pretrain(self) -> bool:
        return self.pretrain_data != "none" and self.pretrain_ratio > 0


def spread(values: Sequence[str], num_sources: int) -> list[str]:
    """One value for each source, where one may stand for all.

    >>> spread(["prose"], 3)
    ['prose', 'prose', 'prose']
    """
    return list(values) * num_sources if len(values) == 1 else list(values)


def _check_formats(names: Sequence[str]) -> None:
    for name in names:
        if name != "auto":
            check_format(name)


def _faults(check: Callable[[Any], Any], value: Any) -> list[str]:
    try:
        check(value)
    except FeedbackError as error:
        return str(error).split("\n")
    return []
