"""Scores: log-probabilities of outputs under words, equal to a plain computation, for any batch."""

import numpy as np
import pytest
import torch
from toys import byte_tokenizer

import coh.score
from coh.data.encoding import Encoder
from coh.data.records import FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.score import score_documents, scoring_documents

GROUPS = [
    FeedbackGroup("test", as_messages(f"What is {n}?"), (f"It is {n}." + " Yes." * n, "No."), (1, 2)) for n in range(6)
]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(byte_tokenizer())


@pytest.fixture(scope="module")
def model(encoder, tiny_llama):
    return tiny_llama(len(encoder.tokenizer))


def plain_log_p(model, document):
    """Ten lines: the log-softmax of full logits, at the targets, one document at a time."""
    ids = torch.tensor([document.input_ids])
    with torch.no_grad():
        log_p = model(ids).logits[0].double().log_softmax(-1)
    return sum(
        float(log_p[place - 1, document.input_ids[place]])
        for place in range(1, len(document.input_ids))
        if document.target_mask[place]
    )


@pytest.mark.parametrize("quality", ["good", "bad"])
def test_scores_are_the_log_probabilities_of_outputs_and_their_end(model, encoder, quality, monkeypatch):
    family = load_family("marker")
    documents = [document for group in GROUPS for document in scoring_documents(group, quality, family, encoder)]
    expected = [plain_log_p(model, document) for document in documents]
    for tokens_per_batch in (1, 150, 4096):
        monkeypatch.setattr(coh.score, "TOKENS_PER_BATCH", tokens_per_batch)
        scores = score_documents(model, documents, pad_id=2)
        np.testing.assert_allclose(scores.log_p, expected, rtol=1e-5)
        assert scores.num_tokens.tolist() == [sum(document.target_mask) for document in documents]


def test_documents_say_the_words_and_end(encoder):
    good, bad = (scoring_documents(GROUPS[0], quality, load_family("marker"), encoder) for quality in ("good", "bad"))
    text = encoder.tokenizer.decode(good[0].input_ids)
    assert text == "User: What is 0? A helpful answer: It is 0.</s>"
    assert encoder.tokenizer.decode(bad[1].input_ids) == "User: What is 0? An unhelpful answer: No.</s>"
    targets = [token for token, is_target in zip(good[0].input_ids, good[0].target_mask) if is_target]
    assert encoder.tokenizer.decode(targets) == " It is 0.</s>"


def test_long_documents_lose_their_beginning(model, encoder):
    (document, *_) = scoring_documents(GROUPS[5], "good", load_family("marker"), encoder)
    length = sum(document.target_mask) + 4
    ids = torch.tensor([document.input_ids[-length:]])
    with torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)
    expected = sum(float(log_p[place - 1, ids[0, place]]) for place in range(4, length))
    assert score_documents(model, [document], 2, max_length=length).log_p[0] == pytest.approx(expected, rel=1e-5)


def test_the_mode_of_the_model_is_left_as_it_was(model, encoder):
    model.train()
    score_documents(model, scoring_documents(GROUPS[0], "good", load_family("marker"), encoder), 2)
    assert model.training
    model.eval()
