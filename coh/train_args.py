"""How the model learns, as options: `CoHTrainArgs`, which is `transformers.TrainingArguments` and the method's own."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from coh.arguments import ConfigError


@dataclass
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
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"],
        metadata={"help": "Keys of a batch that hold targets; labels, as the collator names them."},
    )

    def __post_init__(self) -> None:
        problems, cause = list(self._problems()), None
        try:
            super().__post_init__()
            problems += self._launch_problems()
        except (ValueError, TypeError, ImportError, OSError) as error:
            problems.append(str(error))
            cause = error
        if problems:
            raise ConfigError(problems) from cause
        if self.deepspeed and self.use_cpu and torch.distributed.is_initialized():
            import deepspeed  # slow to import, and optional

            # Transformers does so without use_cpu; with it, ZeRO-3 would load the weights as if each rank were alone.
            deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.pt_loss_weight < math.inf:
            yield f"--pt_loss_weight {self.pt_loss_weight}: give 0 or a positive number."
        for name in ("fcm_min_ratio", "fcm_max_ratio"):
            if not 0 <= getattr(self, name) < 1:
                yield f"--{name} {getattr(self, name)}: give a share from 0 to below 1, such as 0.05."
        if self.fcm_min_ratio > self.fcm_max_ratio:
            yield f"--fcm_min_ratio {self.fcm_min_ratio} exceeds --fcm_max_ratio {self.fcm_max_ratio}: raise that one."
        fixed = {
            "label_smoothing_factor": (0, "the loss has no smoothing"),
            "train_sampling_strategy": ("sequential", "rows are in their final order already"),
            "remove_unused_columns": (False, "the loss needs the columns that the model does not"),
            "use_cache": (False, "with a cache, the documents of a row would see each other"),
            "include_num_input_tokens_seen": ("no", "num_tokens_seen is logged without it"),
        }
        for name, (value, reason) in fixed.items():
            if getattr(self, name) not in (value, False):
                yield f"--{name} {getattr(self, name)}: {reason}, so leave it at {value}."

    def _launch_problems(self) -> Iterator[str]:
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched > 1 and self.world_size == 1:
            yield (
                f"{launched} processes were launched, but each would train a model of its own: pass --use_cpu if the "
                "machine has no GPU, or launch one process."
            )
