"""Rankings, ratings, thumbs, critiques and records with their own words: every form becomes the group one would write.

The rows in docs/data.md are read here too, and so is real data, where the fixture finds it.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coh.data.records import FeedbackError, FeedbackGroup, Message, Segment, UnusableRow, as_messages
from coh.data.sources import (
    ATTRIBUTES,
    FORMATS,
    Scoring,
    detect_format,
    load_groups,
    parse_attributes,
    parse_source,
    parse_sources,
    prompt_hash,
    split_groups,
)
from coh.data.sources.field_records import read_field_record
from coh.data.sources.reading import columns_of
from coh.data.sources.tables import shown

ROOT = Path(__file__).parents[1]
PRIME = as_messages("Name a prime.")


@pytest.fixture
def load(tmp_path):
    """Writes rows (or raw text) to a file, and loads that with a cache of the test's own."""

    def load_rows(rows, suffix="", name="rows.jsonl", **options):
        path = tmp_path / name
        if not isinstance(rows, (str, bytes)):
            rows = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        return load_groups(parse_source(f"{path}{suffix}"), cache_dir=tmp_path / "cache", **options)["train"]

    return load_rows


def read(name: str, *rows: dict, **scoring) -> FeedbackGroup:
    return FORMATS[name].group(rows, Scoring(**scoring))


def reason(name: str, *rows: dict) -> str:
    with pytest.raises(UnusableRow) as error:
        read(name, *rows)
    return str(error.value)


def complaint(name: str, *rows: dict) -> str:
    with pytest.raises(FeedbackError) as error:
        read(name, *rows)
    return str(error.value)


def groups_of(store) -> list[FeedbackGroup]:
    return [store.group(index) for index in range(store.num_rows)]


def reply(content: str) -> list[dict]:
    return [{"role": "assistant", "content": content}]


def said(content: str) -> list[dict]:
    return [{"role": "user", "content": content}]


def rows_of(outputs=("Nine.", "Seven."), numbers=(0, 4), prompt="Name a prime.", critiques=None) -> dict[str, list]:
    """The same comparison in every format for any number of outputs, the higher number the better."""
    critiques = critiques or [""] * len(outputs)
    rated = {"prompt": prompt, "responses": list(outputs), "scores": list(numbers), "critiques": list(critiques)}
    completions = [
        {"response": output, "overall_score": number, "critique": critique}
        for output, number, critique in zip(outputs, numbers, critiques)
    ]
    rest = {"correctness": 1, "coherence": 1, "complexity": 1, "verbosity": 1}
    ranked = {key: value for key, value in rated.items() if key != "scores"}
    return {
        "ranked": [{**ranked, "ranks": [-number for number in numbers]}],
        "rated": [rated],
        "ultrafeedback": [{"prompt": prompt, "completions": completions}],
        "helpsteer": [
            {"prompt": prompt, "response": output, "helpfulness": number, **rest}
            for output, number in zip(outputs, numbers)
        ],
    }


COMPARING = sorted(rows_of())


# --- any number of outputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPARING)
def test_outputs_stand_best_first_with_ranks_without_gaps(name):
    rows = rows_of(["c", "a", "d", "b", "e"], [2, 4, 1, 2, 0])[name]
    assert detect_format(columns_of(rows), rows) == name
    group = read(name, *rows)
    assert group == FeedbackGroup(name, PRIME, ("a", "c", "b", "d", "e"), (1, 2, 2, 3, 4))


@pytest.mark.parametrize("name", COMPARING)
@given(numbers=st.lists(st.integers(-3, 3), min_size=2, max_size=6))
def test_a_rank_says_how_many_levels_are_better(name, numbers):
    outputs = [f"output {place}" for place in range(len(numbers))]
    group = read(name, *rows_of(outputs, numbers)[name])
    number_of = dict(zip(outputs, numbers))
    assert sorted(group.outputs) == outputs
    for output, rank in zip(group.outputs, group.ranks):
        assert rank == 1 + len({number for number in numbers if number > number_of[output]})


@pytest.mark.parametrize("name", COMPARING)
def test_texts_and_message_lists_are_the_same_group(name):
    plain = read(name, *rows_of()[name])
    for prompt, outputs in (
        (said("Name a prime."), [reply("Nine."), reply("Seven.")]),
        ("Name a prime.", [reply("Nine."), "Seven."]),
        (said(" Name a prime.\n"), ["Nine.\n", " Seven."]),
        ("Name a prime.", [said("Name a prime.") + reply("Nine."), said("Name a prime.") + reply("Seven.")]),
    ):
        assert read(name, *rows_of(outputs, prompt=prompt)[name]) == plain


