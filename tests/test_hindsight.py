"""Segments: joined they are the text, the targets are the outputs, and the prompt of a generation is their
beginning.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coh.data.hindsight import chain, opening, revising_template, steering_template
from coh.data.records import FeedbackError
from coh.data.templates import Template, load_family, read_family

FAMILIES = {name: load_family(name) for name in ("prose", "marker", "marker_varied")}
TEMPLATES = [
    template.ranking([False, True, False]) if template.is_ranking else template
    for family in FAMILIES.values()
    for template in family.templates
]
WORDS = st.text(min_size=1, max_size=40).map(str.strip).filter(bool)
OUTPUTS = st.lists(WORDS, min_size=4, max_size=4)


@given(st.sampled_from(TEMPLATES), WORDS, WORDS, OUTPUTS)
def test_joined_segments_are_the_filled_template(template, prompt, critique, outputs):
    outputs = outputs[: len(template.outputs)]
    values = {"prompt": prompt, "critique": critique, **dict(zip(template.outputs, outputs))}
    text = re.sub(r"\{(\w+)\}", lambda slot: values[slot[1]], template.text)
    if template.answer:
        text += f" {template.answer}"
    assert "".join(segment.text for segment in chain(template, prompt, outputs, critique)) == text


@given(st.sampled_from(TEMPLATES), WORDS, WORDS, OUTPUTS)
def test_targets_are_the_outputs_or_the_answer(template, prompt, critique, outputs):
    outputs = outputs[: len(template.outputs)]
    targets = [segment.text for segment in chain(template, prompt, outputs, critique) if segment.is_target]
    expected = [template.answer] if template.polarity == "question" else outputs
    assert [target.strip() for target in targets] == [text.strip() for text in expected]
    assert all(target[0].isspace() for target in targets)


@given(st.sampled_from(TEMPLATES), WORDS, WORDS, OUTPUTS, st.integers(0, 3))
def test_opening_is_the_beginning_of_the_chain(template, prompt, critique, outputs, num_given):
    outputs = outputs[: len(template.outputs)]
    num_given = min(num_given, len(outputs) - 1)
    segments = chain(template, prompt, outputs, critique)
    start = opening(template, prompt, outputs[:num_given], critique)
    assert segments[: len(start)] == start
    assert segments[len(start)].text == f" {outputs[num_given]}"


def test_code_keeps_its_indentation_in_place_of_the_space():
    template = Template("general.p.1", "{prompt} Good: {better}")
    assert chain(template, "Write f.", ["    return 1"])[-1].text == "    return 1"


def test_an_empty_prompt_takes_its_white_space_with_it():
    template = Template("general.p.1", "Ask: {prompt} Good: {better}")
    assert "".join(segment.text for segment in chain(template, "", ["yes"])) == "Ask: Good: yes"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("task", ["general", "answer", "summary", "conversation"])
def test_good_and_bad_words_differ(family, task):
    good, bad = (opening(steering_template(family, task, quality), "prompt") for quality in ("good", "bad"))
    assert good != bad and good[-1].text and bad[-1].text


def test_steering_needs_words():
    family = read_family("mine", {"tasks": {"general": {"p": ["{prompt} Good: {better}"]}}})
    assert steering_template(family, "summary", "good").name == "general.p.1"
    with pytest.raises(ValueError, match="templates mine have no n template for summary or general: add one"):
        steering_template(family, "summary", "bad")


def test_steering_by_name_and_by_any_words():
    family = FAMILIES["marker"]
    assert steering_template(family, "general", "conversation.n.1").name == "conversation.n.1"
    own = steering_template(family, "general", " In one word: ")
    assert "".join(segment.text for segment in opening(own, "Why?")) == "User: Why? In one word:"
    bare = read_family("mine", {"tasks": {"general": {"p": ["Good: {better}"]}}})
    assert "".join(segment.text for segment in opening(steering_template(bare, "general", "Best:"), "Why?")) == "Best:"
    for wrong in ("", "  ", "{better}"):
        with pytest.raises(FeedbackError, match="write good, bad, the name of a template, or words without braces"):
            steering_template(family, "general", wrong)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_revising_shows_earlier_outputs_as_worse_and_asks_for_the_best(family):
    for number in (1, 2, 5):
        template = revising_template(family, "general", number)
        earlier = [f"attempt {n}" for n in range(number)]
        text = "".join(segment.text for segment in opening(template, "Why?", earlier))
        assert all(text.count(words) == 1 for words in ["Why?", *earlier]) and not text.endswith(earlier[-1])
        assert [text.index(words) for words in earlier] == sorted(text.index(words) for words in earlier)


def test_revising_without_words_for_rankings_takes_the_pair():
    family = read_family("mine", {"tasks": {"general": {"np": ["{prompt} Bad: {worse} Good: {better}"]}}})
    assert revising_template(family, "general", 3).name == "general.np.1"
