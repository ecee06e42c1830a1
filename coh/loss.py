"""What the model is asked for: losses at the targets, and nothing anywhere else.

In come `input_ids`, `position_ids` and `labels` (the token's id where it is a target, else -100, not shifted); out go
sums of negative log-likelihoods in nats for training (`target_loss`), or one figure per target for evaluation and
scoring (`target_scores`). The head of the model runs only at the positions that predict a target, in chunks, so the
logits of a batch never exist whole. It does so inside the head module itself, so that every engine (DDP, ZeRO, FSDP)
finds its hooks called.

Shapes: B rows, S positions, T = B * S, N targets, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
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

    64 MiB are 2^24 logits, and 2^24 / 49,152 = 341, so 256 rows (48 MiB). Every chunk reads all weights and adds to all
    of their gradient: 32 rows take 1.2 times as long as 128, and more win nothing. Powers of two suit the processor, so
    that chunks of one size, ceil(targets / number of chunks), are no faster (1.00 to 1.06 of this) than a short last
    one. Beyond 4,096 rows a small vocabulary would only hold more at once.

    >>> [chunk_rows(vocab_size) for vocab_size in (512, 32_000, 49_152, 151_936)]
    [4096, 512, 256, 64]
    """
    return min(4096, 1 << max(2**24 // vocab_size, 1).bit_length() - 1)


class _ChunkedNLL(torch.autograd.Function):
    """Negative log-likelihoods and their weighted sum, whose gradients are formed while a chunk's logits are at hand.

    Matrix products run in `dtype`. What is summed over targets stays in fp32 or better, the weights' gradient too until
    it is scaled: a bf16 sum of ten thousand nats can be 32 off, and an fp16 one ends at 65,504.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        token_N: Tensor,
        scale_N: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(dtype, torch.float32)
        hidden, weight, bias = hidden_NH.to(dtype), weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
        # The gradients get their scale where they are small: with the hidden states, not with a chunk's logits.
        scaled, scale_N1 = (hidden * scale_N[:, None]).to(dtype), scale_N[:, None].to(dtype)
        needs, num_targets, rows = ctx.needs_input_grad, len(token_N), chunk_rows(len(weight))
        new = torch.empty if num_targets else torch.zeros  # the first chunk writes, the others add
        grad_hidden = torch.empty_like(hidden_NH) if needs[0] else None
        grad_weight = new(weight_VH.shape, dtype=exact, device=weight.device) if needs[1] else None
        grad_bias = torch.zeros_like(bias_V, dtype=exact) if needs[2] else None
        nll_N = hidden.new_empty(num_targets, dtype=exact)
        # One piece of memory for all chunks: the system clears what it hands out, and that takes its time.
        logits_RV = hidden.new_empty(min(rows, num_targets), len(weight))
        exact_RV = logits_RV if dtype == exact else torch.empty_like(logits_RV, dtype=exact)
        for start in range(0, num_targets, rows):
            at, token = slice(start, start + rows), token_N[start : start + rows, None]
            slope, p = logits_RV[: len(token)], exact_RV[: len(token)]
            _product(slope, hidden[at], weight.T, bias)
            nll_N[at] = _nll_and_slope(p if dtype == exact else p.copy_(slope), token)
            if grad_bias is not None:
                grad_bias += scale_N[at].to(exact) @ p
            if dtype != exact:
                slope.copy_(p)
            if grad_hidden is not None:
                grad_hidden[at] = (slope @ weight).mul_(scale_N1[at])
            if grad_weight is not None:
                _add_product(grad_weight, slope.T, scaled[at], is_first=start == 0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_NH, weight_VH, bias_V)]
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * scale_N).sum(), nll_N

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        # In place: a second copy of the weights' gradient is dear. Torch's version counter refuses a second backward.
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if g is None else g.mul_(grad_total).to(dtype) for g, dtype in grads), None, None, None


def _product(result: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    """result = a @ b + bias, in place."""
    if bias is None:
        torch.mm(a, b, out=result)
    else:
        torch.addmm(bias, a, b, out=result)


def _add_product(total: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
    """total += a @ b, in place; what stands in `total` before the first product does not count."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if is_first else 1)
    elif is_first:
        total.copy_(a @ b)
    else:
        total += a @ b


def _nll_and_slope(logits_RV: Tensor, token_R1: Tensor) -> Tensor:
    """Each row's negative log-likelihood (R,); in the place of the logits comes its gradient, p - 1[token]."""
    logits_RV -= logits_RV.amax(-1, keepdim=True)
    of_token_R1 = logits_RV.gather(1, token_R1)
    total_R1 = logits_RV.exp_().sum(-1, keepdim=True)
    logits_RV /= total_R1
    logits_RV.scatter_add_(1, token_R1, -torch.ones_like(of_token_R1))
    return (total_R1.log() - of_token_R1).squeeze(1)


def linear_nll(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    token_N: Tensor,
    sizes: Sequence[int],
    scale_K: Tensor,
    bias_V: Tensor | None = None,
    use_torch: bool = False,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of tokens under softmax(hidden @ weight.T + bias), summed over K runs of `sizes` targets.

    Returns the loss, sum over k of scale_k * sums_k, and the sums (K,) in nats, which have no gradients of their own:
    so one gradient of the weights serves all runs, which is as large as they are. Both are fp32 (fp64 for fp64).

    `use_torch` is the switch to torch's own chunked function, where torch has it. It takes 1.0 to 1.1 times as long as
    ours for one run and 1.2 times for two, returns 16-bit sums in 16 bits, and takes no notice of autocast.

    >>> hidden, weight, tokens = torch.zeros(3, 8), torch.zeros(5, 8), torch.tensor([0, 1, 4])
    >>> loss, sums = linear_nll(hidden, weight, tokens, sizes=[2, 1], scale_K=torch.tensor([0.5, 1.0]))
    >>> (sums / torch.tensor([2, 1])).tolist(), float(loss) / 2  # log 5
    ([1.6094379425048828, 1.6094379425048828], 1.6094379425048828)
    """
    if use_torch:
        # The size is named, since on a CPU the function's own choice is 14 times slower.
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=chunk_rows(len(weight_VH)))
        runs = zip(hidden_NH.split(sizes), token_N.split(sizes))
        given = {"linear_bias": bias_V, "reduction": "sum", "options": options}
        sums_K = torch.stack([F.linear_cross_entropy(hidden, weight_VH, token, **given) for hidden, token in runs])
        return (sums_K * scale_K).sum(), sums_K.detach()
    device = hidden_NH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
    # Relative to the greatest, or products with 1 / 100,000 targets would be too small for 16 bits.
    greatest = scale_K.max().clamp(min=torch.finfo(scale_K.dtype).tiny)
    scale_N = torch.cat([scale.expand(size) for scale, size in zip(scale_K / greatest, sizes)])
    total, nll_N = _ChunkedNLL.apply(hidden_NH, weight_VH, bias_V, token_N, scale_N, dtype)
    return total * greatest, torch.stack([nll.sum() for nll in nll_N.split(sizes)])


def linear_nll_sum(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    token_N: Tensor,
    bias_V: Tensor | None = None,
    use_torch: bool = False,
) -> Tensor:
    """The sum over all targets alone, as `linear_nll` forms it.

    >>> float(linear_nll_sum(torch.zeros(3, 8), torch.zeros(5, 8), torch.tensor([0, 1, 4]))) / 3  # log 5
    1.6094379425048828
    """
    one_1 = torch.ones(1, device=hidden_NH.device)
    return linear_nll(hidden_NH, weight_VH, token_N, [len(token_N)], one_1, bias_V, use_torch)[0]


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


def _streams(labels_BS: Tensor, is_pretrain_B: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of feedback and of pretraining text: the places (in B * S) that predict targets, and these targets."""
    predicted_BS = _predictions(labels_BS)
    streams = []
    for is_in_B in (~is_pretrain_B, is_pretrain_B):
        place_N = ((predicted_BS != IGNORED) & is_in_B[:, None]).flatten().nonzero().squeeze(1)
        streams.append((place_N, predicted_BS.flatten()[place_N]))
    return streams


def target_loss(
    model: nn.Module, input_ids: Tensor, labels: Tensor, is_pretrain: Tensor, scale_2: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods over the targets of a batch, from one forward: the loss, scale_2 @ sums, and the sums.

    `labels` is (B, S), `is_pretrain` (B,); sums are [feedback, pretraining] and have no gradients. A stream without
    targets adds 0, still connected to the parameters.
    """
    streams = _streams(labels, is_pretrain)
    sizes = [len(place_N) for place_N, _ in streams]
    place_N, token_N = (torch.cat(parts) for parts in zip(*streams))

    def of_hidden(head: TargetHead, hidden_TH: Tensor) -> Tensor:
        hidden_NH = hidden_TH.index_select(0, place_N)
        loss, sums_2 = linear_nll(hidden_NH, head.weight, token_N, sizes, scale_2, head.bias)
        return torch.cat([loss[None], sums_2])  # one tensor, as engines expect in the place of logits

    def of_logits(logits_TV: Tensor) -> Tensor:
        sums_2 = torch.stack([F.cross_entropy(logits_TV[n].float(), token, reduction="sum") for n, token in streams])
        return torch.cat([(sums_2 * scale_2).sum()[None], sums_2.detach()])

    loss, *_ = answer_3 = _ask(model, of_hidden, of_logits, input_ids=input_ids, **inputs)
    return loss, answer_3[1:].detach()


def target_sums(model: nn.Module, input_ids: Tensor, labels: Tensor, is_pretrain: Tensor, **inputs: Any) -> Tensor:
    """As `target_loss`, but the sums themselves, each with gradients: these take the room of two losses."""
    streams = _streams(labels, is_pretrain)

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
