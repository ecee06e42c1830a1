"""How the model learns, as options: `CoHTrainArgs`, which is `transformers.TrainingArguments` and the method's own."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available

from coh.arguments import ConfigError
from coh.modeling import has_fast_bf16
from coh.world import early_problems, join_deepspeed_on_cpu, launch_problems, num_launched

# Liger's own losses: they take the place of the model's forward, or of functions that the loss here never calls.
LIGER_LOSSES = ("fused_linear_cross_entropy", "cross_entropy")


def liger_config(given: Mapping[str, bool] | None) -> dict[str, bool]:
    """What Liger Kernel is told: its layers, without its losses, which would compute logits where there is no target.

    >>> liger_config({"rope": False})
    {'fused_linear_cross_entropy': False, 'cross_entropy': False, 'rope': False}

    Raises:
        ConfigError: one of its losses is asked for.
    """
    config = dict.fromkeys(LIGER_LOSSES, False) | dict(given or {})
    if asked := [name for name in LIGER_LOSSES if config[name]]:
        raise ConfigError(
            f"--liger_kernel_config {name}: the loss has targets in two streams and a kernel of its own, so Liger may "
            "give its layers alone: leave it out."
            for name in asked
        )
    return config


def stated_bf16(deepspeed: Any) -> bool | None:
    """What a configuration of DeepSpeed, a file or its content, says of bfloat16; None where it leaves that open.

    >>> stated_bf16({"fp16": {"enabled": True}}), stated_bf16({"bf16": {"enabled": "auto"}})
    (False, None)
    """
    try:
        if isinstance(deepspeed, str):
            is_content = deepspeed.lstrip().startswith("{")
            deepspeed = json.loads(deepspeed if is_content else Path(deepspeed).read_text(encoding="utf-8"))
        said = [deepspeed.get(name, {}).get("enabled") for name in ("bf16", "fp16")]
    except (OSError, ValueError, AttributeError):
        return None  # whoever reads it for use says what is wrong
    if said[1] is True:
        return False
    return said[0] if isinstance(said[0], bool) else None


@dataclass(repr=False)  # that of TrainingArguments hides tokens
class CoHTrainArgs(TrainingArguments):
    """How the model learns: the method's own settings, and those of `transformers.TrainingArguments`."""

    pt_loss_weight: float = field(
        default=1.0,
        metadata={
            "help": "Lambda, the weight of the mean loss per pretraining token beside that per feedback token, which "
            "keeps the model's general skill; 1.0 counts both alike, and the paper has 1.5."
        },
    )
    prepend_bos: bool = field(
        default=False,
        metadata={
            "help": "Start each document with the tokenizer's BOS token, in training and afterwards; off, since only "
            "models that were pretrained so (LLaMA) expect it."
        },
    )
    fcm_min_ratio: float = field(
        default=0.0,
        metadata={"help": "Least share (0 to 1) of attention pairs that a row forgets; 0, as in the paper."},
    )
    fcm_max_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Greatest share (0 to 1) of attention pairs that a row forgets in training, against mere copying; "
            "0 is off and fastest, 0.05 was the paper's best, 0.15 too much."
        },
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Compute in bfloat16, while weights, Adam's means and sums keep their own format; by default "
            "wherever the device is fast at it (GPUs from Ampere on, CPUs with AMX or AVX-512 BF16) and neither --fp16 "
            "nor DeepSpeed's file says otherwise, and never with --bf16 false."
        },
    )
    adam_beta2: float = field(
        default=0.95,
        metadata={
            "help": "Share of Adam's squared-gradient mean that a step keeps; 0.95 is the paper's (often 0.999)."
        },
    )
    logging_steps: float = field(
        default=10,
        metadata={
            "help": "Steps from log to log (a share of all steps if below 1); 10, so that short runs show a curve."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave NaN out of logged losses; off, since NaN stops the run here, and a look takes time."},
    )
    train_sampling_strategy: str = field(
        default="sequential",
        metadata={"help": "Order of the rows; only sequential is accepted, since the plan of the data has mixed them."},
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Hide from the trainer what the model does not take; off and to stay off, since the loss reads it."
        },
    )
    force_resume: bool = field(
        default=False,
        metadata={
            "help": "Go on from a checkpoint in spite of other data, templates or settings than its own; what is "
            "learned is then that of neither run."
        },
    )
    grad_norm_limit: float = field(
        default=1000.0,
        metadata={
            "help": "Stop where a gradient norm is more than so many times the median of the last 64 steps; 1000 lets "
            "every harmless spike pass, 0 never stops."
        },
    )
    eval_pairs: int = field(
        default=20,
        metadata={
            "help": "Held-out pairs or verdicts of each source, a random sample, that are measured before and after "
            "training and at each evaluation; 20 cost little and tell only great changes (300 tell 6 points), 0 is off."
        },
    )
    eval_prompts: int = field(
        default=3,
        metadata={
            "help": "Held-out prompts of each source that the model answers under good and under bad words, before and "
            "after training, for the report; 3 are a glance, 0 is off."
        },
    )
    write_report: bool = field(
        default=True,
        metadata={
            "help": "Write report.html and report.md into the output folder at the end; on, since it takes seconds."
        },
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"],
        metadata={"help": "Keys of a batch that hold targets; labels, as the collator names them."},
    )

    def __post_init__(self) -> None:
        problems, cause = list(self._problems()), None
        if early := list(early_problems(self, os.environ, torch.cuda.device_count())):
            raise ConfigError(problems + early)
        self._choose_bf16()
        try:
            super().__post_init__()
            problems += [*launch_problems(self, os.environ), *self._fill_kernel_options()]
        except (ValueError, TypeError, ImportError, OSError) as error:
            problems.append(str(error))
            cause = error
        if problems:
            raise ConfigError(problems) from cause
        if self.deepspeed and self.use_cpu and torch.distributed.is_initialized():
            join_deepspeed_on_cpu()

    def _choose_bf16(self) -> None:
        """Decides about bfloat16 where nobody has; `is_bf16_chosen` tells who did."""
        self.is_bf16_chosen = self.bf16 is None
        if self.bf16 is not None:
            return
        use_cpu = getattr(self, "use_cpu", False)
        stated = stated_bf16(self.deepspeed) if self.deepspeed else None
        by_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.is_bf16_chosen = stated is None and by_launcher == "no" and not self.fp16
        is_wanted = has_fast_bf16(use_cpu) if stated is None else stated
        self.bf16 = is_wanted and not self.fp16 and by_launcher in ("no", "bf16")
        if self.bf16 and not use_cpu and not torch.accelerator.is_available():
            # Without a GPU transformers wants to hear that the CPU is meant; several processes have to say so anyhow.
            self.bf16 = num_launched(os.environ)[0] == 1
            self.use_cpu = bool(self.bf16)

    @property
    def arithmetic(self) -> str:
        """What is computed in, and why, as a sentence."""
        names = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
        name = names.get(self.mixed_precision, self.mixed_precision)
        if not self.is_bf16_chosen:
            return f"Computing in {name}, as was asked for"
        if self.bf16:
            return f"Computing in {name}, which this device is fast at (--bf16 false: in float32)"
        return f"Computing in {name} (--bf16 true: in bfloat16, where the device is fast at it)"

    def _fill_kernel_options(self) -> Iterator[str]:
        """Completes what activation checkpointing and Liger Kernel are told; what is wrong with it, as sentences."""
        # Transformers' own default, which it forgets where somebody gives other keys.
        names = "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"  # the new name and the old
        for name in names:
            if isinstance(getattr(self, name, None), dict):
                setattr(self, name, {"use_reentrant": False} | getattr(self, name))
        if self.use_liger_kernel:
            try:
                self.liger_kernel_config = liger_config(getattr(self, "liger_kernel_config", None))
            except ConfigError as error:
                yield from error.problems
            if self.device.type == "cpu":
                yield "--use_liger_kernel: its kernels are for GPUs: leave it out."
            elif not is_liger_kernel_available():
                yield "--use_liger_kernel: the package liger-kernel is missing: pip install liger-kernel."

    def __getstate__(self) -> dict[str, Any]:
        """What `training_args.bin`, which Trainer puts into every checkpoint, keeps: all but the hub's token."""
        return {**self.__dict__, "hub_token": None}

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.pt_loss_weight < math.inf:
            yield f"--pt_loss_weight {self.pt_loss_weight}: give 0 or a positive number."
        for name in ("fcm_min_ratio", "fcm_max_ratio"):
            if not 0 <= getattr(self, name) < 1:
                yield f"--{name} {getattr(self, name)}: give a share from 0 to below 1, such as 0.05."
        if self.fcm_min_ratio > self.fcm_max_ratio:
            yield f"--fcm_min_ratio {self.fcm_min_ratio} exceeds --fcm_max_ratio {self.fcm_max_ratio}: raise that one."
        if self.max_steps <= 0 and not 0 < self.num_train_epochs < math.inf:
            yield f"--num_train_epochs {self.num_train_epochs}: give a number above 0, such as 1, or --max_steps."
        for name in ("eval_pairs", "eval_prompts"):
            if getattr(self, name) < 0:
                yield f"--{name} {getattr(self, name)}: give 0 or a positive number."
        if not 0 <= self.grad_norm_limit < math.inf:
            yield f"--grad_norm_limit {self.grad_norm_limit}: give a number above 1, such as 1000, or 0 for none."
        fixed = {
            "label_smoothing_factor": (0, "the loss has no smoothing"),
            "train_sampling_strategy": ("sequential", "rows are in their final order already"),
            "remove_unused_columns": (False, "the loss needs the columns that the model does not"),
            "ignore_data_skip": (False, "to go on costs nothing: it begins at its row"),
            "enable_jit_checkpoint": (False, "SIGTERM is answered with a checkpoint anyhow"),
            "use_cache": (False, "with a cache, the documents of a row would see each other"),
            "auto_find_batch_size": (
                False,
                "the steps of a run are counted with the batch size that is given",
            ),
            "include_num_input_tokens_seen": ("no", "num_tokens_seen is logged without it"),
        }
        for name, (value, reason) in fixed.items():
            if getattr(self, name) not in (value, False):
                yield f"--{name} {getattr(self, name)}: {reason}, so leave it at {value}."
