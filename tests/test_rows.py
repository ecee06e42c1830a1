"""Prompts and outputs out of files: any kind of file, every mistake with its place."""

import json

import pytest
from toys import pairs, write_rows

from coh.data.records import FeedbackError, Message
from coh.rows import as_prompt, read_judged, read_prompts

ASKED = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "2+2"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "txt"])
def test_one_prompt_in_every_kind_of_file(tmp_path, suffix):
    import pandas as pd

    path = tmp_path / f"prompts.{suffix}"
    prompts = ["Why?", "Say 7"]
    table = pd.DataFrame({"prompt": prompts, "id": ["a", "b"]})
    if suffix == "txt":
        path.write_text("Why?\n\n  Say 7 \n", encoding="utf-8")
    else:
        write = {
            "jsonl": lambda: table.to_json(path, orient="records", lines=True),
            "json": lambda: table.to_json(path, orient="records"),
            "csv": lambda: table.to_csv(path, index=False),
            "parquet": lambda: table.to_parquet(path),
        }
        write[suffix]()
    rows = read_prompts(path)
    assert [row.prompt for row in rows] == [(Message("user", text),) for text in prompts]
    expected = [{"prompt": text} if suffix == "txt" else {"prompt": text, "id": i} for text, i in zip(prompts, "ab")]
    assert [row.row for row in rows] == expected
    assert rows[1].place.endswith({"txt": "line 3", "jsonl": "line 2"}.get(suffix, "row 2"))


