"""Figures of a source: by hand from plain logits, whatever the batches, and what each kind of feedback can give."""

import numpy as np
import pytest
import torch
from toys import byte_tokenizer

from coh.data.records import FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.measures import Estimate
from coh.measuring import SourceFigures, measure, preferred_pairs, table, that_fit
from coh.saved import Words
from coh.steering import Steering

PAIRS = [
    FeedbackGroup("s", as_messages(f"Question {n}?"), (f"good {n}", f"worse one {n}"), (1, 2), task="answer")
    for n in range(5)
]
RANKINGS = [
    FeedbackGroup("s", as_messages("Rank?"), ("first", "second", "third"), (1, 2, 2)),
    FeedbackGroup("s", as_messages("And?"), ("one", "two", "three", "four"), (1, 2, 3, 4)),
]


def steering_of(family):
    return Steering.of(Words(load_family(family)), byte_tokenizer())


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(len(byte_tokenizer()), initializer_range=0.3)


def plain(model, document):
    """Log-probabilities of a document's targets, and whether each is the likeliest, from full logits."""
    ids = torch.tensor([document.input_ids])
    with torch.no_grad():
        log_p = model(ids).logits[0].double().log_softmax(-1)
    places = [n for n in range(1, len(document.input_ids)) if document.target_mask[n]]
    tokens = [document.input_ids[n] for n in places]
    rows = [log_p[n - 1] for n in places]
    return np.array([float(row[token]) for row, token in zip(rows, tokens)]), [int(r.argmax()) for r in rows] == tokens


def test_every_figure_by_hand(model):
    steering = steering_of("prose")
    figures = measure(model, steering, PAIRS).figures
    log_p = {
        words: np.array([[plain(model, d)[0].sum() for d in steering.documents(pair, words)] for pair in PAIRS])
        for words in ("good", "bad")
    }
    tokens = np.array([[sum(d.target_mask) for d in steering.documents(pair, "good")] for pair in PAIRS])
    moved = log_p["good"] - log_p["bad"]
    share = lambda values: 100 * np.mean(values[:, 0] > values[:, 1])  # noqa: E731
    assert figures["pair_accuracy"].value == share(log_p["good"])
    assert figures["pair_accuracy_per_token"].value == share(log_p["good"] / tokens)
    assert figures["pair_accuracy_by_words"].value == share(moved)
    assert figures["steering_gap"].value == pytest.approx((moved[:, 0] - moved[:, 1]).mean(), rel=1e-5)
    assert figures["loss_p"].value == pytest.approx(-log_p["good"][:, 0].sum() / tokens[:, 0].sum(), rel=1e-5)
    chains = [steering.chain_documents(pair, "np")[0] for pair in PAIRS]
    whole = [plain(model, chain)[0] for chain in chains]
    assert figures["loss_np"].value == pytest.approx(-np.concatenate(whole).mean(), rel=1e-5)
    last = [values[-tokens[n, 0] :].mean() for n, values in enumerate(whole)]
    alone = log_p["good"][:, 0] / tokens[:, 0]
    assert figures["chain_gain"].value == pytest.approx(np.mean(last - alone), rel=1e-4)
    asked = [steering.question_documents(pair, n) for n, pair in enumerate(PAIRS)]
    right = [plain(model, true)[0].sum() > plain(model, false)[0].sum() for true, false in asked]
    assert figures["question_accuracy"].value == pytest.approx(100 * np.mean(right))
    assert all(figure.n == 5 for figure in figures.values())
    assert "rank_agreement" not in figures


@pytest.mark.parametrize("tokens_per_batch", [1, 200, 100_000])
def test_batches_change_nothing(model, tokens_per_batch):
    steering, groups = steering_of("prose"), [*PAIRS, *RANKINGS]
    expected = measure(model, steering, groups).figures
    found = measure(model, steering, groups, tokens_per_batch=tokens_per_batch).figures
    assert found.keys() == expected.keys()
    for name, figure in found.items():
        assert figure.value == pytest.approx(expected[name].value, abs=1e-5), name


