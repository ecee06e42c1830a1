"""Who may attend to whom: documents of one row stay strangers, and forgetful causal masking (FCM) hides some pairs.

Documents are read from `position_ids`, which restart at each. A model isolates them by itself while it is given neither
an attention mask nor a cache; `check_isolation` tries it. With FCM one 4-D additive mask says all: documents x causal x
forget.

A model that isolates by a mask computes all pairs of a row and hides most of them. `attend_by_document` lets it compute
each document alone, on a CPU: the same sums without the work that is thrown away.

Shapes: B rows, S positions; the mask of one row is (S, S), (query, key).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

BY_DOCUMENT = "sdpa_by_document"


class MaskingError(ValueError):
    """A model that cannot hide what has to be hidden; the message says why and which option to change."""


def document_ids(position_ids_BS: Tensor) -> Tensor:
    """Number the documents of each row from 0; one begins wherever a position does not follow the one before.

    >>> document_ids(torch.tensor([[0, 1, 2, 0, 1, 0]])).tolist()
    [[0, 0, 0, 1, 1, 2]]
    """
    steps = torch.diff(position_ids_BS, prepend=position_ids_BS[:, :1] - 1)
    return (steps != 1).cumsum(1)


def may_attend(position_ids_BS: Tensor) -> Tensor:
    """Boolean (B, S, S): the key is in the query's document and not after it.

    >>> may_attend(torch.tensor([[0, 1, 0]])).int().tolist()
    [[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]
    """
    document_BS = document_ids(position_ids_BS)
    return (document_BS[:, :, None] == document_BS[:, None, :]).tril()


def may_attend_to_own(owner_BS: Tensor) -> Tensor:
    """Boolean (B, S, S): the key is everybody's (0) or of the query's owner, and not after the query.

    >>> may_attend_to_own(torch.tensor([[0, 1, 2]])).int().tolist()
    [[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]
    """
    is_own = owner_BS[:, :, None] == owner_BS[:, None, :]
    return (is_own | (owner_BS == 0)[:, None, :]).tril()


def forgotten(position_ids_BS: Tensor, min_ratio: float, max_ratio: float, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Boolean (B, S, S): the pairs that FCM hides (arXiv 2302.02676), from one seed (some numbers) a row.

    A row draws a ratio r ~ U[min_ratio, max_ratio] and hides each pair with probability r, independently. The diagonal
    and each document's first token are always kept: the original rule keeps the row's first position only, which would
    leave the later documents of a packed row with nothing to lean on.
    """
    document_BS = document_ids(position_ids_BS)
    num_positions, device = document_BS.shape[1], document_BS.device
    generator = torch.Generator(device)
    is_drawn = []
    for seed in seeds:
        generator.manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]))
        ratio = min_ratio + (max_ratio - min_ratio) * torch.rand((), generator=generator, device=device)
        is_drawn.append(torch.rand(num_positions, num_positions, generator=generator, device=device) < ratio)
    is_first_BS = torch.diff(document_BS, prepend=document_BS[:, :1] - 1) > 0
    is_kept = is_first_BS[:, None, :] | torch.eye(num_positions, dtype=torch.bool, device=device)
    return torch.stack(is_drawn) & ~is_kept


