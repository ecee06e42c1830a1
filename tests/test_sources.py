"""Feedback of every form becomes exactly the groups that one would write by hand; what cannot be read says so.

Rows are written here by hand in the original schemas. The tests at the end read real data, where the fixture finds it.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coh.data.records import FeedbackError, FeedbackGroup, Message, UnusableRow, as_messages
from coh.data.sources import (
    FORMATS,
    SAMPLES,
    SourceErrors,
    SourceSpec,
    detect_format,
    load_groups,
    parse_source,
    parse_sources,
    prompt_hash,
    split_groups,
)


@pytest.fixture(autouse=True)
def no_progress_bars():
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def write(tmp_path):
    """Writes rows (or raw text) to a file and gives its path."""

    def write_file(rows, name="rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif isinstance(rows, str):
            path.write_text(rows, encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def load(tmp_path):
    """Loads a source from its words, with a cache of the test's own."""

    def load_source(text, **options):
        return load_groups(parse_source(str(text)), cache_dir=tmp_path / "cache", **options)

    return load_source


def read(name: str, row: dict) -> FeedbackGroup:
    return FORMATS[name].read(row)


def reason(name: str, row: dict) -> str:
    """Why a row gives no group."""
    with pytest.raises(UnusableRow) as error:
        read(name, row)
    return str(error.value)


def complaint(name: str, row: dict) -> str:
    """What has to be mended in a row."""
    with pytest.raises(FeedbackError) as error:
        read(name, row)
    return str(error.value)


def groups_of(store) -> list[FeedbackGroup]:
    return [store.group(index) for index in range(store.num_rows)]


# --- webgpt -----------------------------------------------------------------------------------------------------------


def webgpt_row(answer_0="Rayleigh scattering [1].", answer_1="Mirrors.", score_0=0.5, score_1=-0.5, **fields) -> dict:
    row = {
        "question": {"dataset": "eli5", "id": "q1", "full_text": "Why is the sky blue?\n"},
        "quotes_0": {"title": ["Sky (a.org)"], "extract": ["Blue light scatters most."]},
        "answer_0": answer_0,
        "tokens_0": {"prefix": [1, 2], "completion": [3]},
        "score_0": score_0,
        "quotes_1": {"title": [], "extract": []},
        "answer_1": answer_1,
        "tokens_1": {"prefix": [], "completion": []},
        "score_1": score_1,
    }
    return {**row, **fields}


SKY = (Message("user", "Why is the sky blue?"),)


def test_webgpt_takes_the_better_score_first_and_no_quotes():
    expected = FeedbackGroup("webgpt", SKY, ("Rayleigh scattering.", "Mirrors."), (1, 2), task="answer")
    assert read("webgpt", webgpt_row()) == expected
    swapped = webgpt_row("Mirrors.", "Rayleigh scattering [1].", -0.5, 0.5)
    assert read("webgpt", swapped) == expected


def test_webgpt_equal_scores_are_a_tie_in_the_stored_order():
    group = read("webgpt", webgpt_row(score_0=0.0, score_1=-0.0))
    assert group.is_tie
    assert group.outputs == ("Rayleigh scattering.", "Mirrors.")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It scatters [1]. It is [2, 3] blue.", "It scatters. It is blue."),
        ("It scatters.[1][2] Then more.", "It scatters. Then more."),
        ("[1] It scatters.\n[2]  [3] It is blue. [12]", "It scatters.\nIt is blue."),
        ("Keep a[0], [sic] and [2020]; drop (see [1]).", "Keep a[0], [sic] and [2020]; drop (see)."),
        ("One [1] \nTwo", "One \nTwo"),
        ("No marks at all.", "No marks at all."),
    ],
)
def test_webgpt_citations_are_taken_out(answer, expected):
    assert read("webgpt", webgpt_row(answer_0=answer)).outputs[0] == expected


def test_webgpt_rows_without_a_comparison_are_dropped_with_a_reason():
    assert reason("webgpt", webgpt_row(answer_0="[1]")) == "empty output"
    assert reason("webgpt", webgpt_row("The same [1].", "The same [2].")) == "identical outputs"
    assert reason("webgpt", webgpt_row(score_0=math.nan)) == "score_0 is not a number (NaN)"
    assert reason("webgpt", webgpt_row(score_1=None)) == "null score_1"
    assert reason("webgpt", webgpt_row(answer_1=None)) == "null answer_1"
    assert reason("webgpt", webgpt_row(question=None)) == "null question"
    assert reason("webgpt", webgpt_row(question={"full_text": " "})) == "empty prompt"
    assert reason("webgpt", webgpt_row(answer_0="half \ud83d")) == "half a character in answer_0"


def test_webgpt_rows_to_mend_name_the_field_the_value_and_the_nearest():
    assert complaint("webgpt", webgpt_row(question={"fulltext": "Why?"})) == (
        "field 'question.full_text' is missing: the nearest there is is 'fulltext'; rename it"
    )
    assert complaint("webgpt", webgpt_row(question="Why?")) == (
        "field 'question' is text ('Why?'), but must be an object with 'full_text'"
    )
    assert complaint("webgpt", webgpt_row(score_0="good")) == "field 'score_0' is text ('good'), but must be a number"
    assert complaint("webgpt", webgpt_row(score_0=True)) == (
        "field 'score_0' is true or false (True), but must be a number"
    )
    assert complaint("webgpt", webgpt_row(answer_0=["a"])) == "field 'answer_0' is a list (['a']), but must be text"


def test_webgpt_quotes_stand_before_the_question_once_each_with_matching_numbers():
    row = webgpt_row(
        answer_0="It scatters [2]. It is blue [1, 2].",
        answer_1="Mirrors [1]. Or light [2][3]. Nobody knows [7].",
        quotes_0={"title": ["Sky (a.org)", "Light (b.org)"], "extract": ["Blue  light scatters.", "Short waves."]},
        quotes_1={
            "title": ["Myths (c.org)", "Sky (a.org)", "Light (b.org)"],
            "extract": ["Mirrors in the air.", "Blue light scatters. ", "Short waves."],
        },
    )
    prompt = (
        "[1] Sky (a.org)\nBlue light scatters.\n\n[2] Light (b.org)\nShort waves.\n\n"
        "[3] Myths (c.org)\nMirrors in the air.\n\nWhy is the sky blue?"
    )
    outputs = ("It scatters [2]. It is blue [1, 2].", "Mirrors [3]. Or light [1, 2]. Nobody knows.")
    assert read("webgpt_quotes", row) == FeedbackGroup(
        "webgpt_quotes", as_messages(prompt), outputs, (1, 2), task="answer"
    )


def test_webgpt_quotes_may_be_empty():
    empty = {"title": [], "extract": []}
    group = read("webgpt_quotes", webgpt_row(answer_0="It scatters [1].", quotes_0=empty, quotes_1=None))
    assert group.prompt == SKY
    assert group.outputs == ("It scatters.", "Mirrors.")
    assert reason("webgpt_quotes", webgpt_row(question={"full_text": ""})) == "empty prompt"
    assert "two lists of one length" in complaint("webgpt_quotes", webgpt_row(quotes_0={"title": ["a"], "extract": []}))


# --- hh_rlhf ----------------------------------------------------------------------------------------------------------


def hh_row(chosen, rejected) -> dict:
    return {"chosen": chosen, "rejected": rejected}


def test_hh_rlhf_shares_the_history_and_learns_the_last_turns_only():
    history = "\n\nHuman: Hi!\n\nAssistant: Hello. What now?\n\nHuman: A riddle.\n\nPlease."
    row = hh_row(f"{history}\n\nAssistant: What has keys?\n\nA piano. ", f"{history}\n\nAssistant: No.")
    assert read("hh_rlhf", row) == FeedbackGroup(
        "hh_rlhf",
        (
            Message("user", "Hi!"),
            Message("assistant", "Hello. What now?"),
            Message("user", "A riddle.\n\nPlease."),
        ),
        ("What has keys?\n\nA piano.", "No."),
        (1, 2),
        task="conversation",
    )


