"""What a model learned, measured while it is trained: before, at every evaluation, and after.

In: the validation and test sets of a run. At every evaluation the figures of `coh.measuring` go into the log beside
the losses, by a sample of validation's groups. Before and after training everything that `coh.evaluate` finds is
measured by one of the test's (validation's where there is no test), and kept in `evaluation.json`, for the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from coh.data.coh_data import CoHDataset
from coh.data.records import FeedbackGroup
from coh.evaluate import Evaluation, text_scores
from coh.evaluate_args import preferred_groups
from coh.measuring import LABELS, measure, without_nan
from coh.saved import Words
from coh.steered import SteeredModel
from coh.steering import Steering
from coh.written import write

FILE = "evaluation.json"
MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class HeldOut:
    """The held-out part of a run's data, and how much of it is measured.

    `steerings` are the words of each source. `during` and `around` are the groups of each source that are measured at
    every evaluation, and before and after training. `texts` are held-out plain texts, if any, of which `num_texts` are
    read. `num_prompts` is for how many prompts of each source outputs are written.
    """

    steerings: dict[str, Steering]
    tokenizer: Any
    during: dict[str, list[FeedbackGroup]]
    around: dict[str, list[FeedbackGroup]]
    texts: Any
    num_texts: int
    max_length: int
    num_prompts: int

    @classmethod
    def of(
        cls, datasets: Mapping[str, CoHDataset], words: Words, tokenizer: Any, num_pairs: int, num_prompts: int
    ) -> HeldOut | None:
        """What there is to measure; None where that is nothing."""
        validation = datasets.get("validation") or datasets.get("test")
        test = datasets.get("test") or validation
        if validation is None or test is None or not num_pairs:
            return None
        during, around = _groups(validation, num_pairs), _groups(test, num_pairs)
        if not around:
            return None
        families = {one.name: one.form.family for set in (validation, test) for one in set.chains.sources}
        steerings = {
            name: Steering.of(replace(words, family=families[name]), tokenizer) for name in {**during, **around}
        }
        return cls(steerings, tokenizer, during, around, test.texts, num_pairs, test.args.seq_length, num_prompts)

    def metrics(self, model: Any) -> dict[str, float]:
        """All figures of each source, for a log; there, accuracies are shares, as Trainer's are."""
        found: dict[str, float] = {}
        for source, groups in self.during.items():
            steering = self.steerings[source]
            figures = measure(model, steering, groups, self.max_length, f"Measuring {source}").figures
            for name, figure in figures.items():
                found[f"{source}_{name}"] = figure.value / (100 if "(%)" in LABELS[name] else 1)
        return found

    def evaluation(
        self, model: Any, moment: str, is_whole: bool = True, before: Evaluation | None = None
    ) -> Evaluation:
        """Everything; outputs only of a model that every process has whole, drift where `before` is what was then."""
        sources = {
            source: measure(model, self.steerings[source], groups, self.max_length, f"Measuring {source} {moment}")
            for source, groups in self.around.items()
        }
        texts = None
        if self.texts:
            steering = next(iter(self.steerings.values()))  # plain text has no words
            label = f"Measuring text {moment}"
            texts = text_scores(model, steering, self.texts, self.max_length, label, self.num_texts)
        was_training = model.training
        model.eval()
        written = {
            source: write(
                SteeredModel(model, self.tokenizer, self.steerings[source]),
                groups,
                num_prompts=self.num_prompts,
                progress=f"Writing for {source} {moment}",
                max_new_tokens=MAX_NEW_TOKENS,
            )
            for source, groups in self.around.items()
            if self.num_prompts and is_whole
        }
        model.train(was_training)
        found = Evaluation(sources, written=written)
        return found if texts is None else found.with_texts(texts, before)


def _groups(dataset: CoHDataset, most: int) -> dict[str, list[FeedbackGroup]]:
    """A sample of the groups of each source in which people preferred one output to another."""
    found = {source.name: preferred_groups([source], most) for source in dataset.chains.sources}
    return {name: groups for name, groups in found.items() if groups}


class Measuring(TrainerCallback):
    """Measures a trainer's model when its training begins and, by `keep("after")`, at its end."""

    def __init__(self, trainer: Any, held_out: HeldOut) -> None:
        self.trainer, self.held_out = trainer, held_out
        self.path = Path(trainer.args.output_dir, FILE)
        self.before: Evaluation | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.keep("before")

    def keep(self, moment: str) -> None:
        """Measure now, and write it down beside what is there: under the names that `coh.evaluate` gives to models."""
        self.trainer.beat(f"measuring {moment} training")
        model, is_whole = self.trainer.as_it_computes()
        found = self.held_out.evaluation(model, moment, is_whole, self.before)
        self.before = found if moment == "before" else self.before
        if self.trainer.is_world_process_zero():
            known = (
                json.loads(self.path.read_text(encoding="utf-8")) if moment == "after" and self.path.exists() else {}
            )
            known[{"before": "base", "after": "model"}[moment]] = without_nan(found.as_json())
            self.path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
