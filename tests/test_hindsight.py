"""Segments: joined they are the text, the targets are the outputs, and the prompt of a generation is their
beginning.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coh.data.hindsight import chain, opening, prompt_text, steering_template
from coh.data.records import Message
from coh.data.templates import Template, load_family, read_family

FAMILIES = {name: load_family(name) for name in ("prose", "marker", "marker_varied")}
TEMPLATES = [template for family in FAMILIES.values() for template in family.templates]
WORDS = st.text(min_size=1, max_size=40).map(str.strip).filter(bool)


@given(st.sampled_from(TEMPLATES), WORDS, WORDS, WORDS)
def test_joined_segments_are_the_filled_template(template, prompt, first, second):
    outputs = [first, second][: len(template.outputs)]
    segments = chain(template, prompt, outputs)
    values = {"prompt": prompt, **dict(zip(template.outputs, outputs))}
    text = re.sub(r"\{(\w+)\}", lambda slot: values[slot[1]], template.text)
    if template.answer:
        text += f" {template.answer}"
    assert "".join(segment.text for segment in segments) == text


@given(st.sampled_from(TEMPLATES), WORDS, WORDS, WORDS)
def test_targets_are_the_outputs_or_the_answer(template, prompt, first, second):
    outputs = [first, second][: len(template.outputs)]
    targets = [segment.text for segment in chain(template, prompt, outputs) if segment.is_target]
    expected = [template.answer] if template.polarity == "question" else outputs
    assert [target.strip() for target in targets] == [text.strip() for text in expected]
    assert all(target[0].isspace() for target in targets)


@given(st.sampled_from(TEMPLATES), WORDS, WORDS)
def test_opening_is_the_beginning_of_the_chain(template, prompt, output):
    segments = chain(template, prompt, [output] * len(template.outputs))
    start = opening(template, prompt)
    assert segments[: len(start)] == start
    assert segments[len(start)].text == f" {output}"


def test_an_empty_prompt_takes_its_white_space_with_it():
    template = Template("general.p.1", "Ask: {prompt} Good: {better}")
    assert "".join(segment.text for segment in chain(template, "", ["yes"])) == "Ask: Good: yes"


def test_conversations_name_their_roles():
    roles = {"system": "System:", "user": "Human:", "assistant": "AI:"}
    turns = [
        Message("system", "Be kind."),
        Message("user", " Hi \n"),
        Message("assistant", "Hello."),
        Message("user", "Bye."),
    ]
    assert prompt_text(turns, "general", roles) == "System: Be kind.\n\nHuman: Hi\n\nAI: Hello.\n\nHuman: Bye."
    assert prompt_text(turns[1:2], "general", roles) == "Hi"
    assert prompt_text(turns[1:2], "conversation", roles) == "Human: Hi"
    assert prompt_text([], "general", roles) == ""


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