def test_hh_rlhf_labels_inside_a_message_do_not_split_it():
    human = "\n\nHuman: Write Human: or Assistant: in a line.\nAssistant: like this\n\nThe Human: word"
    row = hh_row(
        f"{human}\n\nAssistant: Human: is a label.\n\nSo is\nAssistant: this", f"{human}\n\nAssistant: No Human: here"
    )
    group = read("hh_rlhf", row)
    assert group.prompt == (
        Message("user", "Write Human: or Assistant: in a line.\nAssistant: like this\n\nThe Human: word"),
    )
    assert group.outputs == ("Human: is a label.\n\nSo is\nAssistant: this", "No Human: here")


def test_hh_rlhf_consecutive_turns_of_one_role_are_one_turn():
    history = "\n\nHuman: One?\n\nHuman: Two?\n\nAssistant: Three.\n\nAssistant: Four.\n\nHuman: Five?"
    group = read("hh_rlhf", hh_row(f"{history}\n\nAssistant: Six.\n\nAssistant: Seven.", f"{history}\n\nAssistant: 0"))
    assert group.prompt == (
        Message("user", "One?\n\nTwo?"),
        Message("assistant", "Three.\n\nFour."),
        Message("user", "Five?"),
    )
    assert group.outputs == ("Six.\n\nSeven.", "0")


def test_hh_rlhf_reads_other_line_ends_and_blank_lines():
    group = read("hh_rlhf", hh_row("Human: Hi!\r\n\r\nAssistant: A", "\n\n\nHuman: Hi!\n \n\nAssistant:B"))
    assert group.prompt == (Message("user", "Hi!"),)
    assert group.outputs == ("A", "B")


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        ("\n\nHuman: Hi!\n\nAssistant:", "\n\nHuman: Hi!\n\nAssistant: B", "empty last reply"),
        ("\n\nHuman: Hi!\n\nAssistant: A", "\n\nHuman: Hi!\n\nAssistant: \n\n", "empty last reply"),
        ("\n\nHuman: Hi!\n\nAssistant: A\n\nAssistant:", "\n\nHuman: Hi!\n\nAssistant: B", "empty last reply"),
        # An unanswered human turn became a target in the authors' code.
        (
            "\n\nHuman: Hi!\n\nAssistant: A\n\nHuman: Bye!",
            "\n\nHuman: Hi!\n\nAssistant: B",
            "last turn is not the assistant's",
        ),
        ("", "\n\nHuman: Hi!\n\nAssistant: B", "last turn is not the assistant's"),
        ("\n\nHuman: Hi!\n\nAssistant: A", "\n\nHuman: Ho!\n\nAssistant: B", "histories differ"),
        (
            "\n\nHuman: Hi!\n\nAssistant: A",
            "\n\nHuman: Hi!\n\nAssistant: A\n\nHuman: So?\n\nAssistant: B",
            "histories differ",
        ),
        ("\n\nHuman: Hi!\n\nAssistant: A", "\n\nHuman: Hi!\n\nAssistant: A ", "identical outputs"),
        ("\n\nAssistant: A", "\n\nAssistant: B", "empty prompt"),
        ("\n\nHuman:\n\nAssistant: A", "\n\nHuman:\n\nAssistant: B", "empty turn"),
        ("Well.\n\nHuman: Hi!\n\nAssistant: A", "\n\nHuman: Hi!\n\nAssistant: B", "text before the first turn"),
        (None, "\n\nHuman: Hi!\n\nAssistant: B", "null chosen"),
    ],
)
def test_hh_rlhf_odd_transcripts_are_dropped_with_a_reason(chosen, rejected, why):
    assert reason("hh_rlhf", hh_row(chosen, rejected)) == why


# --- summarize --------------------------------------------------------------------------------------------------------


def summarize_row(info=None, choice=1, summaries=None) -> dict:
    info = info or {
        "id": "t3",
        "post": "My dog ate my homework.\n",
        "title": "Help ",
        "subreddit": "pets",
        "site": None,
    }
    summaries = summaries or [
        {"text": " A cat.", "policy": "sup1", "note": None},
        {"text": " A dog ate it. ", "policy": "ref", "note": None},
    ]
    return {"info": info, "summaries": summaries, "choice": choice, "worker": "w", "batch": "b", "split": "train"}


def test_summarize_takes_the_chosen_summary_first():
    expected = FeedbackGroup(
        "summarize",
        as_messages("Help\n\nMy dog ate my homework."),
        ("A dog ate it.", "A cat."),
        (1, 2),
        task="summary",
    )
    assert read("summarize", summarize_row()) == expected
    assert read("summarize", summarize_row(choice=0)).outputs == ("A cat.", "A dog ate it.")
    assert read("summarize", summarize_row({"post": "My dog."})).prompt == as_messages("My dog.")
    assert read("summarize", summarize_row({"post": "My dog.", "title": None})).prompt == as_messages("My dog.")


def test_summarize_null_posts_are_dropped_and_never_become_the_word_none():
    assert reason("summarize", summarize_row({"post": None, "article": "News."})) == "null post"
    assert reason("summarize", summarize_row({"id": "c1", "article": "News."})) == "null post"
    assert reason("summarize", summarize_row({"post": None, "title": "Help"})) == "null post"
    assert reason("summarize", summarize_row({"post": " ", "title": "Help"})) == "empty post"
    assert reason("summarize", summarize_row(summaries=[{"text": "a"}, {"text": None}])) == "null summaries[1].text"
    assert reason("summarize", summarize_row(summaries=[{"text": "a"}, {"text": " "}])) == "empty output"


def test_summarize_rows_to_mend():
    assert complaint("summarize", summarize_row({"psot": "My dog."})) == (
        "field 'info.post' is missing: the nearest there is is 'psot'; rename it"
    )
    assert complaint("summarize", summarize_row(choice=2)) == (
        "field 'choice' is a number (2), but must be 0 or 1, the index of the better summary"
    )
    assert complaint("summarize", summarize_row(choice=True)).startswith("field 'choice' is true or false (True)")
    assert complaint("summarize", summarize_row(summaries=[{"text": "a"}])) == (
        "field 'summaries' is a list ([{'text': 'a'}]), but must be a list of two objects with 'text'"
    )


# --- preference -------------------------------------------------------------------------------------------------------


def turns(*contents: str, system: str = "") -> list[dict]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    start = [{"role": "system", "content": system}] if system else []
    return start + [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]


def reply(content: str) -> list[dict]:
    return [{"role": "assistant", "content": content}]


BLUE = FeedbackGroup("preference", as_messages("The sky is"), ("blue.", "green."), (1, 2), task="general")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": None, "chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": turns("The sky is"), "chosen": reply("blue."), "rejected": reply("green.")},
        {"chosen": turns("The sky is", "blue."), "rejected": turns("The sky is", "green.")},
        {"prompt": "The sky is", "chosen": reply("blue."), "rejected": reply("green.")},
        {"prompt": turns("The sky is"), "chosen": "blue.", "rejected": "green."},
        {"prompt": "The sky is", "chosen": turns("The sky is", "blue."), "rejected": turns("The sky is", "green.")},
    ],
    ids=["plain", "implicit", "null prompt", "messages", "implicit messages", "mixed", "mixed back", "prompt repeated"],
)
def test_preference_reads_every_form_of_trl_as_the_same_group(row):
    assert read("preference", row) == BLUE


