"""What does it cost to keep the documents of a row apart, compared with attention that lets them see each other?

    python benchmarks/attention.py

Forward and backward of the attention of SmolLM2-135M (9 heads of 64, 3 of keys and values), as transformers calls it:
one mask, then layer after layer. The figures are ratios to plain causal attention over whole rows:

- `attention/512` to `attention/2048`: as coh trains, with documents as long as those of the bundled sample;
- `attention/1024-halves`: the same with two documents a row, the least that there is to gain;
- `attention/...-masked`: as transformers does it unasked, with one mask over the whole row.

On a GPU coh leaves attention to transformers, so there the first figures are those of the last ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Figure, finish, in_turn, parser, ratio_figure, tell
from sides import DEVICE, DOCUMENTS, coh_model, documents_in_rows
from torch import Tensor

NUM_HEADS, NUM_KEY_HEADS, HEAD_SIZE, NUM_LAYERS = 9, 3, 64, 4
NUM_TOKENS = 2048
LENGTHS = (512, 1024, 2048)
HALVES = 1024


def one_layer() -> Any:
    """A model with attention of these sizes, and little else."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=NUM_HEADS * HEAD_SIZE,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KEY_HEADS,
    )
    return LlamaForCausalLM(config).to(DEVICE).train()


def attend(model: Any, position_ids: Tensor) -> list[Tensor]:
    """The mask and all layers; gives an output and the gradients of queries, keys and values."""
    from transformers.masking_utils import create_causal_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    layer, config = model.model.layers[0].self_attn, model.config
    generator = torch.Generator(DEVICE).manual_seed(0)
    inputs = []
    for heads in (NUM_HEADS, NUM_KEY_HEADS, NUM_KEY_HEADS):
        shape = (*position_ids.shape, heads, HEAD_SIZE)
        inputs.append(torch.randn(shape, generator=generator, device=DEVICE).transpose(1, 2).requires_grad_())
    gradient = torch.randn(*position_ids.shape, NUM_HEADS, HEAD_SIZE, generator=generator, device=DEVICE)
    mask = create_causal_mask(
        config=config,
        inputs_embeds=torch.empty(*position_ids.shape, 1, device=DEVICE),
        attention_mask=None,
        past_key_values=None,
        position_ids=position_ids,
    )
    attention = ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
    for _ in range(NUM_LAYERS):
        output, _ = attention(layer, *inputs, mask, dropout=0.0, scaling=layer.scaling)
        output.backward(gradient)
    return [output.detach(), *(tensor.grad for tensor in inputs)]


def positions(row_length: int, documents: tuple[int, ...], num_tokens: int) -> Tensor:
    """Position ids of `num_tokens` in rows."""
    return documents_in_rows(num_tokens // row_length, row_length, documents).to(DEVICE)


def measured(
    name: str, documents: tuple[int, ...], row_length: int, num_tokens: int, rounds: int, **limits: float
) -> list[Figure]:
    """The figures of coh and of the mask, both to plain causal attention."""
    by_document, plain = coh_model(one_layer()), one_layer()
    apart, whole = positions(row_length, documents, num_tokens), positions(row_length, (row_length,), num_tokens)
    for ours, theirs in zip(attend(by_document, apart), attend(plain, apart), strict=True):
        torch.testing.assert_close(ours, theirs)  # the same attention, or its time would say nothing
    sides: dict[str, Callable[[], Any]] = {
        "coh": partial(attend, by_document, apart),
        "masked": partial(attend, plain, apart),
        "causal": partial(attend, plain, whole),
    }
    seconds = in_turn(sides, rounds)
    what = f"{num_tokens // row_length} x {row_length} tokens, documents of {min(documents)} to {max(documents)}"
    return [
        ratio_figure(name, f"isolated / plain causal: {what}", seconds["coh"], seconds["causal"], **limits),
        ratio_figure(f"{name}-masked", f"by one mask / plain causal: {what}", seconds["masked"], seconds["causal"]),
    ]


def main() -> int:
    args = parser(__doc__).parse_args()
    works = {f"attention/{length}": (DOCUMENTS, length, NUM_TOKENS) for length in LENGTHS}
    works[f"attention/{HALVES}-halves"] = ((HALVES // 2,), HALVES, NUM_TOKENS)
    limits = {"target": 1.0, "moonshot": 0.5} if DEVICE == "cpu" and not args.smoke else {}
    scale = 16 if args.smoke else 1
    found = []
    for name, (documents, row_length, num_tokens) in works.items():
        if args.only not in f"{name}-masked":
            continue
        sizes = tuple(length // scale for length in documents), row_length // scale, num_tokens // scale
        for figure in measured(name, *sizes, args.rounds, **limits):
            if args.only in figure.name:
                found.append(figure)
                tell(figure)
    return finish(found, args)


if __name__ == "__main__":
    sys.exit(main())
