"""Laws of the loss: what it sums, what it leaves alone, and that every way of computing it gives the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coh import loss
from coh.loss import (
    HAS_TORCH_KERNEL,
    TargetHead,
    linear_nll,
    linear_nll_sum,
    target_head,
    target_loss,
    target_scores,
    target_sums,
)

KERNELS = [
    pytest.param(
        True, marks=pytest.mark.skipif(not HAS_TORCH_KERNEL, reason="this torch has no such function"), id="torch"
    ),
    pytest.param(False, id="own"),
]


def naive_nll(logits, labels):
    """The reference, in words: position t predicts token t + 1, and only targets count."""
    total = logits[..., :0].sum()
    for row_logits, row_labels in zip(logits, labels, strict=True):
        for t in range(len(row_labels) - 1):
            if row_labels[t + 1] != -100:
                total = total - row_logits[t].log_softmax(0)[row_labels[t + 1]]
    return total


def test_the_reference_is_right_where_the_answer_is_known():
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]]))
    assert naive_nll(logits, torch.tensor([[-100, 1, 0]])).item() == pytest.approx(
        -torch.log(torch.tensor(0.125)).item()
    )


# The chunked kernels


def gradients(function, *tensors):
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    (3 * value).backward()
    return value.detach(), [leaf.grad for leaf in leaves if leaf is not None]


def head_inputs(num_targets, dtype=torch.float64, bias=True, vocab_size=53, hidden_size=7):
    generator = torch.Generator().manual_seed(num_targets)
    hidden, weight, offset = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((num_targets, hidden_size), (vocab_size, hidden_size), (vocab_size,))
    )
    return hidden, weight, offset if bias else None, torch.randint(vocab_size, (num_targets,), generator=generator)


@pytest.mark.parametrize("use_torch", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_targets", [0, 1, 4, 5, 13])
def test_both_kernels_are_the_naive_sum_in_value_and_gradient(monkeypatch, use_torch, bias, num_targets):
    monkeypatch.setattr(loss, "chunk_rows", lambda vocab_size: 4)
    hidden, weight, offset, token = head_inputs(num_targets, bias=bias)
    expected = gradients(
        lambda h, w, b: naive_nll(F.linear(h, w, b)[:, None].expand(-1, 2, -1), pairs(token)), hidden, weight, offset
    )
    found = gradients(lambda h, w, b: linear_nll_sum(h, w, token, b, use_torch=use_torch), hidden, weight, offset)
    torch.testing.assert_close(found[0], expected[0])
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other)


def pairs(token):
    return torch.stack([torch.full_like(token, -100), token], dim=1)


@pytest.mark.parametrize("use_torch", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(13,), (6, 7), (0, 5), (5, 0), (0, 0), (2, 9, 1)])
def test_runs_of_targets_have_a_scale_each(monkeypatch, use_torch, bias, sizes):
    """Chunks of 4 targets, so that some hold two runs. The greatest scale stands first or last; one is 0."""
    monkeypatch.setattr(loss, "chunk_rows", lambda vocab_size: 4)
    hidden, weight, offset, token = head_inputs(sum(sizes), bias=bias)
    for scale_K in (torch.tensor([0.3, 2.0, 0.7])[: len(sizes)], torch.tensor([1e-3, 0.0, 1e-5])[: len(sizes)]):
        scale_K = scale_K.double()

        def naive(h, w, b, scale_K=scale_K):
            parts = F.cross_entropy(F.linear(h, w, b), token, reduction="none").split(sizes)
            return (torch.stack([part.sum() for part in parts]) * scale_K).sum()

        def ours(h, w, b, scale_K=scale_K):
            return linear_nll(h, w, token, sizes, scale_K, b, use_torch=use_torch)[0]

        expected, found = gradients(naive, hidden, weight, offset), gradients(ours, hidden, weight, offset)
        torch.testing.assert_close(found[0], expected[0])
        for one, other in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(one, other)
        sums_K = linear_nll(hidden, weight, token, sizes, scale_K, offset, use_torch=use_torch)[1]
        every = F.cross_entropy(F.linear(hidden, weight, offset), token, reduction="none")
        torch.testing.assert_close(sums_K, torch.stack([part.sum() for part in every.split(sizes)]))


@pytest.mark.parametrize("use_torch", KERNELS)
def test_the_sums_have_no_gradient_of_their_own(use_torch):
    hidden, weight, offset, token = head_inputs(5)
    value, sums_K = linear_nll(
        hidden.requires_grad_(), weight, token, [2, 3], torch.ones(2).double(), offset, use_torch=use_torch
    )
    assert value.requires_grad and not sums_K.requires_grad


@pytest.mark.parametrize("is_autocast", [True, False])
def test_small_scales_are_not_lost_in_16_bits(is_autocast):
    """One over the number of targets: fp16 ends at 6e-8, and a slope is far below 1 already."""
    hidden, weight, offset, token = head_inputs(40)
    inputs = [tensor.to(torch.float32 if is_autocast else torch.float16) for tensor in (hidden, weight, offset)]
    with torch.autocast("cpu", dtype=torch.float16, enabled=is_autocast):
        for scale in (1.0, 1e-6):
            scale_K = torch.tensor([scale, scale / 4])
            found = gradients(lambda h, w, b, s=scale_K: linear_nll(h, w, token, [10, 30], s, b)[0] / s[0], *inputs)
            if scale == 1.0:
                expected = found
    torch.testing.assert_close(found[0], expected[0])
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).norm() <= 1e-2 * other.norm()


def test_one_gradient_of_the_weights_serves_all_runs():
    """Two would not fit where one does: a gradient is as large as the head."""
    hidden, weight, _, token = head_inputs(8, dtype=torch.float32, vocab_size=5000)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    held = []

    def hold(tensor):
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        linear_nll(*leaves, token, [3, 5], torch.tensor([0.5, 2.0]))
    assert held.count(weight.numel()) == 1 and max(held) == weight.numel()


@pytest.mark.parametrize("use_torch", KERNELS)
def test_in_fp32_no_kernel_is_worse_than_the_full_logits(monkeypatch, use_torch):
    monkeypatch.setattr(loss, "chunk_rows", lambda vocab_size: 16)
    hidden, weight, offset, token = head_inputs(61)
    truth = gradients(
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), token, reduction="sum"), hidden, weight, offset
    )
    inputs = hidden.float(), weight.float(), offset.float()
    full = gradients(lambda h, w, b: F.cross_entropy(F.linear(h, w, b), token, reduction="sum"), *inputs)
    found = gradients(lambda h, w, b: linear_nll_sum(h, w, token, b, use_torch=use_torch), *inputs)
    for exact, naive, ours in zip([truth[0], *truth[1]], [full[0], *full[1]], [found[0], *found[1]], strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().max() <= 4 * (naive - exact).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_autocast", [True, False])
def test_16_bit_sums_are_kept_in_32(dtype, is_autocast):
    hidden, weight, offset, token = head_inputs(3000, vocab_size=11)
    hidden, weight, offset = hidden * 3, weight * 3, offset * 3
    truth = gradients(
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), token, reduction="sum"), hidden, weight, offset
    )
    inputs = [tensor.to(torch.float32 if is_autocast else dtype) for tensor in (hidden, weight, offset)]
    with torch.autocast("cpu", dtype=dtype, enabled=is_autocast):
        value, grads = gradients(lambda h, w, b: linear_nll_sum(h, w, token, b), *inputs)
        full, full_grads = gradients(
            lambda h, w, b: F.cross_entropy(F.linear(h, w, b).float(), token, reduction="sum"), *inputs
        )
    assert value.dtype == torch.float32
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in inputs]
    assert abs(value - truth[0]) <= 2 * abs(full - truth[0]) + 1e-4 * truth[0]
    for ours, naive, exact in zip(grads, full_grads, truth[1], strict=True):
        assert (ours - exact).norm() <= 1.5 * (naive - exact).norm()


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, offset, token = head_inputs(5)
    hidden.requires_grad_()
    linear_nll_sum(hidden, weight, token, offset, use_torch=False).backward()
    assert hidden.grad.abs().sum() > 0 and weight.grad is None
    hidden.grad = None
    weight.requires_grad_()
    linear_nll_sum(hidden.detach(), weight, token, offset, use_torch=False).backward()
    assert hidden.grad is None and weight.grad.abs().sum() > 0


@pytest.mark.parametrize("use_torch", KERNELS)
def test_a_second_backward_is_refused_rather_than_wrong(use_torch):
    hidden, weight, offset, token = head_inputs(5)
    value = linear_nll_sum(hidden.requires_grad_(), weight, token, offset, use_torch=use_torch)
    (2 * value).backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        value.backward()


# Through a model


@pytest.fixture
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return GPT2LMHeadModel(config)


@pytest.fixture
def gptj():
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)
    model = GPTJForCausalLM(GPTJConfig(vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64, rotary_dim=4))
    nn.init.normal_(model.lm_head.bias)
    return model.eval()


@pytest.fixture
def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=61, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1, **sizes)
    return Gemma2ForCausalLM(config)


@pytest.fixture
def llama(tiny_llama):
    return tiny_llama(61)


@pytest.fixture
def peft(tiny_llama):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        tiny_llama(61), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    )


MODELS = {"llama": TargetHead, "gpt2": TargetHead, "gptj": TargetHead, "gemma2": None, "peft": None}


@pytest.fixture
def batch():
    """Two rows with two documents each, one of them pretraining text, and places without targets."""
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(61, (2, 9), generator=generator)
    labels = input_ids.clone()
    labels[0, [0, 1, 4, 5, 8]] = -100
    labels[1, [0, 5]] = -100
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 0, 1, 2, 3]])
    return {
        "input_ids": input_ids,
        "labels": labels,
        "is_pretrain": torch.tensor([False, True]),
        "position_ids": position_ids,
    }


def full_logits(model, batch):
    return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits


@pytest.mark.parametrize("name", MODELS)
def test_sums_per_stream_equal_the_full_logits_in_value_and_gradient(request, name, batch):
    model = request.getfixturevalue(name)
    logits = full_logits(model, batch)
    expected = torch.stack([naive_nll(logits[:1], batch["labels"][:1]), naive_nll(logits[1:], batch["labels"][1:])])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.tensor([0.3, 0.7])
    wanted = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    found = target_sums(model, **batch)
    assert type(target_head(model)) is (MODELS[name] or type(None))
    torch.testing.assert_close(found, expected)
    for ours, reference in zip(
        torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True), wanted, strict=True
    ):
        torch.testing.assert_close(ours, reference, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_weighted_sums_in_value_and_gradient(request, name, batch):
    model = request.getfixturevalue(name)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for scale_2 in (torch.tensor([0.3, 0.7]), torch.tensor([0.25, 0.0])):
        sums_2 = target_sums(model, **batch)
        wanted = torch.autograd.grad((sums_2 * scale_2).sum(), parameters, allow_unused=True)
        value, found_2 = target_loss(model, **batch, scale_2=scale_2)
        torch.testing.assert_close(value, (sums_2 * scale_2).sum())
        torch.testing.assert_close(found_2, sums_2.detach())
        assert not found_2.requires_grad
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        for ours, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, reference, atol=2e-6, rtol=2e-5)


def test_a_loss_without_the_shift_or_with_two_would_show(llama, batch):
    right = target_sums(llama, **batch)
    for shift in (1, -1):
        moved = batch | {"labels": batch["labels"].roll(shift, dims=1)}
        assert (target_sums(llama, **moved) - right).abs().min() > 1e-3
    unshifted = F.cross_entropy(full_logits(llama, batch).flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    assert abs(unshifted - right.sum()) > 1e-3


def test_only_targets_count_however_many_other_positions_there_are(llama, batch):
    """An earlier implementation divided by all positions, so its loss shrank with the density of targets."""
    tail = torch.full((2, 30), 7)
    longer = batch | {
        "input_ids": torch.cat([batch["input_ids"], tail], 1),
        "labels": torch.cat([batch["labels"], torch.full_like(tail, -100)], 1),
        "position_ids": torch.cat([batch["position_ids"], torch.arange(30).repeat(2, 1)], 1),
    }
    torch.testing.assert_close(target_sums(llama, **longer), target_sums(llama, **batch))


def test_the_head_runs_at_targets_only(monkeypatch, llama, batch):
    sizes = []
    kernel = loss.linear_nll
    monkeypatch.setattr(loss, "linear_nll", lambda hidden, *rest: sizes.append(len(hidden)) or kernel(hidden, *rest))
    target_sums(llama, **batch)
    assert sizes == [4, 7] == (batch["labels"] != -100).sum(1).tolist()
    target_loss(llama, **batch, scale_2=torch.ones(2))
    assert sizes[2:] == [11]


@pytest.mark.parametrize("name", ["llama", "gptj", "gemma2"])
def test_the_gradient_is_exactly_zero_off_target(request, name, batch):
    model = request.getfixturevalue(name)
    seen = []

    def watch(module, args):
        seen.append(args[0])
        args[0].retain_grad()

    model.get_output_embeddings().register_forward_pre_hook(watch)
    target_head(model)
    seen.clear()
    target_loss(model, **batch, scale_2=torch.tensor([0.5, 2.0]))[0].backward()
    predicts = F.pad(batch["labels"][:, 1:] != -100, (0, 1))
    assert seen[0].grad[~predicts].abs().max() == 0
    assert (seen[0].grad[predicts].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_without_targets_the_loss_is_zero_finite_and_connected(request, name, batch):
    model = request.getfixturevalue(name)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert target_sums(model, **batch).tolist() == [0, 0]
    value, sums = target_loss(model, **batch, scale_2=torch.ones(2))
    assert value == 0 and sums.tolist() == [0, 0]
    value.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.abs().max() == 0 for parameter in trained)
    nll, is_correct = target_scores(model, batch["input_ids"], batch["labels"])
    assert nll.abs().max() == 0 and not is_correct.any()


@pytest.mark.parametrize("name", MODELS)
def test_scores_stand_where_the_labels_stand(monkeypatch, request, name, batch):
    monkeypatch.setattr(loss, "chunk_rows", lambda vocab_size: 4)
    model = request.getfixturevalue(name).eval()
    nll, is_correct = target_scores(model, batch["input_ids"], batch["labels"], position_ids=batch["position_ids"])
    log_p = full_logits(model, batch).log_softmax(-1)
    assert is_correct.dtype == torch.bool
    for row, position in torch.cartesian_prod(torch.arange(2), torch.arange(9)).tolist():
        label = batch["labels"][row, position]
        if label == -100:
            assert nll[row, position] == 0 and not is_correct[row, position]
        else:
            torch.testing.assert_close(nll[row, position], -log_p[row, position - 1, label])
            assert is_correct[row, position] == (log_p[row, position - 1].argmax() == label)
    assert not nll.requires_grad


def test_accuracy_is_not_blind(llama, batch):
    """Labels that are the model's own choice are all correct, and no others."""
    batch["labels"][:, 1:] = full_logits(llama, batch).argmax(-1)[:, :-1]
    _, is_correct = target_scores(llama, batch["input_ids"], batch["labels"], position_ids=batch["position_ids"])
    assert is_correct[:, 1:].all() and not is_correct[:, 0].any()