def test_preference_cuts_an_implicit_prompt_at_white_space_only():
    group = read("preference", {"chosen": "The sky is blue.", "rejected": "The sky is blueish."})
    assert (group.prompt, group.outputs) == (as_messages("The sky is"), ("blue.", "blueish."))
    group = read("preference", {"chosen": "The sky", "rejected": "The sky is blue."})
    assert (group.prompt, group.outputs) == (as_messages("The"), ("sky", "sky is blue."))
    group = read("preference", {"chosen": "Q: 1\n\nA: yes", "rejected": "Q: 1\n\nB: no"})
    assert (group.prompt, group.outputs) == (as_messages("Q: 1"), ("A: yes", "B: no"))


def test_preference_keeps_a_system_message_at_the_start_and_calls_several_turns_a_conversation():
    row = {"prompt": turns("Hi!", system="Be kind."), "chosen": reply("Hello."), "rejected": reply("What?")}
    group = read("preference", row)
    assert group.prompt == (Message("system", "Be kind."), Message("user", "Hi!"))
    assert group.task == "conversation"  # two roles to be named
    history = ("Hi!", "Hello.", "And now?")
    row = {"chosen": turns(*history, "A riddle."), "rejected": turns(*history, "Nothing.")}
    group = read("preference", row)
    assert group.prompt == (Message("user", "Hi!"), Message("assistant", "Hello."), Message("user", "And now?"))
    assert (group.outputs, group.task) == (("A riddle.", "Nothing."), "conversation")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": "The sky is blue.", "rejected": "The sky is blue. "}, "identical outputs"),
        ({"chosen": "Blue.", "rejected": "Green."}, "empty prompt"),
        ({"prompt": " ", "chosen": "Blue.", "rejected": "Green."}, "empty prompt"),
        ({"prompt": [], "chosen": "Blue.", "rejected": "Green."}, "empty prompt"),
        ({"prompt": "Sky?", "chosen": " ", "rejected": "Green."}, "empty last reply"),
        ({"prompt": "Sky?", "chosen": None, "rejected": "Green."}, "null chosen"),
        ({"prompt": "Sky?", "chosen": [], "rejected": "Green."}, "last turn is not the assistant's"),
        (
            {"prompt": turns("Sky?", "Which?"), "chosen": "Blue.", "rejected": "Green."},
            "prompt ends with the assistant's turn",
        ),
        (
            {"prompt": "Sky?", "chosen": turns("Sea?", "Blue."), "rejected": turns("Sea?", "Green.")},
            "prompt differs from the conversation",
        ),
        ({"chosen": turns("Sky?", "Blue."), "rejected": turns("Sea?", "Green.")}, "histories differ"),
        ({"chosen": turns("Sky?"), "rejected": turns("Sky?", "Green.")}, "last turn is not the assistant's"),
        (
            {"prompt": [*turns("Sky?", "Yes?"), *turns("Sky!", system="Obey.")], "chosen": "Blue.", "rejected": "No."},
            "system message after the start",
        ),
        ({"chosen": turns("Sky?", "Blue."), "rejected": turns("Sky?", None)}, "null rejected[1].content"),
        (
            {"prompt": [{"role": "tool", "content": "42"}], "chosen": "Blue.", "rejected": "Green."},
            "tool message",
        ),
    ],
)
def test_preference_rows_that_give_no_group(row, why):
    assert reason("preference", row) == why


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"prompt": "Sky?", "chosen": "Blue.", "rejcted": "Green."},
            "field 'rejected' is missing: the nearest there is is 'rejcted'; rename it",
        ),
        ({"prompt": 5, "chosen": "Blue.", "rejected": "Green."}, "field 'prompt' is a number (5), but must be text"),
        (
            {"prompt": [{"role": "users", "content": "Sky?"}], "chosen": "Blue.", "rejected": "Green."},
            "field 'prompt[0].role' is 'users', but must be one of system, user, assistant; did you mean 'user'?",
        ),
        (
            {"prompt": [{"from": "human", "value": "Sky?"}], "chosen": "Blue.", "rejected": "Green."},
            "field 'prompt[0].role' is missing: there are 'from', 'value'",
        ),
        (
            {"prompt": ["Sky?"], "chosen": "Blue.", "rejected": "Green."},
            "field 'prompt[0]' is text ('Sky?'), but must be a message with 'role' and 'content'",
        ),
        (
            {"chosen": turns("Sky?", "Blue."), "rejected": "Green."},
            "field 'rejected' is text ('Green.'), but the other side is a list of messages",
        ),
    ],
)
def test_preference_rows_to_mend(row, says):
    assert complaint("preference", row) == says


# --- which format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (webgpt_row(), "webgpt"),
        (summarize_row(), "summarize"),
        (hh_row("\n\nHuman: Hi!\n\nAssistant: A", "\n\nHuman: Hi!\n\nAssistant: B"), "hh_rlhf"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "preference"),
        ({"prompt": "Human: Sky?", "chosen": "Human: blue.", "rejected": "Human: green."}, "preference"),
        ({"chosen": turns("Sky?", "Blue."), "rejected": turns("Sky?", "Green."), "score": 5}, "preference"),
    ],
)
def test_the_format_is_found_from_the_columns_and_the_first_rows(row, name):
    assert detect_format(list(row), [row]) == name


def test_most_of_the_first_rows_decide():
    transcripts = [hh_row("\n\nHuman: Hi!\n\nAssistant: A", "\n\nHuman: Hi!\n\nAssistant: B")] * 3
    assert detect_format(["chosen", "rejected"], [*transcripts, hh_row("Odd.", None)]) == "hh_rlhf"
    assert detect_format(["chosen", "rejected"], [transcripts[0], *[hh_row("A b.", "A c.")] * 3]) == "preference"


def test_columns_that_fit_no_format_are_named_with_the_nearest():
    with pytest.raises(FeedbackError) as error:
        detect_format(["promt", "chosen", "rejcted"])
    assert str(error.value) == (
        "no format has the columns 'promt', 'chosen', 'rejcted'; the nearest is 'preference', which needs chosen, "
        "rejected: rename 'rejcted' to 'rejected'; rename 'promt' to 'prompt'"
    )
    with pytest.raises(
        FeedbackError, match=r"the nearest is 'webgpt', .*: rename 'answer0' to 'answer_0'; add 'score_1'"
    ):
        detect_format(["question", "answer0", "answer_1", "score_0"])
    with pytest.raises(
        FeedbackError, match=r"no format has the columns 'text'\. Say which is which, .*summarize: info, summ"
    ):
        detect_format(["text"])


def test_every_format_is_named_in_one_place_only():
    assert set(FORMATS) == {
        *("webgpt", "webgpt_quotes", "summarize", "hh_rlhf", "preference", "scored_preference", "ranked", "rated"),
        *("ultrafeedback", "helpsteer", "rated_rows", "thumbs", "critique", "fields"),
    }
    assert all(form.columns and callable(form.read) for form in FORMATS.values())


# --- what the words name ----------------------------------------------------------------------------------------------


def test_built_in_names_lie_on_the_hub_and_have_their_formats():
    specs = parse_sources(["webgpt", "webgpt_quotes", "hh_rlhf@10", "summarize"])
    assert [(spec.name, spec.kind, str(spec), spec.format, spec.limit) for spec in specs] == [
        ("webgpt", "hub", "openai/webgpt_comparisons", "webgpt", None),
        ("webgpt_quotes", "hub", "openai/webgpt_comparisons", "webgpt_quotes", None),
        ("hh_rlhf", "hub", "Anthropic/hh-rlhf", "hh_rlhf", 10),
        ("summarize", "hub", "openai/summarize_from_feedback:comparisons", "summarize", None),
    ]


