"""Which model a run is about, and what is wrong between its options before anything expensive starts.

In: the command line's dataclasses. Out: `ExperimentArgs`, and sentences about options that do not fit each other.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from coh.adapters import Lora, config_problems, missing_packages
from coh.arguments import ConfigError
from coh.data.data_args import CoHDataArgs
from coh.data.forms import own_template
from coh.modeling import (
    DTYPES,
    ModelError,
    Quantization,
    adapter_base,
    load_config,
    load_tokenizer,
    problems_of,
)
from coh.train_args import CoHTrainArgs


@dataclass
class ExperimentArgs:
    """Which model, and how the run is named."""

    model_name: str = field(
        default="gpt2",
        metadata={
            "help": "Hub id, folder or .gguf file of a causal language model; the default is small enough to try "
            "things."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer, where it does not lie with the model."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where downloads and prepared data are kept; by default the Hugging Face caches."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run Python code that lies with the model or tokenizer, which such a model needs; off, since that "
            "code can do whatever you can. Read it first."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention of transformers: sdpa, eager, flash_attention_2, ...; by default the model's own "
            "choice, sdpa for most."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": f"Number format of the weights, one of {', '.join(DTYPES)}; float32 keeps small updates, and "
            f"--bf16 computes fast all the same."
        },
    )
    use_lora: bool = field(
        default=False,
        metadata={
            "help": "Train low-rank matrices beside the linear layers and nothing else: gradients and Adam's memory "
            "shrink to some hundredths, and the result is a small adapter. Learning rates are about ten times those "
            "of full training."
        },
    )
    lora_r: int = field(
        default=16,
        metadata={"help": "Rank of the matrices, 1 or more; a higher one can learn more and costs as much more."},
    )
    lora_alpha: float = field(
        default=32.0,
        metadata={
            "help": "What the matrices' product is multiplied with, times the rank (alpha / r); twice the rank, as is "
            "usual. Fix it when you change the rank, and the learning rate may stay."
        },
    )
    lora_dropout: float = field(
        default=0.0,
        metadata={"help": "Share (0 to 1) of the matrices' inputs that is dropped; 0, since the paper drops nothing."},
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the linear layers that get matrices, such as q_proj v_proj; by default all but the head, "
            "since attention alone learns less at the same number of parameters."
        },
    )
    load_in_8bit: bool = field(
        default=False,
        metadata={
            "help": "Keep the frozen weights in 8 bits (bitsandbytes), half of bfloat16's memory; needs --use_lora."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={
            "help": "Keep the frozen weights in 4 bits (NF4, QLoRA), a quarter of bfloat16's memory; needs --use_lora."
        },
    )
    wandb_project_name: str | None = field(
        default=None, metadata={"help": "Project of the run in W&B, with --report_to wandb."}
    )
    wandb_run_name: str | None = field(
        default=None, metadata={"help": "Name of the run in W&B; by default --run_name."}
    )

    def __post_init__(self) -> None:
        problems = []
        if not self.model_name.strip():
            problems.append("--model_name is empty: give a hub id, a folder or a .gguf file.")
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        problems += [*self._lora_problems(), *self._quantization_problems()]
        if problems:
            raise ConfigError(problems)

    def _lora_problems(self) -> Iterator[str]:
        if self.lora_r < 1:
            yield f"--lora_r {self.lora_r}: give a rank of 1 or more, such as 16."
        if not 0 < self.lora_alpha < float("inf"):
            yield f"--lora_alpha {self.lora_alpha}: give a positive number, such as 32."
        if not 0 <= self.lora_dropout < 1:
            yield f"--lora_dropout {self.lora_dropout}: give a share from 0 to below 1, such as 0.05."
        if not self.use_lora:
            for option in fields(self):
                if option.name.startswith("lora_") and getattr(self, option.name) != option.default:
                    yield f"--{option.name} {getattr(self, option.name)}: it does nothing without --use_lora: add that."

    def _quantization_problems(self) -> Iterator[str]:
        if self.load_in_8bit and self.load_in_4bit:
            yield "--load_in_8bit and --load_in_4bit: weights are in one of them, leave the other out."
        elif self.bits and not self.use_lora:
            yield (
                f"--load_in_{self.bits}bit: weights of {self.bits} bits are too coarse to be trained themselves: add "
                "--use_lora, or leave the option out."
            )
        if self.bits and self.model_name.endswith(".gguf"):
            yield (
                f"--load_in_{self.bits}bit: a .gguf file is unpacked into plain weights when it is read: name the "
                "model's own folder or hub id, or leave the option out."
            )

    @cached_property
    def tokenizer(self) -> Any:
        """The run's tokenizer, read once: checks and training use the same. Raises ModelError where there is none."""
        name = self.tokenizer_name or self.model_name
        return load_tokenizer(name, self.cache_dir, trust_remote_code=self.trust_remote_code)

    @property
    def bits(self) -> int | None:
        """Bits of a quantised weight, or None."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def lora(self) -> Lora:
        """The adapter that is asked for."""
        return Lora(self.lora_r, self.lora_alpha, self.lora_dropout, tuple(self.lora_target_modules or ()))

    def quantization(self, train: CoHTrainArgs) -> Quantization | None:
        """How weights are quantised, if they are; they are computed with in the format of autocast."""
        if not self.bits:
            return None
        compute_dtype = "bfloat16" if train.bf16 else "float16" if train.fp16 else "float32"
        return Quantization(self.bits, compute_dtype, train.device)


def cross_problems(experiment: ExperimentArgs, data: CoHDataArgs, train: CoHTrainArgs) -> list[str]:
    """What is wrong between the options: model, tokenizer and data against each other, before weights load."""
    try:
        trust = experiment.trust_remote_code
        config = load_config(experiment.model_name, experiment.cache_dir, trust_remote_code=trust)
        tokenizer = experiment.tokenizer
        base = adapter_base(experiment.model_name, experiment.cache_dir)
    except ModelError as error:
        return [str(error)]
    problems = problems_of(config, tokenizer, data.seq_length)
    if base is not None:
        problems.append(
            f"--model_name {experiment.model_name}: it is an adapter of {base}, and training begins with a whole "
            "model: python -m coh.merge makes one of the two."
        )
    problems += _efficiency_problems(experiment, train, config)
    if train.prepend_bos and tokenizer.bos_token_id is None:
        problems.append("--prepend_bos: the tokenizer has no bos_token; leave the option out.")
    if data.prompt_format == "chat":
        if not own_template(tokenizer):
            problems.append("--prompt_format chat: the tokenizer has no chat template; choose plain.")
        if train.prepend_bos:
            problems.append("--prepend_bos: with --prompt_format chat the chat template decides; leave the option out.")
    return problems


def _efficiency_problems(experiment: ExperimentArgs, train: CoHTrainArgs, config: Any) -> Iterator[str]:
    """What is wrong with adapters and quantised weights, beside the model and the engine."""
    yield from missing_packages(uses_lora=experiment.use_lora, is_quantized=bool(experiment.bits))
    if experiment.use_lora:
        yield from config_problems(config, experiment.lora.targets)
    stored = getattr(config, "quantization_config", None)
    if stored is not None and not experiment.model_name.endswith(".gguf"):
        if experiment.bits:
            yield f"--load_in_{experiment.bits}bit: the model is stored in quantised form already: leave it out."
        elif not experiment.use_lora:
            yield f"--model_name {experiment.model_name}: quantised weights are too coarse to train: add --use_lora."
    if experiment.bits or stored is not None:
        yield from _shards_problems(experiment, train)


def _shards_problems(experiment: ExperimentArgs, train: CoHTrainArgs) -> Iterator[str]:
    """Engines that cut weights into pieces would separate quantised ones from the scales that they are read with."""
    named = f"--load_in_{experiment.bits}bit" if experiment.bits else f"--model_name {experiment.model_name}"
    deepspeed = getattr(train.deepspeed_plugin, "hf_ds_config", None)
    if deepspeed is not None and deepspeed.is_zero3():
        yield (
            f"{named}: ZeRO-3 cuts weights into pieces, quantised ones would lose their scales: take "
            "ds_config/zero2.json, or leave --deepspeed or the quantisation out."
        )
    if train.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "") == "true":
        yield (
            f"{named}: FSDP cuts weights into pieces, quantised ones would lose their scales: leave --fsdp or the "
            "quantisation out."
        )
