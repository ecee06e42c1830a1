"""The laws of chains, for groups of every kind: text, targets, prompts, order and shortening."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CHATML, byte_tokenizer, chat_tokenizer, store_of

from coh.data.chains import Chains, Source
from coh.data.choices import KINDS
from coh.data.data_args import CHAINS
from coh.data.encoding import Encoder
from coh.data.forms import make_form
from coh.data.hindsight import opening
from coh.data.records import FeedbackGroup, Message, Segment, clean_output
from coh.data.sources import load_groups, parse_source
from coh.data.templates import load_family
from coh.likelihood import _cut
from coh.saved import Words
from coh.steering import Steering

FAMILIES = ("marker", "marker_varied", "prose")

# Any script, emoji, control characters, special tokens as letters, braces, code.
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), min_size=1, max_size=30),
    st.sampled_from(
        [
            "</s>",
            "say <|im_end|> twice",
            "{better}",
            "    if x:\n        return 1",
            "你好 🙂",
            "\x00\x1b[1m",
            "a\n\n- b\n- c",
            "\u2028",
        ]
    ),
)
OUTPUT = TEXT.map(clean_output).filter(bool)


@st.composite
def groups(draw):
    """One group: a pair, a tie, a ranking, thumbs, an output with its critique, a revision, or words of its own."""
    kind = draw(st.sampled_from(["ranking", "single", "critique", "revision", "verbatim"]))
    number = {"ranking": draw(st.integers(2, 5)), "revision": 2, "verbatim": draw(st.integers(1, 3))}.get(kind, 1)
    outputs = tuple(draw(st.lists(OUTPUT, min_size=number, max_size=number, unique=True)))
    task = draw(st.sampled_from(["general", "conversation", "summary"]))
    turns = draw(
        st.lists(TEXT.map(str.strip).filter(bool), min_size=1, max_size=3).filter(lambda found: len(found) != 2)
    )
    prompt = tuple(Message("user" if place % 2 == 0 else "assistant", turn) for place, turn in enumerate(turns))
    ranks = (1,) * number
    if kind == "ranking":
        ranks = (1, *np.cumsum(draw(st.lists(st.integers(0, 1), min_size=number - 1, max_size=number - 1))) + 1)
        critiques = draw(st.one_of(st.just(()), st.tuples(*[st.one_of(st.just(""), OUTPUT)] * number)))
        return FeedbackGroup(
            "any", prompt, outputs, tuple(map(int, ranks)), tuple(map(str.strip, critiques)), task=task
        )
    if kind == "critique":
        return FeedbackGroup("any", prompt, outputs, ranks, (draw(OUTPUT).strip(),), task=task)
    if kind == "revision":
        return FeedbackGroup("any", prompt, outputs, (1, 2), ("", draw(OUTPUT).strip()), outputs[0], task=task)
    if kind == "verbatim":
        words = [Segment(draw(OUTPUT).strip(), False) for _ in outputs]
        own = tuple(part for pair in zip(words, (Segment(text, True) for text in outputs)) for part in pair)
        return FeedbackGroup("any", (), outputs, ranks, verbatim=own)
    return FeedbackGroup("any", prompt, outputs, ranks, is_good=draw(st.booleans()), task=task)


def make_chains(found, tokenizer, family, prompt_format, capacity=20_000, max_outputs=5):
    form = make_form(load_family(family), prompt_format, tokenizer)
    encoder = Encoder(tokenizer, end_of_output=form.end_of_output, border=form.border)
    source = Source("any", store_of(found), np.arange(len(found)), form)
    return Chains([source], encoder, polarities=CHAINS, capacity=capacity, max_outputs=max_outputs)


def rendered(group, template, outputs, form):
    """The text of a chain by plain substitution, and its targets."""
    if group.verbatim:
        text = "".join(
            (" " if place and not part.text[0].isspace() else "") + part.text
            for place, part in enumerate(group.verbatim)
        )
        return text, list(group.outputs)
    written = [group.outputs[output] for output in outputs[: len(template.outputs)]]
    values = dict(zip(template.outputs, written)) | {"prompt": form.prompt(group)}
    if group.critiques:
        values["critique"] = group.critiques[outputs[0]]
    text = re.sub(
        r"(\s*)\{(\w+)\}",
        lambda m: values[m[2]] if values[m[2]][0].isspace() and m[1] == " " else m[1] + values[m[2]],
        template.text,
    )
    return (text + f" {template.answer}", [template.answer]) if template.answer else (text, written)


@settings(max_examples=60)
@given(st.lists(groups(), min_size=1, max_size=6), st.sampled_from(FAMILIES), st.sampled_from(["plain", "chat"]))
def test_text_targets_and_prompt_of_every_chain(found, family, prompt_format):
    tokenizer = chat_tokenizer()
    chains = make_chains(found, tokenizer, family, prompt_format)
    form, encoder = chains.sources[0].form, chains.encoder
    end = tokenizer.convert_ids_to_tokens(int(encoder.eos[0]))
    documents = chains.window(0, 0)
    assert sorted(documents.group.tolist()) == chains.sources[0].indices.tolist()
    for number in range(len(documents.lengths)):
        ids, targets, _ = documents.tokens(number)
        group, template = found[documents.group[number]], chains.table.templates[documents.template[number]]
        text, written = rendered(group, template, documents.outputs[number], form)
        each = form.family.eos == "each" or bool(group.verbatim)
        decoded = tokenizer.decode(ids).replace("\ufdd0", "")
        assert without(decoded, end) == without(text.replace("\ufdd0", ""), end)
        spans = np.split(ids[targets], np.flatnonzero(np.diff(np.flatnonzero(targets)) > 1) + 1)
        told = "".join(tokenizer.decode(span) for span in spans)
        assert without(told, end) == without(
            "".join(output if output[0].isspace() else f" {output}" for output in written), end
        )
        assert (ids[targets] == encoder.eos[0]).sum() == (len(written) if each else 1) and ids[-1] == encoder.eos[0]
        if not group.verbatim:
            critique = group.critiques[documents.outputs[number, 0]] if group.critiques else ""
            start = encoder.document(
                parts := opening(template, form.prompt(group), (), critique), "", [False] * len(parts)
            )
            assert ids[: len(start.input_ids)].tolist() == list(start.input_ids)
        assert documents.lengths[number] == len(ids) == len(documents.kinds(number))


def without(text, token):
    """Texts may hold the letters of the token; both sides lose them alike."""
    return text.replace(token, "")


@settings(max_examples=30)
@given(st.lists(groups(), min_size=1, max_size=6), st.sampled_from(FAMILIES), st.integers(16, 120))
def test_shortened_chains_fit_and_keep_their_last_output(found, family, capacity):
    tokenizer = byte_tokenizer()
    chains = make_chains(found, tokenizer, family, "plain", capacity)
    documents = chains.window(0, 0)
    assert len(documents.lengths) + documents.counts["output longer than a row"] == len(chains.sources[0].indices)
    assert (documents.lengths <= capacity).all()
    for number in range(len(documents.lengths)):
        ids, targets, _ = documents.tokens(number)
        group, template = found[documents.group[number]], chains.table.templates[documents.template[number]]
        _, written = rendered(group, template, documents.outputs[number], chains.sources[0].form)
        assert tokenizer.decode(ids[targets][:-1]).endswith(written[-1])


@settings(max_examples=25)
@given(st.lists(groups(), min_size=1, max_size=6), st.sampled_from(FAMILIES))
def test_every_group_gives_a_chain_or_is_counted(found, family):
    chains = make_chains(found, byte_tokenizer(), family, "plain")
    assert len(chains.sources[0].indices) + sum(chains.dropped["any"].values()) == len(found)
    assert chains.dropped["any"].total() == 0  # all kinds of group have words in the families


def test_rankings_are_worded_by_their_ranks():
    """Over many draws: ends and middles in order, ties as ties, and every pattern of ties occurs."""
    found = [
        FeedbackGroup("any", (Message("user", f"{n}?"),), ("a", "b", "c", "d"), ranks)
        for n, ranks in enumerate([(1, 2, 3, 4), (1, 1, 2, 3), (1, 2, 2, 2), (1, 1, 3, 3)] * 30)
    ]
    chains = make_chains(found, byte_tokenizer(), "marker", "plain", max_outputs=4)
    seen = set()
    for epoch in range(3):
        documents = chains.window(epoch, 0)
        for group, template, outputs in zip(documents.group, documents.template, documents.outputs):
            name = chains.table.templates[template].name
            ranks = [found[group].ranks[output] for output in outputs if output >= 0]
            if "best_first" in name or "worst_first" in name:
                assert len(ranks) == 4 and ranks == sorted(ranks, reverse="worst" in name)
                words = chains.table.templates[template].text
                tied = [one == two for one, two in pairwise(ranks)]
                seen.add((tuple(tied), "worst" in name))
                assert words.count(found_tie(chains, name)) == sum(tied)
            elif ".tie." in name:
                assert ranks[0] == ranks[1]
            elif ".p." in name or ".n." in name:
                assert len(ranks) == 1
    assert len(seen) == 8


def found_tie(chains, name):
    return next(one.tie for one in chains.sources[0].form.family.templates if one.name == name)


def test_without_max_outputs_rankings_are_pairs():
    found = [FeedbackGroup("any", (Message("user", f"{n}?"),), ("a", "b", "c"), (1, 2, 3)) for n in range(60)]
    chains = make_chains(found, byte_tokenizer(), "prose", "plain", max_outputs=2)
    assert chains.window(0, 0).outputs.shape[1] == 2
    assert {template.polarity for template in chains.table.templates}.isdisjoint({"best_first", "worst_first"})


def test_kinds_are_drawn_equally_often_from_those_that_a_group_gives():
    tokenizer = byte_tokenizer()
    ask = (Message("user", "Why?"),)
    rated = [FeedbackGroup("any", ask, ("a", "b"), (1, 2), ("good", "bad"))] * 200
    revised = [FeedbackGroup("any", ask, ("a", "b"), (1, 2), ("", "bad"), "a")] * 200
    thumbs = [FeedbackGroup("any", ask, ("a",), (1,), is_good=False)] * 50
    for found, kinds in (
        (rated, {"p", "n", "pn", "np", "question", "critique", "refine"}),
        (revised, {"p", "n", "pn", "np", "question", "critique", "revision"}),
        (thumbs, {"n"}),
    ):
        documents = (chains := make_chains(found, tokenizer, "prose", "plain")).window(0, 0)
        names = [chains.table.templates[number].polarity for number in documents.template]
        counts = {kind: names.count(kind) for kind in set(names)}
        assert set(counts) == kinds <= set(KINDS)
        assert max(counts.values()) - min(counts.values()) < 6 * np.sqrt(len(found) / len(kinds))


SOURCES = ("critique_revision", "hh_rlhf.test", "preference_chat", "ranked", "rated_critiqued", "thumbs")


@pytest.mark.parametrize("prompt_format", ["plain", "chat", "chat in letters"])
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "llama_like", "bytes512"])
def test_steered_prompts_are_the_beginning_of_rows_of_real_feedback(
    real_data, tokenizers, tmp_path_factory, name, prompt_format
):
    """For every format, family of templates, way of writing prompts and tokenizer."""
    cache = tmp_path_factory.getbasetemp() / "groups"
    tokenizer = chat_tokenizer(tokenizers(name)) if prompt_format == "chat" else tokenizers(name)
    if prompt_format == "chat in letters":  # the markers of turns are no tokens of their own
        tokenizer.chat_template = CHATML.replace("<|", "[").replace("|>", "]")
    stores = {
        source: load_groups(parse_source(f"{real_data / source}.jsonl@8"), cache_dir=cache)["train"]
        for source in SOURCES
    }
    for family in FAMILIES:
        steering = Steering.of(Words(load_family(family), prompt_format=prompt_format.split()[0]), tokenizer)
        sources = [Source(source, store, np.arange(len(store)), steering.form) for source, store in stores.items()]
        chains = Chains(sources, steering.encoder, polarities=CHAINS, capacity=10**6, max_outputs=4)
        assert chains.is_exact or prompt_format == "chat in letters"
        documents = chains.window(0, 0)
        assert len(documents.lengths) == 8 * len(SOURCES)
        for number in range(len(documents.lengths)):
            ids, targets, source = documents.tokens(number)
            group = chains.sources[source].store.group(int(documents.group[number]))
            template = chains.table.templates[documents.template[number]]
            if template.polarity in ("p", "n"):
                start = steering.prompt_ids(group.prompt, template.name, group.task)
                assert ids[: len(start)].tolist() == start and not targets[: len(start)].any()
            elif chains.is_exact:
                critique = group.critiques[documents.outputs[number, 0]] if group.critiques else ""
                parts = opening(template, steering.form.prompt(group), (), critique)
                start = list(steering.encoder.document(parts, "", [False] * len(parts)).input_ids)
                assert ids[: len(start)].tolist() == start and not targets[: len(start)].any()


@pytest.mark.parametrize("kind", ["p", "n", "pn", "np"])
@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_what_is_too_long_is_measured_as_it_was_trained(kind, prompt_format):
    group = FeedbackGroup("any", (Message("user", "a long question " * 60),), ("Yes, it is.", "No."), (1, 2))
    tokenizer = chat_tokenizer()
    words = Words(load_family("marker"), prepend_bos=True, prompt_format=prompt_format)
    steering = Steering.of(words, tokenizer)
    source = Source("any", store_of([group]), np.arange(1), steering.form)
    for capacity in (120, 150, 10_000):
        chains = Chains([source], steering.encoder, polarities=[kind], capacity=capacity)
        ids, targets, _ = chains.window(0, 0).tokens(0)
        if len(kind) == 1:
            scored = steering.documents(group, {"p": "good", "n": "bad"}[kind])[kind == "n"]
        else:
            (scored,) = steering.chain_documents(group, kind)
        cut_ids, cut_targets = _cut(scored, capacity)
        assert (cut_ids.tolist(), cut_targets.tolist()) == (ids.tolist(), targets.tolist())
    assert len(ids) > 150
