"""Laws of attention: documents of a row are strangers, and forgetting hides what it should, as often as it should."""

import pytest
import torch

from coh import masking
from coh.masking import (
    BY_DOCUMENT,
    additive_mask,
    attend_by_document,
    check_forgetting,
    check_isolation,
    document_ids,
    documents_in,
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
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    # A window that no layer has: those from the second on would.
    "qwen2": SIZES
    | {"num_key_value_heads": 2, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
}
ISOLATING = ["llama", "gpt2", "gpt_neox"]
ATTENTIONS = ["sdpa", "eager", BY_DOCUMENT]
SEEDS = [(7, 0), (7, 1)]


def make(kind, attention="eager"):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=61, **ends, **CONFIGS[kind])
    given = "sdpa" if attention == BY_DOCUMENT else attention
    model = AutoModelForCausalLM.from_config(config, attn_implementation=given).eval()
    if attention == BY_DOCUMENT:
        assert attend_by_document(model)
    return model


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


@pytest.mark.parametrize("attention", ATTENTIONS)
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


@pytest.mark.parametrize("attention", ATTENTIONS)
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


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_mask_that_forgets_nothing_gives_the_logits_without_a_mask(position_ids, attention):
    for kind in ISOLATING:
        model = make(kind, attention)
        token_ids = torch.randint(61, position_ids.shape, generator=torch.Generator().manual_seed(1))
        inputs = {"input_ids": token_ids, "position_ids": position_ids, "use_cache": False}
        mask = forgetful_mask(position_ids, 0, 0, SEEDS, model.dtype)
        torch.testing.assert_close(model(**inputs, attention_mask=mask).logits, model(**inputs).logits)


