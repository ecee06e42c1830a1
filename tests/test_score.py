"""Scores: log-probabilities of outputs under words, equal to a plain computation, for any batch; the program on top."""

import json

import numpy as np
import pytest
import torch
from toys import byte_tokenizer, pairs, tiny_model_folder, write_rows

from coh.data.records import FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.rows import JudgedRow
from coh.saved import Words, save_words
from coh.score import agreement, judge, main, score_documents
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.5)
    save_words(folder, Words(load_family("marker")))
    return str(folder)


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
def test_log_probabilities_of_outputs_and_their_end(model, steering, quality):
    documents = [document for group in GROUPS for document in steering.documents(group, quality)]
    expected = [plain_log_p(model, document) for document in documents]
    for tokens_per_batch in (1, 150, 4096):
        scores = score_documents(model, documents, pad_id=2, tokens_per_batch=tokens_per_batch)
        np.testing.assert_allclose(scores.log_p, expected, rtol=1e-5)
        assert scores.num_tokens.tolist() == [sum(document.target_mask) for document in documents]


def test_a_score_is_what_the_words_change(model, steering):
    rows = [JudgedRow("here", group.prompt, group.outputs, {}) for group in GROUPS]
    good, bad = (
        [[plain_log_p(model, document) for document in steering.documents(group, quality)] for group in GROUPS]
        for quality in ("good", "bad")
    )
    for tokens_per_batch in (1, 4096):
        found = judge(model, steering, rows, tokens_per_batch=tokens_per_batch)
        np.testing.assert_allclose(np.array(found), np.array(good) - np.array(bad), rtol=1e-3, atol=1e-4)
    lengths = [[sum(one.target_mask) for one in steering.documents(group, "good")] for group in GROUPS]
    per_token = judge(model, steering, rows, per_token=True)
    np.testing.assert_allclose(np.array(per_token), np.array(found) / np.array(lengths), rtol=1e-3, atol=1e-5)


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


def test_agreement_of_a_judge_an_opposite_and_a_coin():
    ranks = (1, 2, 2, 4)
    assert agreement(ranks, [3.0, 2.0, 1.0, 0.0]) == (5.0, 5)
    assert agreement(ranks, [0.0, 1.0, 1.0, 3.0]) == (0.0, 5)
    assert agreement(ranks, [1.0] * 4) == (2.5, 5)


def test_the_program_judges_feedback_of_any_kind(folder, tmp_path, capsys):
    rows = {
        "pairs": pairs(5),
        "ranked": [{"prompt": "Why?", "responses": ["a", "b b", "c c c"], "ranks": [2, 1, 3]}] * 2,
        "thumbs": [{"prompt": "Why?", "completion": "Because.", "label": True}] * 2,
        "plain": [{"prompt": f"Why {n}?", "outputs": ["one", "two"], "id": n} for n in range(3)],
    }
    for name, own in rows.items():
        path, output = write_rows(tmp_path / f"{name}.jsonl", own), tmp_path / "scores.jsonl"
        main(["--model", folder, "--input", path, "--output", str(output)])
        found = [json.loads(line) for line in output.read_text().splitlines()]
        assert len(found) == len(own)
        for line in found:
            assert len(line["scores"]) == len(line["ranks"]) == len(line["outputs"])
            assert line["ranks"][int(np.argmax(line["scores"]))] == 1
        told = capsys.readouterr().err
        number = {"pairs": 5, "ranked": 6}.get(name)
        assert (f"% of {number} pairs" in told) if number else ("agreement" not in told)
    assert found[2]["id"] == 2


def test_what_cannot_be_judged_is_named(folder, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Why?", "outputs": ["so", "word " * 400]}])
    with pytest.raises(SystemExit, match=r"rows\.jsonl.*1: an output has \d+ tokens, the model has 512 positions"):
        main(["--model", folder, "--input", path])
    with pytest.raises(SystemExit, match="there is no such folder"):
        main(["--model", folder, "--input", path, "--output", str(tmp_path / "none" / "x.jsonl")])