def additive_mask(may_attend_BSS: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, S, S), added to the scores of all heads: 0, or the least number; right under sdpa and under eager.

    A boolean mask would be wrong under eager, and a 2-D one would end the isolation of documents.
    """
    mask = torch.zeros(may_attend_BSS.shape, dtype=dtype, device=may_attend_BSS.device)
    return mask.masked_fill_(~may_attend_BSS, torch.finfo(dtype).min)[:, None]


def forgetful_mask(
    position_ids_BS: Tensor, min_ratio: float, max_ratio: float, seeds: Sequence[Sequence[int]], dtype: torch.dtype
) -> Tensor:
    """Documents x causal x forget, for one forward in training."""
    is_hidden = forgotten(position_ids_BS, min_ratio, max_ratio, seeds)
    return additive_mask(may_attend(position_ids_BS) & ~is_hidden, dtype)


def documents_in(mask_function: Callable[..., Tensor], num_rows: int, num_positions: int) -> Tensor | None:
    """The lengths of the documents of all rows, in order, or None where `mask_function` says more than documents.

    It is a function as transformers has them: from indices (row, head, query, key), whether the query may see the key.
    It is asked about five keys of each query instead of all. A document begins where the one before cannot be seen;
    from each of its positions the first one and itself must be seen, and what stands before and behind these must not.

    >>> document_S = torch.tensor([0, 0, 0, 1, 1])
    >>> documents_in(lambda row, head, query, key: (document_S[query] == document_S[key]) & (key <= query), 2, 5)
    tensor([3, 2, 3, 2])
    >>> documents_in(lambda row, head, query, key: document_S[query] == document_S[key], 2, 5)  # sees what is to come
    """
    row_B1, query_S = torch.arange(num_rows)[:, None], torch.arange(num_positions)

    def sees(key: Tensor) -> Tensor:
        is_there = (key >= 0) & (key < num_positions)
        seen = mask_function(row_B1, torch.zeros_like(row_B1), query_S, key.clamp(0, num_positions - 1))
        return (seen & is_there).expand(num_rows, -1)

    is_first_BS = ~sees(query_S - 1)
    first_BS = torch.where(is_first_BS, query_S, 0).cummax(1).values
    if not (sees(first_BS) & sees(query_S) & ~sees(first_BS - 1) & ~sees(query_S + 1)).all():
        return None
    starts = is_first_BS.flatten().nonzero().squeeze(1)
    return torch.diff(starts, append=torch.tensor([num_rows * num_positions]))


def _documents_mask(**asked: Any) -> Tensor | None:
    """What stands for a mask under `BY_DOCUMENT`: the lengths of documents as int64; where they do not say all, sdpa's.

    transformers asks for it once in a forward and hands it to all layers, also when they run again for the gradients.
    """
    from transformers.masking_utils import sdpa_mask

    may_be_documents = (
        not asked.get("allow_is_causal_skip", True)  # otherwise sdpa needs no mask at all, or one for padding
        and not asked.get("use_vmap", True)  # the model brings functions of its own
        and asked.get("attention_mask") is None
        and asked.get("local_size") is None
        and asked["q_length"] == asked["kv_length"]
        and torch.device(asked["device"]).type == "cpu"
        and not torch.compiler.is_compiling()
    )
    lengths = None
    if may_be_documents:
        lengths = documents_in(asked["mask_function"], asked["batch_size"], asked["q_length"])
    return sdpa_mask(**asked) if lengths is None else lengths


def _documents_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it, (B, heads, S, D) in and (B, S, heads, D) out, a document at a time."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask.dim() == 4:
        rows = zip(query.split(1), key.split(1), value.split(1), attention_mask[:, 0, 0])
        return torch.cat([_branching_attention(module, *row, options) for row in rows]), None
    # Cut by `split`, whose gradient is one concatenation: the gradient of a slice would be a batch of zeros each time.
    lengths = attention_mask.tolist()
    documents = zip(*(tensor.transpose(1, 2).flatten(0, 1).split(lengths) for tensor in (query, key, value)))
    options["is_causal"] = True
    outputs = [
        sdpa_attention_forward(module, *(part.transpose(0, 1)[None] for part in document), None, **options)[0]
        for document in documents
    ]
    return torch.cat(outputs, dim=1).view(query.shape[0], query.shape[2], query.shape[1], -1), None


def _branching_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, owner_S: Tensor, options: dict[str, Any]
) -> Tensor:
    """The same for one row of documents behind a common beginning: each part sees that and itself."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    owners, lengths = torch.unique_consecutive(owner_S, return_counts=True)
    num_shared = int(lengths[0]) if owners[0] == 0 else 0
    outputs, start = [], 0
    for owner, length in zip(owners.tolist(), lengths.tolist()):
        at = slice(start, start + length)
        start += length
        parts, mask = [tensor[:, :, at] for tensor in (key, value)], None
        if num_shared and owner > 0:
            parts = [torch.cat([t[:, :, :num_shared], part], 2) for t, part in zip((key, value), parts)]
            mask = torch.ones(length, num_shared + length, dtype=torch.bool).tril(num_shared)[None, None]
        told = {**options, "is_causal": mask is None}
        outputs.append(sdpa_attention_forward(module, query[:, :, at], *parts, mask, **told)[0])
    return torch.cat(outputs, dim=1)


