"""What a model learned, measured while it is trained: before, at every evaluation, and after.

In: the validation and test sets of a run. At every evaluation a few figures of `coh.measuring` go into the log beside
the losses, by validation's pairs. Before and after training all of them, the loss on held-out text and some outputs are
measured by the test's pairs (validation's where there is no test) and written to `evaluation.json`, for the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from coh.data.coh_data import CoHDataset
from coh.data.records import FeedbackGroup
from coh.evaluate import Evaluation, text_loss
from coh.measuring import measure, preferred_pairs, without_nan
from coh.steered import SteeredModel
from coh.steering import Steering
from coh.written import write

FILE = "evaluation.json"
LOGGED = ("pair_accuracy", "pair_accuracy_by_words", "steering_gap")
MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class HeldOut:
    """The held-out part of a run's data, and how much of it is measured.

    `during` and `around` are the groups of each source that are measured at every evaluation, and before and after.
    `texts` are held-out plain texts, if any; `num_prompts` is for how many prompts of each source outputs are written.
    """

    steering: Steering
    tokenizer: Any
    during: dict[str, list[FeedbackGroup]]
    around: dict[str, list[FeedbackGroup]]
    texts: Any
    max_length: int
    num_prompts: int

    @classmethod
    def of(
        cls, datasets: Mapping[str, CoHDataset], steering: Steering, tokenizer: Any, num_pairs: int, num_prompts: int
    ) -> HeldOut | None:
        """What there is to measure; None where that is nothing."""
        validation = datasets.get("validation") or datasets.get("test")
        test = datasets.get("test") or validation
        if validation is None or test is None or not num_pairs:
            return None
        during, around = _groups(validation, num_pairs), _groups(test, num_pairs)
        if not any(around.values()):
            return None
        return cls(steering, tokenizer, during, around, test.texts, test.args.seq_length, num_prompts)

    def metrics(self, model: Any, prefix: str) -> dict[str, float]:
        """A few figures of each source, for the log."""
        found: dict[str, float] = {}
        for source, groups in self.during.items():
            figures = measure(model, self.steering, groups, self.max_length).figures
            found |= {f"{prefix}_{source}_{name}": figures[name].value for name in LOGGED if name in figures}
        return found

    def evaluation(self, model: Any, moment: str, is_whole: bool = True) -> dict[str, Any]:
        """Everything, as plain values; outputs only of a model whose weights every process has whole."""
        steered = SteeredModel(model, self.tokenizer, self.steering)
        sources = {
            source: measure(model, self.steering, groups, self.max_length, f"Measuring {source} {moment}")
            for source, groups in self.around.items()
        }
        text = None
        if self.texts:
            text = text_loss(model, self.steering, self.texts, self.max_length, f"Measuring text {moment}")
        written = {
            source: write(
                steered,
                groups[: self.num_prompts],
                progress=f"Writing for {source} {moment}",
                max_new_tokens=MAX_NEW_TOKENS,
            )
            for source, groups in self.around.items()
            if self.num_prompts and is_whole
        }
        return without_nan(Evaluation(sources, text, written).as_json())


def _groups(dataset: CoHDataset, most: int) -> dict[str, list[FeedbackGroup]]:
    """The first groups of each source in which people preferred one output to another."""
    found: dict[str, list[FeedbackGroup]] = {}
    for source in dataset.chains.sources:
        groups = (source.store.group(int(index)) for index in source.indices)
        found[source.name] = list(islice((group for group in groups if preferred_pairs([group])), most))
    return {name: groups for name, groups in found.items() if groups}


class Measuring(TrainerCallback):
    """Measures the model when its training begins, and keeps what was measured in `evaluation.json`."""

    def __init__(self, trainer: Any, held_out: HeldOut) -> None:
        self.trainer, self.held_out = trainer, held_out
        self.path = Path(trainer.args.output_dir, FILE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.keep("before")

    def keep(self, moment: str) -> None:
        """Measure now, and write it down beside what is there."""
        model, is_whole = whole_or_engine(self.trainer)
        found = self.held_out.evaluation(model, moment, is_whole)
        if self.trainer.is_world_process_zero():
            known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({**known, moment: found}, indent=1) + "\n", encoding="utf-8")


def whole_or_engine(trainer: Any) -> tuple[Any, bool]:
    """The model to compute with, and whether every process has all of its weights."""
    if getattr(trainer, "is_fsdp_enabled", False):
        return trainer.model_wrapped, False
    if getattr(trainer, "is_deepspeed_enabled", False) and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
        return trainer.model_wrapped, False
    return trainer.accelerator.unwrap_model(trainer.model), True