@pytest.mark.parametrize("name", COMPARING)
def test_twins_of_one_rank_are_one_output_and_of_two_ranks_a_contradiction(name):
    group = read(name, *rows_of(["a", "b", "a ", "c"], [2, 3, 2, 0])[name])
    assert (group.outputs, group.ranks) == (("b", "a", "c"), (1, 2, 3))
    assert reason(name, *rows_of(["a", "b", "a"], [2, 3, 1])[name]) == "identical outputs"
    assert reason(name, *rows_of(["a", "a"], [2, 2])[name]) == "identical outputs"


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": None}, "null prompt"),
        ({"prompt": [*said("a"), *reply("b")]}, "prompt ends with the assistant's turn"),
        ({"prompt": [*said("a"), {"role": "system", "content": "b"}, *said("c")]}, "system message after the start"),
        ({"outputs": ["a", " "]}, "empty output"),
        ({"outputs": ["a"], "numbers": [1]}, "one output only"),
        ({"outputs": [said("Else?") + reply("a"), "b"]}, "prompt differs from the conversation"),
        (
            {"outputs": [[*said("Name a prime."), *reply(text), *said("Why?"), *reply(text)] for text in "ab"]},
            "histories differ",
        ),
        (
            {"outputs": ["a", [*said("Name a prime."), *reply("Two."), *said("More.")]]},
            "last turn is not the assistant's",
        ),
    ],
)
def test_what_gives_no_comparison_is_dropped_for_its_reason(name, changes, why):
    assert reason(name, *rows_of(**changes)[name]) == why


@pytest.mark.parametrize(
    ("name", "field"), [("ranked", "ranks[1]"), ("rated", "scores[1]"), ("helpsteer", "helpfulness")]
)
def test_numbers_that_have_no_place_in_an_order(name, field):
    def rows_with(number):
        rows = rows_of(numbers=[1, 2])[name]
        if name == "helpsteer":
            return [rows[0], {**rows[1], "helpfulness": number}]
        return [{**rows[0], field[:-3]: [1, number]}]

    assert reason(name, *rows_with(math.nan)) == f"{field} is not a number (NaN)"
    assert reason(name, *rows_with("nan")) == f"{field} is not a number (NaN)"
    assert reason(name, *rows_with(-math.inf)) == f"{field} is infinite"
    assert reason(name, *rows_with(None)) == f"null {field}"
    assert complaint(name, *rows_with("high")) == f"field '{field}' is text ('high'), but must be a number"
    assert complaint(name, *rows_with(True)) == f"field '{field}' is true or false (True), but must be a number"
    assert complaint(name, *rows_with(10**400)).endswith("but must be a number")
    assert len(read(name, *rows_with("0.25")).outputs) == 2


def test_one_number_for_each_output_and_lists_where_lists_have_to_be():
    row = rows_of()["rated"][0]
    assert complaint("rated", {**row, "scores": [1]}) == "field 'scores' has 1 entries for 2 outputs: give one for each"
    assert complaint("rated", {**row, "critiques": ["", "", ""]}).startswith("field 'critiques' has 3 entries for 2")
    assert (
        complaint("rated", {**row, "responses": "Nine."}) == "field 'responses' is text ('Nine.'), but must be a list"
    )
    assert complaint("rated", {**row, "responses": ["Nine.", 7]}) == (
        "field 'responses[1]' is a number (7), but must be text"
    )
    assert reason("rated", {**row, "scores": None}) == "null scores"
    assert reason("rated", {**row, "responses": ["Nine.", None]}) == "null responses[1]"
    assert reason("rated", {**row, "responses": [], "scores": [], "critiques": []}) == "no output"
    ranked = rows_of()["ranked"][0]
    assert complaint("ranked", {**ranked, "ranks": [1, 2, 3]}).startswith("field 'ranks' has 3 entries for 2 outputs")


def test_critiques_follow_their_outputs():
    rows = rows_of(["a", "b", "c"], [1, 3, 2], critiques=["worst", " best ", None])
    for name in ("ranked", "rated", "ultrafeedback"):
        group = read(name, *rows[name])
        assert (group.outputs, group.critiques) == (("b", "c", "a"), ("best", "", "worst"))
    assert read("rated", {**rows["rated"][0], "critiques": None}).critiques == ()
    alone = read("rated", *rows_of(["a"], [1], critiques=["fine"])["rated"])
    assert (alone.outputs, alone.critiques, alone.is_good) == (("a",), ("fine",), None)
    twins = read("rated", *rows_of(["a", "a", "b"], [2, 2, 1], critiques=["", "good", ""])["rated"])
    assert (twins.outputs, twins.critiques) == (("a", "b"), ("good", ""))


