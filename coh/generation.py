"""What transformers' `generate` is given, and what it gives back: batches of prompts in, texts out.

In: ids to continue, one list for each prompt, and options by the names of `GenerationConfig` (see `coh.options`). Out:
the outputs of each prompt. A batch gives what its prompts give one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from coh.data.records import clean_output
from coh.modeling import ModelError

# They look at the prompt's tokens or count them: with padding in front they would take the padding for a part of it.
# Beside each the value with which it does nothing.
SEES_PROMPT = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "token_healing": False,
    "prompt_lookup_num_tokens": None,
    "watermarking_config": None,
    "penalty_alpha": None,
    "min_length": 0,
}


def place_model(model: Any, device: str = "auto") -> Any:
    """The model on a device; auto is a GPU where there is one.

    Raises:
        ModelError: there is no such device.
    """
    import torch

    try:
        return model.to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r}: {str(error).splitlines()[0]}; choose auto or cpu") from error


def num_positions(config: Any) -> int | None:
    """The most tokens that a model reads, or None where its configuration sets no limit."""
    text_config = config.get_text_config()
    return getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "n_positions", None)


def check_room(num_tokens: int, config: Any, options: dict[str, Any], where: str = "") -> None:
    """Raises `ModelError` where a prompt of so many tokens and its output are longer than the model reads."""
    if not has_room(num_tokens, config, options):
        raise ModelError(
            f"{where}prompt of {num_tokens} tokens and {_num_new(num_tokens, options)} new ones: the model has "
            f"{num_positions(config)} positions, shorten one of them (--max_new_tokens)"
        )


def has_room(num_tokens: int, config: Any, options: dict[str, Any]) -> bool:
    """Whether the model reads a prompt of so many tokens and its output."""
    limit = num_positions(config)
    return not limit or num_tokens + _num_new(num_tokens, options) <= limit


def _num_new(num_tokens: int, options: dict[str, Any]) -> int:
    """How many tokens may be written behind a prompt of so many."""
    if options.get("max_length"):
        return max(options["max_length"] - num_tokens, 1)
    return options.get("max_new_tokens") or 1


@contextmanager
def drawing(seed: int, device: Any) -> Iterator[None]:
    """While it lasts, what is drawn on this device and the CPU depends on the seed alone; afterwards as if never."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def generate_outputs(model: Any, tokenizer: Any, prompt_ids: Sequence[int], **options: Any) -> list[str]:
    """The outputs that a model writes behind these ids, without special tokens and white space around them.

    Args:
        options: of `transformers.GenerationConfig`, such as max_new_tokens, do_sample, num_return_sequences.
    """
    return generate_batch(model, tokenizer, [prompt_ids], **options)[0]


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Sequence[int] = (),
    negatives: Sequence[Sequence[int]] | None = None,
    guidance: float = 1.0,
    streamer: Any = None,
    **options: Any,
) -> list[list[str]]:
    """The outputs of each prompt.

    Args:
        prompts: ids to continue.
        ends: tokens that end an output, beside those that the model and the tokenizer end with.
        negatives: with `guidance` other than 1, the ids that stand in each prompt's place on the negative side.
        streamer: is told every token as it is written; for one prompt with one output.
        options: of `transformers.GenerationConfig`.

    Raises:
        ModelError: the model has too few positions for a prompt and its output.
    """
    for prompt in (*prompts, *(negatives or ())):
        check_room(len(prompt), model.config, options)
    if not _is_neutral(model, options) or options.get("max_length"):
        groups = _equally_long(prompts)
    else:
        groups = [list(range(len(prompts)))]
    found: list[list[str]] = [[]] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for places in groups:
            chosen = None if negatives is None or guidance == 1 else [negatives[place] for place in places]
            texts = _generate(
                model, tokenizer, [prompts[place] for place in places], ends, chosen, guidance, streamer, options
            )
            for place, outputs in zip(places, texts):
                found[place] = outputs
    finally:
        model.train(was_training)
    return found


def _is_neutral(model: Any, options: dict[str, Any]) -> bool:
    """Whether nothing looks at the tokens of prompts, neither by these options nor by the model's own."""
    own = model.generation_config
    values = {name: options.get(name, getattr(own, name, None)) for name in SEES_PROMPT}
    return all(value in (None, SEES_PROMPT[name]) for name, value in values.items())


def _equally_long(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of prompts, those of one length together, so that none needs padding."""
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(place)
    return list(groups.values())


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    negatives: Sequence[Sequence[int]] | None,
    guidance: float,
    streamer: Any,
    options: dict[str, Any],
) -> list[list[str]]:
    import torch

    stops = options.get("eos_token_id") or end_tokens(model, tokenizer, ends)
    stops = [stops] if isinstance(stops, int) else list(stops)
    options = {"pad_token_id": tokenizer.pad_token_id, "use_cache": True, **options, "eos_token_id": stops}
    num_outputs = options.get("num_return_sequences") or 1
    if negatives is not None:
        ids, mask = _left_padded(negatives, tokenizer.pad_token_id)
        # transformers repeats the prompts for several outputs, but not these.
        options["negative_prompt_ids"] = ids.repeat_interleave(num_outputs, 0).to(model.device)
        options["negative_prompt_attention_mask"] = mask.repeat_interleave(num_outputs, 0).to(model.device)
        options["guidance_scale"] = float(guidance)
    ids, mask = _left_padded(prompts, tokenizer.pad_token_id)
    with torch.inference_mode(), _positions_from_masks(model):
        found = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            tokenizer=tokenizer,
            streamer=streamer,
            **options,
        )
    found = getattr(found, "sequences", found)[:, ids.shape[1] :].tolist()
    texts = [
        _text(tokenizer, prompts[row // num_outputs][-1], written, set(stops)) for row, written in enumerate(found)
    ]
    return [texts[start : start + num_outputs] for start in range(0, len(texts), num_outputs)]


def end_tokens(model: Any, tokenizer: Any, ends: Sequence[int] = ()) -> list[int]:
    """All tokens that end an output: these, the tokenizer's and the model's own."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return [token for token in dict.fromkeys([*ends, tokenizer.eos_token_id, *own]) if token is not None]


def _left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Any, Any]:
    """(rows, longest) ids, and a mask that is 0 on padding, which stands in front."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@contextmanager
def _positions_from_masks(model: Any) -> Iterator[None]:
    """While it lasts, positions count from a row's first token that is no padding, wherever none are given.

    transformers gives them to the prompts, but not to negative prompts (UnbatchedClassifierFreeGuidanceLogitsProcessor,
    release 5.23): a padded one would be read at the wrong positions. To be removed when it does.
    """

    def give(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
            length = (args[0] if args else kwargs["input_ids"]).shape[1]
            kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return args, kwargs

    if "position_ids" not in inspect.signature(model.forward).parameters:  # such as those that read the mask alone
        yield
        return
    hook = model.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _text(tokenizer: Any, before: int, ids: Sequence[int], stops: set[int]) -> str:
    """The text of an output's ids, up to its end.

    Decoded behind the token before: SentencePiece would take the first space of a text for its dummy one.
    """
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    start, whole = tokenizer.decode([before], **options), tokenizer.decode([before, *ids[:end]], **options)
    text = whole[len(start) :] if whole.startswith(start) else tokenizer.decode(ids[:end], **options)
    return clean_output(text)
