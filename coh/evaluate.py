"""Measure what a model learned from feedback, on pairs it was not trained on.

    python -m coh.evaluate --model DIR --feedback_data hh_rlhf

Every better and worse output is scored under good and under bad words, four log-probabilities a pair, and from these
come:

- loss on good outputs: nats per token of the better outputs under good words;
- pair accuracy: how often the better output is the more probable one under good words, by the sum over its tokens, per
  token, and by the difference that the words make (its log-probability under good words less that under bad ones);
- steering gap: how much more the words move the better output than the worse one, mean over pairs of
  [log p(better | good) - log p(better | bad)] - [log p(worse | good) - log p(worse | bad)], in nats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coh.arguments import ConfigError, parse
from coh.data.records import FeedbackError, FeedbackGroup
from coh.data.sources import load_groups, parse_sources, split_groups
from coh.generation import place_model
from coh.modeling import DTYPES, load_model, load_tokenizer
from coh.saved import load_words
from coh.score import score_documents
from coh.steering import Steering

MEASURES = {
    "loss_good": "loss on good outputs (nats per token)",
    "pair_accuracy": "pair accuracy, sum of log p (%)",
    "pair_accuracy_per_token": "pair accuracy, log p per token (%)",
    "pair_accuracy_by_words": "pair accuracy, by what the words change (%)",
    "steering_gap": "steering gap (nats per pair)",
}


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of pairs: arrays (pairs, 2) with the better output first, under good and under bad words."""

    good: NDArray[np.float64]
    bad: NDArray[np.float64]
    num_tokens: NDArray[np.int64]

    def measures(self) -> dict[str, float]:
        """The figures of `MEASURES`, the number of pairs, and the standard error of the steering gap.

        >>> scores = PairScores(np.array([[-1.0, -2.0]]), np.array([[-3.0, -2.0]]), np.array([[2, 2]]))
        >>> scores.measures()["pair_accuracy"], scores.measures()["steering_gap"]
        (100.0, 2.0)
        """
        moved = self.good - self.bad
        gap = moved[:, 0] - moved[:, 1]
        return {
            "loss_good": float(-self.good[:, 0].sum() / self.num_tokens[:, 0].sum()),
            "pair_accuracy": accuracy(self.good),
            "pair_accuracy_per_token": accuracy(self.good / self.num_tokens),
            "pair_accuracy_by_words": accuracy(moved),
            "steering_gap": float(gap.mean()),
            "steering_gap_error": float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else float("nan"),
            "num_pairs": len(gap),
        }


def accuracy(scores: NDArray[np.float64]) -> float:
    """Percent of pairs (pairs, 2) whose first score is the higher one; equal scores count half.

    >>> accuracy(np.array([[2.0, 1.0], [1.0, 1.0]]))
    75.0
    """
    return float(100 * np.mean((scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])))


def preferred_pairs(groups: Sequence[FeedbackGroup]) -> list[FeedbackGroup]:
    """Every group that is no tie as its best and its worst output."""
    return [
        FeedbackGroup(group.source, group.prompt, (group.outputs[0], group.outputs[-1]), (1, 2), task=group.task)
        for group in groups
        if len(group.outputs) > 1 and not group.is_tie
    ]


def score_pairs(
    model: Any,
    steering: Steering,
    pairs: Sequence[FeedbackGroup],
    max_length: int | None = None,
    progress: str = "",
) -> PairScores:
    """Scores the two outputs of each group under good and under bad words."""
    documents = [
        document for quality in ("good", "bad") for pair in pairs for document in steering.documents(pair, quality)
    ]
    scores = score_documents(model, documents, steering.end_of_output, max_length, progress)
    log_p = scores.log_p.reshape(2, len(pairs), 2)
    return PairScores(log_p[0], log_p[1], scores.num_tokens.reshape(2, len(pairs), 2)[0])


def table(columns: dict[str, dict[str, float]]) -> str:
    """The measures of some models side by side, as text.

    >>> print(table({"before": {"loss_good": 2.0}, "after": {"loss_good": 1.5}}))
                                                    before     after
    loss on good outputs (nats per token)            2.000     1.500
    """
    lines = [f"{'':44}" + "".join(f"{name:>10}" for name in columns)]
    for key, label in MEASURES.items():
        if all(key in column for column in columns.values()):
            digits = 1 if "%" in label else 3
            lines.append(f"{label:44}" + "".join(f"{column[key]:10.{digits}f}" for column in columns.values()))
    return "\n".join(lines)


@dataclass
class EvaluateArgs:
    """Which model is measured, on which feedback."""

    model: str = field(metadata={"help": "Folder of a trained model, a hub id or a .gguf file."})
    feedback_data: list[str] = field(metadata={"help": "Feedback to measure on, named as for coh.coh_train."})
    split: Literal["validation", "test", "held_out", "all"] = field(
        default="test",
        metadata={"help": "Groups that count: held out for validation, for test, for either (held_out), or all."},
    )
    feedback_format: str = field(
        default="auto",
        metadata={"help": "Format of all feedback that is no built-in name; auto finds it from the columns."},
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
            "help": "Measure on at most so many pairs of each source; 300 tell differences of 6 points of accuracy."
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
    json: str | None = field(default=None, metadata={"help": "File that the figures are written to as JSON."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and prepared data are kept."})

    def __post_init__(self) -> None:
        problems = []
        try:
            parse_sources(self.feedback_data)
        except FeedbackError as error:
            problems += [f"--feedback_data: {line}" for line in str(error).split("\n")]
        if self.max_pairs is not None and self.max_pairs < 1:
            problems.append(f"--max_pairs {self.max_pairs}: give 1 or more.")
        if self.max_length < 16:
            problems.append(f"--max_length {self.max_length}: give 16 or more.")
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        if problems:
            raise ConfigError(problems)


def held_out_pairs(args: EvaluateArgs) -> dict[str, list[FeedbackGroup]]:
    """The pairs of each source that are to be measured."""
    stores = [
        load_groups(
            spec,
            feedback_format=args.feedback_format,
            cache_dir=args.cache_dir,
            tie_margin=args.tie_margin,
            attributes=args.attributes,
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
    found: dict[str, list[FeedbackGroup]] = {}
    for part in named[args.split]:
        pairs = preferred_pairs([part.store.group(int(index)) for index in part.indices[: args.max_pairs]])
        found.setdefault(part.name, []).extend(pairs)
    return {name: pairs[: args.max_pairs] for name, pairs in found.items() if pairs}


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse([EvaluateArgs], argv, prog="python -m coh.evaluate", description=(__doc__ or "").split("\n")[0])
    try:
        words = load_words(args.model, args.templates, args.cache_dir)
        pairs = held_out_pairs(args)
        if not pairs:
            raise FeedbackError(
                f"no pairs in the {args.split} split of {', '.join(args.feedback_data)}: try --split all"
            )
        tokenizer = load_tokenizer(args.model, args.cache_dir)
        steering = Steering.of(words, tokenizer)
        model = place_model(load_model(args.model, dtype=args.dtype, cache_dir=args.cache_dir), args.device)
        figures = {
            name: score_pairs(model, steering, own, args.max_length, f"Scoring {name}").measures()
            for name, own in pairs.items()
        }
    except ValueError as error:
        raise SystemExit(f"coh.evaluate: {error}") from error
    print(table(figures))
    print("pairs: " + ", ".join(f"{name} {figure['num_pairs']}" for name, figure in figures.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