def test_ultrafeedback_takes_the_fine_grained_score_where_there_is_no_overall_one():
    completions = [
        {"response": "Nine.", "overall_score": None, "fine-grained_score": 1.5, "annotations": {}},
        {"response": "Seven.", "fine-grained_score": 4.75, "critique": None},
    ]
    row = {"source": "x", "instruction": "Name a prime.", "models": ["m"], "completions": completions}
    assert detect_format(list(row), [row]) == "ultrafeedback"
    assert read("ultrafeedback", row) == FeedbackGroup("ultrafeedback", PRIME, ("Seven.", "Nine."), (1, 2))
    assert complaint("ultrafeedback", {**row, "completions": ["Nine."]}) == (
        "field 'completions[0]' is text ('Nine.'), but must be an object with 'response'"
    )
    assert complaint("ultrafeedback", {**row, "completions": [{"respnse": "a"}]}) == (
        "field 'completions[0].response' is missing: the nearest there is is 'respnse'; rename it"
    )
    assert complaint("ultrafeedback", {**row, "completions": [{"response": "a", "score": 1}]}).startswith(
        "field 'completions[0].overall_score' is missing"
    )
    del row["instruction"]
    assert complaint("ultrafeedback", row).startswith("field 'instruction' is missing")


# --- scores -----------------------------------------------------------------------------------------------------------


def test_a_tie_does_not_drift_along_a_chain_of_neighbours():
    assert Scoring(0.5).levels([3.0, 2.6, 2.2, 1.8, 1.0]) == [1, 1, 2, 2, 3]
    assert Scoring().levels([3.0, 2.6, 3.0]) == [1, 2, 1]
    assert Scoring(0.1).levels([0.8, 0.7, 0.6]) == [1, 1, 2], "0.8 - 0.7 is more than 0.1 in binary"


@given(scores=st.lists(st.floats(-9, 9), min_size=1, max_size=9), margin=st.floats(0, 4))
def test_a_margin_only_joins_what_is_near(scores, margin):
    levels = Scoring(margin).levels(scores)
    for level in set(levels):
        tied = [score for score, other in zip(scores, levels) if other == level]
        assert max(tied) - min(tied) <= margin * (1 + 1e-8)
    for one, other in [(a, b) for a in range(len(scores)) for b in range(len(scores)) if levels[a] < levels[b]]:
        assert scores[one] > scores[other]
    assert sorted(set(levels)) == list(range(1, max(levels) + 1))


def test_the_margin_holds_for_every_format_with_scores(load):
    rows = rows_of(numbers=[3.5, 4])
    rows["webgpt"] = [{"question": {"full_text": "Q?"}, "answer_0": "a", "answer_1": "b", "score_0": 0.5, "score_1": 1}]
    rows["webgpt_quotes"] = [{**rows["webgpt"][0], "quotes_0": None, "quotes_1": None}]
    rows["rated_rows"] = [{"prompt": "Q?", "response": "ab"[n], "score": 0.5 + n / 2} for n in range(2)]
    rows["scored_preference"] = [
        {"prompt": "Q?", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1.5}
    ]
    assert {name for name, form in FORMATS.items() if form.has_scores} == set(rows) - {"ranked"}
    for name in rows:
        near, far = (load(rows[name], feedback_format=name, tie_margin=margin).group(0) for margin in (0.5, 0.4))
        assert (near.ranks, far.ranks) == (((1, 2) if name == "ranked" else (1, 1)), (1, 2)), name
    for margin in (-1, math.nan, math.inf):
        with pytest.raises(FeedbackError, match=r"the tie margin is .*: give a difference of scores, 0 or more"):
            load(rows["rated"], tie_margin=margin)


def test_scores_of_a_pair_may_turn_it_round():
    row = {"prompt": "Name a prime.", "prompt_id": "x", "messages": [], "score_chosen": 8.5, "score_rejected": 3}
    row |= {"chosen": said("Name a prime.") + reply("Seven."), "rejected": said("Name a prime.") + reply("Nine.")}
    assert detect_format(list(row), [row]) == "scored_preference"
    expected = FeedbackGroup("scored_preference", PRIME, ("Seven.", "Nine."), (1, 2))
    assert read("scored_preference", row) == expected
    assert read("scored_preference", {**row, "score_chosen": 1}).outputs == ("Nine.", "Seven.")
    assert read("scored_preference", {**row, "score_chosen": 3}).is_tie
    assert reason("scored_preference", {**row, "score_rejected": math.nan}) == "score_rejected is not a number (NaN)"
    assert complaint("scored_preference", {**row, "score_chosen": "high"}).startswith("field 'score_chosen' is text")