def test_the_mask_holds_under_autocast(position_ids):
    for attention in ATTENTIONS:
        model = make("llama", attention)
        mask = forgetful_mask(position_ids, 0.3, 0.3, SEEDS, model.dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            change = perturbed(model, position_ids, 1, attention_mask=mask)
        assert change[1:5].max() > 0 and change[5:].max() == 0 and change.isfinite().all()


# A document at a time


def tokens_like(position_ids):
    return torch.randint(61, position_ids.shape, generator=torch.Generator().manual_seed(1))


def logits_and_gradients(model, position_ids, **inputs):
    model.zero_grad()
    logits = model(input_ids=tokens_like(position_ids), position_ids=position_ids, use_cache=False, **inputs).logits
    logits.square().mean().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("kind", [*ISOLATING, "mistral", "qwen2"])
def test_a_document_at_a_time_gives_the_logits_and_gradients_of_the_mask(kind, position_ids):
    """With keys shared by heads (llama), and with windows narrower than a document (mistral), which keep their mask."""
    for positions in (position_ids, torch.zeros_like(position_ids), torch.arange(12).repeat(2, 1)):
        whole = logits_and_gradients(make(kind, "sdpa"), positions)
        for ours, theirs in zip(logits_and_gradients(make(kind, BY_DOCUMENT), positions), whole, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_no_mask_is_formed_unless_fcm_asks(monkeypatch, position_ids):
    from transformers import masking_utils

    model = make("llama", BY_DOCUMENT)
    asked = []
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda **given: asked.append(given))
    masks = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, given: masks.append(given["attention_mask"]), with_kwargs=True
    )
    logits_and_gradients(model, position_ids)
    mask = forgetful_mask(position_ids, 0.3, 0.3, SEEDS, torch.float32)
    logits_and_gradients(model, position_ids, attention_mask=mask)
    assert not asked and masks[0].tolist() == [5, 4, 3, 2, 10] and masks[1] is mask


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_layers_that_run_again_for_their_gradients_isolate_again(position_ids, use_reentrant):
    model = make("llama", BY_DOCUMENT).train()
    expected = logits_and_gradients(model, position_ids)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    for ours, theirs in zip(logits_and_gradients(model, position_ids), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_with_padding_or_a_cache_a_model_is_what_it_was():
    token_ids = tokens_like(torch.zeros(2, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    written = []
    for attention in ("sdpa", BY_DOCUMENT):
        model = make("llama", attention)
        inputs = {"input_ids": token_ids, "attention_mask": mask}
        written.append((model(**inputs).logits, model.generate(**inputs, max_new_tokens=6, do_sample=False)))
    for ours, theirs in zip(*written, strict=True):
        assert torch.equal(ours, theirs)


def test_documents_are_found_in_the_functions_of_transformers():
    from transformers import masking_utils as theirs

    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        is_first = torch.rand(3, 11, generator=generator) < 0.3
        is_first[:, 0] = True
        number_BS = is_first.long().cumsum(1)
        positions = torch.arange(11) - torch.where(is_first, torch.arange(11), 0).cummax(1).values
        lengths = torch.cat([torch.bincount(row)[1:] for row in number_BS]).tolist()
        of_rows = theirs.packed_sequence_compatibility_function(theirs.causal_mask_function, positions, number_BS)
        assert documents_in(of_rows, 3, 11).tolist() == lengths
        if max(lengths) > 4:
            window = theirs.sliding_window_causal_mask_function(4)
            assert documents_in(theirs.and_masks(of_rows, window), 3, 11) is None
    assert documents_in(theirs.bidirectional_mask_function, 3, 11) is None
    assert documents_in(theirs.causal_mask_function, 3, 11).tolist() == [11] * 3


def slices_its_mask(module, args, given):
    return args, given | {"attention_mask": given["attention_mask"][:, :, :, :12]}


def takes_a_mask_of_its_own(module, args, given):
    length = (args[0] if args else given["hidden_states"]).shape[1]
    return args, given | {"attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool).tril()}


def test_a_model_that_does_not_hand_masks_through_stays_under_sdpa(position_ids):
    model = make("llama", "sdpa")
    layers = [layer.self_attn for layer in model.model.layers]
    hooks = [layer.register_forward_pre_hook(slices_its_mask, with_kwargs=True) for layer in layers]
    assert not attend_by_document(model)
    assert model.config._attn_implementation == "sdpa"
    check_isolation(model)
    for hook in hooks:
        hook.remove()
    assert attend_by_document(model) and attend_by_document(model)
    for layer in layers:
        layer.register_forward_pre_hook(takes_a_mask_of_its_own, with_kwargs=True)
    with pytest.raises(ValueError, match="lets a document see the one before it"):
        check_isolation(model)


def test_a_model_with_other_logits_stays_under_sdpa(monkeypatch):
    attention = masking._documents_attention
    monkeypatch.setattr(
        masking, "_documents_attention", lambda *args, **given: (attention(*args, **given)[0] * 1.1, None)
    )
    model = make("llama", "sdpa")
    assert not attend_by_document(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["opt", "bloom"])
def test_models_with_masks_of_their_own_stay_right(kind):
    model = make(kind, "sdpa") if kind == "opt" else make(kind)
    token_ids = tokens_like(torch.zeros(2, 7))
    before = model(input_ids=token_ids).logits
    attend_by_document(model)
    torch.testing.assert_close(model(input_ids=token_ids).logits, before)


def test_other_attentions_and_weights_in_parts_are_left_alone():
    model = make("llama", "eager")
    assert not attend_by_document(model) and model.config._attn_implementation == "eager"
    model = make("llama", "sdpa")
    model.get_input_embeddings().weight.ds_id = 0  # as ZeRO-3 marks them
    assert not attend_by_document(model) and model.config._attn_implementation == "sdpa"


def test_a_saved_model_does_not_tell_how_it_attended(tmp_path, position_ids):
    from transformers import AutoModelForCausalLM

    model = make("llama", BY_DOCUMENT)
    model.save_pretrained(tmp_path)
    assert "by_document" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("given", "isolates", "expected"), [(None, True, BY_DOCUMENT), ("sdpa", True, "sdpa"), (None, False, "sdpa")]
)
def test_training_on_a_cpu_attends_by_document_unless_told(tmp_path, given, isolates, expected):
    from toys import tiny_model_folder

    from coh.coh_train import build_model
    from coh.data.data_args import CoHDataArgs
    from coh.experiment import ExperimentArgs
    from coh.train_args import CoHTrainArgs

    experiment = ExperimentArgs(model_name=tiny_model_folder(tmp_path / "model"), attn_implementation=given)
    data = CoHDataArgs(feedback_data=["sample"], isolate_documents=isolates)
    model = build_model(experiment, data, CoHTrainArgs(output_dir=str(tmp_path / "out"), use_cpu=True))
    assert model.config._attn_implementation == expected


# Checks


@pytest.mark.parametrize("attention", ATTENTIONS)
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
