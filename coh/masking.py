"""Who may attend to whom: documents of one row stay strangers, and forgetful causal masking (FCM) hides some pairs.

Documents are read from `position_ids`, which restart at each. A model isolates them by itself while it is given neither
an attention mask nor a cache; `check_isolation` tries it. With FCM one 4-D additive mask says all: documents x causal x
forget.

Shapes: B rows, S positions; the mask of one row is (S, S), (query, key).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


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


def check_isolation(model: Any) -> None:
    """Raises ValueError unless the model keeps the documents of a row apart when it is told by `position_ids` alone.

    Flash attention does in a batch of one row, as coh.loss hands it over; it is not tried, since it may wait for a GPU.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
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
    config = model.config.get_text_config()
    is_local = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ["unknown"])
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((width for width in widths if width and is_local), default=seq_length)
    hides_two = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    hides_two[0, 2:, :2] = False
    if config._attn_implementation not in ("sdpa", "eager"):
        problem = f"{config._attn_implementation} attention takes no such mask: pass --attn_implementation sdpa"
    elif window < seq_length:
        # The mask would take the place of the model's own and widen these layers.
        problem = f"{config.model_type} has layers that look back {window} tokens only: pass --seq_length {window}"
    elif not _obeys(model, hides_two):
        problem = f"{config.model_type} does not obey a 4-D attention mask: take another model"
    else:
        return
    raise MaskingError(f"forgetful causal masking hides single pairs, but {problem}, or --fcm_max_ratio 0")


def _obeys(model: Any, may_attend_BSS: Tensor) -> bool:
    try:
        return not _leaks(model, position_ids=[0, 1, 2, 3], may_attend_BSS=may_attend_BSS)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False  # it takes masks of another shape


@torch.no_grad()
def _leaks(model: Any, position_ids: list[int], may_attend_BSS: Tensor | None = None) -> bool:
    """Change a row's first token: does the half that must not see it change with it?

    The measure is the change in the half that may see it. A leak may be faint (a convolution of four taps); noise is
    fainter, since both versions stand in one batch.
    """
    weight = model.get_input_embeddings().weight
    if hasattr(weight, "ds_id") or weight.is_meta:
        return False  # ZeRO-3 keeps the weights in parts: nothing can be tried before its engine runs
    token_ids = torch.arange(1, len(position_ids) + 1).repeat(2, 1) % len(weight)
    token_ids[1, 0] = 0
    inputs = {"input_ids": token_ids, "position_ids": torch.tensor(position_ids).expand_as(token_ids)}
    if may_attend_BSS is not None:
        inputs["attention_mask"] = additive_mask(may_attend_BSS.expand(2, -1, -1), model.dtype)
    was_training = model.training
    try:
        on_device = {name: tensor.to(weight.device) for name, tensor in inputs.items()}
        logits_2SV = model.eval()(**on_device, use_cache=False).logits.float()
    finally:
        model.train(was_training)
    seeing, blind = (logits_2SV[0] - logits_2SV[1]).abs().amax(-1).chunk(2)
    return not bool(blind.max() <= seeing.max() / 1000)  # so that NaN counts as a leak