def attend_by_document(model: Any) -> bool:
    """Let a model under sdpa attend to each document of a row alone while it is on a CPU; whether it does from now on.

    Registered with transformers as the attention `BY_DOCUMENT`. What is no plain row of documents (a cache, padding,
    FCM, windows, a GPU) goes to sdpa as before. A model stays as it was if it has another attention, or if it gives
    other logits then: some do not leave masks and attention to transformers' functions.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    base = _base(model)
    if base.config._attn_implementation != "sdpa" or not _can_be_tried(base):
        return bool(base.config._attn_implementation == BY_DOCUMENT)
    AttentionInterface.register(BY_DOCUMENT, _documents_attention)
    AttentionMaskInterface.register(BY_DOCUMENT, _documents_mask)
    lengths = [(5, 4, 3), (2, 10)]
    position_ids = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    token_ids = torch.arange(position_ids.numel()).view_as(position_ids)
    before = _logits(base, token_ids, position_ids=position_ids)
    base.config._attn_implementation = BY_DOCUMENT
    try:
        is_same = (_logits(base, token_ids, position_ids=position_ids) - before).abs().max() <= before.std() / 100
    except Exception:
        is_same = False  # whatever a model does with a mask that is no mask
    if not is_same:
        base.config._attn_implementation = "sdpa"
    return bool(is_same)


@contextmanager
def attending_by_document(model: Any) -> Iterator[None]:
    """`attend_by_document` for a while, where the model is on a CPU."""
    base = _base(model)
    before = base.config._attn_implementation
    if base.device.type == "cpu":
        attend_by_document(base)
    try:
        yield
    finally:
        base.config._attn_implementation = before


def check_isolation(model: Any) -> None:
    """Raises ValueError unless the model keeps the documents of a row apart when it is told by `position_ids` alone.

    Flash attention does in a batch of one row, as coh.loss hands it over; it is not tried, since it may wait for a GPU.
    """
    base = _base(model)
    if "position_ids" not in inspect.signature(base.forward).parameters:
        problem = "takes no position_ids"
    elif "flash" not in str(base.config.get_text_config()._attn_implementation) and _leaks(
        model, position_ids=[0, 1, 2, 0, 1, 2]
    ):
        problem = "lets a document see the one before it"
    else:
        return
    raise MaskingError(
        f"{type(base).__name__} {problem}, so documents cannot be kept apart in a row: pass --isolate_documents false"
    )


def check_forgetting(model: Any, seq_length: int) -> None:
    """Raises ValueError unless the model obeys a 4-D mask over rows of `seq_length` tokens, which FCM needs."""
    hides_two = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    hides_two[0, 2:, :2] = False
    problem = _problem_with_masks(model, seq_length)
    if not problem and not _obeys(model, hides_two):
        problem = f"{model.config.get_text_config().model_type} does not obey a 4-D attention mask: take another model"
    if problem:
        raise MaskingError(f"forgetful causal masking hides single pairs, but {problem}, or --fcm_max_ratio 0")


def branching_mask(model: Any, owner_BS: Tensor) -> Tensor:
    """What tells a model that the documents of a row have a beginning in common; `owner_BS` as in `may_attend_to_own`.

    A 4-D additive mask, or the owners themselves as (B, 1, 1, S) where attention goes by document.
    """
    base = _base(model)
    if base.config.get_text_config()._attn_implementation == BY_DOCUMENT and base.device.type == "cpu":
        return owner_BS[:, None, None]
    return additive_mask(may_attend_to_own(owner_BS), base.dtype)


def shares_beginnings(model: Any, seq_length: int) -> bool:
    """Whether documents may stand behind one beginning in rows of `seq_length` tokens: tried, with two short ones.

    False for one that cannot be tried, since ZeRO-3 or FSDP2 has its weights in parts, and for one that is compiled.
    """
    base = _base(model)
    is_compiled = any(getattr(part, "_compiled_call_impl", None) for part in base.modules())
    if is_compiled or not _can_be_tried(base) or _problem_with_masks(base, seq_length):
        return False
    positions, owners = torch.tensor([[0, 1, 2, 3, 4, 3, 4]]), torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    mask = branching_mask(base, owners)
    try:
        row_SV = _logits(base, torch.arange(1, 8)[None], position_ids=positions, attention_mask=mask)[0]
    except Exception:
        return False  # whatever a model does with masks or positions that it does not know
    one, other = _logits(base, torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 6, 7]]))
    apart_SV = torch.cat([one, other[3:]])
    return bool((row_SV - apart_SV).abs().max() <= apart_SV.std() / 100)


def _problem_with_masks(model: Any, seq_length: int) -> str:
    """Why a 4-D mask would not do for rows of so many tokens, and what to change; empty where nothing is known."""
    config = model.config.get_text_config()
    is_local = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ["unknown"])
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((width for width in widths if width and is_local), default=seq_length)
    if config._attn_implementation not in ("sdpa", BY_DOCUMENT, "eager"):
        return f"{config._attn_implementation} attention takes no such mask: pass --attn_implementation sdpa"
    if window < seq_length:
        # The mask would take the place of the model's own and widen these layers.
        return f"{config.model_type} has layers that look back {window} tokens only: pass --seq_length {window}"
    return ""


def _obeys(model: Any, may_attend_BSS: Tensor) -> bool:
    try:
        return not _leaks(model, position_ids=[0, 1, 2, 3], may_attend_BSS=may_attend_BSS)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False  # it takes masks of another shape


def _base(model: Any) -> Any:
    """The model inside its engine and its adapters."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _can_be_tried(model: Any) -> bool:
    """Whether a forward runs, and does no harm.

    ZeRO-3 keeps the weights in parts, which only its engine brings together. FSDP2 takes the part of a model that runs
    first for the whole, and refuses the one around it afterwards.
    """
    weight = model.get_input_embeddings().weight
    return not (hasattr(weight, "ds_id") or weight.is_meta or hasattr(weight, "placements"))