# The head


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_the_head_changes_nothing_about_the_model_but_its_class(request, name, batch):
    model = request.getfixturevalue(name).train()
    before = full_logits(model, batch)
    names = [name for name, _ in model.named_parameters()]
    head = target_head(model)
    assert head is model.get_output_embeddings() and target_head(model) is head
    assert model.training
    target_sums(model, **batch)
    torch.testing.assert_close(full_logits(model, batch), before, atol=0, rtol=0)
    assert [name for name, _ in model.named_parameters()] == names
    if model.config.tie_word_embeddings:
        assert head.weight is model.get_input_embeddings().weight


def test_a_failed_forward_leaves_the_head_as_it_was(llama, batch):
    with pytest.raises(IndexError):
        target_sums(llama, **batch | {"input_ids": batch["input_ids"] + 61})
    assert target_head(llama).task is None
    assert full_logits(llama, batch).shape == (2, 9, 61)


@pytest.mark.parametrize(
    "after_head", [lambda x: x * 2, lambda x: x.tanh(), lambda x: x[..., :60], lambda x: x[:, -1:, :]]
)
def test_arithmetic_after_the_head_is_found_without_its_name(llama, batch, after_head):
    """A model that nobody has heard of yet: its own full logits are used."""
    llama.register_forward_hook(lambda module, args, output: type(output)(logits=after_head(output.logits)))
    assert target_head(llama) is None
    if after_head(torch.zeros(1, 9, 61)).shape == (1, 9, 61):
        logits = full_logits(llama, batch)
        expected = naive_nll(logits[:1], batch["labels"][:1])
        torch.testing.assert_close(target_sums(llama, **batch)[0], expected)


