"""The options that say which feedback and text a run learns from, and how they become rows."""

from dataclasses import dataclass, field
from typing import Literal

from coh.arguments import ConfigError
from coh.data.plan import PACKINGS
from coh.data.records import FeedbackError
from coh.data.sources import check_format, parse_sources
from coh.data.templates import POLARITIES, load_family

CHAINS = tuple(polarity for polarity in POLARITIES if polarity != "tie")


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
    feedback_format: str = field(
        default="auto",
        metadata={"help": "Format of all feedback that is no built-in name; auto finds it from the columns."},
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
    templates: str = field(
        default="prose",
        metadata={
            "help": "Words around the outputs: prose, marker, marker_varied or a YAML file; prose varies most, "
            "which served the paper best."
        },
    )
    chains: list[str] = field(
        default_factory=lambda: ["p", "n", "pn", "np"],
        metadata={
            "help": "Kinds of chain, drawn equally often: p one better output, n one worse, pn and np both in "
            "that order, question which is "
            "better (prose only). p alone is supervised fine-tuning."
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
        if not self.feedback_data:
            problems.append("--feedback_data is empty: name at least one source.")
        if self.feedback_format != "auto":
            try:
                check_format(self.feedback_format)
            except FeedbackError as error:
                problems.append(f"--feedback_format: {error}")
        if not 0 <= self.webgpt_dataset_test_size < 1:
            problems.append(
                f"--webgpt_dataset_test_size {self.webgpt_dataset_test_size}: give a share from 0 to below 1."
            )
        if self.pretrain_docs < 1:
            problems.append(f"--pretrain_docs {self.pretrain_docs}: give 1 or more, or --pretrain_data none.")
        if self.pretrain_ratio < 0:
            problems.append(
                f"--pretrain_ratio {self.pretrain_ratio}: give 0 or more; --pretrain_data none leaves the text out."
            )
        for kind in self.chains:
            if kind not in CHAINS:
                problems.append(f"--chains {kind}: give some of {', '.join(CHAINS)}.")
        if not self.chains or len(set(self.chains)) < len(self.chains):
            problems.append(f"--chains {','.join(self.chains) or '(empty)'}: give one or more kinds, each once.")
        if self.packing not in PACKINGS:
            problems.append(f"--packing {self.packing}: give one of {', '.join(PACKINGS)}.")
        try:
            family = load_family(self.templates)
            if not problems and not any(family.choices("general", kind) for kind in self.chains):
                problems.append(
                    f"--chains {','.join(self.chains)}: templates {self.templates} have none of these for general."
                )
        except FeedbackError as error:
            problems += [f"--templates: {line.strip()}" for line in str(error).split("\n")]
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
        if min(weights) < 0 or not max(weights) > 0:
            return [f"--feedback_weights {given}: give numbers of 0 or more, at least one above 0."]
        return []

    @property
    def has_pretrain(self) -> bool:
        return self.pretrain_data != "none" and self.pretrain_ratio > 0