def test_files_folders_and_hub_ids(write, tmp_path, monkeypatch):
    path = write([], "my-data.v2.jsonl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "set").mkdir(parents=True)
    write([], "run=3.csv")
    write([], "a@b.json")

    def found(text):
        spec = parse_source(text)
        return spec.name, spec.kind, spec.location, spec.config, spec.format, spec.limit

    assert found(str(path)) == ("my_data_v2", "file", str(path), None, "auto", None)
    assert found("my-data.v2.jsonl@5000") == ("my_data_v2", "file", "my-data.v2.jsonl", None, "auto", 5000)
    assert found("mine=my-data.v2.jsonl@7") == ("mine", "file", "my-data.v2.jsonl", None, "auto", 7)
    assert found("hh_rlhf=my-data.v2.jsonl") == ("hh_rlhf", "file", "my-data.v2.jsonl", None, "hh_rlhf", None)
    assert found("webgpt_quotes=org/copy") == ("webgpt_quotes", "hub", "org/copy", None, "webgpt_quotes", None)
    assert found("org/set") == ("set", "folder", "org/set", None, "auto", None)
    assert found("org/set:clean") == ("set", "folder", "org/set", "clean", "auto", None)
    assert found("org/other-set:clean") == ("other_set", "hub", "org/other-set", "clean", "auto", None)
    assert found("run=3.csv") == ("run_3", "file", "run=3.csv", None, "auto", None)
    assert found("a@b.json") == ("a_b", "file", "a@b.json", None, "auto", None)
    assert found("a@b.json@2") == ("a_b", "file", "a@b.json", None, "auto", 2)


def test_sample_stands_for_four_sources_that_are_evaluated_each_by_itself():
    specs = parse_sources(["sample@12", "webgpt"])
    assert [spec.name for spec in specs] == [*(f"sample_{name}" for name in SAMPLES), "webgpt"]
    assert [spec.limit for spec in specs] == [12, 12, 12, 12, None]
    assert all(Path(spec.location).is_file() for spec in specs[:4])
    assert parse_source("sample_pairs").format == "preference"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("webgtp", "unknown source 'webgtp': did you mean 'webgpt'?"),
        ("webgpt,hh_rlhf", "unknown source 'webgpt,hh_rlhf': write several sources with spaces between them."),
        ("zzz", "unknown source 'zzz': A source is one of webgpt, webgpt_quotes, hh_rlhf, summarize, sample"),
        ("hh_rlhf@0", "source 'hh_rlhf@0': '0' after @ is no number of groups; write a whole number from 1"),
        ("hh_rlhf@5k", "source 'hh_rlhf@5k': '5k' after @ is no number of groups"),
        ("my.data=webgpt", "source 'my.data=webgpt': the name 'my.data' may hold letters, digits and _ only"),
        ("mine=", "source 'mine=': there is nothing before the @ or after the ="),
        ("mine=sample", "source 'mine=sample': sample stands for four sources, so name one of them: sample_webgpt, "),
        (
            "pretrain=webgpt",
            "source 'pretrain=webgpt': the name 'pretrain' is kept for pretraining text; write another",
        ),
        ("there/is/none", "source 'there/is/none': there is no file or folder 'there/is/none', and it is no hub id"),
        ("./none", "source './none': there is no file or folder './none'"),
        ("rows.txt", "source 'rows.txt': the name of a file of feedback ends in one of .jsonl, .json, .csv, .parquet"),
        ("row.jsonl", "source 'row.jsonl': there is no file 'row.jsonl'; did you mean 'rows.jsonl'?"),
        ("zzz.csv", "source 'zzz.csv': there is no file 'zzz.csv'; check the path"),
        (
            "no/rows.jsonl",
            "source 'no/rows.jsonl': there is no file 'no/rows.jsonl' (nor a folder 'no'); check the path",
        ),
    ],
)
def test_words_that_name_nothing_say_so_at_once(write, tmp_path, monkeypatch, text, says):
    write([])
    write("", "rows.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FeedbackError) as error:
        parse_source(text)
    assert str(error.value).startswith(says)


def test_all_problems_of_a_list_are_said_together():
    with pytest.raises(SourceErrors) as error:
        parse_sources(["webgtp", "hh_rlhf", "none.jsonl", "hh_rlhf@5", "summarize"])
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "unknown source 'webgtp'",
        "source 'none.jsonl'",
        "2 sources are named 'hh_rlhf'",
    ]
    assert str(error.value).split("\n") == error.value.problems


# --- files ------------------------------------------------------------------------------------------------------------

PAIRS = [
    {"prompt": f"Question {number}?", "chosen": f"Good answer {number}.", "rejected": f"Bad answer {number}."}
    for number in range(1, 41)
]


def load_error(load, text, **options) -> str:
    with pytest.raises(FeedbackError) as error:
        load(text, **options)
    return str(error.value)


def test_jsonl_is_read_line_by_line_with_the_numbers_of_the_lines(write, load):
    lines = [json.dumps(row) for row in PAIRS[:3]]
    path = write(f"\ufeff{lines[0]}\r\n\n{lines[1]}\n   \n{lines[2]}")
    store = load(path)["train"]
    assert [group.prompt[0].content for group in groups_of(store)] == ["Question 1?", "Question 2?", "Question 3?"]
    assert list(store.dataset["row"]) == [1, 3, 5]
    assert (store.name, store.format, store.dropped, len(store)) == ("rows", "preference", {}, 3)
    assert {group.source for group in groups_of(store)} == {"rows"}


