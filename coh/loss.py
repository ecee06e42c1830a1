"""What the model is asked for: losses at the targets, and nothing anywhere else.

In come `input_ids`, `position_ids` and `labels` (the token's id where it is a target, else -100, not shifted); out go
sums of negative log-likelihoods in nats for training (`target_sums`), or one figure per target for evaluation and
scoring (`target_scores`). The head of the model runs only at the positions that predict a target, in chunks, so the
logits of a batch never exist whole. It does so inside the head module itself, so that every engine (DDP, ZeRO, FSDP)
finds its hooks called.

Shapes: B rows, S positions, T = B * S, N targets, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100
# Older torch has no such function, or one that knows no bias.
HAS_TORCH_KERNEL = {"linear_bias", "options"} <= set(
    inspect.signature(getattr(F, "linear_cross_entropy", lambda: None)).parameters
)
# Settings by which models change their logits after the head; None and 1 change nothing.
AFTER_HEAD = (
    "final_logit_softcapping",
    "output_logit_soft_cap",
    "logits_soft_cap",
    "softcap",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
    "lm_head_multiplier",
    "unpadded_vocab_size",
)


def chunk_rows(vocab_size: int) -> int:
    """How many targets the head takes at once: the power of two that keeps a chunk's fp32 logits within 64 MiB.

    64 MiB are 2^24 logits, and 2^24 / 49,152 = 341, so 256 rows (48 MiB). Smaller chunks make slower matrix products,
    larger ones win nothing; beyond 4,096 rows a small vocabulary would only hold more at once.

    >>> [chunk_rows(vocab_size) for vocab_size in (512, 32_000, 49_152, 151_936)]
    [4096, 512, 256, 64]
    """
    return min(4096, 1 << max(2**24 // vocab_size, 1).bit_length() - 1)


class _ChunkedNLL(torch.autograd.Function):
    """A sum of negative log-likelihoods whose gradients are formed in the forward, while a chunk's logits are at hand.

    Matrix products run in `dtype`. What is summed over targets stays in fp32 or better, the weights' gradient too until
    it is scaled: a bf16 sum of ten thousand nats can be 32 off, and an fp16 one ends at 65,504.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, token_N: Tensor, dtype: torch.dtype
    ) -> Tensor:
        exact = torch.promote_types(dtype, torch.float32)
        hidden, weight, bias = hidden_NH.to(dtype), weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
        needs = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden_NH) if needs[0] else None
        grad_weight = torch.zeros_like(weight_VH, dtype=exact) if needs[1] else None
        grad_bias = torch.zeros_like(bias_V, dtype=exact) if needs[2] else None
        total = hidden_NH.new_zeros((), dtype=exact)
        for start in range(0, len(token_N), chunk_rows(len(weight_VH))):
            rows = slice(start, start + chunk_rows(len(weight_VH)))
            token = token_N[rows, None]
            log_p = F.linear(hidden[rows], weight, bias).to(exact).log_softmax(-1)
            total -= log_p.gather(1, token).sum()
            # d nll / d logits = p - 1[target], in the place of log p.
            slope = log_p.exp_().scatter_add_(1, token, -torch.ones_like(token, dtype=exact))
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = slope @ weight
            if grad_weight is not None:
                grad_weight += slope.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_NH, weight_VH, bias_V)]
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second copy of the weights' gradient is dear. Torch's version counter refuses a second backward.
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if g is None else g.mul_(grad_total).to(dtype) for g, dtype in grads), None, None


def linear_nll_sum(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    token_N: Tensor,
    bias_V: Tensor | None = None,
    use_torch: bool | None = None,
) -> Tensor:
    """Sum over targets of -log softmax(hidden @ weight.T + bias)[token], in nats, as fp32 (fp64 for fp64).

    `use_torch` is the switch between torch's own chunked function and ours. By default torch's serves where it exists
    and fits: 16-bit sums it returns in 16 bits, and it takes no notice of autocast.

    >>> float(linear_nll_sum(torch.zeros(3, 8), torch.zeros(5, 8), torch.tensor([0, 1, 4]))) / 3  # log 5
    1.6094379425048828
    """
    device = hidden_NH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
    if use_torch is None:
        use_torch = HAS_TORCH_KERNEL and dtype.itemsize >= 4
    if not use_torch:
        return _ChunkedNLL.apply(hidden_NH, weight_VH, bias_V, token_N, dtype)
    # The size is named, since on a CPU the function's own choice is 14 times slower.
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_rows(len(weight_VH)))
    return F.linear_cross_entropy(hidden_NH, weight_VH, token_N, linear_bias=bias_V, reduction="sum", options=options)


def _scores(logits_at: Callable[[Tensor], Tensor], place_N: Tensor, token_N: Tensor, rows: int) -> Tensor:
    """(2, N): each token's negative log-likelihood, and 1 where it is the likeliest; `rows` of them at a time."""
    chunks = []
    for place, token in zip(place_N.split(rows), token_N.split(rows), strict=True):
        logits = logits_at(place).float()
        is_correct = logits.argmax(-1) == token
        chunks.append(torch.stack([F.cross_entropy(logits, token, reduction="none"), is_correct.float()]))
    return torch.cat(chunks, dim=1)