# --- rows that belong together ----------------------------------------------------------------------------------------


def test_rated_rows_of_a_prompt_may_stand_anywhere(load):
    rows = [("a?", "A", 5), ("b?", "B", "1"), ("a?", "C", 2), ("c?", "alone", 3), ("b?", "D", "4.5"), ("a?", "", 1)]
    rows += [("a?", "E", None)]
    store = load([dict(zip(("prompt", "response", "score"), row)) for row in rows])
    assert [(group.prompt[0].content, group.outputs, group.ranks) for group in groups_of(store)] == [
        ("a?", ("A", "C"), (1, 2)),
        ("b?", ("D", "B"), (1, 2)),
    ]
    assert store.dropped == {"one output only": 1, "empty output": 1, "null score": 1}
    assert store.dataset["row"][:] == [1, 2]


def steer(prompt, response, *ratings) -> dict:
    """A row of HelpSteer; attributes that are not given are 0."""
    attributes = dict.fromkeys(ATTRIBUTES, 0) | dict(zip(ATTRIBUTES, ratings))
    return {"prompt": prompt, "response": response, **attributes}


def test_consecutive_rows_of_a_prompt_are_one_group(load):
    rows = [
        *(steer("a", f"answer {n}", n) for n in (1, 3, 2)),
        steer("b", "alone", 4),
        steer("c", "same", 1),
        steer("c", "same", 2),
        steer("a", "later", 1),
        steer("a", "latest", 0),
    ]
    store = load(rows)
    assert store.format == "helpsteer"
    assert [group.outputs for group in groups_of(store)] == [("answer 3", "answer 2", "answer 1"), ("later", "latest")]
    assert list(store.dataset["row"]) == [1, 7], "the number of the first row"
    assert store.dropped == {"one output only": 1, "identical outputs": 2}, "rows are counted"
    assert [group.outputs[0] for group in groups_of(load(rows, "@1"))] == ["answer 3"], "a cap counts groups"


def test_an_error_names_all_rows_of_the_group(load):
    rows = [steer("a", "x", 1), steer("a", "y", 2), steer("b", "x", 1), steer("b", "y", "high")]
    with pytest.raises(FeedbackError, match=r"rows\.jsonl, lines 3 to 4: field 'helpfulness' is text \('high'\)"):
        load(rows)
    with pytest.raises(FeedbackError, match=r"'helpsteer': field 'verbosity' is missing: the nearest .* 'verbose'"):
        load(
            [{("verbose" if key == "verbosity" else key): value for key, value in steer("a", "x").items()}],
            feedback_format="helpsteer",
        )


def test_attributes_are_weighed(load):
    rows = [steer("a", "helpful", 4, 1, 0, 0, 4), steer("a", "correct", 1, 4)]
    assert load(rows).group(0).outputs[0] == "helpful"
    assert load(rows, attributes="correctness").group(0).outputs[0] == "correct"
    assert load(rows, attributes=["helpfulness=1", "verbosity=-0.9"]).group(0).outputs[0] == "correct"
    assert load(rows, attributes="helpfulness=0.1,correctness=0.1").group(0).is_tie
    rows = [steer("a", "sum", 1, 1), steer("a", "whole", 0, 0, 1)]
    assert 0.1 + 0.2 != 0.3
    assert load(rows, attributes="helpfulness=0.1,correctness=0.2,coherence=0.3").group(0).is_tie


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "helpfullness",
            "unknown attribute 'helpfullness': did you mean 'helpfulness'? Attributes are helpfulness, corr",
        ),
        ("helpfulness=much", "attribute 'helpfulness=much': 'much' is no number; write one, as in helpfulness=0.5"),
        ("helpfulness=", "attribute 'helpfulness=': '' is no number"),
        ("helpfulness=nan", "attribute 'helpfulness=nan': 'nan' is no number"),
        ("helpfulness,helpfulness", "attribute 'helpfulness' is named twice: name each once"),
        ("helpfulness=0", "every attribute has the weight 0"),
        ("", "unknown attribute ''"),
    ],
)
def test_attributes_that_are_none(words, says):
    with pytest.raises(FeedbackError) as error:
        parse_attributes(words)
    assert str(error.value).startswith(says)


def test_helpsteer_prompts_may_hold_several_turns():
    prompt = "Hi!\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nName a prime."
    group = read("helpsteer", steer(prompt, "Nine.", 0), steer(prompt, "Seven.", 4))
    assert group.prompt == (Message("user", "Hi!"), Message("assistant", "Hello."), *PRIME)
    assert (group.outputs, group.task) == (("Seven.", "Nine."), "conversation")