def test_only_a_line_feed_ends_a_line_and_any_script_stays_as_it_is(write, load):
    odd = "\u2028 zwei\x85 \x0b\u202e שלום 你好 👩‍👩‍👧 \x00 \x1b[31m </s> <|endoftext|>"
    rows = [{"prompt": f"Say{odd}!", "chosen": f"Yes{odd}.", "rejected": "é" * 1_000_000}]
    path = write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    group = load(path)["train"].group(0)
    assert group.prompt[0].content == f"Say{odd}!"
    assert group.outputs == (f"Yes{odd}.", "é" * 1_000_000)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"chosen": "a b", "rejected": "a c"}\n{"chosen": "a b", "rejected": }\n',
            '{path}, line 2, column 31: no JSON (Expecting value): mend or delete the line. It reads: {"chosen": "a b"',
        ),
        (
            '{"chosen": "a b", "rej',
            "{path}, line 1, column 19: no JSON (Unterminated string starting at): mend or delete",
        ),
        (
            "[\n" + json.dumps(PAIRS[0]) + "]",
            "{path}, line 1, column 2: no JSON (Expecting value): a .jsonl file holds one",
        ),
        ('["a"]\n', "{path}, line 1: a row is a list (['a']), but must be an object with named fields"),
        (
            b'{"chosen": "caf\xe9 a", "rejected": "b"}\n',
            "{path}, line 1: not UTF-8 (byte 16 is 0xe9): save the file as",
        ),
        ("", "{path} is empty: it must hold at least one row"),
        (" \n\n", "{path} holds blank lines only: it must hold at least one row"),
        ("[" * 100_000, "{path}, line 1, column 1: no JSON (nested too deeply): mend or delete the line"),
        (
            json.dumps(PAIRS[0]) + '\n{"prompt": "Sky?", "chosen": 5, "rejected": "Green."}\n',
            "{path}, line 2: field 'chosen' is a number (5), but must be text",
        ),
        (
            json.dumps(PAIRS[0]) + '\n{"prompt": "Sky?", "choosen": "Blue.", "rejected": "Green."}\n',
            "{path}, line 2: field 'chosen' is missing: the nearest there is is 'choosen'; rename it",
        ),
        (
            '{"prompt": "Sky?", "choosen": "Blue.", "rejected": "Green."}\n',
            "{path}: no format has the columns 'prompt', 'choosen', 'rejected'; the nearest is 'preference', which",
        ),
        (
            '{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue."}\n' * 2
            + '{"prompt": "", "chosen": "Blue.", "rejected": "Green."}\n',
            "{path}: none of its rows gives a group (identical outputs: 2 (lines 1, 2), empty prompt: 1 (line 3))",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(write, load, content, says):
    path = write(content)
    assert load_error(load, path).startswith(says.replace("{path}", str(path)))


def test_a_wrong_line_leaves_nothing_behind_that_a_later_run_would_take(write, load):
    path = write([*PAIRS[:3], {"prompt": "Sky?", "chosen": 5, "rejected": "Green."}])
    first = load_error(load, path)
    assert load_error(load, path) == first
    write(PAIRS[:4])
    assert load(path)["train"].num_rows == 4


def test_the_format_can_be_named_and_is_checked(write, load):
    path = write([webgpt_row()])
    assert load(path)["train"].format == "webgpt"
    assert load(path, feedback_format="webgpt_quotes")["train"].group(0).prompt[0].content.startswith("[1] Sky (a.org)")
    assert load_error(load, path, feedback_format="webgpt_qoutes") == (
        f"unknown feedback format 'webgpt_qoutes': did you mean 'webgpt_quotes'? Formats are auto, {', '.join(FORMATS)}"
    )
    # A built-in name has its own format, whatever is said of the others.
    assert load(f"webgpt={path}", feedback_format="preference")["train"].format == "webgpt"
    assert load_error(load, f"hh_rlhf={path}").startswith(
        f"{path}: not in the format 'hh_rlhf': field 'chosen' is missing"
    )
    no_quotes = {name: value for name, value in webgpt_row().items() if name != "quotes_1"}
    assert load_error(load, f"webgpt_quotes={write([no_quotes])}").endswith(
        "not in the format 'webgpt_quotes': field 'quotes_1' is missing: the nearest there is is 'quotes_0'; rename it"
    )


def test_json_holds_one_list(write, load):
    assert groups_of(load(write(json.dumps(PAIRS, indent=1), "rows.json"))["train"])[39].outputs[0] == "Good answer 40."
    for num_lines in (40, 1):
        assert load(write(PAIRS[:num_lines], "lines.json"))["train"].num_rows == num_lines
    for content, says in [
        (
            '[{"chosen": "a"},\n {]',
            "{path}, line 2, column 3: no JSON (Expecting property name enclosed in double quotes)",
        ),
        ('{"data": []}', "{path} holds an object ({'data': []}), but must hold a list of objects, one for each row"),
        ("[]", "{path} holds an empty list"),
        ("[" * 100_000, "{path}: no JSON of rows (nested too deeply)"),
        ('[{"chosen": "a"}, 5]', "{path}, row 2: a row is a number (5), but must be an object with named fields"),
        (b"[\xff]", "{path}: not UTF-8 (byte 2 is 0xff)"),
    ]:
        path = write(content, "bad.json")
        assert load_error(load, path).startswith(says.replace("{path}", str(path)))


def test_csv_holds_text_whatever_it_looks_like(write, load):
    text = 'prompt,chosen,rejected\n"6 * 7?\nSay it, please.",42,43\nWhich?,NA,null\nEmpty?,,no\n'
    store = load(write(text, "rows.csv"))["train"]
    assert groups_of(store) == [
        FeedbackGroup("rows", as_messages("6 * 7?\nSay it, please."), ("42", "43"), (1, 2)),
        FeedbackGroup("rows", as_messages("Which?"), ("NA", "null"), (1, 2)),
    ]
    assert store.dropped == {"empty last reply": 1}
    numbers = write("prompt,chosen,rejected\n6 * 7?,42,043\n1 / 2?,0.50,1e3\n", "numbers.csv")
    assert [group.outputs for group in groups_of(load(numbers)["train"])] == [("42", "043"), ("0.50", "1e3")]
    for content, says in [
        ("prompt,chosen,rejected\n", "{path} has no rows: it must hold at least one"),
        (
            "prompt,chosen,rejected\na,b,c\na,b,c,d\n",
            "{path}, row 2: 4 fields for 3 columns ('prompt', 'chosen', 'rejected'): put texts that hold a comma",
        ),
        ('prompt,chosen,rejected\na,b,c\na,"b,c\n', "{path} cannot be read as csv after row 1: unexpected end of data"),
        ('prompt,chosen,rejected\na,"b"b,c\n', "{path} cannot be read as csv after row 0: ',' expected after"),
        ("prompt,chosen,rejected\na,b,c\nqué,b,c\n".encode("latin-1"), "{path}: not UTF-8 after row 0 (0xe9)"),
        ("prompt,chosen\na,b\n", "{path}: no format has the columns 'prompt', 'chosen'; the nearest is 'preference'"),
    ]:
        path = write(content, "bad.csv")
        assert load_error(load, path).startswith(says.replace("{path}", str(path)))


@pytest.mark.parametrize(
    "text",
    [
        "prompt,chosen,rejected\nHi,good,bad,\nHo,good,bad,,\n",
        "prompt,chosen,rejected,\nHi,good,bad,x\nHo,good,bad,\n",
        ",prompt,chosen,rejected,\n0,Hi,good,bad,\n1,Ho,good,bad,\n",
        "\ufeffprompt,chosen,rejected\r\n\r\nHi,good,bad\r\n  \r\nHo,good,bad",
    ],
)
def test_csv_columns_stay_where_they_are(write, load, tmp_path, text):
    """Whatever stands in front of them or behind them: the numbers that pandas writes, commas at the end."""
    folder = write(text, "folder/train.csv").parent
    for source in (write(text, "rows.csv"), folder):
        groups = groups_of(load(source)["train"])
        assert [(group.prompt[0].content, group.outputs) for group in groups] == [
            ("Hi", ("good", "bad")),
            ("Ho", ("good", "bad")),
        ]


def test_a_csv_cell_may_be_longer_than_python_reads_by_itself(write, load):
    text = f"prompt,chosen,rejected\nHi,{'x' * 200_000},bad\n"
    assert len(load(write(text, "rows.csv"))["train"].group(0).outputs[0]) == 200_000


def test_a_folder_of_csv_is_read_as_its_files_are(write, load):
    write("prompt,chosen,rejected\n2 + 2?,4,5\nWhich?,NA,null\n", "folder/train-1.csv")
    folder = write("prompt,chosen,rejected\nHi,042,1e3\n", "folder/train-2.csv").parent
    test = write("prompt,chosen,rejected\nHo,True,\nHo,a,b\n", "folder/test.csv")
    found = load(folder)
    assert {split: [group.outputs for group in groups_of(store)] for split, store in found.items()} == {
        "train": [("4", "5"), ("NA", "null"), ("042", "1e3")],
        "test": [("a", "b")],
    }
    assert list(found["train"].dataset["row"]) == [1, 2, 3]
    write("prompt,chosen,rejected\nHo,a,b\nHo,a,b,c\n", "folder/test.csv")
    assert load_error(load, folder).startswith(f"{test}, row 2: 4 fields for 3 columns")


@pytest.mark.parametrize("name", ["rows.csv", "folder/train.csv"])
def test_an_empty_cell_is_a_null(write, load, name):
    path = write("prompt,response,score\nHi,a,1\nHi,b,2\nHi,d,\nHi,e, \n", name)
    store = load(path if name == "rows.csv" else path.parent)["train"]
    assert [group.outputs for group in groups_of(store)] == [("b", "a")] and store.dropped == {"null score": 2}


MESSAGES = [{"role": "user", "content": "Name a prime."}, {"content": 'It\'s "7".', "role": "assistant"}]


@pytest.mark.parametrize("written", [json.dumps(MESSAGES), f" {MESSAGES}", str(np.array(MESSAGES)), str(MESSAGES[1:])])
@pytest.mark.parametrize("columns", [("chosen", "rejected"), ("prompt", "chosen", "rejected")])
def test_messages_written_as_text_are_not_learned_as_letters(load, tmp_path, written, columns):
    import pandas

    for field in columns:
        row = dict.fromkeys(columns, "So.") | {"rejected": "No."}
        path = tmp_path / "rows.csv"
        pandas.DataFrame([row, {**row, field: written}]).to_csv(path)
        with pytest.raises(FeedbackError, match=rf"rows\.csv, row 2: field '{field}' is a list of messages written as"):
            load(path, feedback_format="preference")


@pytest.mark.parametrize("text", ["[1, 2]", '[{"role": "user"}]', 'See [{"role": "user", "content": "Hi"}]', "[{}]"])
def test_other_lists_in_texts_are_texts(text):
    assert read("thumbs", {"prompt": text, "completion": text, "label": 1}).outputs == (text,)


def test_parquet(write, load, tmp_path):
    from datasets import Dataset

    rows = [webgpt_row(), webgpt_row(score_0=0.0, score_1=0.0)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    groups = groups_of(load(tmp_path / "rows.parquet")["train"])
    assert [group.is_tie for group in groups] == [False, True]
    assert groups[0].outputs == ("Rayleigh scattering.", "Mirrors.")
    Dataset.from_list(rows).select([]).to_parquet(tmp_path / "none.parquet")
    assert load_error(load, tmp_path / "none.parquet").endswith("none.parquet has no rows: it must hold at least one")
    path = write("no parquet", "bad.parquet")
    assert load_error(load, path).startswith(f"{path} cannot be read as parquet: ")


def test_a_cap_keeps_the_first_groups_and_reads_no_further(write, load):
    unusable = {"prompt": "", "chosen": "Blue.", "rejected": "Green."}
    path = write([PAIRS[0], unusable, PAIRS[1], PAIRS[2], {"prompt": "this row", "chosen": 5, "rejected": "is wrong"}])
    store = load(f"{path}@3")["train"]
    assert list(store.dataset["row"]) == [1, 3, 4]
    assert store.dropped == {"empty prompt": 1}
    assert load(f"{path}@1")["train"].num_rows == 1


def test_a_store_holds_what_was_promised(write, load):
    store = load(write([hh_row("\n\nHuman: Hi!\n\nAssistant: A", "\n\nHuman: Hi!\n\nAssistant: B")]))["train"]
    assert {name: str(feature) for name, feature in store.dataset.features.items()} == {
        "task": "Value('string')",
        "prompt": "List({'role': Value('string'), 'content': Value('string')})",
        "outputs": "List(Value('string'))",
        "ranks": "List(Value('int32'))",
        "critiques": "List(Value('string'))",
        "revision": "Value('string')",
        "is_good": "Value('bool')",
        "verbatim": "List({'text': Value('string'), 'is_target': Value('bool')})",
        "row": "Value('int64')",
        "prompt_hash": "Value('int64')",
    }
    assert store.dataset[0] == {
        "task": "conversation",
        "prompt": [{"role": "user", "content": "Hi!"}],
        "outputs": ["A", "B"],
        "ranks": [1, 2],
        "critiques": [],
        "revision": None,
        "is_good": None,
        "verbatim": [],
        "row": 1,
        "prompt_hash": prompt_hash([Message("user", "Hi!")]),
    }
    assert store.dataset.cache_files, "the groups are memory-mapped from disk"


# --- saying aloud -----------------------------------------------------------------------------------------------------


def test_the_format_found_and_an_example_are_said_aloud(write, load, caplog):
    long = {"prompt": "Why?", "chosen": "Good.\n" * 100, "rejected": "Bad."}
    path = write([{"prompt": "", "chosen": "Blue.", "rejected": "Green."}, long])
    expected = [
        f"rows: format preference, found from the columns prompt, chosen, rejected; 1 groups from {path}",
        "rows: 1 rows give no group (empty prompt: 1 (line 1))",
        f"rows: row 2 is read as\n  user: Why?\n  output, rank 1: {('Good. ' * 17)[:99]}…\n  output, rank 2: Bad.",
    ]
    for _ in range(2):  # read, and found again
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="coh"):
            load(path)
        assert [record.getMessage() for record in caplog.records] == expected
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="coh"):
        load(path, feedback_format="preference")
    assert caplog.records[0].getMessage().startswith("rows: format preference, as named; 1 groups")