def test_where_no_forward_runs_yet_the_names_must_do(gemma2, llama):
    for model in (gemma2, llama):
        for parameter in model.parameters():
            parameter.data = torch.empty(0)  # as ZeRO-3 leaves them
        assert target_head(model) is (None if model is gemma2 else model.get_output_embeddings())


def test_under_flash_attention_all_rows_are_one(monkeypatch, llama, batch):
    """It keeps documents apart in a batch of one row only. Here sdpa answers to its name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    inputs = batch["input_ids"], batch["labels"]
    sums, scores = target_sums(llama, **batch), target_scores(llama, *inputs, position_ids=batch["position_ids"])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_test", ALL_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_test", sdpa_mask)
    llama.config._attn_implementation = "flash_test"
    shapes = []
    llama.model.register_forward_pre_hook(lambda *args: shapes.append(args[2]["input_ids"].shape), with_kwargs=True)
    torch.testing.assert_close(target_sums(llama, **batch, attention_mask=None), sums)
    torch.testing.assert_close(target_scores(llama, *inputs, position_ids=batch["position_ids"]), scores)
    assert shapes == [(1, 18), (1, 18)]


def test_the_head_is_found_inside_an_engine(llama, batch):
    engine = nn.Module()
    engine.module = llama
    engine.forward = llama.forward  # as DDP and DeepSpeed do, with more around it
    assert target_head(engine) is target_head(llama)
    torch.testing.assert_close(target_sums(engine, **batch), target_sums(llama, **batch))