# --- single outputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down"),
    [(True, False), (1, 0), (1.0, 0.0), ("true", "false"), ("True", "False"), (" 1 ", "0"), ("1.0", "0.0")],
)
def test_a_thumb_in_every_spelling(up, down):
    row = {"prompt": said("Name a prime."), "completion": reply("Seven."), "label": up}
    assert detect_format(list(row), [row]) == "thumbs"
    assert read("thumbs", row) == FeedbackGroup("thumbs", PRIME, ("Seven.",), (1,), is_good=True)
    assert read("thumbs", {**row, "label": down}).is_good is False


@pytest.mark.parametrize("label", ["good", 2, -1, 0.5, [True]])
def test_labels_that_are_no_verdict(label):
    says = complaint("thumbs", {"prompt": "Name a prime.", "completion": "Seven.", "label": label})
    assert says.startswith("field 'label' is ") and says.endswith("but must be true or false (or 1 or 0)")


def test_thumbs_from_csv_and_what_is_dropped(load):
    text = "prompt,completion,label\nName a prime.,Seven.,True\nName a prime.,Nine.,0\nWhich?,,1\n,No,1\n"
    store = load(text, name="rows.csv")
    assert [(group.outputs, group.is_good) for group in groups_of(store)] == [(("Seven.",), True), (("Nine.",), False)]
    assert store.dropped == {"empty output": 1, "empty prompt": 1}
    for nothing in (None, "", " "):  # the last two are the nulls of a CSV file
        assert reason("thumbs", {"prompt": "a", "completion": "b", "label": nothing}) == "null label"
    history = [*said("Hi!"), *reply("Hello."), *said("Name a prime.")]
    assert read("thumbs", {"prompt": history, "completion": "Seven.", "label": 1}).task == "conversation"


def critique_row(**changes) -> dict:
    code = {"prompt": "def double(n):\n", "response": "    return n\n", "critique": " Double it. "}
    return {**code, "revision": "\n    return 2 * n", **changes}


def test_a_revision_stands_before_what_it_revises_and_code_keeps_its_indentation():
    row = critique_row()
    assert detect_format(list(row), [row]) == "critique"
    revised = "    return 2 * n"
    assert read("critique", row) == FeedbackGroup(
        "critique",
        as_messages("def double(n):"),
        (revised, "    return n"),
        (1, 2),
        ("", "Double it."),
        revision=revised,
    )


@pytest.mark.parametrize("revision", [None, "", " \n", []])
def test_a_critique_without_a_revision_is_kept(revision):
    expected = FeedbackGroup("critique", as_messages("def double(n):"), ("    return n",), (1,), ("Double it.",))
    assert read("critique", critique_row(revision=revision)) == expected
    row = critique_row()
    del row["revision"]
    assert read("critique", row) == expected
    assert detect_format(list(row), [row]) == "critique"


def test_critiques_that_say_nothing_or_change_nothing_are_dropped():
    assert reason("critique", critique_row(revision="    return n")) == "identical outputs"
    assert reason("critique", critique_row(critique=" ")) == "empty critique"
    assert reason("critique", critique_row(critique=None)) == "null critique"
    assert reason("critique", critique_row(response="")) == "empty output"
    assert complaint("critique", critique_row(critique=["a"])) == "field 'critique' is a list (['a']), but must be text"


# --- records with their own words -------------------------------------------------------------------------------------

RECORD = {
    "marker_user": "User:",
    "prompt": "Name a prime.",
    "marker_good": "A helpful answer:",
    "good": "Seven.",
    "marker_bad": "An unhelpful answer:",
    "bad": "Nine.",
}
NP = "[marker_user+prompt+marker_bad],bad,<|eos|>,[marker_good],good,<|eos|>"


def segments(fields: str, **changes) -> list[tuple[str, bool]]:
    return [(part.text, part.is_target) for part in read_field_record({**RECORD, **changes, "fields": fields})]


def test_brackets_are_words_and_the_rest_is_learned():
    assert segments(NP) == [
        ("User: Name a prime. An unhelpful answer:", False),
        ("Nine.", True),
        ("A helpful answer:", False),
        ("Seven.", True),
    ]
    assert segments(NP.replace(",<|eos|>", "")) == segments(NP), "the end of a target is implied"
    assert segments(f"<|bos|>,{NP},<|eos|>") == segments(NP), "and never doubled"
    assert segments(NP.replace(",", " , ").replace("+", " + ")) == segments(NP)


