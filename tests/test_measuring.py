"""Figures of a source: by hand from plain logits, whatever the batches, and what each kind of feedback can give."""

import numpy as np
import pytest
import torch
from toys import byte_tokenizer

from coh.data.records import FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.measures import Estimate, reliability
from coh.measuring import SourceFigures, measure, preferred_pairs, prompt_key, table, that_fit, told
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
    measured = measure(model, steering, PAIRS)
    figures = measured.figures
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
    stated = reliability(moved[:, 0] - moved[:, 1])  # by sums: they are the log-odds, what is per token is none
    assert measured.reliability.counts == stated.counts != reliability((moved / tokens) @ (1, -1)).counts
    assert figures["calibration_error"].value == pytest.approx(stated.error, rel=1e-4)
    assert measured.scores == pytest.approx(moved / tokens, abs=1e-5)
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


@pytest.mark.parametrize("family", ["marker", "prose"])
def test_the_same_pairs_again_make_no_interval_narrower(model, family):
    """They have the same prompts, so that they are drawn with each other."""
    steering, groups = steering_of(family), [*PAIRS, *RANKINGS]
    once, twice = measure(model, steering, groups), measure(model, steering, groups * 2)
    assert once.prompts == tuple(map(prompt_key, groups)) and twice.prompts == once.prompts * 2
    assert once.as_json()["prompts"] == list(once.prompts) and len(set(once.prompts)) == len(groups)
    names = set(once.figures) - {"question_accuracy", "calibration_error"}  # another question each time; no interval
    assert len(names) > 10
    for name in names:
        (one, other) = (found.figures[name] for found in (once, twice))
        assert (other.low, other.high) == pytest.approx((one.low, one.high), rel=1e-3, abs=1e-4), name
        assert other.n == 2 * one.n and (one.low < one.high or one.value == 0), name


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


@pytest.mark.parametrize(
    ("low", "value", "high", "text"),
    [
        (0.0002, 0.004, 0.0078, "0.004 (0.0002, 0.008)"),
        (-0.0002, 0.004, 0.0078, "0.004 (-0.0002, 0.008)"),
        (1.9, 2.0, 2.1, "2.000 (1.900, 2.100)"),
        (0.0, 5.0, 20.0, "5.000 (0.000, 20.000)"),
        (50.1, 61.666, 73.2, "61.7 (50, 73)"),
        (-0.3, 12.0, 40.0, "12.0 (-0.3, 40)"),
        (43.85, 100.0, 100.0, "100.0 (44, 100)"),
        (float("nan"), 12.0, float("nan"), "12.0"),
    ],
)
def test_an_interval_shows_on_which_side_of_none_its_ends_are(low, value, high, text):
    assert told(Estimate(value, low, high, 9)) == text


def test_cells_of_a_table_do_not_touch():
    wide = {"steering_gap": Estimate(-9.123, -12.345, -1.234, 9)}
    line = table({"before": SourceFigures(wide, None), "after": SourceFigures(wide, None)}).splitlines()[1]
    assert line.split("  ")[-2:] == [told(wide["steering_gap"])] * 2


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


def test_verdicts_on_single_outputs_by_hand(model):
    """Losses by polarity, and how often the words move an output to the side that people's verdict is on."""
    steering = steering_of("marker")
    thumbs = [
        FeedbackGroup("s", as_messages(f"Is {n} even?"), (f"output {n}",), (1,), is_good=bool(n % 3)) for n in range(8)
    ]
    figures = measure(model, steering, thumbs).figures
    log_p = {
        words: np.array([plain(model, steering.documents(group, words)[0])[0].sum() for group in thumbs])
        for words in ("good", "bad")
    }
    tokens = np.array([sum(steering.documents(group, "good")[0].target_mask) for group in thumbs])
    is_good = np.array([group.is_good for group in thumbs])
    told_right = (log_p["good"] > log_p["bad"]) == is_good
    assert figures["verdict_accuracy"].value == pytest.approx(100 * told_right.mean())
    assert figures["verdict_accuracy"].low < figures["verdict_accuracy"].value <= figures["verdict_accuracy"].high
    for kind, words, own in (("p", "good", is_good), ("n", "bad", ~is_good)):
        expected = -log_p[words][own].sum() / tokens[own].sum()
        assert figures[f"loss_{kind}"].value == pytest.approx(expected, rel=1e-5)
    assert (figures["loss_p"].n, figures["loss_n"].n, figures["verdict_accuracy"].n) == (5, 3, 8)
    assert figures.keys() == {"loss_p", "loss_n", "accuracy_p", "accuracy_n", "verdict_accuracy"}


def test_chain_gain_is_of_chains_that_lose_nothing(model):
    """A chain that lost its prompt beside an output alone that kept it would tell of the prompt, not of the chain."""
    steering = steering_of("marker")
    pairs = [
        FeedbackGroup("s", as_messages("Well? " * number), ("a good answer", "a worse one"), (1, 2))
        for number in (1, 20)
    ]
    (chain,) = steering.chain_documents(pairs[1], "np")
    cut = measure(model, steering, pairs, max_length=len(chain.input_ids) - 1).figures["chain_gain"]
    assert cut.n == 1 and cut.value == pytest.approx(measure(model, steering, pairs[:1]).figures["chain_gain"].value)
    assert measure(model, steering, pairs).figures["chain_gain"].n == 2
