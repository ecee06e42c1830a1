"""Low-rank adapters (LoRA, arXiv 2106.09685): a frozen model, and two thin matrices beside each of its linear layers.

In: a loaded model, with weights in any number format or quantised by bitsandbytes, and a `Lora`. Out: peft's model
around it, in which the thin matrices alone are trained, in float32; or sentences about what does not go together.

Layers are found in the model itself, so that no table of architectures is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coh.modeling import ModelError

logger = logging.getLogger("coh")


@dataclass(frozen=True)
class Lora:
    """Of which rank the matrices are, what their product is multiplied with (alpha / rank), and where they stand."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers of a model by their full names, without its head; GPT-2's `Conv1D` is one of them.

    The head is left out: its matrices would be the largest, tied embeddings would change with it, and as it stands it
    is computed at the targets alone.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def default_targets(model: Any) -> list[str]:
    """Names for all linear layers but the head: the last part of each, or all of it where that would name others too.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> default_targets(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1)))
    ['c_attn', 'c_fc', 'c_proj']
    """
    layers = linear_layers(model)
    others = [name for name, _ in model.named_modules() if name not in layers]
    short = {name.rsplit(".", 1)[-1] for name in layers}
    unclear = {target for target in short if any(_is_named(name, target) for name in others)}
    full = {name for name in layers if name.rsplit(".", 1)[-1] in unclear}
    return sorted((short - unclear) | full)


def _is_named(name: str, target: str) -> bool:
    """Whether a target names a module, as peft sees it.

    >>> _is_named("layers.0.q_proj", "q_proj"), _is_named("layers.0.q_proj", "proj")
    (True, False)
    """
    return name == target or name.endswith(f".{target}")


def target_problems(model: Any, targets: Sequence[str]) -> Iterator[str]:
    """A sentence for every target that does not name linear layers, with the names that do."""
    layers, head = linear_layers(model), model.get_output_embeddings()
    there = f"choose of {', '.join(default_targets(model))}"
    for target in targets:
        named = {name: module for name, module in model.named_modules() if _is_named(name, target)}
        if any(module is head for module in named.values()):
            yield f"--lora_target_modules {target}: the head is computed at the targets only, as it stands: {there}."
        elif not named or not named.keys() <= layers.keys():
            yield f"--lora_target_modules {target}: the model has no linear layer of that name: {there}."


def config_problems(config: Any, targets: Sequence[str]) -> list[str]:
    """As `target_problems`, from a model's configuration: no weights are loaded, the model is built without storage."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if not targets or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return []  # a model that brings its own code is looked at when it is there
    with torch.device("meta"):
        # The class itself, since its loaders would call DeepSpeed's ZeRO-3, which wants storage.
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    return list(target_problems(model, targets))


def missing_packages(*, uses_lora: bool, is_quantized: bool) -> list[str]:
    """A sentence for each optional package that is needed and not installed."""
    needs = {"peft": ("--use_lora", uses_lora), "bitsandbytes": ("--load_in_8bit and --load_in_4bit", is_quantized)}
    return [
        f"{options}: the package {package} is not installed: pip install {package}"
        for package, (options, is_needed) in needs.items()
        if is_needed and find_spec(package) is None
    ]


def add_lora(model: Any, lora: Lora, base: str, *, is_checkpointing: bool = False) -> Any:
    """The model with adapters, as peft's `PeftModel`: nothing else is trained. At first they change nothing.

    Args:
        base: how the model is named, for whoever opens the adapter later; a local path is written in full.
        is_checkpointing: whether activations will be computed again in the backward.

    Raises:
        ModelError: a target names no linear layers.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers.pytorch_utils import Conv1D

    problems = list(target_problems(model, lora.targets))
    if problems:
        raise ModelError("\n".join(problems))
    targets = list(lora.targets) or default_targets(model)
    if getattr(model, "is_quantized", False):
        # What is not quantised (norms, embeddings, head) gets float32. Checkpointing is switched on by the trainer.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if is_checkpointing:
        # A segment whose inputs need no gradient gets none where use_reentrant is true, and adapters would not learn.
        model.enable_input_require_grads()
    layers = linear_layers(model)
    is_transposed = any(isinstance(layer, Conv1D) for layer in layers.values())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=is_transposed,
    )
    adapted = get_peft_model(model, config)  # its matrices are float32, whatever the model's format is
    adapted.active_peft_config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    number = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    logger.info("LoRA of rank %d on %s: %s parameters are trained", lora.rank, ", ".join(targets), f"{number:,}")
    return adapted