def test_neighbours_of_one_kind_are_one_segment_unless_an_end_parts_them():
    assert segments("[prompt],[marker_good],good,bad") == [
        ("Name a prime. A helpful answer:", False),
        ("Seven. Nine.", True),
    ]
    assert segments("[prompt],good+bad") == [("Name a prime.", False), ("Seven. Nine.", True)]
    assert segments("[prompt],good,<|eos|>,bad") == [("Name a prime.", False), ("Seven.", True), ("Nine.", True)]


def test_white_space_between_the_parts_is_the_record_s_own():
    assert segments("[prompt],[marker_good],good", prompt=" Name a prime.\n\n") == [
        ("Name a prime.\n\nA helpful answer:", False),
        ("Seven.", True),
    ]
    assert segments("[marker_good],good,[marker_bad],bad", marker_good="Good:\n", good="    return 7\n\n") == [
        ("Good:", False),
        ("\n    return 7", True),
        ("\n\nAn unhelpful answer:", False),
        ("Nine.", True),
    ]
    assert segments("[marker_user],[prompt],good", prompt=" ") == [("User:", False), (" Seven.", True)]
    assert segments("[prompt],[marker_good],good", prompt=" ") == [("A helpful answer:", False), ("Seven.", True)]


@given(
    st.lists(st.tuples(st.text(alphabet=" \nab", min_size=1).filter(str.strip), st.booleans()), min_size=1, max_size=6)
)
def test_no_letter_of_a_record_is_lost_and_none_changes_sides(texts):
    record = {f"k{place}": text for place, (text, _) in enumerate(texts)}
    fields = ",".join(f"k{place}" if is_target else f"[k{place}]" for place, (_, is_target) in enumerate(texts))
    found = read_field_record({**record, "fields": fields})
    for side in (True, False):
        letters = "".join("".join(text.split()) for text, is_target in texts if is_target is side)
        assert "".join("".join(part.text.split()) for part in found if part.is_target is side) == letters
    assert all(part.text == part.text.rstrip() for part in found)
    assert all(one.is_target != other.is_target for one, other in pairwise(found))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ("[prompt,marker_good],good", "field 'fields' has '[prompt,marker_good]', but must hold names with commas"),
        ("[prompt,good", "field 'fields' has '[prompt', but"),
        ("[prompt],,good", "field 'fields' has '', but"),
        ("[prompt]good", "field 'fields' has '[prompt]good', but"),
        ("", "field 'fields' has '', but"),
        ("[prmpt],good", "named in 'fields': field 'prmpt' is missing: the nearest there is is 'prompt'; rename it"),
        ("[prompt+],good", "named in 'fields': field '' is missing: there are 'marker_user', "),
        (5, "field 'fields' is a number (5), but must be text"),
    ],
)
def test_records_to_mend(fields, says):
    assert complaint("fields", {**RECORD, "fields": fields}).startswith(says)


def test_records_without_something_to_learn_are_dropped():
    assert reason("fields", {**RECORD, "fields": "[prompt]"}) == "no output"
    assert reason("fields", {**RECORD, "fields": "[prompt],good", "good": " "}) == "empty output"
    assert reason("fields", {**RECORD, "fields": "[prompt],good", "good": None}) == "null good"
    assert complaint("fields", {**RECORD, "fields": "[prompt],good", "good": 7}) == (
        "field 'good' is a number (7), but must be text"
    )


