"""The laws of encoding, on byte-level BPE and SentencePiece alike: pieces join to the whole, targets decode to the
outputs.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coh.data.encoding import Encoder, shorten
from coh.data.hindsight import chain, opening
from coh.data.records import FeedbackError, Segment
from coh.data.templates import load_family

CRITIQUE = "true, but <|endoftext|> is no answer\n\nit says </s>"
TEXTS = [
    ("Why is the sky blue?", "Air scatters blue light most.", "It just is, okay?", "Dust."),
    ("User: Hi\n\nAssistant: Hello.\n\nUser: 2 + 2?", "Four.\n\n- one\n- two", "5", "It is 4"),
    ("¿Dónde está? 你好 🙂", "def f(x):\n    return x  # twice  spaced", "…", "нет"),
    ("Say </s> and <|endoftext|> and <|im_end|> aloud", "<|im_end|> </s> <|endoftext|>", "<s>", "</s>"),
]
NAMES = ["gpt2", "smollm2", "llama_like", "bytes512"]
COMPLETE = ["gpt2", "smollm2", "bytes512"]  # llama_like lacks many characters, so its ids do not decode to the text


@pytest.fixture(scope="module", params=NAMES)
def encoder(request, tokenizers):
    return Encoder(tokenizers(request.param))


@pytest.fixture(scope="module", params=COMPLETE)
def complete_encoder(request, tokenizers):
    return Encoder(tokenizers(request.param))


def ids_of(encoder, text):
    return encoder.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def document_of(encoder, template, family, prompt, outputs):
    segments = chain(template, prompt, outputs, CRITIQUE)
    targets = [number for number, segment in enumerate(segments) if segment.is_target]
    ends = [number in targets if family.eos == "each" else number == targets[-1] for number in range(len(segments))]
    return encoder.document(segments, "test", ends)


def all_templates():
    for name in ("prose", "marker", "marker_varied"):
        family = load_family(name)
        kinds = {template.polarity: template for template in family.templates}  # one of every kind, and more of all
        for template in [*kinds.values(), *family.templates[::7]]:
            yield family, template.ranking([False, True]) if template.is_ranking else template


def test_law_of_pieces(encoder):
    """Pieces encoded alone and joined are the ids of the text encoded whole."""
    for _, template in all_templates():
        for prompt, *outputs in TEXTS[:2]:
            segments = chain(template, prompt, outputs[: len(template.outputs)], CRITIQUE[:20])
            joined = np.concatenate(encoder.encode([segment.text for segment in segments])).tolist()
            assert joined == ids_of(encoder, "".join(segment.text for segment in segments)), template.name


def test_newlines_between_pieces_keep_the_law_too(complete_encoder):
    """A SentencePiece tokenizer would put a dummy space in front of a piece that starts with a newline."""
    segments = [
        Segment("Question", False),
        Segment("\n\nGood:", False),
        Segment("\nyes", True),
        Segment("\n\nBad:", False),
    ]
    assert complete_encoder.holds_law([segments])


def test_a_broken_law_is_seen(tokenizers):
    encoder = Encoder(tokenizers("gpt2"))
    assert not encoder.holds_law([[Segment("hel", False), Segment("lo", True)]])


def test_documents_decode_to_text_and_targets_to_outputs(complete_encoder):
    encoder, tokenizer = complete_encoder, complete_encoder.tokenizer
    for family, template in all_templates():
        for prompt, *outputs in TEXTS:
            outputs = outputs[: len(template.outputs)]
            document = document_of(encoder, template, family, prompt, outputs)
            text = "".join(segment.text for segment in chain(template, prompt, outputs, CRITIQUE))
            plain = [token for token in document.input_ids if token != tokenizer.eos_token_id]
            assert tokenizer.decode(plain, clean_up_tokenization_spaces=False) == text
            targets = [token for token, is_target in zip(document.input_ids, document.target_mask) if is_target]
            spans: list[list[int]] = [[]]
            for token in targets:
                spans[-1].append(token)
                if token == tokenizer.eos_token_id:
                    spans.append([])
            decoded = [tokenizer.decode(span[:-1], clean_up_tokenization_spaces=False).strip() for span in spans[:-1]]
            expected = [template.answer] if template.answer else outputs
            if family.eos == "end" and not template.answer:
                assert " ".join(decoded[0].split()) == " ".join(" ".join(outputs).split())
            else:
                assert decoded == expected
            assert spans[-1] == []  # the last target is the end-of-text token, and it stands once
            assert document.input_ids[-1] == tokenizer.eos_token_id and document.input_ids[-2] != tokenizer.eos_token_id


def test_prompts_of_generation_are_prefixes_of_rows(encoder):
    for family, template in all_templates():
        for prompt, *outputs in TEXTS:
            start = np.concatenate(
                [encoder.bos, *encoder.encode([s.text for s in opening(template, prompt, (), CRITIQUE)])]
            ).tolist()
            document = document_of(encoder, template, family, prompt, outputs[: len(template.outputs)])
            assert list(document.input_ids[: len(start)]) == start
            assert not any(document.target_mask[: len(start)])


def test_special_tokens_in_a_text_stay_letters(encoder):
    for token in ("</s>", "<|endoftext|>", "<|im_end|>", "<s>"):
        ids = np.concatenate(encoder.encode([f"Say {token} now", f" {token}"])).tolist()
        assert encoder.eos[0] not in ids and (encoder.tokenizer.bos_token_id or -1) not in ids


def test_no_special_tokens_by_themselves(encoder):
    assert encoder.bos.tolist() == [] and [len(ids) for ids in encoder.encode(["", " a"])] == [
        0,
        len(ids_of(encoder, "b a")) - len(ids_of(encoder, "b")),
    ]


def test_bos_stands_in_front_of_documents_only_when_asked(tokenizers):
    tokenizer = tokenizers("llama_like")
    segments, ends = [Segment("Hi", False), Segment(" there", True)], [False, True]
    assert Encoder(tokenizer).document(segments, "x", ends).input_ids[0] != tokenizer.bos_token_id
    document = Encoder(tokenizer, prepend_bos=True).document(segments, "x", ends)
    assert document.input_ids[0] == tokenizer.bos_token_id and document.input_ids.count(tokenizer.bos_token_id) == 1
    assert document.target_mask[0] is False


def test_whole_encoding_cuts_where_the_characters_are(complete_encoder):
    encoder = complete_encoder
    segments = chain(load_family("marker").templates[2], "Why?", ["Because. 你好", "No."])
    cells = encoder.whole(segments)
    assert len(cells) == len(segments)
    assert np.concatenate(cells).tolist() == ids_of(encoder, "".join(segment.text for segment in segments))
    assert [len(cell) for cell in cells] == [len(piece) for piece in encoder.encode([s.text for s in segments])]


@pytest.fixture(scope="module")
def gpt2_encoder(tokenizers):
    return Encoder(tokenizers("gpt2"))


@given(parts=st.lists(st.text(max_size=12), min_size=1, max_size=5))
@settings(max_examples=60)
def test_whole_encoding_loses_nothing(gpt2_encoder, parts):
    cells = gpt2_encoder.whole([Segment(part, False) for part in parts])
    assert np.concatenate(cells).tolist() == ids_of(gpt2_encoder, "".join(parts)) and len(cells) == len(parts)


@pytest.mark.parametrize(
    ("tokens", "prepend_bos", "message"),
    [
        ({"eos_token_id": None, "bos_token_id": 1}, False, "no end-of-text token: set eos_token"),
        ({"eos_token_id": 2, "bos_token_id": None}, True, "--prepend_bos, but the tokenizer has no bos_token"),
    ],
)
def test_missing_special_tokens_are_refused(tokens, prepend_bos, message):
    with pytest.raises(FeedbackError, match=message):
        Encoder(SimpleNamespace(**tokens), prepend_bos)


# Cells: nothing, words, prompt, words 1, output 1, words 2, output 2
def shortened(prompt, first, second, capacity, drop_stop=5):
    lengths = np.array([[0, 2, prompt, 3, first, 3, second]], np.int32)
    kept, too_long = shorten(lengths, capacity, np.array([2]), np.array([3]), np.array([[drop_stop]]))
    return kept[0].tolist(), bool(too_long[0])


def test_a_chain_that_fits_is_left_alone():
    assert shortened(40, 20, 20, 88) == ([0, 2, 40, 3, 20, 3, 20], False)


def test_the_prompt_gives_way_first_and_only_as_far_as_needed():
    assert shortened(41, 20, 20, 88) == ([0, 2, 40, 3, 20, 3, 20], False)
    assert shortened(500, 20, 20, 88) == ([0, 2, 40, 3, 20, 3, 20], False)


def test_then_the_older_output_goes_whole_with_its_words_and_the_prompt_comes_back():
    # With both outputs 10 tokens of prompt would be left, less than an eighth of a row.
    assert shortened(40, 31, 31, 80) == ([0, 2, 10, 3, 31, 3, 31], False)
    assert shortened(40, 32, 31, 80) == ([0, 2, 40, 0, 0, 3, 31], False)


def test_the_last_output_is_never_cut():
    assert shortened(40, 20, 70, 80) == ([0, 2, 5, 0, 0, 3, 70], False)
    kept, too_long = shortened(40, 20, 90, 80)
    assert too_long and kept[-1] == 90


def test_questions_keep_both_outputs():
    assert shortened(40, 32, 31, 80, drop_stop=0) == ([0, 2, 9, 3, 32, 3, 31], False)
    assert shortened(40, 60, 31, 80, drop_stop=0)[1]
