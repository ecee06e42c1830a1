"""Texts put together from their words have the ids of the whole, wherever that is said of a tokenizer."""

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from toys import byte_tokenizer, chat_tokenizer
from transformers import PreTrainedTokenizerFast

from coh.data import encoding, words
from coh.data.encoding import BulkEncoder, Encoder
from coh.data.records import ChatText
from coh.data.words import _SPLITS, Cuts, cuts_of

CORPUS = [
    "One word, two  words;   three.\n\nUser: it's 12 or 345 - we'll see 6 x 7!!\n  def f():\n    return 1\t\n",
    "the 12 of  the 12 and \n the. \n\n- a\n- b  \n\n\n so it is,  and  so 12345 is 1 ... \u00e9t\u00e9 \u4f60\u597d",
]


def finished(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def of_bytes(*steps, normalizer=None):
    """A byte-level tokenizer whose merges would join anything, were it not for these steps."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def of_pieces(is_split=True, has_bytes=True, normalizer=None):
    """One like SentencePiece's; without `is_split` it learns tokens that reach over words."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=is_split)
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"], show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in CORPUS] * 3, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    if has_bytes:
        vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    vocabulary["▁▁"] = len(vocabulary)
    state["model"]["merges"].insert(0, ["▁", "▁"])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False) if normalizer is None else None
    tokenizer.normalizer = normalizer
    return tokenizer


def split(pattern):
    return pre.Split(Regex(pattern), "isolated")


PLAIN = pre.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre.ByteLevel(add_prefix_space=False)
LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
KNOWN = {
    "gpt2": of_bytes(GPT2),
    "digits": of_bytes(pre.Digits(individual_digits=True), GPT2),
    **{f"split {n}": of_bytes(split(pattern), PLAIN) for n, pattern in enumerate(sorted(_SPLITS))},
    "qwen": of_bytes(split(sorted(_SPLITS)[0]), PLAIN, normalizer=normalizers.NFC()),
    "pieces": of_pieces(),
    "legacy pieces": of_pieces(normalizer=LEGACY),
}
CHARACTERS = " " * 6 + "\n\n\t.,'-sd1234abAé你▁\u00a0\u2003\x1f\x04\u0301\u2028"
TEXT = st.one_of(
    st.lists(st.sampled_from([*CHARACTERS, "'s", "the", " the", "12", "  ", "</s>"]), max_size=40).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=20),
)


@pytest.mark.parametrize("name", KNOWN)
def test_words_have_the_ids_of_the_text(name):
    encoder = Encoder(finished(KNOWN[name]))
    assert cuts_of(encoder.tokenizer)

    @settings(max_examples=150)
    @given(st.lists(TEXT, min_size=1, max_size=6))
    def check(texts):
        texts += [" " + text for text in texts] + ["\n\n" + text for text in texts]
        bulk = BulkEncoder(encoder)
        expected = [ids.tobytes() for ids in encoder.encode(texts)]
        assert bulk.encode(texts) == expected
        assert bulk.encode(texts[::-1]) == expected[::-1]  # now from what it remembers

    check()


@pytest.mark.parametrize("before_letters", [False, True])
@given(texts=st.lists(TEXT, max_size=6))
def test_simple_words_with_spaces_between_are_cut_again(before_letters, texts):
    """So that they can be encoded together, in whatever order they come."""
    cuts = Cuts("Ġ", before_letters)
    simple = [word for text in texts for word in cuts.words(text) if cuts.is_simple(word)]
    assert cuts.words(" ".join([":", *simple])) == [":", *simple]


@pytest.mark.parametrize("name", ["gpt2", "smollm2", "llama_like", "bytes512"])
def test_real_texts(real_data, tokenizers, name):
    lines = chain(*((real_data / f"{part}.jsonl").open(encoding="utf-8") for part in ("hh_rlhf.test", "pretrain_text")))
    texts = [value for line in lines for value in json.loads(line).values() if isinstance(value, str)]
    texts += [f" {text}" for text in texts[::5]]
    encoder = Encoder(tokenizers(name))
    # The toy llama_like has no ids for all bytes, and so is left alone.
    assert bool(cuts_of(encoder.tokenizer)) == (name != "llama_like")
    assert BulkEncoder(encoder).encode(texts) == [ids.tobytes() for ids in encoder.encode(texts)]


def test_chat_prompts_keep_their_special_tokens():
    tokenizer = chat_tokenizer()
    encoder = Encoder(tokenizer, border="<|im_end|>")
    texts = ["say <|im_end|> now", ChatText("say <|im_end|> now"), " say <|im_end|> now", ChatText("a b"), "a b", ""]
    assert BulkEncoder(encoder).encode(texts) == [ids.tobytes() for ids in encoder.encode(texts)]


def test_a_long_text_is_cut_into_sections(monkeypatch):
    monkeypatch.setattr(words, "SECTION", 10)
    monkeypatch.setattr(encoding, "MOST_LETTERS", 50)
    text = "One two  three,\n four five" * 9 + "x" * 30
    cuts = Cuts("Ġ", before_letters=True)
    assert "".join(cuts.sections(text)) == text and len(cuts.sections(text)) > 15
    assert all(section.startswith(" ") for section in cuts.sections(text)[1:])
    encoder = Encoder(byte_tokenizer())
    bulk = BulkEncoder(encoder)
    for _ in range(3):
        assert bulk.encode([text, "a b", text]) == [ids.tobytes() for ids in encoder.encode([text, "a b", text])]


def test_what_is_remembered_does_not_grow(monkeypatch):
    monkeypatch.setattr(encoding, "MOST_LETTERS", 1000)
    bulk = BulkEncoder(Encoder(byte_tokenizer()))
    for number in range(40):
        bulk.encode([" ".join(f"word{number}x{place}" for place in range(40))])
        assert len(bulk._first) + len(bulk._others) < 250


def with_token(content, **options):
    tokenizer = of_bytes(GPT2)
    tokenizer.add_tokens([AddedToken(content, **options)])
    return tokenizer


UNKNOWN = {
    "tokens over words": of_pieces(is_split=False),
    "letters without ids": of_pieces(has_bytes=False),
    "space in front": of_bytes(pre.ByteLevel(add_prefix_space=True)),
    "no pattern": of_bytes(PLAIN),
    "another pattern": of_bytes(split(r"\w+ \w+|\s+|[^\w\s]+"), PLAIN),
    "another normalizer": of_bytes(GPT2, normalizer=normalizers.NFKC()),
    "a token that takes spaces": with_token("<x>", lstrip=True),
    "a token with a space": with_token("a b"),
    "words of its own": Tokenizer(models.WordLevel({"</s>": 0})),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_others_are_left_alone(name):
    tokenizer = finished(UNKNOWN[name])
    assert cuts_of(tokenizer) is None
    if name != "words of its own":
        encoder = Encoder(tokenizer)
        texts = ["two words", " two  words", ""]
        assert BulkEncoder(encoder).encode(texts) == [ids.tobytes() for ids in encoder.encode(texts)]


def test_words_apart_would_be_wrong_there():
    """The refusals above are for a reason: cut all the same, some of these texts have other ids."""
    encoder = Encoder(finished(UNKNOWN["tokens over words"]))
    text = CORPUS[1].replace("\n", " ")
    apart = [encoder.encode([f" {word}" if place else word])[0] for place, word in enumerate(text.split(" "))]
    assert np.concatenate(apart).tolist() != encoder.encode([text])[0].tolist()