def test_a_record_is_stored_with_its_words_and_split_by_its_prompt(load):
    kinds = [NP, "[marker_user+prompt+marker_good],good,<|eos|>", "[marker_user+prompt+marker_bad],bad,<|eos|>"]
    rows = [{**RECORD, "prompt": f"Prompt {n}", "fields": fields} for n in range(100) for fields in kinds]
    store = load(rows)
    assert store.format == "fields"
    assert store.group(0) == FeedbackGroup(
        "rows",
        (),
        ("Nine.", "Seven."),
        (1, 1),
        verbatim=tuple(Segment(*part) for part in segments(NP, prompt="Prompt 0")),
    )
    assert store.prompt_hashes[0] == prompt_hash(as_messages("Prompt 0"))
    parts = split_groups([{"train": store}], test_size=0.4)
    where = {}
    for name, ((part,)) in (("train", parts.train), ("validation", parts.validation), ("test", parts.test)):
        assert len(part)
        for index in part.indices:
            where.setdefault(index // 3, set()).add(name)
    assert all(len(names) == 1 for names in where.values()), "all records of a prompt are in one split"


def test_a_conversation_told_twice_keeps_its_equal_turns():
    record = {"marker": "User:", "q1": "Hi!", "a1": "Hello.", "q2": "A prime?", "bad": "Nine.", "good": "Seven."}
    record["fields"] = "[marker+q1],a1,<|eos|>,[marker+q2],bad,<|eos|>,[marker+q1],a1,<|eos|>,[marker+q2],good,<|eos|>"
    group = read("fields", record)
    assert group.outputs == ("Hello.", "Nine.", "Seven.")
    assert [part.text for part in group.verbatim if part.is_target] == ["Hello.", "Nine.", "Hello.", "Seven."]


# --- stores -----------------------------------------------------------------------------------------------------------


def test_what_is_stored_comes_back(load):
    rows = [critique_row(), critique_row(response="    return 3 * n", revision=None)]
    assert groups_of(load(rows)) == [replace(read("critique", row), source="rows") for row in rows]
    labels = [True, False, True]
    rows = [{"prompt": "a", "completion": f"b{n}", "label": label} for n, label in enumerate(labels)]
    store = load(rows)
    assert [group.is_good for group in groups_of(store)] == labels == store.dataset["is_good"][:]


def test_a_folder_of_parquet_gives_every_column_that_matters(tmp_path):
    from datasets import Dataset

    unused = {"model": "m", "tokens": [1, 2]}
    cases = {
        "critique": [critique_row(**unused), critique_row(revision=None, **unused)],
        "fields": [{**RECORD, "fields": NP}],
        "helpsteer": [steer("a", f"answer {n}", n) for n in range(4)],
        "rated": [{**row, **unused} for row in rows_of()["rated"]],
    }
    for name, rows in cases.items():
        (tmp_path / name / "data").mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(tmp_path / name / "data" / "train-00000-of-00001.parquet")
        store = load_groups(parse_source(str(tmp_path / name)), cache_dir=tmp_path / "cache")["train"]
        together = [rows] if name == "helpsteer" else [[row] for row in rows]
        assert groups_of(store) == [replace(read(name, *these), source=name) for these in together]


def test_options_of_scores_make_another_table(load, tmp_path):
    rows = rows_of(numbers=[3, 4])["rated"]
    load(rows)
    spec = parse_source(str(tmp_path / "rows.jsonl"))
    for margin in (0, 1, 0):  # the file stays as it is, so the table is found again
        store = load_groups(spec, cache_dir=tmp_path / "cache", tie_margin=margin)["train"]
        assert store.group(0).is_tie == (margin == 1)


def test_the_same_file_under_two_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(json.dumps(rows_of()["rated"][0]) + "\n")
    stores = [
        load_groups(spec, cache_dir=tmp_path / "cache")["train"] for spec in parse_sources(["a.jsonl", "b=a.jsonl"])
    ]
    assert [store.group(0).source for store in stores] == ["a", "b"]
    assert stores[0].group(0).outputs == stores[1].group(0).outputs


def test_a_cap_on_groups_reads_no_further(load):
    good = rows_of()["ranked"][0]
    rows = [{**good, "prompt": " "}, *[good] * 22]  # more than are looked at to find the format
    text = "".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n"
    store = load(text, "@22")
    assert (store.num_rows, store.dropped) == (22, {"empty prompt": 1})
    with pytest.raises(FeedbackError, match=r"rows\.jsonl, line 24, column 1: no JSON"):
        load(text)


def test_large_texts_other_scripts_and_control_characters_stay(load, caplog):
    odd = "\x00 \x1b[31m שלום 你好 👩‍👩‍👧 </s> <|endoftext|>"
    large = "é" * 1_000_000
    rows = [{"prompt": f"Say {odd}!", "responses": [f"Yes {odd}.", large], "ranks": [1, 2]}]
    with caplog.at_level(logging.INFO, logger="coh"):
        group = load(rows).group(0)
    assert group.prompt[0].content == f"Say {odd}!"
    assert group.outputs == (f"Yes {odd}.", large)
    assert "\x1b" not in caplog.text and r"Say \x00 \x1b[31m שלום" in caplog.text, "the log does not steer a terminal"


def test_the_log_shows_verdicts_critiques_and_own_words(load, caplog):
    with caplog.at_level(logging.INFO, logger="coh"):
        load([{"prompt": "Name a prime.", "completion": "Nine.", "label": 0}])
        load([critique_row()])
        load([{**RECORD, "fields": NP}])
    texts = [record.getMessage() for record in caplog.records if "is read as" in record.getMessage()]
    assert texts[0] == "rows: row 1 is read as\n  user: Name a prime.\n  output, bad: Nine."
    assert texts[1].endswith("output, rank 1: return 2 * n\n  output, rank 2: return n\n    critique: Double it.")
    assert texts[2].endswith(
        "as\n  words: User: Name a prime. An unhelpful answer:\n  output: Nine.\n"
        "  words: A helpful answer:\n  output: Seven."
    )


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["prompt", "respones", "scores"], "the nearest is 'rated', .*: rename 'respones' to 'responses'"),
        (["prompt", "responses", "rank"], "the nearest is 'ranked', .*: rename 'rank' to 'ranks'"),
        (["prompt", "completion", "lable"], "the nearest is 'thumbs', .*: rename 'lable' to 'label'"),
        (["prompt", "completion"], "the nearest is 'thumbs', .*: add 'label'"),
        (["prompt", "response", "critic"], "the nearest is 'critique', .*: rename 'critic' to 'critique'"),
        (
            ["prompt", "response", "helpfulness", "correctness", "coherence"],
            "the nearest is 'helpsteer', .*: add 'comp",
        ),
    ],
)
def test_a_column_that_is_missing_is_named_with_the_nearest(columns, says):
    with pytest.raises(FeedbackError, match=says):
        detect_format(columns)