def test_each_kind_of_feedback_gives_what_it_can(model):
    rankings = measure(model, steering_of("marker"), RANKINGS).figures
    assert rankings["rank_agreement"].n == 2 and -1 <= rankings["rank_agreement"].value <= 1
    assert "question_accuracy" not in rankings  # the family asks nothing
    ties = measure(model, steering_of("marker"), [FeedbackGroup("s", as_messages("?"), ("a", "b"), (1, 1))])
    assert not ties.figures and ties.reliability is None


def test_pairs_are_the_ends_of_what_is_no_tie():
    prompt = as_messages("?")
    groups = [
        FeedbackGroup("s", prompt, ("a", "b", "c"), (1, 2, 3), task="answer"),
        FeedbackGroup("s", prompt, ("a", "b"), (1, 1)),
        FeedbackGroup("s", prompt, ("a",), (1,)),
    ]
    found = [(pair.outputs, pair.ranks, pair.task) for pair in preferred_pairs(groups)]
    assert found == [(("a", "c"), (1, 2), "answer")]


def test_a_figure_that_one_side_lacks_is_a_dash():
    before = SourceFigures({"loss_p": Estimate(2.0, 1.9, 2.1, 9), "chain_gain": Estimate(1.0, 0.5, 1.5, 9)}, None)
    after = SourceFigures({"loss_p": Estimate(1.0, float("nan"), float("nan"), 1)}, None)
    lines = table({"before": before, "after": after}).splitlines()
    assert [line.split()[-1] for line in lines] == ["after", "1.000", "-"]


def long_pair(letters, prompt="Long?"):
    return FeedbackGroup("s", as_messages(prompt), ("a" * letters, "no"), (1, 2), task="answer")


@pytest.mark.parametrize("limit", ["asked", "positions"])
def test_an_output_without_room_for_its_words_is_left_out_and_counted(model, tiny_llama, limit):
    """A model with fewer positions than --max_length is asked for no more than it has."""
    if limit == "positions":
        model = tiny_llama(len(byte_tokenizer()), initializer_range=0.3, max_position_embeddings=150)
    for family in ("marker", "prose"):
        steering, longest = steering_of(family), 1000 if limit == "positions" else 150
        expected = measure(model, steering, PAIRS, longest)
        found = measure(model, steering, [*PAIRS, long_pair(149)], longest)
        assert (expected.num_too_long, found.num_too_long) == (0, 1)
        assert {**found.figures, "calibration_error": 0} == {**expected.figures, "calibration_error": 0}
        assert found.templates == family
        assert "1 more groups have an output longer" in table({"mine": found})


def test_pairs_that_do_not_fit_together_are_measured_apart(model):
    steering, pair = steering_of("marker"), long_pair(60)
    together = max(len(d.input_ids) for kind in ("pn", "np") for d in steering.chain_documents(pair, kind))
    alone = max(len(d.input_ids) for d in steering.documents(pair, "bad"))
    figures = measure(model, steering, [*PAIRS, pair], alone).figures
    assert alone < together and figures["pair_accuracy"].n == 6 and figures["loss_np"].n == 5
    expected = measure(model, steering, PAIRS).figures["chain_gain"]
    assert figures["chain_gain"].value == pytest.approx(expected.value, rel=1e-5)


@pytest.mark.parametrize("family", ["marker", "prose"])
def test_what_fits_has_its_words_and_what_does_not_would_lose_some(family):
    steering = steering_of(family)
    prompts = len(steering.documents(long_pair(1, "Long?"), "good")[0].input_ids)
    for letters in range(40, 80):
        pair = long_pair(letters)
        fits = that_fit(steering, [pair], 90) == [pair]
        bare = max(len(d.input_ids) for w in ("good", "bad") for d in steering.documents(long_pair(letters, "?"), w))
        assert fits == (bare <= 90), letters
    assert prompts < 90
