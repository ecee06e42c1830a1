"""Tokenizer and model, as Hugging Face loads them: number formats, GGUF files, adapters, and what is refused early.

Nothing here knows about feedback. A model is named by a hub id, a folder, or a `.gguf` file. The folder may hold an
adapter (LoRA): its base model is loaded, and the adapter on top of it.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

DTYPES = ("auto", "float32", "bfloat16", "float16")
ADAPTER_FILE = "adapter_config.json"


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


@dataclass(frozen=True)
class Quantization:
    """Weights of linear layers in 8 or 4 bits, by bitsandbytes; the head and the embeddings stay as they are.

    They are computed with in `compute_dtype` (8 bits: in float16, which is bitsandbytes' own choice).
    """

    bits: int
    compute_dtype: str = "float32"
    device: Any = "cpu"

    def as_options(self) -> dict[str, Any]:
        """What `from_pretrained` is given."""
        import torch
        from transformers import BitsAndBytesConfig

        if self.bits == 8:
            # It would say at every product of matrices that its inputs are cast to float16.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            config = BitsAndBytesConfig(load_in_8bit=True)
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",  # levels for weights that are normally distributed
                bnb_4bit_use_double_quant=True,  # the scales in 8 bits as well: 0.4 bits less per weight
                bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            )
        return {"quantization_config": config, "device_map": {"": self.device}}


def adapter_base(name: str, cache_dir: str | None = None) -> str | None:
    """The model that an adapter was trained on; None where `name` is a whole model.

    >>> adapter_base("models/tiny.gguf") is None
    True

    Raises:
        ModelError: it is an adapter of a kind that cannot be loaded here.
    """
    from transformers.utils import cached_file

    if name.endswith(".gguf"):
        return None
    silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        path = cached_file(name, ADAPTER_FILE, cache_dir=cache_dir, **silent)
    except (OSError, ValueError):
        return None  # whoever opens the model will say so
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        kind, base = content["peft_type"], content["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({type(error).__name__}: {error}): copy it anew") from None
    if kind != "LORA":
        raise ModelError(f"{name!r} is an adapter of the kind {kind}, which is not supported: LORA is")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} names no base model: write it as base_model_name_or_path")
    return base


def _base_of_adapter(name: str, cache_dir: str | None) -> str | None:
    """As `adapter_base`, and it is a model that can be opened."""
    base = adapter_base(name, cache_dir)
    if base is not None:
        try:
            _check_name(base)
        except ModelError as error:
            raise ModelError(
                f"{name!r} is an adapter, and its base is gone ({error}): set base_model_name_or_path in its "
                f"{ADAPTER_FILE} to where it is now"
            ) from None
        if adapter_base(base, cache_dir) is not None:
            raise ModelError(f"{name!r} is an adapter of {base!r}, an adapter again: merge that one first (coh.merge)")
    return base


def load_config(name: str, cache_dir: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The model's configuration. Code that lies with a model is run if `trust_remote_code` says so, and else refused.

    Raises:
        ModelError: there is no such model, or it is no causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    _check_name(name)
    name = _base_of_adapter(name, cache_dir) or name
    try:
        config = AutoConfig.from_pretrained(**locate(name), cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    except Exception as error:  # each reader raises kinds of its own
        raise ModelError(f"model {name!r} cannot be opened: {_reason(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {name!r} ({config.model_type}) has an encoder and a decoder: choose a causal language model"
        )
    is_own = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not is_own:
        raise ModelError(f"model {name!r} ({config.model_type}) is no causal language model that transformers knows")
    return config


def load_tokenizer(name: str, cache_dir: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer, with a padding token: the end-of-text token where it has none of its own."""
    from transformers import AutoTokenizer

    _check_name(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            **locate(name), cache_dir=cache_dir, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ModelError(f"tokenizer {name!r} cannot be opened: {_reason(error)}") from error
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
    name: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
) -> Any:
    """The causal language model's weights. A GGUF model comes as a plain one, which can be saved.

    Of an adapter come the base model's weights, in `dtype`, with the adapter's layers in their places, in float32: a
    model of the base's class, which computes what the two together do.

    Of a pickle (`pytorch_model.bin`) tensors are read and nothing is run, whatever it holds.

    Raises:
        ModelError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    base = _base_of_adapter(name, cache_dir)
    if base is not None:
        model = load_model(
            base,
            dtype=dtype,
            attn_implementation=attn_implementation,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            quantization=quantization,
        )
        return with_adapter(model, name, cache_dir).get_base_model()
    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "trust_remote_code": trust_remote_code,
        "weights_only": True,
    }
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if quantization is not None:
        options |= quantization.as_options()
    try:
        model = AutoModelForCausalLM.from_pretrained(**locate(name), **options)
    except Exception as error:
        raise ModelError(f"model {name!r} cannot be loaded: {_reason(error)}") from error
    if name.endswith(".gguf"):
        model = _without_quantization(model)
    return model


def with_adapter(model: Any, name: str, cache_dir: str | None = None) -> Any:
    """The model with the adapter of that name in it, as peft's `PeftModel`; it generates as the adapter's folder says.

    Raises:
        ModelError: peft is missing, or the adapter does not fit the model.
    """
    from transformers import GenerationConfig

    try:
        from peft import PeftModel  # optional
    except ImportError as error:
        raise ModelError(f"{name!r} is an adapter, which needs the package peft: pip install peft") from error
    try:
        adapted = PeftModel.from_pretrained(model, name, cache_dir=cache_dir)
    except Exception as error:  # each reader raises kinds of its own
        raise ModelError(f"adapter {name!r} cannot be loaded on {model.name_or_path!r}: {_reason(error)}") from error
    with suppress(OSError):  # not every adapter brings one
        model.generation_config = GenerationConfig.from_pretrained(name, cache_dir=cache_dir)
    return adapted.eval()


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


def has_fast_bf16(use_cpu: bool = False) -> bool:
    """Whether the device computes in bfloat16; a CPU or an old GPU without such arithmetic is far slower in it.

    The device is the GPU, or the CPU where there is none or `use_cpu` says so. Of other devices nothing is known here.

    >>> has_fast_bf16() in (True, False)
    True
    """
    import torch

    if not use_cpu and torch.accelerator.is_available():
        # Torch counts what is emulated as supported, which is slower than float32.
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check_name(name: str) -> None:
    is_path = name.endswith(".gguf") or name.startswith(("/", ".", "~")) or name.count("/") > 1
    if is_path and not Path(name).expanduser().exists():
        path = Path(name).expanduser()
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, others, n=1)
        guess = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise ModelError(f"model {name!r}: no such file or folder{guess}")


def _reason(error: BaseException) -> str:
    """The first line of an error; it may quote a file, whose control characters a terminal would obey."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which is not run unasked: read the code, and give --trust_remote_code"
    line = str(error).strip().split("\n")[0] or type(error).__name__
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