@torch.no_grad()
def _logits(model: Any, token_ids: Tensor, **inputs: Tensor) -> Tensor:
    """(B, S, V) in fp32, as in evaluation; ids beyond the vocabulary begin at 0 again."""
    weight = model.get_input_embeddings().weight
    was_training = model.training
    try:
        on_device = {name: tensor.to(weight.device) for name, tensor in inputs.items()}
        token_ids = (token_ids % len(weight)).to(weight.device)
        return model.eval()(input_ids=token_ids, **on_device, use_cache=False).logits.float()
    finally:
        model.train(was_training)


def _leaks(model: Any, position_ids: list[int], may_attend_BSS: Tensor | None = None) -> bool:
    """Change a row's first token: does the half that must not see it change with it?

    The measure is the change in the half that may see it. A leak may be faint (a convolution of four taps); noise is
    fainter, since both versions stand in one batch.
    """
    if not _can_be_tried(model):
        return False
    token_ids = torch.arange(1, len(position_ids) + 1).repeat(2, 1)
    token_ids[1, 0] = 0
    inputs = {"position_ids": torch.tensor(position_ids).expand_as(token_ids)}
    if may_attend_BSS is not None:
        inputs["attention_mask"] = additive_mask(may_attend_BSS.expand(2, -1, -1), model.dtype)
    logits_2SV = _logits(model, token_ids, **inputs)
    seeing, blind = (logits_2SV[0] - logits_2SV[1]).abs().amax(-1).chunk(2)
    return not bool(blind.max() <= seeing.max() / 1000)  # so that NaN counts as a leak
