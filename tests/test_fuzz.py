"""Damaged rows, files, sources, templates, recipes and models: only the package's own errors come out of them.

What fuzzing found stands below as cases of its own. `benchmarks/fuzz.py` goes on for as long as one likes.
"""

import datetime
import json

import pytest
from nasty import BOMBS, ROWS, TARGETS, attack, check_recipe, check_rows, check_source, check_templates, in_time

from coh.arguments import ConfigError
from coh.data.records import FeedbackError, UnusableRow
from coh.data.sources import FORMATS, detect_format, load_groups, parse_source
from coh.data.sources.reading import read_file
from coh.data.sources.scores import Scoring, parse_attributes
from coh.data.templates import load_family, read_family
from coh.rows import as_line, read_prompts
from coh.saved import load_words

FAST = [target for target in TARGETS if not target.is_slow]
NUM_CASES = 25
HALF = "\ud83d"  # of a character
LONG = 100_000


@pytest.mark.parametrize("target", FAST, ids=lambda target: target.name)
def test_only_own_errors_come_out(target):
    assert attack(target, NUM_CASES) >= NUM_CASES / 2


def test_a_foreign_error_and_a_hang_would_be_seen():
    with pytest.raises(ZeroDivisionError):
        check_rows("thumbs", [{"prompt": "a", "completion": "b", "label": _Odd()}])
    with pytest.raises(Exception, match="more than"), in_time(0.2):
        while True:
            pass


class _Odd:
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize("name", FORMATS)
def test_the_rows_that_are_damaged_are_good_ones(name):
    form = FORMATS[name]
    groups = [form.group(ROWS[name] if form.group_by else [row]) for row in ROWS[name]]
    assert all(group.outputs for group in groups)


# What was found in rows


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "webgpt_quotes",
            {"quotes_0": {"title": [HALF], "extract": ["b"]}},
            r"half a character in quotes_0.title\[0\]",
        ),
        ("helpsteer", {"correctness": 1e308}, "score is infinite"),
        ("fields", {"fields": ",".join(["[q]"] * 20_000), "q": "a" * 1000}, "more than 10,000,000 letters"),
        ("fields", {"fields": f"[q],{'k' * 500},a", "k" * 500: None}, "^null k{59}…$"),
    ],
)
def test_rows_that_give_no_group(name, change, reason):
    rows = [{**row, **change} for row in ROWS[name]]
    scoring = [Scoring(0.0, parse_attributes("correctness=100"))] if name == "helpsteer" else []
    with pytest.raises(UnusableRow, match=reason), in_time():
        FORMATS[name].group(rows, *scoring)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "webgpt_quotes",
            {"quotes_0": {"title": [5], "extract": ["b"]}},
            r"field 'quotes_0.title\[0\]' is a number \(5\)",
        ),
        ("preference", {"prompt": [{"role": "x" * LONG, "content": ""}]}, "role' is 'x{59}…', but must be one of"),
        ("fields", {"fields": "[" + "a" * LONG}, r"field 'fields' has '\[a{58}…'"),
        ("fields", {"fields": "a" * LONG}, "field 'a{59}…' is missing"),
    ],
)
def test_rows_that_a_person_has_to_mend(name, change, message):
    with pytest.raises(FeedbackError, match=message), in_time():
        FORMATS[name].group([{**ROWS[name][0], **change}])


def test_names_of_columns_without_end():
    columns = ["x" * LONG, *(f"column {n}" for n in range(20_000))]
    with (
        pytest.raises(
            FeedbackError, match=r"no format has the columns 'x{59}…', 'column 0', .* and 19961 more"
        ) as error,
        in_time(),
    ):
        detect_format(columns)
    assert len(str(error.value)) < 5_000
    with pytest.raises(FeedbackError, match=r"there are 'x{59}…'") as error, in_time():
        FORMATS["thumbs"].group([dict.fromkeys(columns)])
    assert len(str(error.value)) < 5_000


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hh_rlhf", {"chosen": "\n\nHuman: a" + "\n" * LONG + "b\n\nAssistant: c", "rejected": "\n" * LONG + "d"}),
        ("hh_rlhf", {"chosen": "\n \t" * LONG, "rejected": "\n\nHuman:" * LONG}),
        ("webgpt", {**ROWS["webgpt"][0], "answer_0": "a" + " " * LONG + "b", "answer_1": "[1" + " " * LONG}),
        ("webgpt", {**ROWS["webgpt"][0], "answer_0": " [1]" * LONG + " \t" * LONG + "[", "answer_1": "\n " * LONG}),
        ("helpsteer", {**ROWS["helpsteer"][0], "prompt": "a" + " " * LONG + "b"}),
        ("fields", {"fields": "a," * LONG, "a": "b"}),
        ("fields", {"fields": ",".join(["[a"] * LONG), "a": "b"}),
        ("ranked", {"prompt": "a", "responses": [str(n) for n in range(30_000)], "ranks": list(range(30_000))}),
    ],
)
def test_long_and_monotonous_texts_take_no_time(name, row):
    with in_time(5):
        check_rows(name, [row])