class TargetHead(nn.Linear):
    """An output head that, while it has a `task`, answers with what the task makes of the hidden states.

    It takes the place of the class of a model's own `nn.Linear`, so parameters, names and ties stay what they were.
    """

    task: Callable[[Tensor], Tensor] | None = None
    is_handed_through = False

    def forward(self, hidden_BSH: Tensor) -> Tensor:
        if self.task is None:
            return super().forward(hidden_BSH)
        return self.task(hidden_BSH.flatten(0, -2))

    def answer(self, model: nn.Module, task: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
        """Run `model` and return what `task(hidden_TH)` gave in the place of the logits."""
        self.task = task
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            self.task = None


def target_head(model: Any) -> TargetHead | None:
    """The head of `model` (in an engine's wrapper or not) as a `TargetHead`, or None where it cannot be one.

    It cannot if it is no plain `nn.Linear` (adapters, quantisation) or the model goes on computing with the logits
    (caps, scales, cuts): its own full logits are used then. Call it first before an engine takes the model over.
    """
    model = getattr(model, "module", model)
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        config = model.config.get_text_config()
        if any(getattr(config, name, None) not in (None, 1) for name in AFTER_HEAD):
            return None
        head.__class__ = TargetHead
        head.is_handed_through = _is_handed_through(model, head)
    return head if isinstance(head, TargetHead) and head.is_handed_through else None


@torch.no_grad()
def _is_handed_through(model: nn.Module, head: TargetHead) -> bool:
    """Whether `.logits` is exactly what the head gave: tried, since no list of names is ever complete."""
    # As long as the vocabulary, so that a cut would show too.
    answer_V = torch.linspace(-3, 5, head.out_features, device=head.weight.device)
    num_asked = 0

    def task(hidden_TH: Tensor) -> Tensor:
        nonlocal num_asked
        num_asked += 1
        return answer_V

    was_training = model.training
    try:
        token_ids = torch.zeros(1, 2, dtype=torch.long, device=head.weight.device)
        return torch.equal(head.answer(model.eval(), task, input_ids=token_ids), answer_V)
    except Exception:
        # Where the head was reached, the model wants the shape of logits. Where it was not, no forward runs yet (ZeRO-3
        # has taken the weights apart, flash attention waits for its GPU), and the list of names must do.
        return num_asked == 0
    finally:
        model.train(was_training)


def _predictions(labels_BS: Tensor) -> Tensor:
    """The shift, here and nowhere else: entry (b, t) is the target that position t predicts, labels[b, t + 1]."""
    return F.pad(labels_BS[:, 1:], (0, 1), value=IGNORED)


def _ask(
    model: nn.Module,
    of_hidden: Callable[[TargetHead, Tensor], Tensor],
    of_logits: Callable[[Tensor], Tensor],
    **inputs: Any,
) -> Tensor:
    """One forward: `of_hidden(head, hidden_TH)` where the head can be asked, `of_logits(logits_TV)` where it cannot."""
    config = getattr(model, "module", model).config.get_text_config()
    if "flash" in str(config._attn_implementation) and inputs.get("position_ids") is not None:
        # Flash attention keeps documents apart in a batch of one row only, so all rows become one: each begins at 0.
        inputs = {name: value if value is None else value.reshape(1, -1) for name, value in inputs.items()}
    head = target_head(model)
    if head is None:
        return of_logits(model(**inputs, use_cache=False).logits.flatten(0, 1))
    return head.answer(model, lambda hidden_TH: of_hidden(head, hidden_TH), **inputs)


def target_sums(model: nn.Module, input_ids: Tensor, labels: Tensor, is_pretrain: Tensor, **inputs: Any) -> Tensor:
    """Sums of negative log-likelihood over the targets of a batch, [feedback, pretraining], from one forward.

    `labels` is (B, S), `is_pretrain` (B,). A stream without targets gives 0, still connected to the parameters.
    """
    predicted_BS = _predictions(labels)
    streams = []
    for is_in_B in (~is_pretrain, is_pretrain):
        place_N = ((predicted_BS != IGNORED) & is_in_B[:, None]).flatten().nonzero().squeeze(1)
        streams.append((place_N, predicted_BS.flatten()[place_N]))

    def of_hidden(head: TargetHead, hidden_TH: Tensor) -> Tensor:
        return torch.stack([linear_nll_sum(hidden_TH[n], head.weight, token, head.bias) for n, token in streams])

    def of_logits(logits_TV: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(logits_TV[n].float(), token, reduction="sum") for n, token in streams])

    return _ask(model, of_hidden, of_logits, input_ids=input_ids, **inputs)


@torch.no_grad()
def target_scores(model: nn.Module, input_ids: Tensor, labels: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of every label, and whether it was the likeliest token: two (B, S) tensors.

    Both stand where the label stands, with 0 and False off target: `nll.sum(1)` is a row's -log p(targets | the rest).
    Give `position_ids` that restart at each document where rows hold several, and call `model.eval()` before.
    """
    predicted_T = _predictions(labels).flatten()
    place_N = (predicted_T != IGNORED).nonzero().squeeze(1)
    token_N = predicted_T[place_N]

    def of_hidden(head: TargetHead, hidden_TH: Tensor) -> Tensor:
        def logits_at(place: Tensor) -> Tensor:
            return F.linear(hidden_TH[place], head.weight, head.bias)

        return _scores(logits_at, place_N, token_N, chunk_rows(head.out_features))

    def of_logits(logits_TV: Tensor) -> Tensor:
        return _scores(logits_TV.__getitem__, place_N, token_N, chunk_rows(logits_TV.shape[1]))

    scores_2N = _ask(model, of_hidden, of_logits, input_ids=input_ids, **inputs)
    nll_T, is_correct_T = torch.zeros(2, labels.numel(), device=labels.device).index_copy(1, place_N + 1, scores_2N)
    return nll_T.view_as(labels), is_correct_T.view_as(labels) > 0