# --- the cache --------------------------------------------------------------------------------------------------------


def test_groups_are_read_once_and_found_again_until_the_file_changes(write, load, monkeypatch):
    from coh.data.sources import reading

    reads = []
    read_file = reading.read_file
    monkeypatch.setattr(reading, "read_file", lambda path: reads.append(path) or read_file(path))
    path = write([*PAIRS[:5], {"prompt": "", "chosen": "a", "rejected": "b"}])
    first = load(path)["train"]
    num_reads = len(reads)
    assert num_reads > 0
    again = load(path)["train"]
    assert len(reads) == num_reads, "the second load reads no row"
    assert groups_of(again) == groups_of(first)
    assert again.dropped == first.dropped == {"empty prompt": 1}
    write([*PAIRS[:4], {"prompt": "", "chosen": "a", "rejected": "b"}])
    assert load(path)["train"].num_rows == 4
    assert len(reads) == 2 * num_reads
    load(path, feedback_format="preference")
    load(f"{path}@2")
    load(f"other={path}")
    assert len(reads) == 5 * num_reads, "another format, cap or name is another table"
    monkeypatch.setattr("coh.data.sources.stores.CODE_VERSION", -1)
    load(path)
    assert len(reads) == 6 * num_reads, "changed code reads again"


def test_several_workers_at_once_read_a_source_once(write, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from coh.data.sources import stores

    builds = []
    build = stores._build
    monkeypatch.setattr(stores, "_build", lambda *args: builds.append(args) or build(*args))
    spec = parse_source(str(write(PAIRS)))
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_groups(spec, cache_dir=tmp_path / "cache")["train"], range(4)))
    assert [store.num_rows for store in loaded] == [40] * 4
    assert len(builds) == 1


def test_what_an_interrupted_run_left_is_not_taken(write, load, tmp_path):
    path = write(PAIRS[:5])
    load(path)
    (folder,) = [entry for entry in (tmp_path / "cache" / "coh_groups").iterdir() if entry.is_dir()]
    whole = sorted(entry.name for entry in folder.iterdir())
    folder.rename(f"{folder}.partial")  # as if the process had ended before the last step
    partial = folder.with_name(f"{folder.name}.partial")
    (partial / "scratch").mkdir()
    (partial / "00000.arrow").rename(partial / "00001.arrow")
    assert load(path)["train"].num_rows == 5
    assert sorted(entry.name for entry in folder.iterdir()) == whole == ["00000.arrow", "about.json"]


# --- splits -----------------------------------------------------------------------------------------------------------


def parts_of(splits) -> list[list[int]]:
    return [[len(part) for part in parts] for parts in (splits.train, splits.validation, splits.test)]


def prompts_of(parts) -> set[str]:
    return {" ".join(part.store.group(index).prompt[-1].content.split()) for part in parts for index in part.indices}


def numbered(start: int, stop: int, answer="answer") -> list[dict]:
    return [
        {"prompt": f"Question {number}?", "chosen": f"Good {answer} {number}.", "rejected": f"Bad {number}."}
        for number in range(start, stop)
    ]


