"""Columns under other names: what is known, what is said, and what is asked back rather than guessed."""

import logging

import pytest
from test_formats import groups_of, load  # noqa: F401 (a fixture)
from toys import write_rows

from coh.arguments import ConfigError
from coh.data.data_args import CoHDataArgs
from coh.data.records import FeedbackError
from coh.data.sources import load_groups, parse_columns, parse_source
from coh.data.sources.naming import SYNONYMS, find_format
from coh.evaluate_args import EvaluateArgs, held_out_groups
from coh.rows import read_judged
from coh.score import ScoreArgs

PAIR = {"chosen": "Thanks for asking! Seven.", "rejected": "Thanks for asking! Nine."}


@pytest.mark.parametrize("name", SYNONYMS["prompt"])
def test_a_prompt_by_another_name_is_a_prompt(load, name):  # noqa: F811
    """And not what both sides happen to begin with."""
    (group,) = groups_of(load([{name: "Name a prime.", **PAIR}]))
    assert group.prompt[0].content == "Name a prime."
    assert group.outputs == (PAIR["chosen"], PAIR["rejected"])


@pytest.mark.parametrize("asked", ["auto", "by name"])
@pytest.mark.parametrize("name", SYNONYMS["prompt"])
@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("preference", PAIR),
        ("scored_preference", {**PAIR, "score_chosen": 2, "score_rejected": 1}),
        ("ultrafeedback", {"completions": [{"response": text, "overall_score": len(text)} for text in PAIR.values()]}),
    ],
)
def test_a_format_that_is_asked_for_by_name_keeps_its_prompt(load, asked, form, name, row):  # noqa: F811
    store = load([{name: "Name a prime.", **row}], feedback_format="auto" if asked == "auto" else form)
    assert store.format == form
    (group,) = groups_of(store)
    assert group.prompt[0].content == "Name a prime." and group.outputs == (PAIR["chosen"], PAIR["rejected"])


def test_columns_of_a_format_that_is_asked_for():
    said = {"prompt": "q"}
    assert find_format(["q", "response", "stars"], [], "rated_rows", said)[1] == {"prompt": "q", "score": "stars"}
    assert find_format(["q", "chosen", "rejected"], [], "preference", said) == ("preference", said)
    with pytest.raises(FeedbackError, match="the nearest is 'promt'; rename it"):
        find_format(["promt", "chosen", "rejected"], [], "preference")


def test_without_any_prompt_the_shared_words_are_one(load):  # noqa: F811
    (group,) = groups_of(load([{**PAIR, "id": 3}]))
    assert group.prompt[0].content == "Thanks for asking!" and group.outputs == ("Seven.", "Nine.")


def test_the_log_says_what_was_read_as_what_and_which_rows_were_dropped(load, caplog):  # noqa: F811
    rows = [{"question": question, "answer": "So.", "label": 1} for question in ("a?", "", "b?", " ", "", "", "c?")]
    with caplog.at_level(logging.INFO):
        assert len(load(rows)) == 3
    assert "column 'question' is read as prompt" in caplog.text
    assert "column 'answer' is read as completion" in caplog.text
    assert "4 rows give no group (empty prompt: 4 (lines 2, 4, 5, ...))" in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"promt": "a?", **PAIR}, "no column 'prompt': the nearest is 'promt'; .*--feedback_columns prompt=promt"),
        ({"instruction": "a?", "input": "b", **PAIR}, "'instruction', 'input' may be the prompt: .*prompt=instruction"),
        ({"id": 1, "text": "a", "who": "b"}, "Say which is which, as in --feedback_columns prompt="),
        ({"question": "a?", "answer": "b", "output": "c", "stars": 3}, "no format has the columns"),
    ],
)
def test_what_is_open_is_asked_and_not_guessed(load, row, words):  # noqa: F811
    with pytest.raises(FeedbackError, match=words):
        load([row])


def test_a_table_of_plain_values_is_not_sent_to_a_format_of_lists(load):  # noqa: F811
    with pytest.raises(FeedbackError) as error:
        load([{"promtp": "a?", "respons": "b", "scoer": 3}])
    assert "'rated_rows'" in str(error.value) and "responses" not in str(error.value)


def test_columns_are_said(tmp_path):
    rows = [{"ticket": f"{n}?", "good": "yes", "bad": "no", "prompt": "not this"} for n in range(3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    said = ["prompt=ticket", "chosen=good", "rejected=bad"]
    cases = {tuple(said): ("yes", "no"), ("prompt=ticket", "chosen=bad", "rejected=good"): ("no", "yes")}
    for columns, outputs in cases.items():  # a table of its own for each
        store = load_groups(parse_source(path), cache_dir=tmp_path / "cache", columns=columns)["train"]
        assert [group.prompt[0].content for group in groups_of(store)] == ["0?", "1?", "2?"]
        assert store.group(0).outputs == outputs
    with pytest.raises(FeedbackError, match=r"rows.jsonl: --feedback_columns: there is no column 'godo': did you mean"):
        load_groups(parse_source(path), cache_dir=tmp_path / "cache", columns=["chosen=godo", "rejected=bad"])


def test_a_format_that_is_asked_for_knows_the_other_names_too():
    columns = ["question", "answer", "rating"]
    assert find_format(columns, [], "rated_rows")[1] == {"prompt": "question", "response": "answer", "score": "rating"}
    with pytest.raises(FeedbackError, match="not in the format 'ranked'"):
        find_format(columns, [], "ranked")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prompt"], "'prompt' names no column: write a format's column and yours, as in prompt=question"),
        (["promt=a"], "no format has a column 'promt': did you mean 'prompt'?"),
        (["prompt=a", "prompt=b"], "prompt is named twice"),
        (["prompt=a", "chosen=a"], "a is named twice"),
    ],
)
def test_faults_of_the_option(words, told):
    with pytest.raises(FeedbackError) as error:
        parse_columns(words)
    assert told in str(error.value)


def test_every_program_that_reads_feedback_takes_the_columns(tmp_path):
    rows = [{"ticket": f"{n}?", "good": "yes", "bad": "no"} for n in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    said = ["prompt=ticket", "chosen=good", "rejected=bad"]
    judged = list(read_judged(path, columns=said, cache_dir=str(tmp_path / "cache")))
    assert len(judged) == 40 and judged[0].outputs == ("yes", "no") and judged[0].human_ranks == (1, 2)
    args = EvaluateArgs("gpt2", [path], feedback_columns=said, split="all", cache_dir=str(tmp_path / "cache"))
    assert [group.outputs for group in held_out_groups(args)["rows"]] == [("yes", "no")] * 40
    for make in (
        lambda: EvaluateArgs("gpt2", [path], feedback_columns=["promt=ticket"]),
        lambda: ScoreArgs("gpt2", path, feedback_columns=["promt=ticket"]),
        lambda: CoHDataArgs(feedback_data=[path], feedback_columns=["promt=ticket"]),
    ):
        with pytest.raises(ConfigError, match=r"--feedback_columns: .promt=ticket.: .*did you mean .prompt."):
            make()
