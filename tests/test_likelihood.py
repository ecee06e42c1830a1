"""Log-probabilities of outputs: equal to a plain computation, for any batch, also where documents share a beginning."""

import numpy as np
import pytest
import torch
from test_masking import make
from toys import byte_tokenizer, plain_log_p

from coh import likelihood
from coh.data.records import Document, FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.likelihood import score_documents, score_runs
from coh.loss import target_scores
from coh.masking import BY_DOCUMENT
from coh.saved import Words
from coh.steering import Steering

GROUPS = [
    FeedbackGroup("test", as_messages(f"What is {n}?"), (f"It is {n}." + " Yes." * n, "No."), (1, 2)) for n in range(6)
]


@pytest.fixture(scope="module")
def steering():
    return Steering.of(Words(load_family("marker")), byte_tokenizer())


@pytest.fixture(scope="module")
def model(steering, tiny_llama):
    return tiny_llama(len(steering.encoder.tokenizer), initializer_range=0.3)


@pytest.mark.parametrize("quality", ["good", "bad"])
@pytest.mark.parametrize("tokens_per_batch", [1, 150, 4096])
def test_scores_are_the_log_probabilities_of_outputs_and_their_end(model, steering, quality, tokens_per_batch):
    documents = [document for group in GROUPS for document in steering.documents(group, quality)]
    scores = score_documents(model, documents, pad_id=2, tokens_per_batch=tokens_per_batch)
    np.testing.assert_allclose(scores.log_p, [plain_log_p(model, document) for document in documents], rtol=1e-5)
    assert scores.num_tokens.tolist() == [sum(document.target_mask) for document in documents]


def test_long_documents_lose_their_beginning(model, steering):
    (document, *_) = steering.documents(GROUPS[5], "good")
    length = sum(document.target_mask) + 4
    ids = torch.tensor([document.input_ids[-length:]])
    with torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)
    expected = sum(float(log_p[place - 1, ids[0, place]]) for place in range(4, length))
    assert score_documents(model, [document], 2, max_length=length).log_p[0] == pytest.approx(expected, rel=1e-5)


def test_the_mode_of_the_model_is_left_as_it_was(model, steering):
    model.train()
    score_documents(model, steering.documents(GROUPS[0], "good"), 2)
    assert model.training
    model.eval()


def test_runs_are_the_outputs_of_a_chain_one_by_one(model):
    ids = tuple(range(3, 15))
    chain = Document(ids, (False,) * 3 + (True,) * 3 + (False,) * 2 + (True,) * 4, "")
    first, second = (
        Document(chain.input_ids, tuple(on and (n < 7) == is_first for n, on in enumerate(chain.target_mask)), "")
        for is_first in (True, False)
    )
    runs = score_runs(model, [chain, first, second], 2)
    assert runs.document.tolist() == [0, 0, 1, 2] and runs.num_tokens.tolist() == [3, 4, 3, 4]
    assert runs.log_p[:2] == pytest.approx(runs.log_p[2:], rel=1e-5)
    assert (runs.num_correct <= runs.num_tokens).all()
    assert score_runs(model, [chain], 2, max_length=4).num_tokens.tolist() == [3]  # the first of four is not predicted


@pytest.fixture
def widths(monkeypatch):
    """The widths of all batches that the model is given."""
    found = []

    def seen(model, input_ids, **inputs):
        found.append(input_ids.shape[1])
        return target_scores(model, input_ids, **inputs)

    monkeypatch.setattr("coh.loss.target_scores", seen)
    return found


def alike(num_outputs=5, num_prompts=3):
    """Documents of some outputs of one prompt each, of 12 tokens and more, in no order; the prompts differ early."""
    rng = np.random.default_rng(0)
    documents = []
    for prompt in range(num_prompts):
        begins = [prompt, *rng.integers(0, 61, 7).tolist()]
        for output in range(num_outputs):
            ids = [*begins, *rng.integers(0, 61, 2 + output).tolist()]
            documents.append(Document(tuple(ids), tuple(n > 8 for n in range(len(ids))), ""))
    return [documents[n] for n in rng.permutation(len(documents))]


@pytest.mark.parametrize("attention", ["sdpa", "eager", BY_DOCUMENT])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt", "qwen2", "mistral"])
def test_documents_that_begin_alike_are_read_together_and_score_the_same(kind, attention, widths):
    model, documents = make(kind, attention), alike()
    if kind in ("qwen2", "mistral"):
        model.config.sliding_window = 64
    model.config.max_position_embeddings = 64
    expected = [plain_log_p(model, document) for document in documents]
    np.testing.assert_allclose(score_documents(model, documents, 0).log_p, expected, rtol=1e-4)
    assert sum(widths) == 8 + 2 + 3 + 4 + 5 + 6  # one batch of rows, in which a prompt stands once


@pytest.mark.parametrize("kind", ["mistral", "bloom", "mamba"])
def test_models_that_cannot_share_a_beginning_read_each_document(kind, widths):
    # A window of 8 tokens; no positions to be given; a state that goes through the row.
    model, documents = make(kind), alike()
    expected = [plain_log_p(model, document) for document in documents]
    np.testing.assert_allclose(score_documents(model, documents, 0).log_p, expected, rtol=1e-4)
    assert max(widths) == max(len(document.input_ids) for document in documents)


def test_rows_are_no_longer_than_a_batch_or_the_models_positions(widths):
    model, documents = make("gpt2"), alike()
    apart = score_documents(model, documents, 0, tokens_per_batch=1).log_p
    assert max(widths) == max(len(document.input_ids) for document in documents)
    for limit in (20, 30):
        widths.clear()
        model.config.n_positions = limit
        np.testing.assert_allclose(score_documents(model, documents, 0).log_p, apart, rtol=1e-4)
        assert max(len(document.input_ids) for document in documents) < max(widths) <= limit


def test_chains_share_beginnings_with_single_outputs(steering, model, widths):
    pairs = [
        FeedbackGroup("test", as_messages("A long question? " * 8 + str(n)), ("Yes.", "No."), (1, 2)) for n in range(3)
    ]
    documents = [
        document
        for pair in pairs
        for document in (
            *steering.documents(pair, "good"),
            *steering.documents(pair, "bad"),
            *steering.chain_documents(pair, "pn"),
            *steering.chain_documents(pair, "np"),
        )
    ]
    together, num_together = score_runs(model, documents, 2), sum(widths)
    apart = [score_runs(model, [document], 2) for document in documents]
    for name in ("log_p", "num_tokens", "num_correct"):
        expected = np.concatenate([getattr(runs, name) for runs in apart])
        np.testing.assert_allclose(getattr(together, name), expected, rtol=1e-4)
    assert together.document.tolist() == [n for n, runs in enumerate(apart) for _ in runs.log_p]
    assert num_together < sum(widths[1:]) / 6


def test_documents_alone_take_no_mask(steering, model, monkeypatch):
    documents = [
        document for n, group in enumerate(GROUPS) for document in steering.documents(group, "good")[n % 2 :][:1]
    ]
    rows = likelihood._rows(model, [likelihood._cut(document, None) for document in documents], 4096)
    assert [row.num_shared for row in rows] == [0] * len(documents)
