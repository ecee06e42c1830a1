"""What makes two runs the same run, so that one may go on where the other stopped.

In: the options, the data and the model. Out: facts by the name under which a person knows them, and sentences about
those that differ. Data counts by its content, so a folder may move; what changes no number, such as how often is
logged, is no fact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from inspect import get_annotations
from typing import Any

# Options that name a place, or change nothing about what is learned.
FREE = {
    *("model_name", "tokenizer_name", "cache_dir", "trust_remote_code", "wandb_project_name", "wandb_run_name"),
    *("feedback_data", "eval_feedback_data", "feedback_format", "pretrain_data"),
    *("pretrain_docs", "templates"),
    *("logging_steps", "logging_nan_inf_filter", "train_sampling_strategy", "remove_unused_columns", "label_names"),
    *("force_resume", "grad_norm_limit", "eval_pairs", "eval_prompts", "write_report"),
}
# Of the options of `transformers.TrainingArguments`, those that change what is learned.
OF_TRAINING = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "seed", "data_seed"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("bf16", "fp16", "neftune_noise_alpha"),
)
NO_FORCE = ("engine",)  # a checkpoint of another engine has other files


def run_facts(experiment: Any, data: Any, train: Any, dataset: Any) -> dict[str, Any]:
    """The facts of a run, as JSON has them: options with their dashes, and what the sources and templates hold."""
    facts: dict[str, Any] = {}
    for options in (experiment, data):
        facts |= {f"--{name}": value for name, value in asdict(options).items() if name not in FREE}
    own = [name for name in get_annotations(type(train)) if name not in FREE]
    facts |= {f"--{name}": getattr(train, name) for name in (*own, *OF_TRAINING)}
    facts["rows of a step"] = train.train_batch_size * train.world_size * train.gradient_accumulation_steps
    facts["engine"] = engine(train)
    facts["tokenizer"] = dataset.chains.encoder.fingerprint
    facts["templates"] = [
        f"{source.form.family.name}, {_digest([json.dumps(source.form.family.as_dict()).encode()])}"
        for source in dataset.chains.sources
    ]
    for source in dataset.chains.sources:
        buffers = _buffers(source.store.dataset, {"row"})
        found = _digest([*buffers, source.indices.tobytes()])
        facts[f"feedback {source.name}"] = f"{len(source.indices):,} groups, {found}"
    if dataset.texts is not None:
        facts["pretraining text"] = f"{len(dataset.texts):,} texts, {_digest(_id_buffers(dataset.texts.table))}"
    return json.loads(json.dumps(facts, default=str))


def installed_versions() -> dict[str, str]:
    """The versions of what the last digits of a result depend on, as far as it is installed."""
    found = {}
    for package in ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def engine(train: Any) -> str:
    """What shares the work between processes, in words."""
    config = getattr(train, "hf_deepspeed_config", None)
    if config is not None:
        return f"DeepSpeed, ZeRO stage {config.get_value('zero_optimization.stage', 0)}"
    is_fsdp = train.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    return "FSDP" if is_fsdp else "one model in each process"


def _buffers(dataset: Any, without: set[str]) -> Iterator[Any]:
    """The bytes of a table's columns."""
    for name in sorted(set(dataset.column_names) - without):
        for chunk in dataset.data.column(name).chunks:
            yield from (buffer for buffer in chunk.buffers() if buffer is not None)


def _id_buffers(table: Any) -> Iterator[Any]:
    yield table.starts
    yield table.values


def _digest(parts: Iterable[Any]) -> str:
    digest = blake2b(digest_size=6)
    for part in parts:
        digest.update(part)
    return f"content {digest.hexdigest()}"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for every fact that is not what it was.

    >>> differences({"--seed": 1, "--seq_length": 512}, {"--seed": 2, "--seq_length": 512})
    ['--seed was 1 and is 2']
    >>> differences({}, {"feedback mine": "12 groups, content 3f"})
    ['feedback mine was not there and is 12 groups, content 3f']
    """
    names = [*now, *(name for name in then if name not in now)]
    return [
        f"{name} was {then.get(name, 'not there')} and is {now.get(name, 'not there')}"
        for name in names
        if (name in then, then.get(name)) != (name in now, now.get(name))
    ]