def test_the_hash_of_a_prompt_sees_words_and_roles_but_no_white_space():
    assert prompt_hash(as_messages("Why  is\n it?")) == prompt_hash(as_messages("Why is it?"))
    assert prompt_hash([Message("user", "a b")]) != prompt_hash([Message("assistant", "a b")])
    assert prompt_hash([Message("user", "a b")]) != prompt_hash([Message("user", "a"), Message("user", "b")])
    assert prompt_hash([Message("user", "ab")]) != prompt_hash([Message("user", "a b")])
    # Fixed for good: another value here would move prompts from test to train between versions.
    assert prompt_hash(as_messages("Why is the sky blue?")) == 5590315929344732709
    assert 0 <= prompt_hash(()) < 2**63


def test_one_split_is_divided_by_the_prompts_alone(write, load):
    store = load(write(numbered(0, 2000) + numbered(0, 200, answer="reply")))
    splits = split_groups([store], test_size=0.2)
    train, validation, test = (part for (part,) in (splits.train, splits.validation, splits.test))
    assert sorted(np.concatenate([train.indices, validation.indices, test.indices])) == list(range(2200))
    assert len(train) / 2200 == pytest.approx(0.8, abs=0.03)
    assert len(validation) / 2200 == pytest.approx(0.1, abs=0.02)
    assert len(test) / 2200 == pytest.approx(0.1, abs=0.02)
    prompts = [prompts_of([part]) for part in (train, validation, test)]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 2000, "no prompt stands in two splits"
    assert splits.dropped == ({},)
    assert all(
        part.indices.dtype == np.int64 and (np.diff(part.indices) > 0).all() for part in (train, validation, test)
    )


def test_a_prompt_stays_in_its_split_when_a_source_grows_or_is_shuffled(write, load):
    few = split_groups([load(write(numbered(0, 300)))], test_size=0.2)
    shuffled = numbered(0, 900)
    np.random.default_rng(0).shuffle(shuffled)
    many = split_groups([load(write(shuffled))], test_size=0.2)
    for name in ("train", "validation", "test"):
        assert prompts_of(getattr(few, name)) < prompts_of(getattr(many, name))
    more_held_out = split_groups([load(write(numbered(0, 300)))], test_size=0.4)
    assert prompts_of(few.test) < prompts_of(more_held_out.test)


def test_webgpt_is_split_by_its_question_with_and_without_quotes(write, load):
    def row(number, quote):
        return webgpt_row(
            answer_0=f"{number} {quote}",
            question={"full_text": f"Question {number}?"},
            quotes_0={"title": [quote], "extract": [quote]},
        )

    path = write([row(number, quote) for number in range(300) for quote in ("first", "second")])
    plain, quoted = load(f"webgpt={path}"), load(f"webgpt_quotes={path}")
    assert (plain["train"].prompt_hashes == quoted["train"].prompt_hashes).all()
    assert len(set(plain["train"].prompt_hashes.tolist())) == 300
    splits = split_groups([plain, quoted], test_size=0.2)
    assert splits.dropped == ({}, {})
    for parts in (splits.train, splits.validation, splits.test):
        assert (parts[0].indices == parts[1].indices).all()
        assert len(parts[0])


def test_test_size_may_be_nothing_but_not_all(write, load):
    store = load(write(PAIRS))
    assert parts_of(split_groups([store], test_size=0)) == [[40], [0], [0]]
    for test_size in (1, -0.1, math.nan):
        with pytest.raises(FeedbackError, match="the fraction held out is at least 0 and below 1"):
            split_groups([store], test_size=test_size)
    assert parts_of(split_groups([], test_size=0.1)) == [[], [], []]


def folder_of(tmp_path, name="org/set", **splits) -> Path:
    """A folder laid out as the hub lays out a data set in Parquet."""
    from datasets import Dataset

    folder = tmp_path / name
    for split, rows in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_data_set_with_two_splits_has_its_held_out_one_halved(tmp_path, load):
    folder = folder_of(tmp_path, train=numbered(0, 60) + numbered(1000, 1010), test=numbered(990, 1090))
    sources = load(folder)
    assert {name: store.num_rows for name, store in sources.items()} == {"train": 70, "test": 100}
    assert sources["test"].location == f"{folder} (test)"
    splits = split_groups([sources], test_size=0.1)
    (train,), (validation,), (test,) = splits.train, splits.validation, splits.test
    assert prompts_of([train]) == {f"Question {number}?" for number in range(60)}
    assert splits.dropped == ({"prompt is in evaluation": 10},)
    assert validation.store is test.store is sources["test"]
    assert sorted([*validation.indices, *test.indices]) == list(range(100))
    assert min(len(validation), len(test)) >= 30
    # The same rows as one file, held out by hash, come to the same halves.
    alone = split_groups([{"train": sources["test"]}], test_size=0.999999)
    assert list(alone.test[0].indices) == list(test.indices)


def test_a_data_set_with_three_splits_keeps_them_but_for_leaks(tmp_path, load):
    folder = folder_of(tmp_path, train=numbered(0, 30), validation=numbered(20, 50), test=numbered(45, 60))
    splits = split_groups([load(folder)], test_size=0.1)
    assert parts_of(splits) == [[20], [25], [15]]
    assert splits.dropped == ({"prompt is in test": 5, "prompt is in evaluation": 10},)


def test_a_prompt_is_in_one_split_over_all_sources(tmp_path, write, load):
    fixed = load(folder_of(tmp_path, train=numbered(0, 100), test=numbered(100, 200)))
    hashed = load(write(numbered(50, 250, answer="other")))
    splits = split_groups([hashed, fixed], test_size=0.3)
    train, validation, test = map(prompts_of, (splits.train, splits.validation, splits.test))
    assert not train & validation and not train & test and not validation & test
    assert all(number in splits.dropped[0].values() for number in [100 - _num_held_out(hashed["train"], 100, 200, 0.3)])
    assert splits.dropped[1] == {"prompt is in evaluation": _num_held_out(hashed["train"], 50, 100, 0.3)}
    assert {part.name for part in splits.train} == {"rows", "set"}, "every source is there, not the last one only"


def _num_held_out(store, start, stop, test_size) -> int:
    """How many of the questions are held out by their hash alone."""
    hashes = [prompt_hash(as_messages(f"Question {number}?")) for number in range(start, stop)]
    return sum((number >> 1) < test_size * 2**62 for number in hashes)


def test_sources_may_be_kept_whole_for_training_or_for_evaluation(tmp_path, write, load):
    mine = load(f"mine={write(numbered(0, 50))}")
    other = load(f"other={write(numbered(40, 90), 'other.jsonl')}")
    splits = split_groups([mine, other], test_size=0.1, uses=["train", "evaluation"])
    assert len(splits.train[0]) == 40 and len(splits.train[1]) == 0
    assert splits.dropped == ({"prompt is in evaluation": 10}, {})
    assert len(splits.validation[0]) == len(splits.test[0]) == 0
    assert len(splits.validation[1]) + len(splits.test[1]) == 50
    assert min(len(splits.validation[1]), len(splits.test[1])) >= 10

    fixed = load(folder_of(tmp_path, train=numbered(200, 230), test=numbered(230, 250)))
    splits = split_groups([fixed, fixed], test_size=0.1, uses=["train", "evaluation"])
    assert [len(part) for part in splits.train] == [30, 0]
    assert len(splits.validation[0]) + len(splits.test[0]) == 0
    assert len(splits.validation[1]) + len(splits.test[1]) == 20

    with pytest.raises(FeedbackError, match="a source is used as one of split, train, evaluation, not 'test'"):
        split_groups([mine], test_size=0.1, uses=["test"])
    held_out = load(folder_of(tmp_path, "org/eval", validation=numbered(0, 5), test=numbered(5, 9)))
    assert parts_of(split_groups([held_out], test_size=0.1)) == [[0], [5], [4]]
    with pytest.raises(FeedbackError, match="eval has no train split, but is to be trained on"):
        split_groups([held_out], test_size=0.1, uses=["train"])


