"""Laws of attention: documents of a row are strangers, and forgetting hides what it should, as often as it should."""

import pytest
import torch

from coh.masking import (
    additive_mask,
    check_forgetting,
    check_isolation,
    document_ids,
    forgetful_mask,
    forgotten,
    may_attend,
)

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": SIZES | {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    "gpt_neox": SIZES,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mistral": SIZES | {"num_key_value_heads": 2, "sliding_window": 8},
    # A window that no layer has: those from the second on would.
    "qwen2": SIZES
    | {"num_key_value_heads": 2, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
}
ISOLATING = ["llama", "gpt2", "gpt_neox"]
SEEDS = [(7, 0), (7, 1)]


def make(kind, attention="eager"):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=61, **ends, **CONFIGS[kind])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.fixture
def position_ids():
    """One row of 5 + 4 + 3 positions, one of 2 + 10."""
    lengths = [(5, 4, 3), (2, 10)]
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])


def hidden_from_scratch(position_ids):
    """The reference: is this key in another document, or in the future?"""
    hidden = torch.ones(*position_ids.shape, position_ids.shape[1], dtype=torch.bool)
    for row, positions in enumerate(position_ids.tolist()):
        starts = [at for at, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
            for query in range(start, end):
                hidden[row, query, start : query + 1] = False
    return hidden


def test_documents_and_causality(position_ids):
    assert document_ids(position_ids).tolist() == [[0] * 5 + [1] * 4 + [2] * 3, [0] * 2 + [1] * 10]
    assert torch.equal(may_attend(position_ids), ~hidden_from_scratch(position_ids))


def test_a_row_without_restarts_is_one_document_wherever_it_begins():
    assert torch.equal(may_attend(torch.arange(3, 7)[None])[0], torch.ones(4, 4, dtype=torch.bool).tril())


# Forgetting


def test_pairs_are_hidden_at_the_drawn_rate():
    """In 4 rows of 200 positions the share is r within 4 standard errors, in both halves alike."""
    position_ids = torch.arange(200).repeat(4, 1)
    hidden = forgotten(position_ids, 0.1, 0.1, [(seed,) for seed in range(4)])
    may_be_hidden = torch.ones(200, 200, dtype=torch.bool).tril(-1)
    may_be_hidden[:, 0] = False
    for part in (may_be_hidden, may_be_hidden & (torch.arange(200) < 100), may_be_hidden & (torch.arange(200) >= 100)):
        pairs = hidden[:, part].float()
        assert abs(pairs.mean() - 0.1) < 4 * (0.1 * 0.9 / pairs.numel()) ** 0.5
    # Independent: neighbours in a column or a row are hidden together as often as chance has it.
    for neighbours in (
        hidden[:, 101:, 1:100] & hidden[:, 100:-1, 1:100],
        hidden[:, 100:, 2:100] & hidden[:, 100:, 1:99],
    ):
        assert abs(neighbours.float().mean() - 0.01) < 4 * (0.01 / neighbours.numel()) ** 0.5


def test_each_row_draws_its_own_ratio_evenly_between_the_bounds():
    rows, num_positions = 400, 40
    hidden = forgotten(torch.arange(num_positions).repeat(rows, 1), 0.2, 0.6, [(3, row) for row in range(rows)])
    may_be_hidden = torch.ones(num_positions, num_positions, dtype=torch.bool).tril(-1)
    may_be_hidden[:, 0] = False
    rates = hidden[:, may_be_hidden].float().mean(1)
    assert abs(rates.mean() - 0.4) < 4 * 0.4 / 12**0.5 / rows**0.5
    assert abs(rates.std() - 0.4 / 12**0.5) < 0.015
    assert rates.min() < 0.25 and rates.max() > 0.55


def test_first_tokens_and_the_diagonal_are_kept(position_ids):
    hidden = forgotten(position_ids, 0.999, 0.999, SEEDS)
    assert hidden.float().mean() > 0.5
    assert not hidden.diagonal(dim1=1, dim2=2).any()
    for row, positions in enumerate(position_ids.tolist()):
        for key, position in enumerate(positions):
            assert hidden[row, :, key].any() == (position != 0)


def test_what_a_row_forgets_depends_on_its_seed_alone(position_ids):
    both = forgotten(position_ids, 0, 0.5, SEEDS)
    assert torch.equal(both, forgotten(position_ids, 0, 0.5, SEEDS))
    assert torch.equal(both[1:], forgotten(position_ids[1:], 0, 0.5, SEEDS[1:]))
    same = position_ids[:1].repeat(3, 1)
    others = forgotten(same, 0.3, 0.3, [(7, 0), (7, 1), (8, 0)])
    assert not torch.equal(others[0], others[1]) and not torch.equal(others[0], others[2])


def test_nothing_is_forgotten_at_ratio_zero(position_ids):
    assert not forgotten(position_ids, 0, 0, SEEDS).any()
    mask = forgetful_mask(position_ids, 0, 0, SEEDS, torch.float32)
    assert torch.equal(mask, additive_mask(may_attend(position_ids), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mask_is_added_to_the_scores_of_all_heads(position_ids, dtype):
    mask = forgetful_mask(position_ids, 0.3, 0.3, SEEDS, dtype)
    assert mask.shape == (2, 1, 12, 12) and mask.dtype == dtype and mask.isfinite().all()
    hidden = hidden_from_scratch(position_ids) | forgotten(position_ids, 0.3, 0.3, SEEDS)
    assert torch.equal(mask[:, 0] < 0, hidden) and (mask[:, 0][hidden] == torch.finfo(dtype).min).all()


# Through models


def perturbed(model, position_ids, at, **inputs):
    """How much each position's logits move when the token at `at` of row 0 is another."""
    token_ids = torch.randint(2, 61, position_ids.shape, generator=torch.Generator().manual_seed(1))
    other_ids = token_ids.clone()
    other_ids[0, at] = 1
    logits = [
        model(input_ids=ids, position_ids=position_ids, use_cache=False, **inputs).logits.detach()
        for ids in (token_ids, other_ids)
    ]
    return (logits[0] - logits[1]).abs().amax(-1)[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ISOLATING)
@pytest.mark.parametrize("forgets", [False, True])
def test_changing_a_document_changes_no_logit_of_another(position_ids, kind, attention, forgets):
    model = make(kind, attention)
    mask = {"attention_mask": forgetful_mask(position_ids, 0.2, 0.4, SEEDS, model.dtype)} if forgets else {}
    for at, own in ((1, slice(1, 5)), (6, slice(6, 9)), (9, slice(9, 12))):
        change = perturbed(model, position_ids, at, **mask)
        assert change[own].max() > 1e-3
        change[own] = 0
        assert change.max() == 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ISOLATING)
def test_what_is_hidden_has_no_influence(position_ids, kind, attention):
    """In one layer, a query's logits do not move with a key that it forgot, and do with one that it did not."""
    model = make(kind, attention)
    for layers in (module for module in model.modules() if isinstance(module, torch.nn.ModuleList)):
        del layers[1:]
    hidden = forgotten(position_ids, 0.5, 0.5, SEEDS)
    mask = forgetful_mask(position_ids, 0.5, 0.5, SEEDS, model.dtype)
    change = perturbed(model, position_ids, 1, attention_mask=mask)
    is_hidden = hidden[0, 2:5, 1]
    assert 0 < is_hidden.sum() < 3
    assert torch.equal(change[2:5] == 0, is_hidden)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mask_that_forgets_nothing_gives_the_logits_without_a_mask(position_ids, attention):
    for kind in ISOLATING:
        model = make(kind, attention)
        token_ids = torch.randint(61, position_ids.shape, generator=torch.Generator().manual_seed(1))
        inputs = {"input_ids": token_ids, "position_ids": position_ids, "use_cache": False}
        mask = forgetful_mask(position_ids, 0, 0, SEEDS, model.dtype)
        torch.testing.assert_close(model(**inputs, attention_mask=mask).logits, model(**inputs).logits)


def test_the_mask_holds_under_autocast(position_ids):
    for attention in ("sdpa", "eager"):
        model = make("llama", attention)
        mask = forgetful_mask(position_ids, 0.3, 0.3, SEEDS, model.dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            change = perturbed(model, position_ids, 1, attention_mask=mask)
        assert change[1:5].max() > 0 and change[5:].max() == 0 and change.isfinite().all()


# Checks


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ISOLATING)
def test_models_that_isolate_pass(kind, attention):
    model = make(kind, attention).train()
    check_isolation(model)
    check_forgetting(model, seq_length=64)
    assert model.training


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("opt", "OPTForCausalLM lets a document see the one before it"), ("bloom", "takes no position_ids")],
)
def test_models_that_do_not_isolate_are_refused(kind, reason):
    with pytest.raises(ValueError, match=rf"{reason}, .* pass --isolate_documents false"):
        check_isolation(make(kind))


