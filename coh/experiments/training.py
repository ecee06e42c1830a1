"""Trains one arm for a budget of tokens, in this process: what `coh.coh_train` does, without its measuring and saving.

In: the options of an arm. Out: the model, and what it cost. A token counts when the model reads it in training, be it
target, prompt or plain text; padding does not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coh.arguments import parse_or_raise
from coh.coh_train import build_model, fit_length
from coh.data.coh_data import CoHDataArgs, CoHDataset, load_datasets
from coh.data.collator import collate
from coh.data.records import FeedbackGroup
from coh.experiment import ExperimentArgs, cross_problems
from coh.measuring import preferred_pairs
from coh.train_args import CoHTrainArgs
from coh.trainer import CoHTrainer

Parsed = tuple[ExperimentArgs, CoHDataArgs, CoHTrainArgs]


@dataclass
class Spent:
    """What training cost. `compute` is in tokens of a forward and backward: one of a forward alone counts a third."""

    steps: int = 0
    tokens: int = 0
    text_tokens: int = 0
    targets: int = 0
    reference_tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    learning: list[float] = field(default_factory=list)

    @property
    def compute(self) -> float:
        """Tokens of forward and backward that cost as much."""
        return self.tokens + self.reference_tokens / 3

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, for a file."""
        return {**asdict(self), "compute": self.compute}


class Clock:
    """Seconds by the wall and of the processor since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Wall and processor seconds."""
        return round(time.perf_counter() - self._wall, 2), round(time.process_time() - self._cpu, 2)


def parsed(options: Mapping[str, Sequence[str]]) -> Parsed:
    """The options of a run of `coh.coh_train`, checked against each other.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    argv = [word for name, words in options.items() for word in (f"--{name}", *words)]
    types = [ExperimentArgs, CoHDataArgs, CoHTrainArgs]
    return parse_or_raise(types, argv, checks=cross_problems)


def training_set(experiment: ExperimentArgs, data: CoHDataArgs, train: CoHTrainArgs) -> CoHDataset:
    """The rows of feedback and text that a run learns from."""
    return load_datasets(
        data, experiment.tokenizer, seed=train.seed, prepend_bos=train.prepend_bos, cache_dir=experiment.cache_dir
    )["train"]


def plan_budget(dataset: CoHDataset, rows_per_step: int, tokens: int) -> Spent:
    """The first whole steps of a dataset that have at least so many tokens, counted."""
    spent = Spent()
    while spent.tokens < tokens:
        first = spent.steps * rows_per_step
        dataset.num_rows = first + rows_per_step
        rows = dataset.rows(range(first, dataset.num_rows))
        num_tokens = (rows["source_id"] >= 0).sum(axis=1)
        spent.steps += 1
        spent.tokens += int(num_tokens.sum())
        spent.text_tokens += int(num_tokens[rows["is_pretrain"]].sum())
        spent.targets += int((rows["labels"] >= 0).sum())
    return spent


def train_coh(options: Mapping[str, Sequence[str]], tokens: int) -> tuple[Any, Any, Spent]:
    """The trained model, its tokenizer and what it cost."""
    from transformers import set_seed

    experiment, data, train = parsed(options)
    Path(train.output_dir).mkdir(parents=True, exist_ok=True)
    dataset = training_set(experiment, data, train)
    spent = plan_budget(dataset, train.train_batch_size * train.gradient_accumulation_steps, tokens)
    train.max_steps = spent.steps
    fit_length(dataset, train)
    set_seed(train.seed)
    model = build_model(experiment, data, train)
    trainer = CoHTrainer(
        model=model,
        args=train,
        train_dataset=dataset,
        source_names=dataset.source_names,
        data_collator=collate,
        processing_class=experiment.tokenizer,
    )
    clock = Clock()
    trainer.train()
    spent.seconds, spent.cpu_seconds = clock.read()
    logs = trainer.state.log_history
    seen = trainer.state.num_input_tokens_seen
    if seen != spent.tokens:
        raise RuntimeError(f"{seen} tokens were seen, {spent.tokens} were planned")
    spent.learning = [log["loss_feedback"] for log in logs if "loss_feedback" in log]
    return trainer.accelerator.unwrap_model(trainer.model), experiment.tokenizer, spent


def drawn_pairs(dataset: CoHDataset, weights: Sequence[float] | None, seed: int) -> Iterator[FeedbackGroup]:
    """Preferred pairs of the training groups without end: sources by their weights, each in a random order."""
    rng = np.random.default_rng(seed)
    sources = dataset.chains.sources
    shares = np.array(weights or [len(source.indices) for source in sources], float)
    waiting: list[list[FeedbackGroup]] = [[] for _ in sources]
    while shares.sum():
        number = int(rng.choice(len(sources), p=shares / shares.sum()))
        if not waiting[number]:
            source = sources[number]
            order = rng.permutation(source.indices)
            waiting[number] = preferred_pairs([source.store.group(int(index)) for index in order])
            if not waiting[number]:
                shares[number] = 0.0  # it compares nothing
                continue
        yield waiting[number].pop()
