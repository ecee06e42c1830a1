"""The arm `dpo`: Direct Preference Optimization by the package trl, on the pairs that the other arms have.

A prompt ends in the words for a good output, as those of the arm `sft` do. A pair is read twice: once by the model
before training, for the reference, forward alone; and once in training, forward and backward. So a token of a pair
costs 4/3 of one that is only trained on, and at equal compute DPO reads three quarters as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from coh.data.records import FeedbackGroup
from coh.data.templates import load_family
from coh.experiments.training import Clock, Spent, drawn_pairs, parsed, training_set
from coh.modeling import load_model
from coh.saved import Words
from coh.steering import Steering

MISSING = "the arm dpo needs the package trl: pip install 'trl>=1.0'"
READS = 1 + 1 / 3  # of a token: forward and backward, and forward for the reference


def is_installed() -> bool:
    """Whether trl is there."""
    return find_spec("trl") is not None


def preference_row(steering: Steering, pair: FeedbackGroup, max_length: int) -> dict[str, str] | None:
    """Prompt, better and worse output as texts, the prompt cut from the left to fit; None where it cannot.

    Their ids are those of the documents that the arms of `coh` learn and that all arms are measured on.
    """
    decode = steering.encoder.tokenizer.decode
    prompt: list[int] = []
    outputs = []
    for document in steering.documents(pair, "good"):
        start = document.target_mask.index(True)
        prompt = list(document.input_ids[:start])
        outputs.append(document.input_ids[start:-1])  # trl ends it itself
    room = max_length - 1 - max(map(len, outputs))
    if room < max_length // 8:
        return None
    return {"prompt": decode(prompt[-room:]), "chosen": decode(outputs[0]), "rejected": decode(outputs[1])}


def preference_rows(
    steering: Steering, pairs: Iterable[FeedbackGroup], tokens: int, max_length: int
) -> list[dict[str, str]]:
    """The first pairs that have, reference included, as much compute as so many tokens of training."""
    tokenizer, rows, spent = steering.encoder.tokenizer, [], 0.0
    for pair in pairs:
        row = preference_row(steering, pair, max_length)
        if row is None:
            continue
        rows.append(row)
        prompt, *outputs = (len(tokenizer(text)["input_ids"]) for text in row.values())
        spent += READS * (2 * prompt + sum(outputs) + 2)
        if spent >= tokens:
            break
    return rows


def train_dpo(
    options: Mapping[str, Sequence[str]], tokens: int, learning_rate: float, beta: float
) -> tuple[Any, Any, Spent]:
    """The trained model, its tokenizer and what it cost."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    experiment, data, train = parsed(options)
    dataset = training_set(experiment, data, train)
    words = Words(load_family(data.templates[0]), train.prepend_bos)
    steering = Steering.of(words, experiment.tokenizer)
    pairs = drawn_pairs(dataset, data.feedback_weights, train.seed)
    rows = preference_rows(steering, pairs, tokens, data.seq_length)
    step_tokens = train.train_batch_size * train.gradient_accumulation_steps * data.seq_length
    clock = Clock()
    trainer = DPOTrainer(
        model=load_model(experiment.model_name, dtype=experiment.dtype, cache_dir=experiment.cache_dir),
        args=DPOConfig(
            output_dir=train.output_dir,
            beta=beta,
            learning_rate=learning_rate,
            max_length=data.seq_length,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=1,
            # Steps of as much compute as the other arms', so there are as many of them.
            gradient_accumulation_steps=max(1, round(len(rows) * step_tokens / tokens)),
            num_train_epochs=1,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            seed=train.seed,
            bf16=train.bf16,
            use_cpu=train.use_cpu,
            disable_tqdm=train.disable_tqdm,
            logging_steps=train.logging_steps,
            lr_scheduler_type=train.lr_scheduler_type,
            warmup_steps=train.warmup_steps,
            adam_beta2=train.adam_beta2,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=experiment.tokenizer,
    )
    prepared = trainer.train_dataset
    trainer.train()
    spent = Spent(trainer.state.global_step)
    spent.seconds, spent.cpu_seconds = clock.read()
    for row in prepared:
        for name in ("chosen_ids", "rejected_ids"):
            length = min(len(row["prompt_ids"]) + len(row[name]), data.seq_length)
            spent.tokens += length
            spent.targets += length - len(row["prompt_ids"])
    spent.reference_tokens = spent.tokens
    spent.learning = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return trainer.accelerator.unwrap_model(trainer.model), experiment.tokenizer, spent
