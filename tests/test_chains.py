"""Chains: shares, draws and tokens of the documents of a pass."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import byte_tokenizer, pairs, write_rows

from coh.data.chains import Chains, Source
from coh.data.choices import some_of, two_of
from coh.data.encoding import Encoder
from coh.data.forms import make_form
from coh.data.hindsight import chain
from coh.data.records import FeedbackError
from coh.data.sources import load_groups, parse_source
from coh.data.templates import load_family, read_family

KINDS = ["p", "n", "pn", "np"]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(byte_tokenizer())


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    ties = [
        {
            "question": {"full_text": f"Which {number}?"},
            "answer_0": f"This {number}.",
            "answer_1": f"That {number}.",
            "score_0": 0.0 if number % 2 else 0.5,
            "score_1": 0.0 if number % 2 else -0.5,
        }
        for number in range(30)
    ]
    files = {"pairs": write_rows(folder / "pairs.jsonl", pairs(60)), "webgpt": write_rows(folder / "w.jsonl", ties)}
    return {
        name: load_groups(parse_source(f"{name}={path}"), cache_dir=folder / "cache")["train"]
        for name, path in files.items()
    }


def make(stores, encoder, family="marker", names=("pairs", "webgpt"), polarities=KINDS, capacity=256, **options):
    families = [family] * len(names) if not isinstance(family, list) else family
    forms = [make_form(load_family(one) if isinstance(one, str) else one, "plain", None) for one in families]
    sources = [Source(name, stores[name], np.arange(len(stores[name])), form) for name, form in zip(names, forms)]
    return Chains(sources, encoder, polarities=polarities, capacity=capacity, **options)


def described(chains, documents):
    """Every document as (source, group, template, outputs)."""
    return [
        (
            chains.sources[documents.source[n]].name,
            int(documents.group[n]),
            chains.table.templates[documents.template[n]].name,
            tuple(documents.outputs[n].tolist()),
        )
        for n in range(len(documents.lengths))
    ]


def test_tokens_are_those_of_the_segments(stores, encoder):
    """Pieces from the table, joined, equal the document built from segments; lengths are known before."""
    for name in ("marker", "prose"):
        kinds = [*KINDS, "question"] if name == "prose" else KINDS
        chains = make(stores, encoder, name, polarities=kinds, capacity=2048)
        documents = chains.window(0, 0)
        for number in range(len(documents.lengths)):
            ids, targets, source = documents.tokens(number)
            group = chains.sources[source].store.group(int(documents.group[number]))
            template = chains.table.templates[documents.template[number]]
            outputs = [group.outputs[output] for output in documents.outputs[number][: len(template.outputs)]]
            segments = chain(template, chains.sources[source].form.prompt(group), outputs)
            last = max(n for n, segment in enumerate(segments) if segment.is_target)
            ends = [segment.is_target and (name == "marker" or n == last) for n, segment in enumerate(segments)]
            expected = encoder.document(segments, group.source, ends)
            assert (ids.tolist(), targets.tolist()) == (list(expected.input_ids), list(expected.target_mask))
            assert len(ids) == documents.lengths[number]


def test_whole_encoding_gives_the_same_documents(stores, encoder):
    chains = make(stores, encoder)
    by_pieces = chains.window(0, 0)
    chains.is_exact = False
    whole = chains.window(0, 0)
    for number in range(len(by_pieces.lengths)):
        for one, other in zip(by_pieces.tokens(number), whole.tokens(number)):
            assert np.array_equal(one, other)


def test_better_and_worse_stand_where_the_words_say(stores, encoder):
    for family in ("marker", "prose"):
        chains = make(stores, encoder, family, polarities=[*KINDS, "question"] if family == "prose" else KINDS)
        for name, group, template, outputs in described(chains, chains.window(0, 0)):
            slots = next(found for found in chains.table.templates if found.name == template).outputs
            if ".tie." in template:
                assert name == "webgpt" and group % 2 and sorted(outputs) == [0, 1]
            else:
                assert outputs[: len(slots)] == tuple({"better": 0, "worse": 1}[slot] for slot in slots)
                assert name == "pairs" or group % 2 == 0


def test_ties_come_in_both_orders(stores, encoder):
    chains = make(stores, encoder, names=["webgpt"])
    orders = Counter(
        o for epoch in range(8) for _, _, t, o in described(chains, chains.window(epoch, 0)) if ".tie." in t
    )
    assert set(orders) == {(0, 1), (1, 0)} and min(orders.values()) > 30


def test_kinds_are_drawn_equally_often(stores, encoder):
    chains = make(stores, encoder, names=["pairs"])
    kinds = Counter(t.split(".")[1] for epoch in range(20) for _, _, t, _ in described(chains, chains.window(epoch, 0)))
    assert set(kinds) == set(KINDS) and max(kinds.values()) - min(kinds.values()) < 6 * np.sqrt(1200 * 3 / 16)


def test_an_epoch_by_size_takes_every_group_once_in_a_new_order_with_new_templates(stores, encoder):
    chains = make(stores, encoder)
    one, two = (described(chains, chains.window(epoch, 0)) for epoch in (0, 1))
    groups = [[(name, group) for name, group, *_ in found] for found in (one, two)]
    assert len(set(groups[0])) == 90 and sorted(groups[0]) == sorted(groups[1]) and groups[0] != groups[1]
    assert sum(dict(zip(groups[0], one))[key][2] == dict(zip(groups[1], two))[key][2] for key in groups[0]) < 60


def test_same_seed_same_pass_other_seed_other_pass(stores, encoder):
    found = [described(c, c.window(3, 0)) for c in (make(stores, encoder, seed=s) for s in (5, 5, 6))]
    assert found[0] == found[1] != found[2]


def test_templates_and_the_mixture_of_sources_are_drawn_anew(stores, encoder):
    """By place and not by group, so that neither the seed nor the pass can go missing from one of the draws."""
    passes = {
        (seed, epoch): described(chains, chains.window(epoch, 0))
        for seed in (0, 1)
        for chains in [make(stores, encoder, seed=seed, polarities=["p", "n"])]
        for epoch in (0, 1)
    }
    for field in (0, 2):  # the source, the template
        drawn = [[document[field].split(".")[-2:] for document in found] for found in passes.values()]
        assert all(one != other for n, one in enumerate(drawn) for other in drawn[n + 1 :])
    alone = make(stores, encoder, names=["pairs"], polarities=["p", "n"])
    one, two = ([template for _, _, template, _ in described(alone, alone.window(epoch, 0))] for epoch in (0, 1))
    other = make(stores, encoder, names=["pairs"], polarities=["p", "n"], seed=1)
    assert one != two and one != [template for _, _, template, _ in described(other, other.window(0, 0))]


def test_weights_are_realised_and_every_group_of_a_small_source_comes_round(stores, encoder):
    chains = make(stores, encoder, weights=[1, 3])
    counts = [Counter(name for name, *_ in described(chains, chains.window(epoch, 0))) for epoch in range(4)]
    assert all(count == {"pairs": 22, "webgpt": 68} or count == {"pairs": 23, "webgpt": 67} for count in counts)
    seen = Counter(g for e in range(4) for name, g, *_ in described(chains, chains.window(e, 0)) if name == "webgpt")
    assert set(seen) == set(range(30)) and max(seen.values()) - min(seen.values()) <= 1


def test_windows_hold_an_epoch_in_parts(stores, encoder):
    whole = make(stores, encoder)
    parts = make(stores, encoder)
    parts.window_size, parts.num_windows = 32, 3
    found = [item[:2] for window in range(3) for item in described(parts, parts.window(0, window))]
    assert found == [item[:2] for item in described(whole, whole.window(0, 0))]


def test_targets_of_the_last_output_only(stores, encoder):
    chains = make(stores, encoder, names=["pairs"], polarities=["pn"], train_on="last")
    documents = chains.window(0, 0)
    for number in range(len(documents.lengths)):
        ids, targets, source = documents.tokens(number)
        worse = chains.sources[source].store.group(int(documents.group[number])).outputs[1]
        assert encoder.tokenizer.decode(ids[targets]) == f" {worse}</s>"
        assert (ids == encoder.eos[0]).sum() == 2  # the first output still ends in its end-of-text token


def test_long_documents_are_shortened_counted_and_kept_in_a_row(stores, encoder):
    chains = make(stores, encoder, names=["pairs"], polarities=["pn"], capacity=80)
    documents = chains.window(0, 0)
    assert documents.lengths.max() <= 80
    assert documents.counts["prompt shortened"] > 0 and documents.counts["older output left out"] > 0
    assert documents.counts["output longer than a row"] == 60 - len(documents.lengths) > 0
    for number in range(len(documents.lengths)):
        ids, targets, source = documents.tokens(number)
        group = chains.sources[source].store.group(int(documents.group[number]))
        assert encoder.tokenizer.decode(ids[targets]).endswith(f"{group.outputs[1]}</s>")
        cut = documents.cell_lengths[number][chains.table.prompt_cell[documents.template[number]]]
        prompt = encoder.encode([f" {chains.sources[source].form.prompt(group)}"])[0]
        assert not cut or encoder.tokenizer.decode(prompt[len(prompt) - cut :]) in encoder.tokenizer.decode(ids)


def test_ties_without_words_are_dropped_and_counted(stores, encoder):
    chains = make(stores, encoder, names=["webgpt"], polarities=["p", "n"])
    assert chains.dropped == {"webgpt": {"tie, and no template for ties": 15}}
    assert len(chains.window(0, 0).lengths) == 15


def test_templates_without_the_kind_asked_for(stores, encoder):
    family = read_family("mine", {"tasks": {"general": {"p": ["{prompt} Good: {better}"]}}})
    with pytest.raises(
        FeedbackError, match="templates mine have none of n, pn for general: choose others with --chains"
    ):
        make(stores, encoder, family, polarities=["n", "pn"])


@given(st.integers(2, 9), st.floats(0, 1, exclude_max=True))
def test_pairs_of_a_ranking_are_in_order(num_outputs, pick):
    first, second = two_of(np.array([num_outputs]), np.array([pick]))
    assert 0 <= first[0] < second[0] < num_outputs


def test_pairs_of_a_ranking_are_equally_likely():
    first, second = two_of(np.full(60_000, 4), np.linspace(0, 1, 60_000, endpoint=False))
    counts = Counter(zip(first.tolist(), second.tolist()))
    assert len(counts) == 6 and set(counts.values()) == {10_000}


def test_outputs_of_a_ranking_are_all_equally_likely_to_be_taken_together():
    picks = np.random.default_rng(0).random((3, 60_000))
    counts = Counter(map(tuple, some_of(np.full(60_000, 5), picks).tolist()))
    assert len(counts) == 10 and all(sorted(set(chosen)) == list(chosen) for chosen in counts)
    assert max(abs(count - 6_000) for count in counts.values()) < 6 * np.sqrt(6_000)


def test_a_family_needs_words_for_the_tasks_of_its_own_source_only(stores, encoder):
    answers = read_family("mine", {"tasks": {"answer": {"p": ["{prompt} Good: {better}"]}}})
    documents = (chains := make(stores, encoder, ["marker", answers], polarities=["p"])).window(0, 0)
    names = {
        (chains.sources[s].name, chains.table.templates[t].text) for s, t in zip(documents.source, documents.template)
    }
    assert names == {("pairs", "User: {prompt} A helpful answer: {better}"), ("webgpt", "{prompt} Good: {better}")}


def test_weights_that_leave_nothing_are_refused(stores, encoder):
    only_ties = Source("webgpt", stores["webgpt"], np.arange(1, 30, 2), make_form(load_family("marker"), "plain", None))
    pairs_too = Source("pairs", stores["pairs"], np.arange(60), only_ties.form)
    with pytest.raises(FeedbackError, match="no usable feedback in the sources with a weight above 0: webgpt: tie"):
        Chains([only_ties, pairs_too], encoder, polarities=["p"], capacity=99, weights=[1, 0])