def test_prompts_as_people_write_them():
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "2+2"))
    assert as_prompt(ASKED) == as_prompt(tuple(ASKED)) == as_prompt(turns) == turns
    assert as_prompt(" Hi\n") == (Message("user", "Hi"),)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (" ", "the prompt is empty"),
        ([], "the prompt is empty"),
        (None, "gives nothing to answer: null prompt"),
        (7, "field 'prompt' is a number"),
        ([{"role": "usr", "content": "Hi"}], "did you mean 'user'"),
        ([{"role": "user"}], r"field 'prompt\[0\].content' is missing"),
        (ASKED[:2], "ends with the assistant's turn"),
    ],
)
def test_prompts_that_are_none(tmp_path, prompt, problem):
    with pytest.raises(FeedbackError, match=problem):
        as_prompt(prompt)
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Hi"}, {"prompt": prompt}])
    with pytest.raises(FeedbackError, match=rf"rows\.jsonl, line 2: .*{problem}"):
        read_prompts(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FeedbackError, match=r"there is no file 'nowhere\.jsonl': check the path"):
        read_prompts("nowhere.jsonl")
    for name, text, problem in [
        ("a.md", "Hi", "ends in one of .txt, .jsonl"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.jsonl", "", "is empty"),
        ("b.jsonl", '{"promt": "Hi"}\n', "line 1: field 'prompt' is missing: the nearest there is is 'promt'"),
        ("c.jsonl", "{\n", "line 1, column 2: no JSON"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(FeedbackError, match=problem):
            read_prompts(tmp_path / name)
    (tmp_path / "d.txt").write_bytes(b"ab\xff")
    with pytest.raises(FeedbackError, match="not UTF-8"):
        read_prompts(tmp_path / "d.txt")


def judged(tmp_path, rows, **options):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    return list(read_judged(path, cache_dir=str(tmp_path / "cache"), **options))


def test_feedback_comes_best_first_with_the_ranks_of_people(tmp_path):
    ranked = [{"prompt": ASKED, "responses": ["5", "4", "four"], "ranks": [3, 1, 1]}]
    (row,) = judged(tmp_path, ranked)
    assert (row.outputs, row.human_ranks, row.task) == (("4", "four", "5"), (1, 1, 2), "conversation")
    assert row.row["outputs"] == ["4", "four", "5"] and row.row["row"] == 1 and row.row["prompt"] == ASKED
    assert [one.outputs for one in judged(tmp_path, pairs(2))] == [(p["chosen"], p["rejected"]) for p in pairs(2)]


def test_thumbs_keep_their_verdict(tmp_path):
    (row,) = judged(tmp_path, [{"prompt": "2+2", "completion": "4", "label": True}])
    assert row.row["is_good"] is True and row.human_ranks == ()


@pytest.mark.parametrize("column", ["outputs", "responses", "versions"])
def test_lists_that_nobody_ranked_keep_their_order(tmp_path, column):
    (row,) = judged(tmp_path, [{"prompt": "2+2", column: ["5", " 4\n", "5", ""], "id": 9}])
    assert row.outputs == ("5", "4", "5", "") and row.human_ranks == () and row.task is None
    assert row.row == {"prompt": "2+2", column: ["5", " 4\n", "5", ""], "id": 9}


@pytest.mark.parametrize("column", ["output", "response", "completion"])
def test_one_output(tmp_path, column):
    assert judged(tmp_path, [{"prompt": "2+2", column: " 4"}])[0].outputs == ("4",)


def test_what_a_model_wrote_beside_feedback_is_asked_for_by_name(tmp_path):
    rows = [{**row, "output": "So."} for row in pairs(2)]
    assert judged(tmp_path, rows)[0].outputs == (rows[0]["chosen"], rows[0]["rejected"])
    assert judged(tmp_path, rows, feedback_format="outputs")[0].outputs == ("So.",)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "2+2", "outputs": "4"}, None),
        ({"prompt": "2+2", "outputs": []}, "field 'outputs' is a list"),
        ({"prompt": "2+2", "outputs": [4]}, r"field 'outputs\[0\]' is a number"),
        ({"prompt": "2+2", "outputs": [None]}, r"null outputs\[0\]"),
        ({"prompt": "", "outputs": ["4"]}, "the prompt is empty"),
        ({"prompt": "2+2", "outputs": None}, "no outputs: name their field one of"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(tmp_path, row, problem):
    rows = [{"prompt": "1+1", "outputs": ["2"]}, row]
    if problem is None:
        assert len(judged(tmp_path, rows)) == 2
        return
    with pytest.raises(FeedbackError, match=rf"rows\.jsonl, line 2: .*{problem}"):
        judged(tmp_path, rows)


@pytest.mark.parametrize("feedback_format", ["auto", "outputs"])
def test_the_prompt_of_plain_rows_is_named_as_that_of_feedback_is(tmp_path, feedback_format):
    rows = [{"question": "2+2", "outputs": ["4", "5"]}]
    with pytest.raises(FeedbackError, match=r"--feedback_columns prompt=|field 'prompt' is missing"):
        judged(tmp_path, rows, feedback_format=feedback_format)
    (row,) = judged(tmp_path, rows, feedback_format=feedback_format, columns=["prompt=question"])
    assert row.prompt == (Message("user", "2+2"),) and row.outputs == ("4", "5") and row.human_ranks == ()


def test_named_columns_and_known_ones_are_feedback_together(tmp_path):
    rows = [{"ticket": "2+2", "response": text, "stars": stars} for text, stars in (("5", 1), ("4", 3))]
    (row,) = judged(tmp_path, rows, columns=["prompt=ticket"])
    assert row.outputs == ("4", "5") and row.human_ranks == (1, 2)


def test_records_with_their_own_words_cannot_be_judged(tmp_path):
    with pytest.raises(FeedbackError, match=r"rows\.jsonl, row 1: a record with `fields` brings its own words"):
        judged(tmp_path, [{"a": "2+2?", "b": "4", "fields": "[a],b"}])


def test_no_format_at_all(tmp_path):
    with pytest.raises(FeedbackError, match="no format has the columns 'question'"):
        judged(tmp_path, [{"question": "2+2"}])


def test_splits(tmp_path):
    with pytest.raises(FeedbackError, match="has no split 'tset': choose one of train with --split"):
        judged(tmp_path, pairs(2), split="tset")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "test"):
        rows = [{"prompt": f"{name} {n}", "outputs": ["a", "b"]} for n in range(2)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [row.prompt[0].content for row in read_judged(str(folder), cache_dir=str(tmp_path / "cache"))]
    assert prompts == ["test 0", "test 1"]
    found = read_judged(f"{folder}@1", split="train", cache_dir=str(tmp_path / "cache"))
    assert [row.prompt[0].content for row in found] == ["train 0"]
