"""What a model writes for prompts it was not trained on, under good and under bad words, and what that is worth.

In: a steered model, held-out groups with outputs that people ranked, perhaps a judge and another model's outputs. Out:
`Written`, the outputs themselves and their figures:

- ROUGE-1, -2 and -L of what stands under good and under bad words with the output that people liked best;
- distinct-1 and -2, the share of different words and pairs of words, and the mean length in words;
- win rates under the judge, ties counting half: good words against bad ones, against people's best output, and against
  what another model writes under good words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from coh.data.records import FeedbackGroup, Message
from coh.judging import Judge, plain
from coh.measures import Estimate, distinct, mean, percent, rouge
from coh.processes import gathered, mine
from coh.steered import Request, SteeredModel, call_options

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

    `figures[words][name]` has the names of `LABELS`, `wins` those of `WIN_LABELS`, in percent.
    """

    prompts: tuple[tuple[Message, ...], ...]
    people: tuple[str, ...]
    outputs: dict[str, tuple[str, ...]]
    figures: dict[str, dict[str, Estimate]]
    wins: dict[str, Estimate]
    judge: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        rows = [
            {"prompt": plain(prompt), "people": people, **dict(zip(self.outputs, texts))}
            for prompt, people, *texts in zip(self.prompts, self.people, *self.outputs.values())
        ]
        return {
            "figures": {words: {name: asdict(e) for name, e in found.items()} for words, found in self.figures.items()},
            "wins": {name: asdict(estimate) for name, estimate in self.wins.items()},
            "judge": self.judge,
            "outputs": rows,
        }


def write(
    model: SteeredModel,
    groups: Sequence[FeedbackGroup],
    *,
    judge: Judge | None = None,
    base: Written | None = None,
    batch_size: int = 8,
    progress: str = "",
    **options: Any,
) -> Written:
    """Writes an output for the prompt of each group under good and under bad words, and measures them.

    Processes of one group share the prompts between them.

    Args:
        judge: who decides which of two outputs is better; without one there are no win rates.
        base: what another model wrote for the same prompts.
        batch_size: prompts that are continued together.
        options: of `transformers.GenerationConfig`.
    """
    guidance, checked = call_options(**options)
    prompts, people = tuple(group.prompt for group in groups), tuple(group.outputs[0] for group in groups)
    outputs: dict[str, tuple[str, ...]] = {}
    own = mine(prompts)
    with tqdm(total=len(WORDS) * len(own), desc=progress, disable=not progress, leave=False) as bar:
        for words in WORDS:
            found: list[str] = []
            for start in range(0, len(own), batch_size):
                requests = [Request(prompt, words) for prompt in own[start : start + batch_size]]
                found += [texts[0] for texts in model.answer(requests, guidance=guidance, **checked)]
                bar.update(len(requests))
            outputs[words] = tuple(gathered(found))
    against = {"good_over_bad": outputs["bad"], "good_over_people": people}
    if base is not None:
        against["good_over_base"] = base.outputs["good"]
    won = {
        name: percent(mean(judge.prefer(prompts, outputs["good"], others)))
        for name, others in against.items()
        if judge is not None
    }
    figures = {words: text_figures(texts, people) for words, texts in outputs.items()}
    return Written(prompts, people, outputs, figures, won, judge.name if judge else None)


def text_figures(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Estimate]:
    """The figures of `LABELS`; ROUGE is left out where the package rouge-score is not installed.

    >>> text_figures(["a rose is a rose"], ["a rose"])["length"].value
    5.0
    """
    try:
        found = {name: mean(values) for name, values in rouge(outputs, references).items()}
    except ImportError:
        found = {}
    found["length"] = mean([len(output.split()) for output in outputs])
    for n in (1, 2):
        found[f"distinct{n}"] = Estimate(distinct(outputs, n), float("nan"), float("nan"), len(outputs))
    return found