# What was found in files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "line 1, column 1: no JSON .a number has too many digits"),
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", "no JSON of rows .a number has too many digits"),
        ("a.jsonl", b'\n{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "line 2: nested too deeply"),
        ("a.json", b'[{"a": ' + b"[" * 500 + b"]" * 500 + b"}]", "row 1: nested too deeply"),
        ("a.jsonl", b"[" * 950 + b"]" * 950, "line 1: a row is a list|nested too deeply"),
        ("a.json", b'{"a":' * 900 + b"1" + b"}" * 900, "holds an object|nested too deeply"),
        ("a.csv", b"\xef\xbb\xbf", "blank lines only"),
        ("a.csv", b"\n\r\n\n", "blank lines only"),
        ("a.csv", b"a," + b"b" * 2 * LONG + b"\n1,2,3\n", "row 1: 3 fields for 2 columns .'a', 'b+…'"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns are named 'a': rename one, or delete it"),
        ("a.jsonl", b'{"a": "\x1b[31m', r"It reads: {\"a\": \"\\x1b\[31m"),
    ],
)
def test_files_that_a_person_has_to_mend(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FeedbackError, match=message) as error:
        list(read_file(path))
    assert str(path) in str(error.value)
    check_source(path, "preference")


def test_a_csv_file_may_begin_with_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n\nprompt,chosen,rejected\n1 + 1?,2,3\n")
    assert list(read_file(path)) == [(1, {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"})]


def test_signs_in_names_are_counted_and_stored(tmp_path):
    record = {"fields": "[q],a\x07", "q": "2 + 2?", "a\x07": None}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (record, *ROWS["fields"])))
    store = load_groups(parse_source(str(path)), cache_dir=tmp_path / "cache")["train"]
    assert store.dropped == {"null a\\x07": 1} and len(store) == 1


# What was found in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x" * 5_000, "unknown source"),
        ("x" * 300 + ".jsonl", "there is no file"),
        ("~nobodyofthatname/x.jsonl", "there is no file"),
        ("\0.jsonl", "there is no file"),
        ("hh_rlhf@" + "9" * 5_000, "is no number of groups"),
        ("hh_rlhf@\u0663", "is no number of groups"),
    ],
)
def test_sources_that_there_are_not(words, message):
    with pytest.raises(FeedbackError, match=message):
        parse_source(words)


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: repr(bomb[:20]))
def test_bombs(tmp_path, bomb):
    path = tmp_path / "a.yaml"
    path.write_bytes(bomb)
    with in_time(10):
        check_templates(path)
        check_recipe(path)
        with pytest.raises(FeedbackError):  # none of them is a family
            load_family(str(path))


def test_templates_that_there_are_not(tmp_path):
    for name in ("x" * 5_000, "\0", str(tmp_path)):
        with pytest.raises(FeedbackError, match="templates"):
            load_family(name)
    big = tmp_path / "big.yaml"
    big.write_text("# " + "x" * 400_000)
    with pytest.raises(FeedbackError, match="more than 300,000 bytes"):
        load_family(str(big))


def test_halves_of_characters_are_no_words():
    for content in (
        {"tasks": {"general": {"p": [f"{{prompt}} Good {HALF}: {{better}}"]}}},
        {"tasks": {"general": {"question": [{"text": "{prompt} A: {better} B: {worse} Which?", "answer": HALF}]}}},
        {"roles": {"user": HALF}, "tasks": {"general": {"p": ["{prompt} Good: {better}"]}}},
    ):
        with pytest.raises(FeedbackError, match="to mend"):
            read_family("mine", content)


def test_faults_without_end_are_not_all_said():
    with pytest.raises(FeedbackError, match="2000 to mend") as error:
        read_family("mine", {"tasks": {"general": {"p": [f"no slot {n}" for n in range(1_000)]}}})
    assert "and 1950 more" in str(error.value) and len(str(error.value)) < 10_000
    assert str(ConfigError(["x" * 10_000] * 1_000)).endswith("and 900 more.")
    assert len(str(ConfigError(["x" * 10_000] * 1_000))) < 250_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'{"templates": 1}',
        b'{"templates": {}}',
        b"\xff",
        b"[" * 100_000,
        b'{"tasks": [[]]}',
        b'{"a": 1',
    ],
)
def test_damaged_words_of_a_model(tmp_path, content):
    (tmp_path / "coh.json").write_bytes(content)
    with pytest.raises(FeedbackError, match=r"coh\.json"):
        load_words(tmp_path)


def test_words_of_a_model_of_the_wrong_type(tmp_path):
    good = {"templates": {"name": "mine", "tasks": {"general": {"p": ["{prompt} Good: {better}"]}}}}
    for wrong in ({"tasks": "general"}, {"tasks": []}, {"tasks": ["x"]}, {"prepend_bos": "no"}, {"prompt_format": [1]}):
        (tmp_path / "coh.json").write_text(json.dumps(good | wrong))
        with pytest.raises(FeedbackError, match=f"{next(iter(wrong))} is not as training writes it"):
            load_words(tmp_path)
    (tmp_path / "coh.json").write_text(json.dumps(good))
    assert load_words(tmp_path).family.name == "mine"


# What was found in rows for a model


def test_lines_of_a_text_file_end_where_editors_end_them(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\u2028more\r\ntwo\x0bmore\n", encoding="utf-8")
    assert [(row.place[-6:], row.prompt[0].content) for row in read_prompts(path)] == [
        ("line 1", "one\u2028more"),
        ("line 2", "two\x0bmore"),
    ]


def test_rows_that_json_cannot_hold_are_written_all_the_same():
    line = as_line({"when": datetime.date(2024, 1, 2), "raw": b"x", "half": HALF})
    assert line.encode() and json.loads(line) == {"when": "2024-01-02", "raw": "b'x'", "half": HALF}


def test_a_long_slot_is_shown_by_its_beginning():
    content = {"tasks": {"general": {"p": ["{" + " " * LONG + "} {better}"]}}}
    with pytest.raises(FeedbackError, match="is no slot") as error:
        read_family("any", content)
    assert len(str(error.value)) < 500


def test_a_home_folder_of_nobody_is_no_path():
    for words in ("~\0", "~\0/a.jsonl"):
        with pytest.raises(FeedbackError, match="source"):
            parse_source(words)