def test_a_model_whose_logits_are_not_numbers_does_not_pass():
    model = make("llama")
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    with pytest.raises(ValueError, match="isolate_documents"):
        check_isolation(model)


def test_isolation_is_checked_through_adapters():
    from peft import LoraConfig, get_peft_model

    check_isolation(get_peft_model(make("llama"), LoraConfig(r=2, target_modules=["q_proj"])))
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position_ids"):
        check_isolation(get_peft_model(make("bloom"), LoraConfig(r=2, target_modules=["query_key_value"])))


def test_weights_in_parts_are_not_tried():
    model = make("opt")
    model.get_input_embeddings().weight.ds_id = 0  # as ZeRO-3 marks them
    check_isolation(model)


@pytest.mark.parametrize(
    ("kind", "seq_length", "reason"),
    [
        ("mistral", 9, "mistral has layers that look back 8 tokens only: pass --seq_length 8, or --fcm_max_ratio 0"),
        ("bloom", 9, "bloom does not obey a 4-D attention mask"),
    ],
)
def test_forgetting_is_refused_where_it_cannot_be(kind, seq_length, reason):
    with pytest.raises(ValueError, match=reason):
        check_forgetting(make(kind), seq_length)


def test_forgetting_is_allowed_within_a_window_or_where_it_is_off():
    check_forgetting(make("mistral"), 8)
    model = make("qwen2")
    assert model.config.sliding_window == 8
    check_forgetting(model, 9)


def test_forgetting_is_refused_under_flash_attention():
    model = make("llama")
    model.config._attn_implementation = "flash_attention_2"  # it needs a GPU to run, but not to be refused
    with pytest.raises(
        ValueError, match="flash_attention_2 attention takes no such mask: pass --attn_implementation sdpa"
    ):
        check_forgetting(model, 9)
