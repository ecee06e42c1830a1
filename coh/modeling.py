"""Tokenizer and model, as Hugging Face loads them: number formats, GGUF files, and what is refused before weights load.

Nothing here knows about feedback. A model is named by a hub id, a folder, or a `.gguf` file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")


class ModelError(ValueError):
    """A model or tokenizer that cannot be used as asked; the message says why and what to do."""


def locate(name: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` for a name: a GGUF file is a folder and a file in it.

    >>> locate("models/tiny.gguf")
    {'pretrained_model_name_or_path': 'models', 'gguf_file': 'tiny.gguf'}
    >>> locate("gpt2")
    {'pretrained_model_name_or_path': 'gpt2'}
    """
    if name.endswith(".gguf"):
        path = Path(name)
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": name}


def load_config(name: str, cache_dir: str | None = None) -> Any:
    """The model's configuration.

    Raises:
        ModelError: there is no such model, or it is no causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    _check_name(name)
    try:
        config = AutoConfig.from_pretrained(**locate(name), cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r} cannot be opened: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {name!r} ({config.model_type}) has an encoder and a decoder: choose a causal language model"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"model {name!r} ({config.model_type}) is no causal language model that transformers knows")
    return config


def load_tokenizer(name: str, cache_dir: str | None = None) -> Any:
    """The tokenizer, with a padding token: the end-of-text token where it has none of its own."""
    from transformers import AutoTokenizer

    _check_name(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**locate(name), cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise ModelError(f"tokenizer {name!r} cannot be opened: {_first_line(error)}") from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def special_tokens(tokenizer: Any) -> list[str]:
    """The texts that the tokenizer reads as special tokens, the longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)


def problems_of(config: Any, tokenizer: Any, seq_length: int) -> list[str]:
    """What makes this model, tokenizer and row length unfit for each other, as sentences."""
    text_config = config.get_text_config()
    problems = []
    if tokenizer.eos_token_id is None:
        problems.append("the tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json")
    positions = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)
    if positions and seq_length > positions:
        problems.append(
            f"--seq_length {seq_length} is more than the model's {positions} positions: choose {positions} or less"
        )
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= text_config.vocab_size:
        problems.append(
            f"the tokenizer has token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), the model only "
            f"{text_config.vocab_size} (0 to {text_config.vocab_size - 1}): choose the tokenizer that belongs to "
            f"the model"
        )
    return problems


def load_model(
    name: str, *, dtype: str = "float32", attn_implementation: str | None = None, cache_dir: str | None = None
) -> Any:
    """The causal language model's weights. A GGUF model comes as a plain one, which can be saved.

    Raises:
        ModelError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"cache_dir": cache_dir, "dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    try:
        model = AutoModelForCausalLM.from_pretrained(**locate(name), **options)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
    if name.endswith(".gguf"):
        model = _without_quantization(model)
    return model


def _without_quantization(model: Any) -> Any:
    """The same weights in a model that forgot its GGUF file, which transformers would refuse to save."""
    from transformers import AutoModelForCausalLM

    config = type(model.config).from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    plain = AutoModelForCausalLM.from_config(
        config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain.train(model.training)


def has_fast_bf16() -> bool:
    """Whether the device computes in bfloat16; a CPU without such arithmetic is far slower in it.

    >>> has_fast_bf16() in (True, False)
    True
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check_name(name: str) -> None:
    is_path = name.endswith(".gguf") or name.startswith(("/", ".", "~")) or name.count("/") > 1
    if is_path and not Path(name).expanduser().exists():
        raise ModelError(f"model {name!r}: no such file or folder")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