def test_ranks_before_scores_and_scores_before_none():
    row = {**rows_of()["rated"][0], "ranks": [2, 1]}
    assert detect_format(list(row), [row]) == "ranked"
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert detect_format([*pair, "score_chosen"], [pair]) == "preference"


# --- the page, and real data ------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"### (\w+)\n(?:(?!###).)*?```json\n(.*?)```\n```text\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize(("name", "row", "lines"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_a_row_of_the_page_is_read_as_the_page_says(name, row, lines):
    rows = json.loads(row)
    rows = rows if isinstance(rows, list) else [rows]
    assert detect_format(columns_of(rows), rows) == name
    assert list(shown(FORMATS[name].group(rows))) == lines.splitlines()


def test_the_page_has_every_format_and_every_reason():
    assert {name for name, *_ in EXAMPLES} == set(FORMATS) - {"webgpt_quotes"}
    assert set(re.findall(r"^\| \[?`(\w+)`", PAGE, re.M)) == set(FORMATS), "the table at the top"
    code = [*(ROOT / "coh" / "data" / "sources").glob("*.py"), ROOT / "coh" / "data" / "records.py"]
    reasons = {found for path in code for found in re.findall(r'UnusableRow\("([^"]+)"\)', path.read_text("utf-8"))}
    assert len(reasons) > 10
    dropped = PAGE.split("## What is dropped")[1]
    assert not {reason for reason in reasons if reason not in dropped}


@pytest.mark.parametrize(
    ("name", "form", "num_groups", "dropped"),
    [
        ("critique_revision", "critique", 194, {"identical outputs": 1}),
        ("hh_rlhf.train", "hh_rlhf", 1496, {"empty last reply": 4}),
        ("hh_rlhf.test", "hh_rlhf", 300, {}),
        ("preference_chat", "preference", 300, {}),
        ("ranked", "ranked", 500, {}),
        ("rated_critiqued", "rated", 80, {}),
        ("thumbs", "thumbs", 300, {}),
    ],
)
def test_real_files_are_read_with_no_option_but_their_path(real_data, tmp_path, name, form, num_groups, dropped):
    path = real_data / f"{name}.jsonl"
    store = load_groups(parse_source(str(path)), cache_dir=tmp_path)["train"]
    assert (store.format, store.num_rows, store.dropped) == (form, num_groups, dropped)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    groups = [(rows[number - 1], store.group(index)) for index, number in enumerate(store.dataset["row"])]
    if form == "critique":
        unchanged = [row for row in rows if row["response"].strip() == row["revision"].strip()]
        assert len(unchanged) == 1, "the row that is dropped"
        assert all(group.revision.strip() == row["revision"].strip() for row, group in groups)
        assert all(group.critiques == ("", row["critique"].strip()) for row, group in groups)
        assert sum(output.startswith("    ") for _, group in groups for output in group.outputs) > 300, "code"
    if form == "ranked":
        assert Counter(group.ranks for _, group in groups) == Counter(tuple(sorted(row["ranks"])) for row in rows)
    if form in ("ranked", "rated"):
        for row, group in groups:
            numbers = [-rank for rank in row["ranks"]] if form == "ranked" else row["scores"]
            number_of = {response.strip(): number for response, number in zip(row["responses"], numbers)}
            found = [number_of[output] for output in group.outputs]
            assert found == sorted(numbers, reverse=True)
            assert [a == b for a, b in pairwise(found)] == [a == b for a, b in pairwise(group.ranks)]
    if form == "rated":
        assert all(len(group.critiques) == 4 and all(group.critiques) for _, group in groups)
    if form == "thumbs":
        assert all(group.is_good is row["label"] for row, group in groups)
        assert all(group.outputs == (row["completion"][0]["content"].strip(),) for row, group in groups)