def test_nothing_depends_on_a_random_state(write, load):
    path = write(numbered(0, 200))
    outcomes = []
    for seed in (0, 1):
        np.random.seed(seed)
        outcomes.append([part.indices.tolist() for part in split_groups([load(path)], test_size=0.3).test])
    assert outcomes[0] == outcomes[1]


# --- folders and the hub ----------------------------------------------------------------------------------------------


def test_a_folder_is_read_anew_when_a_file_in_it_changes(tmp_path, load):
    folder = folder_of(tmp_path, train=numbered(0, 5), test=numbered(5, 8))
    assert load(folder)["train"].num_rows == 5
    assert load(folder)["train"].group(4).prompt == as_messages("Question 4?")
    folder_of(tmp_path, train=numbered(10, 17))
    assert load(folder)["train"].num_rows == 7
    assert load(f"{folder}@2")["test"].num_rows == 2, "a cap holds for each split"


def test_splits_go_by_their_usual_names(tmp_path, load):
    assert set(load(folder_of(tmp_path, "org/a", train_prefs=numbered(0, 2), test_prefs=numbered(2, 4)))) == {
        "train",
        "test",
    }
    assert set(load(folder_of(tmp_path, "org/b", validation=numbered(0, 2)))) == {"validation"}
    folder = folder_of(tmp_path, "org/c", part_a=numbered(0, 2), part_b=numbered(2, 4))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: part_a, path: data/part_a-*}\n  - {split: part_b, path: data/part_b-*}\n---\n"
    )
    assert load_error(load, folder) == (
        f"{folder} has the splits part_a, part_b, and none of train, validation and test: "
        "save the split you want as a file and name that"
    )


def test_the_parquet_branch_of_a_scripted_data_set_has_its_configurations_as_folders(tmp_path):
    """The layout that the hub gives openai/summarize_from_feedback: configuration/split/0000.parquet."""
    from datasets import Dataset, load_dataset

    for config, split in (("comparisons", "train"), ("comparisons", "validation"), ("axis", "test")):
        (tmp_path / config / split).mkdir(parents=True)
        Dataset.from_list([summarize_row()]).to_parquet(tmp_path / config / split / "0000.parquet")
    found = load_dataset(str(tmp_path), data_dir="comparisons", cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "validation"}
    assert read("summarize", found["validation"][0]) == read("summarize", summarize_row())


def test_groups_read_from_the_hub_are_still_there_when_it_is_out_of_reach(tmp_path, caplog):
    folder = folder_of(tmp_path, train=numbered(0, 5), test=[{"prompt": "", "chosen": "a", "rejected": "b"}, *PAIRS])
    spec = SourceSpec("far", "hub", str(folder))
    first = load_groups(spec, cache_dir=tmp_path / "cache")
    here = parse_source(f"here={folder}")
    load_groups(here, cache_dir=tmp_path / "cache")
    folder.rename(tmp_path / "gone")
    with pytest.raises(FeedbackError, match="cannot load the folder"):  # a folder that is gone is a mistake
        load_groups(here, cache_dir=tmp_path / "cache")
    again = load_groups(spec, cache_dir=tmp_path / "cache")
    assert "cannot load the hub data set" in caplog.text and "read from it earlier are used" in caplog.text
    assert {split: groups_of(store) for split, store in again.items()} == {
        split: groups_of(store) for split, store in first.items()
    }
    assert again["test"].dropped == {"empty prompt": 1}
    for other in (replace(spec, limit=2), replace(spec, format="preference"), replace(spec, kind="folder")):
        with pytest.raises(FeedbackError, match="cannot load"):
            load_groups(other, cache_dir=tmp_path / "cache")
    with pytest.raises(FeedbackError, match="cannot load"):
        load_groups(spec, cache_dir=tmp_path / "cache", tie_margin=1)


def test_what_the_hub_does_not_give_is_said_with_a_remedy(tmp_path, load, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_error(load, "no-org/no-set").startswith(
        "cannot load the hub data set no-org/no-set: check the name and the network, or give a local copy, "
        "as in no_set=FILE.jsonl (ConnectionError: "
    )
    assert load_error(load, "webgpt").startswith(
        "cannot load the hub data set openai/webgpt_comparisons: check the name"
    )
    (tmp_path / "nothing").mkdir()
    assert load_error(load, tmp_path / "nothing").startswith(
        f"cannot load the folder {tmp_path / 'nothing'}: it must hold files with rows"
    )
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit('a data set ran its own code')")
    assert load_error(load, tmp_path / "scripted").startswith(
        f"cannot load the folder {tmp_path / 'scripted'}: it is a program and no data"
    )


# --- the bundled sample and real data ---------------------------------------------------------------------------------


def test_the_bundled_sample_is_read_whole(tmp_path):
    for spec in parse_sources(["sample"]):
        store = load_groups(spec, cache_dir=tmp_path)["train"]
        num_rows = sum(1 for line in Path(spec.location).read_text(encoding="utf-8").splitlines() if line.strip())
        assert store.num_rows == num_rows, store.dropped
        assert len(set(store.prompt_hashes.tolist())) == num_rows


def test_real_transcripts_are_read_with_exact_counts(load, real_data):
    train = load(f"hh_rlhf={real_data / 'hh_rlhf.train.jsonl'}")["train"]
    test = load(f"hh_rlhf={real_data / 'hh_rlhf.test.jsonl'}")["train"]
    assert (train.num_rows, train.dropped) == (1496, {"empty last reply": 4})
    assert (test.num_rows, test.dropped) == (300, {})
    assert not {87, 517, 926, 1104} & set(train.dataset["row"]), "the rows with an empty last reply"
    # Found without its name, too.
    assert load(real_data / "hh_rlhf.test.jsonl")["train"].format == "hh_rlhf"
    with (real_data / "hh_rlhf.train.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for index, group in enumerate(groups_of(train)):
        row = lines[train.dataset[index]["row"] - 1]
        roles = [turn.role for turn in group.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert group.ranks == (1, 2)
        for text, output in zip((row["chosen"], row["rejected"]), group.outputs, strict=True):
            assert text.rstrip().endswith(output.split("\n\n")[-1])
            assert "\n\nHuman:" not in output, "a human turn is no target"
            # Prompt and output are the transcript, and nothing of it is lost.
            said = [*(turn.content for turn in group.prompt), output]
            left = text.replace("Human:", "").replace("Assistant:", "")
            spoken = " ".join(said).replace("Human:", "").replace("Assistant:", "")
            assert spoken.split() == left.split()


def test_real_transcripts_split_without_leaks(load, real_data):
    train = load(f"hh_rlhf={real_data / 'hh_rlhf.train.jsonl'}")
    test = load(f"hh_rlhf={real_data / 'hh_rlhf.test.jsonl'}")
    splits = split_groups([train], test_size=0.1)
    sizes = parts_of(splits)
    assert sum(size for (size,) in sizes) == 1496
    assert 40 <= sizes[1][0] <= 110 and 40 <= sizes[2][0] <= 110
    splits = split_groups([train, test], test_size=0.1, uses=["train", "evaluation"])
    held_out = {*splits.validation[1].prompt_hashes.tolist(), *splits.test[1].prompt_hashes.tolist()}
    assert len(splits.validation[1]) + len(splits.test[1]) == 300
    assert not held_out & set(splits.train[0].prompt_hashes.tolist())


def test_real_chat_pairs_are_read_with_exact_counts(load, real_data):
    store = load(real_data / "preference_chat.jsonl")["train"]
    assert (store.format, store.num_rows, store.dropped) == ("preference", 300, {})
    groups = groups_of(store)
    assert Counter(group.prompt[0].role for group in groups) == {"user": 220, "system": 80}
    assert Counter(group.task for group in groups) == {"general": 114, "conversation": 186}
    assert len(set(store.prompt_hashes.tolist())) == 295
