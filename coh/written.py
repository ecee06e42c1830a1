"""What a model writes for prompts it was not trained on, under good and under bad words, and what that is worth.

In: a steered model, held-out groups with outputs that people ranked, perhaps a judge and another model's outputs. Out:
`Written`, the outputs themselves and their figures:

- ROUGE-1, -2 and -L of what stands under good and under bad words with the output that people liked best;
- distinct-1 and -2, the share of different words and pairs of words, and the mean length in words;
- win rates under the judge: good words against bad ones, against people's best output, and against what another model
  writes under good words. Ties count half, and so does what was not judged, which is counted besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from typing import Any

import numpy as np

from coh.data.draws import key
from coh.data.records import FeedbackGroup, Message
from coh.generation import drawing, has_room
from coh.judging import Judge, plain, preferences
from coh.measures import Estimate, distinct, mean, percent, rouge, share, words_of
from coh.processes import dealt, warn_once
from coh.steered import Request, SteeredModel, call_options
from coh.steering import Steering

WORDS = ("good", "bad")
LABELS = {
    "rouge1": "ROUGE-1 with people's best (%)",
    "rouge2": "ROUGE-2 with people's best (%)",
    "rougeL": "ROUGE-L with people's best (%)",
    "length": "length (words)",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
}
WIN_LABELS = {
    "good_over_bad": "good words against bad ones",
    "good_over_people": "good words against people's best",
    "good_over_base": "good words against the other model's",
}


@dataclass(frozen=True)
class Written:
    """Outputs for some prompts under each kind of words, in the order of the prompts, and their figures.

    `figures[words][name]` has the names of `LABELS`, `wins` those of `WIN_LABELS`, in percent; `num_not_judged` says of
    each win rate how many of its comparisons the judge did not judge. `num_too_long` prompts were passed over, since
    they and an output are longer than the model reads.
    """

    prompts: tuple[tuple[Message, ...], ...]
    people: tuple[str, ...]
    outputs: dict[str, tuple[str, ...]]
    figures: dict[str, dict[str, Estimate]]
    wins: dict[str, Estimate]
    judge: str | None = None
    num_too_long: int = 0
    num_not_judged: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        rows = [
            {"prompt": plain(prompt), "people": people, **dict(zip(self.outputs, texts))}
            for prompt, people, *texts in zip(self.prompts, self.people, *self.outputs.values())
        ]
        return {
            "figures": {words: {name: asdict(e) for name, e in found.items()} for words, found in self.figures.items()},
            "wins": {name: asdict(estimate) for name, estimate in self.wins.items()},
            "num_not_judged": self.num_not_judged,
            "judge": self.judge,
            "num_too_long": self.num_too_long,
            "outputs": rows,
        }


@dataclass(frozen=True)
class Reader:
    """What tells how much of a prompt a model reads: its words with its tokenizer, and its configuration."""

    steering: Steering
    config: Any
    task: str | None = None

    def has_room(self, prompt: tuple[Message, ...], options: dict[str, Any]) -> bool:
        """Whether the model reads the prompt and its output, under good and under bad words."""
        lengths = [len(self.steering.prompt_ids(prompt, words, self.task)) for words in WORDS]
        return has_room(max(lengths), self.config, options)


def with_room(
    groups: Sequence[FeedbackGroup], readers: Sequence[Reader], options: dict[str, Any], most: int | None = None
) -> tuple[list[FeedbackGroup], int]:
    """The first `most` groups for whose prompts all readers have room, and how many before these were passed over."""
    found: list[FeedbackGroup] = []
    for number, group in enumerate(groups):
        if len(found) == most:
            return found, number - len(found)
        if all(reader.has_room(group.prompt, options) for reader in readers):
            found.append(group)
    return found, len(groups) - len(found)


def write(
    model: SteeredModel,
    groups: Sequence[FeedbackGroup],
    *,
    num_prompts: int | None = None,
    others: Sequence[Reader] = (),
    batch_size: int = 8,
    seed: int = 0,
    progress: str = "",
    **options: Any,
) -> Written:
    """Writes an output for the prompt of each group under good and under bad words, and measures them.

    Groups whose only output people found bad have no best one, and nothing is written for them. Prompts that leave no
    room for an output are passed over. Processes of one group share the batches between them; outputs are the same for
    any number of processes, drawn ones too.

    Args:
        num_prompts: for how many prompts is written, if there are so many with room; for all by default.
        others: other models that are to write for the same prompts: they have room for them, too.
        batch_size: prompts that are continued together.
        seed: of what is drawn, where the options say that it is.
        options: of `transformers.GenerationConfig`.
    """
    guidance, checked = call_options(**options)
    groups = [group for group in groups if group.is_good is not False]
    readers = [Reader(model.steering, model.model.config, model.task), *others]
    chosen, num_too_long = with_room(groups, readers, checked, num_prompts)
    _tell_of_long_prompts(groups, len(chosen), num_too_long)
    batches = [
        [Request(group.prompt, words) for group in chosen[start : start + batch_size]]
        for words in WORDS
        for start in range(0, len(chosen), batch_size)
    ]
    # Batches are made before they are dealt, and each has draws of its own, so that it is the same on any process.
    seeds = [key(seed, "written", number) % 2**63 for number in range(len(batches))]

    def answer(number: int) -> list[str]:
        with drawing(seeds[number], model.model.device):
            return [texts[0] for texts in model.answer(batches[number], guidance=guidance, **checked)]

    texts = [text for found in dealt(range(len(batches)), answer, progress) for text in found]
    outputs = {words: tuple(texts[n * len(chosen) : (n + 1) * len(chosen)]) for n, words in enumerate(WORDS)}
    prompts, people = tuple(group.prompt for group in chosen), tuple(group.outputs[0] for group in chosen)
    figures = {words: text_figures(own, people) for words, own in outputs.items()}
    return Written(prompts, people, outputs, figures, {}, num_too_long=num_too_long)


def _tell_of_long_prompts(groups: Sequence[FeedbackGroup], num_chosen: int, num_too_long: int) -> None:
    if not num_too_long:
        return
    source = groups[0].source
    reason = "an output behind them would be longer than the model reads"
    if num_chosen:
        warn_once(f"{source}: prompts passed over in writing, since {reason}: {num_too_long}")
    else:
        warn_once(f"{source}: nothing is written for its {num_too_long} prompts, since {reason}")


def judged(written: Written, judge: Judge, base: Written | None = None) -> Written:
    """The same with win rates.

    Args:
        base: what another model wrote for the same prompts.
    """
    if not written.prompts:
        return written
    good = written.outputs["good"]
    against = {"good_over_bad": written.outputs["bad"], "good_over_people": written.people}
    if base is not None:
        against["good_over_base"] = base.outputs["good"]
    found = {name: preferences(judge, written.prompts, good, others) for name, others in against.items()}
    won = {name: percent(share(np.nan_to_num(values, nan=0.5), written.prompts)) for name, values in found.items()}
    num_not_judged = {name: int(np.isnan(values).sum()) for name, values in found.items()}
    return replace(written, wins=won, judge=judge.name, num_not_judged=num_not_judged)


def text_figures(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Estimate]:
    """The figures of `LABELS`, without those that such texts do not have.

    ROUGE is left out where the package rouge-score is not installed, which is said.

    >>> text_figures(["a rose is a rose"], ["a rose"])["length"].value
    5.0
    """
    if not outputs:
        return {}
    found = {}
    try:
        found = {name: mean(values) for name, values in rouge(outputs, references).items()}
    except ImportError:
        warn_once("rouge-score is not installed: no ROUGE (pip install rouge-score)")
    found["length"] = mean([len(words_of(output)) for output in outputs])
    for n in (1, 2):
        variety = distinct(outputs, n)
        if not isnan(variety):
            found[f"distinct{n}"] = Estimate(variety, float("nan"), float("nan"), len(outputs))
    return found
