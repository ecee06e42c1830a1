"""Batches say what their prompts say one by one, and guidance is the arithmetic that it is meant to be."""

import pytest
import torch
from toys import TINY_LLAMA, byte_tokenizer

from coh.data.records import clean_output
from coh.generation import end_tokens, generate_batch, generate_outputs, num_positions, place_model
from coh.modeling import ModelError

TEXTS = ["Why?", "What is the use of a book without pictures?", "User: Hi A helpful answer:", "It", "is the of"]
BAD = ["Ah", "A long and very bad beginning of it all", "Hm", "An unhelpful answer:", "No"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tokenizer):
    """Rotary and absolute positions; weights so large that tokens differ."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if request.param == "llama":
            return LlamaForCausalLM(
                LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **TINY_LLAMA, **ends)
            ).eval()
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **ends
        )
        return GPT2LMHeadModel(config).eval()


def encoded(tokenizer, texts):
    return [tokenizer(text)["input_ids"] for text in texts]


def greedy_by_hand(model, tokenizer, prompt, negative=None, guidance=1.0, num_tokens=12):
    """The likeliest token after another, of log p(good) mixed with log p(bad): bad + guidance * (good - bad)."""
    written = []
    for _ in range(num_tokens):
        with torch.no_grad():
            scores = model(torch.tensor([prompt + written])).logits[0, -1].log_softmax(-1)
            if negative is not None:
                other = model(torch.tensor([negative + written])).logits[0, -1].log_softmax(-1)
                scores = other + guidance * (scores - other)
        written.append(int(scores.argmax()))
        if written[-1] == tokenizer.eos_token_id:
            break
    return clean_output(tokenizer.decode(written, skip_special_tokens=True))


def test_a_batch_is_its_prompts_one_by_one(model, tokenizer):
    prompts = encoded(tokenizer, TEXTS)
    together = generate_batch(model, tokenizer, prompts, max_new_tokens=12, do_sample=False)
    assert [outputs[0] for outputs in together] == [greedy_by_hand(model, tokenizer, prompt) for prompt in prompts]
    assert len(set(map(tuple, together))) == len(TEXTS)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 50.0},
        {"no_repeat_ngram_size": 1},
        {"max_length": 40},
        {"min_new_tokens": 12},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
)
def test_options_do_not_see_the_padding(model, options):
    """The padding token is one that the model likes to write, as the end-of-text token may be."""
    tokenizer = byte_tokenizer()
    prompts = encoded(tokenizer, TEXTS)
    with torch.no_grad():
        liked = int(model(torch.tensor(prompts[:1])).logits[0, -1].argmax())
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(liked)
    options = {"do_sample": False, **({} if "max_length" in options else {"max_new_tokens": 12}), **options}
    together = generate_batch(model, tokenizer, prompts, **options)
    assert together == [generate_batch(model, tokenizer, [prompt], **options)[0] for prompt in prompts]


@pytest.mark.parametrize("guidance", [0.5, 1.0, 1.7, 3.0])
def test_guidance_mixes_log_probabilities(model, tokenizer, guidance):
    prompts, negatives = encoded(tokenizer, TEXTS), encoded(tokenizer, BAD)
    options = {"negatives": negatives, "guidance": guidance, "max_new_tokens": 12, "do_sample": False}
    found = [outputs[0] for outputs in generate_batch(model, tokenizer, prompts, **options)]
    assert found == [
        greedy_by_hand(model, tokenizer, prompt, negative, guidance) for prompt, negative in zip(prompts, negatives)
    ]
    plain = [outputs[0] for outputs in generate_batch(model, tokenizer, prompts, max_new_tokens=12, do_sample=False)]
    assert (found == plain) == (guidance == 1)


def test_guidance_with_several_outputs_of_a_prompt(model, tokenizer):
    """With one token to choose from, every sample is the greedy output."""
    prompts, negatives = encoded(tokenizer, TEXTS[:2]), encoded(tokenizer, BAD[:2])
    options = {"max_new_tokens": 12, "do_sample": True, "top_k": 1, "num_return_sequences": 3}
    found = generate_batch(model, tokenizer, prompts, negatives=negatives, guidance=2.0, **options)
    assert found == [
        [greedy_by_hand(model, tokenizer, prompt, negative, 2.0)] * 3 for prompt, negative in zip(prompts, negatives)
    ]


def test_an_output_ends_at_any_of_its_ends(model, tokenizer):
    (prompt,) = encoded(tokenizer, TEXTS[:1])
    with torch.no_grad():
        first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert generate_batch(model, tokenizer, [prompt], ends=[first], max_new_tokens=9, do_sample=False) == [[""]]
    assert end_tokens(model, tokenizer, [first]) == [first, tokenizer.eos_token_id]


def test_the_model_is_left_as_it_was(model, tokenizer):
    (prompt,) = encoded(tokenizer, TEXTS[:1])
    model.train()
    generate_outputs(model, tokenizer, prompt, max_new_tokens=1)
    assert model.training and not model._forward_pre_hooks
    with pytest.raises(ValueError):
        generate_outputs(model, tokenizer, prompt, max_new_tokens=1, do_sample=True, temperature=-1.0)
    assert model.training and not model._forward_pre_hooks
    model.eval()


def test_room(model, tokenizer):
    positions = num_positions(model.config)
    prompt = [5] * (positions - 4)
    assert len(generate_outputs(model, tokenizer, prompt, max_new_tokens=4)) == 1
    with pytest.raises(ModelError, match=f"prompt of {positions - 4} tokens and 5 new ones: the model has {positions}"):
        generate_outputs(model, tokenizer, prompt, max_new_tokens=5)
    with pytest.raises(ModelError, match=f"the model has {positions}"):  # the negative side is read too
        generate_batch(model, tokenizer, [[5]], negatives=[[5] * positions], guidance=2.0, max_new_tokens=1)


def test_a_device_that_is_not_there(model):
    with pytest.raises(ModelError, match=r"device 'abacus': .*; choose auto or cpu"):
        place_model(model, "abacus")
    assert place_model(model, "cpu") is model


def test_the_indentation_of_code_survives_sentencepiece(tokenizers):
    from coh.generation import _text

    for name in ("llama_like", "gpt2"):
        pieces = tokenizers(name)
        ids = pieces("Answer:\n    return 1", add_special_tokens=False)["input_ids"]
        before = pieces("Answer:", add_special_tokens=False)["input_ids"]
        assert ids[: len(before)] == before
        assert _text(pieces, before[-1], ids[len(before) :], set()) == "    return 1"
