"""Feedback as nobody should write it, and the laws that hold for it all the same.

In: hypothesis. Out: texts, values, rows, sources, templates, recipes and files that are damaged in every way at hand,
and for everything that reads such things a check that raises nothing but the errors of the package itself. The tests
run the checks for seconds, `benchmarks/fuzz.py` for as long as it is told.
"""

from __future__ import annotations

import copy
import json
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from coh.arguments import ConfigError, parse_or_raise
from coh.data.records import FeedbackError, UnusableRow
from coh.data.sources import FORMATS, load_groups, parse_source, parse_sources
from coh.data.sources.naming import find_format
from coh.data.sources.reading import columns_of, open_source, read_file
from coh.data.sources.scores import SCORING, Scoring, parse_attributes
from coh.data.sources.tables import group_of, row_of, shown, table_rows
from coh.data.templates import Family, load_family, read_family
from coh.rows import as_line, as_prompt, read_judged, read_prompts
from coh.saved import Words, load_words, save_words

OWN_ERRORS = (FeedbackError, ConfigError)
LONGEST_MESSAGE = 20_000
MOST_SECONDS = 20  # of computing time for one case

# Rows as the formats have them.
_HH = {
    "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4\n\nHuman: Sure?\n\nAssistant: Yes.",
    "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 4\n\nHuman: Sure?\n\nAssistant: No.",
}
_WEBGPT = {
    "question": {"full_text": "Why is the sky blue?", "id": 1},
    "answer_0": "It scatters light [1, 2].",
    "answer_1": "[1] It is paint.",
    "quotes_0": {"title": ["Sky", None], "extract": ["Light is scattered.", "Blue most."]},
    "quotes_1": {"title": ["Paint"], "extract": ["Paint is blue."]},
    "score_0": 0.5,
    "score_1": -0.5,
}
_TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
_HELPSTEER = {
    "prompt": "2 + 2?<extra_id_1>Assistant\n4\n<extra_id_1>User\nSure?",
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 0,
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "webgpt": [_WEBGPT],
    "webgpt_quotes": [_WEBGPT],
    "summarize": [
        {
            "info": {"title": "My cat", "post": "She sleeps all day.", "id": "a"},
            "summaries": [{"text": " A dog."}, {"text": " A cat."}],
            "choice": 1,
        }
    ],
    "hh_rlhf": [_HH],
    "preference": [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {
            "chosen": [*_TURNS, {"role": "assistant", "content": "4"}],
            "rejected": [*_TURNS, {"role": "assistant", "content": "5"}],
        },
        {"prompt": _TURNS, "chosen": [{"role": "assistant", "content": "4"}], "rejected": "5"},
    ],
    "scored_preference": [
        {"prompt": "2 + 2?", "chosen": "5", "rejected": "4", "score_chosen": 1, "score_rejected": 9.5}
    ],
    "ranked": [
        {"prompt": "2 + 2?", "responses": ["Five.", "4", "Four."], "ranks": [9, 1, 1], "critiques": ["No.", None, ""]}
    ],
    "rated": [{"prompt": _TURNS, "responses": ["Five.", "4"], "scores": [-0.5, 2], "critiques": ["No.", "Yes."]}],
    "ultrafeedback": [
        {
            "instruction": "2 + 2?",
            "completions": [
                {"response": "5", "overall_score": 2.0, "critique": "Wrong."},
                {"response": "4", "fine-grained_score": 9.0},
            ],
        }
    ],
    "rated_rows": [
        {"prompt": "Is it?", "response": "Yes.", "score": "5"},
        {"prompt": "Is it?", "response": "No.", "score": 1},
    ],
    "helpsteer": [{**_HELPSTEER, "response": "Yes."}, {**_HELPSTEER, "response": "No.", "helpfulness": 0}],
    "thumbs": [{"prompt": "2 + 2?", "completion": "5", "label": False}],
    "critique": [{"prompt": "2 + 2?", "response": "5", "critique": "One too many.", "revision": "4"}],
    "fields": [
        {
            "ask": "User:",
            "q": "2 + 2?",
            "good": "A good answer:",
            "a": "4",
            "b": "5",
            "fields": "[ask+q+good],a,<|eos|>,b",
        }
    ],
}
PLAIN_ROWS: list[dict[str, Any]] = [{"prompt": "2 + 2?", "outputs": ["4", "5"]}, {"prompt": _TURNS, "output": "4"}]
SCORINGS = (SCORING, Scoring(0.5, parse_attributes("helpfulness=0.65,correctness=0.8,verbosity=-0.4")))

# Words that mean something to somebody on the way.
WORDS = (
    *(
        "",
        " ",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "\ufeff",
        "\u2028",
        "\u2029",
        "\x85",
        "\x1b[31m",
        "\x9b2J",
        "\u202e",
        "\ud800",
    ),
    *("\udfff", "a\ud83d", "🙂", "e\u0301", "\u00a0", "NaN", "Infinity", "-Infinity", "1e999", "-0", "007", "1_000"),
    *("\u0661", "\u0663.\u0665", "0x10", "true", "null", "None", "[]", "{}", "{prompt}", "{0}", "{prompt.__class__}"),
    *(
        "{{ 7*7 }}",
        "{% raw %}",
        "%s",
        "%n",
        "$(id)",
        "/etc/passwd",
        "../../x",
        "file:///etc/passwd",
        "http://localhost/",
    ),
    *("~nobody/x", "~", "C:\\con", "a=b", "a@5", "@", "=@", "sample", "hh_rlhf@0", "<script>alert(1)</script>"),
    *("</script>", '" onload="x', "<|endoftext|>", "</s>", "<|eos|>", "<extra_id_1>User\n", "\n\nHuman:"),
    *("\n\nAssistant:", "[1]", "[1, 2]", "[99]", "user", "assistant", "system", "tool", "prompt", "chosen", "[a+b],c"),
    *(
        "[a,",
        "a],",
        "+",
        ",",
        "!!python/object/apply:os.system [id]",
        "&a [*a]",
        "<<",
        "- a",
        "? [a]: b",
        "half \\ud800",
    ),
)
LONG = (" ", "\n", "\t ", "a", "[", "{", ",", "\n\nHuman:", " [1]", "<extra_id_1>", "1", "\n \n", "-", "é", "[a+a],")


@cache
def texts() -> st.SearchStrategy[str]:
    """Short ones, odd ones, and some that are long and monotonous, on which searches may go back and forth."""
    plain = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)
    odd = st.sampled_from(WORDS)
    long = st.builds(lambda text, times: text * times, st.sampled_from(LONG), st.sampled_from((50, 3_000, 40_000)))
    mixed = st.lists(plain | odd, max_size=4).map("".join)
    return st.one_of(odd, plain, mixed, mixed, long)


@cache
def numbers() -> st.SearchStrategy[Any]:
    huge = st.sampled_from([10**400, -(10**400), 2**63, -(2**63) - 1, 1e308, -1e308, 5e-324, 10**4000])
    return st.one_of(st.integers(-3, 12), st.floats(), huge, st.booleans())


@cache
def values() -> st.SearchStrategy[Any]:
    """Anything that JSON can say."""
    single = st.one_of(st.none(), texts(), numbers())
    return st.recursive(
        single,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys(), inner, max_size=4),
        max_leaves=8,
    ) | st.integers(20, 300).map(_nested)


@cache
def keys() -> st.SearchStrategy[str]:
    known = sorted(
        {key for rows in ROWS.values() for row in rows for key in row} | {"role", "content", "text", "title"}
    )
    return st.sampled_from(known) | texts()


def _nested(depth: int) -> Any:
    value: Any = "deep"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


# Strategies take longer to make than to draw from, so all choices are drawn from one.
_NUMBER = st.integers(0, 2**20)
_BYTES = st.binary(max_size=8)


def _upto(draw: st.DrawFn, most: int) -> int:
    return draw(_NUMBER) % (most + 1)


def _one(draw: st.DrawFn, options: Sequence[Any]) -> Any:
    return options[draw(_NUMBER) % len(options)]


@st.composite
def mutated(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """The value with one to three damages somewhere inside it."""
    value = copy.deepcopy(value)
    for _ in range(1 + _upto(draw, most - 1)):
        value = _damaged(draw, value)
    return value


def _damaged(draw: st.DrawFn, value: Any) -> Any:
    """One damage: mostly further inside, sometimes here."""
    if isinstance(value, dict) and value and _upto(draw, 5):
        key = _one(draw, sorted(value))
        kind = _one(draw, ("inside", "inside", "inside", "inside", "gone", "renamed", "added", "twin"))
        if kind == "gone":
            return {name: inner for name, inner in value.items() if name != key}
        if kind == "renamed":
            new = draw(keys())
            return {new if name == key else name: inner for name, inner in value.items()}
        if kind == "added":
            return {**value, draw(keys()): draw(values())}
        if kind == "twin":
            return {**value, key: value[_one(draw, sorted(value))]}
        return {**value, key: _damaged(draw, value[key])}
    if isinstance(value, list) and value and _upto(draw, 4):
        place = _upto(draw, len(value) - 1)
        kind = _one(draw, ("inside", "inside", "inside", "gone", "twice", "turned", "many"))
        if kind == "gone":
            return value[:place] + value[place + 1 :]
        if kind == "twice":
            return [*value, value[place]]
        if kind == "turned":
            return value[::-1]
        if kind == "many":
            return value * _one(draw, (2, 300))
        return [*value[:place], _damaged(draw, value[place]), *value[place + 1 :]]
    if isinstance(value, str) and _upto(draw, 1):
        place = _upto(draw, len(value))
        return value[:place] + draw(texts()) + value[place:]
    if _upto(draw, 7) == 0:
        return [value] if _upto(draw, 1) else {draw(keys()): value}
    return draw(values())


@cache
def rows_of(name: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Some rows of a format, damaged."""
    row = st.sampled_from(ROWS[name]).flatmap(mutated).filter(lambda value: isinstance(value, dict))
    return st.lists(row, min_size=1, max_size=3)


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with some of its bytes cut, changed, put in or repeated, or in another encoding."""
    for _ in range(_upto(draw, 3)):
        start = _upto(draw, len(content))
        stop = min(len(content), start + _upto(draw, 30))
        kind = _one(draw, ("cut", "without", "put", "change", "repeat", "encoding", "bom", "ends", "nul"))
        if kind == "cut":
            content = content[:start]
        elif kind == "without":
            content = content[:start] + content[stop:]
        elif kind == "put":
            content = content[:start] + draw(_BYTES) + content[start:]
        elif kind == "change":
            content = content[:start] + draw(_BYTES)[:1] + content[start + 1 :]
        elif kind == "repeat":
            content = content[:stop] + content[start:stop] * _one(draw, (1, 2, 500)) + content[stop:]
        elif kind == "encoding":
            wanted = _one(draw, ("utf-16", "latin-1", "utf-8-sig", "utf-32"))
            content = content.decode("utf-8", "replace").encode(wanted, "replace")
        elif kind == "bom":
            content = b"\xef\xbb\xbf" + content
        elif kind == "ends":
            content = content.replace(b"\n", _one(draw, (b"\r\n", b"\r", b"\n\n", b"")))
        else:
            content = content[:start] + b"\0" + content[start:]
    return content


# Files of rows


def as_json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    import csv
    import io

    file = io.StringIO(newline="")
    names = columns_of(rows)
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows([[_cell(row.get(name)) for name in names] for row in rows])
    return file.getvalue().encode("utf-8", "surrogatepass")


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_parquet(rows: list[dict[str, Any]]) -> bytes | None:
    """The rows as a table, where Arrow can make one of them."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    try:
        parquet.write_table(pa.Table.from_pylist(rows), sink)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
    return sink.getvalue().to_pybytes()


@st.composite
def files(draw: st.DrawFn, kinds: tuple[str, ...] = (".jsonl", ".json")) -> tuple[str, str, bytes]:
    """(format, suffix, bytes) of a file of feedback whose rows are damaged, or whose bytes are, or both."""
    name = _one(draw, sorted(FORMATS))
    suffix = _one(draw, kinds)
    has_bad_rows = _upto(draw, 1)
    rows = draw(rows_of(name)) if has_bad_rows else ROWS[name]
    plain = as_json_lines(rows)
    if suffix == ".json":
        plain = json.dumps(rows).encode()
    elif suffix == ".csv":
        plain = as_csv(rows)
    elif suffix == ".parquet":
        plain = as_parquet(rows) or as_parquet(ROWS[name]) or b""
    if not has_bad_rows or _upto(draw, 1):
        plain = draw(damaged_bytes(plain))
    return name, suffix, plain


# Words


@dataclass(frozen=True)
class Tiny:
    """A family of every polarity, as its YAML says it."""

    content: dict[str, Any] = field(
        default_factory=lambda: {
            "eos": "each",
            "roles": {"user": "Person:", "assistant": "Model:"},
            "tasks": {
                "general": {
                    "p": ["{prompt} A good answer: {better}", {"text": "{prompt} Good: {better}"}],
                    "n": ["{prompt} A bad answer: {worse}"],
                    "pn": ["{prompt} Good: {better} Bad: {worse}"],
                    "question": [{"text": "{prompt} First: {better} Second: {worse} Which?", "answer": "The first."}],
                    "best_first": [{"text": "{prompt} Best: {best} Then: {next} Last: {worst}", "tie": "As good:"}],
                }
            },
        }
    )


def family_contents() -> st.SearchStrategy[Any]:
    return mutated(Tiny().content)


def yaml_bytes() -> st.SearchStrategy[bytes]:
    """Files of templates: with damaged content, with damaged bytes, and bombs."""
    whole = yaml.safe_dump(Tiny().content, allow_unicode=True).encode()
    dumped = family_contents().map(_dumped)
    return st.one_of(dumped, damaged_bytes(whole), dumped.flatmap(damaged_bytes), st.sampled_from(BOMBS))


def _dumped(content: Any) -> bytes:
    return yaml.safe_dump(content, allow_unicode=True, width=10**6).encode("utf-8", "surrogatepass")


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij")
)
BOMBS = tuple(
    text.encode()
    for text in (
        _LAUGHS,
        _LAUGHS.replace("[", "{x: [").replace("]", "]}"),
        "tasks: &a {general: *a}",
        "a: &a [*a]",
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "? " * 5000,
        'a: "\\UFFFFFFFF"',
        'a: "\\ud800"',
        "a: !!python/object/apply:os.system [id]",
        "a: !!python/name:os.system",
        "a: !!binary x",
        "a: !!int x",
        "a: 2020-99-99",
        "a: {2020-01-01: 2020-01-01}",
        "a: {b: " + ":".join(["1"] + ["59"] * 300) + ".5}",
        "? [a, b]\n: c",
        "a: &a {<<: *a}",
        "<<: [1, 2]",
        "%YAML 9.9\n---\na: 1",
        "a: 1" + "1" * 9000,
        "a: " + "1" * 30000 + "e",
        "--- a\n--- b\n",
        "# nothing",
    )
)


@dataclass
class Options:
    """One option of every kind."""

    words: str = field(default="a", metadata={"help": "Words."})
    number: int = field(default=1, metadata={"help": "A number."})
    share: float | None = field(default=0.5, metadata={"help": "A share."})
    is_on: bool = field(default=False, metadata={"help": "On."})
    names: list[str] = field(default_factory=list, metadata={"help": "Names."})
    weights: list[float] | None = field(default=None, metadata={"help": "Weights."})
    kind: Literal["one", "two"] = field(default="one", metadata={"help": "Kind."})
    more: dict[str, Any] | str | None = field(default=None, metadata={"help": "More."})
    hub_token: str | None = field(default=None, metadata={"help": "Token."})


_RECIPE = {"words": "b", "number": 3, "share": 0.1, "is_on": True, "names": ["a", "b"], "more": {"a": 1, "b": [1e-4]}}


def recipes() -> st.SearchStrategy[bytes]:
    dumped = mutated(_RECIPE).map(_dumped)
    return st.one_of(dumped, dumped.flatmap(damaged_bytes), yaml_bytes(), st.sampled_from(BOMBS))


def command_lines() -> st.SearchStrategy[list[str]]:
    names = st.sampled_from([f"--{name}" for name in Options.__dataclass_fields__]) | texts()
    return st.lists(st.one_of(names, texts(), texts().map(lambda text: f"--names={text}")), max_size=6)


def saved_words() -> st.SearchStrategy[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_words(folder, Words(read_family("tiny", Tiny().content)), data={"a": 1}, arguments={"b": None})
        whole = Path(folder, "coh.json").read_bytes()
    content = mutated(json.loads(whole)).map(lambda value: json.dumps(value).encode())
    return st.one_of(content, damaged_bytes(whole), st.just(b"[" * 100_000), st.just(b'{"a":' * 5_000))


def source_words() -> st.SearchStrategy[list[str]]:
    known = ["hh_rlhf", "sample", "sample_pairs", "org/name:config", "x=org/name@5", "./gone.jsonl", "a.csv", "run=3/x"]
    one = st.one_of(
        texts(), st.sampled_from(known), st.sampled_from(known).flatmap(mutated).filter(lambda t: type(t) is str)
    )
    return st.lists(one, max_size=3)


# Laws


class TooSlow(Exception):
    """A case that goes on and on."""


@contextmanager
def in_time(seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Stops what computes for longer; time in which other programs compute does not count. In the main thread only."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def refusal(
    act: Callable[[], Any], *errors: type[Exception], names: str = "", longest: int = LONGEST_MESSAGE
) -> str | None:
    """Does it; what the package says against it, if it does. Anything else that is raised is a fault.

    A refusal can be shown and stored, is of bearable length (words of the command line are as long as somebody typed
    them), and names what it is about.
    """
    try:
        with in_time():
            act()
    except (*OWN_ERRORS, *errors) as error:
        message = str(error)
        assert message.strip(), f"{type(error).__name__} without a word"
        assert len(message) < longest, f"a message of {len(message)} letters"
        message.encode()
        assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in message), repr(message)
        assert not any(127 <= ord(letter) < 160 for letter in message), repr(message)
        assert names in message, f"{names} is not named in: {message}"
        return message
    return None


def check_rows(name: str, rows: list[dict[str, Any]], scoring: Scoring = SCORING) -> None:
    """Damaged rows give groups that can be stored and read back, or say why not."""
    form = FORMATS[name]

    def act() -> None:
        group = form.group(rows, scoring)
        split_prompt = form.split_prompt(rows[0]) if form.split_prompt else group.prompt
        stored = row_of(group, 1, split_prompt)
        assert group_of(stored, group.source) == group
        as_line(stored).encode()
        assert all(line.isprintable() or "\ufeff" in line for line in map(_without_joiners, shown(group)))

    refusal(act, UnusableRow)


def _without_joiners(line: str) -> str:
    return "".join(letter for letter in line if letter.isprintable() or ord(letter) < 160)


def check_source(path: Path, name: str) -> None:
    """Every format reads a file to its end, or says what is wrong with which row of which file."""

    def find() -> None:
        first = [row for _, row in islice(read_file(path), 20)]
        find_format(columns_of(first), first)

    def read(form: Any) -> None:
        source = open_source(parse_source(str(path)))["train"]
        for _ in table_rows(source, form, SCORING, None, Counter()):
            pass

    refusal(find)
    for form in (FORMATS[name], FORMATS["preference"]):
        refusal(lambda form=form: read(form), names=str(path))


def check_stores(path: Path, name: str, cache_dir: Path) -> None:
    """The same through the tables on disk."""

    def act() -> None:
        for store in load_groups(parse_source(str(path)), feedback_format=name, cache_dir=cache_dir).values():
            for number in range(len(store)):
                store.group(number)

    refusal(act, names=str(path))


def check_prompts(path: Path) -> None:
    """A file of prompts; what is written of its rows is one line each that gives the row back."""

    def act() -> None:
        for row in read_prompts(path):
            line = as_line(row.row)
            assert "\n" not in line
            line.encode()

    refusal(act, names=str(path))


def check_judged(path: Path) -> None:
    def act() -> None:
        for row in read_judged(str(path), feedback_format="outputs"):
            as_line({**row.row, "scores": [0.5]}).encode()

    refusal(act, names=str(path))


def check_prompt(value: Any) -> None:
    refusal(lambda: as_prompt(value))


def check_sources(words: list[str]) -> None:
    refusal(lambda: parse_sources(words), longest=10**7)


def check_templates(path: Path) -> None:
    def act() -> None:
        _check_family(load_family(str(path)))

    refusal(act, names=str(path))


def check_family(content: Any) -> None:
    refusal(lambda: _check_family(read_family("any", content)))


def _check_family(family: Family) -> None:
    """What was accepted can be stored, and is found again."""
    stored = json.loads(json.dumps(family.as_dict()))
    assert read_family(family.name, stored) == family
    json.dumps(family.as_dict(), ensure_ascii=False).encode()


def check_recipe(path: Path, words: list[str] | None = None) -> None:
    def act() -> None:
        (options,) = parse_or_raise([Options], [*(words or []), "--config", str(path)])
        assert isinstance(options.names, list)

    refusal(act, longest=10**6)


def check_command_line(words: list[str]) -> None:
    known = [word for word in words if word not in ("-h", "--help", "--config")]
    refusal(lambda: parse_or_raise([Options], known), longest=10**6)


def check_saved(folder: Path) -> None:
    def act() -> None:
        words = load_words(folder)
        _check_family(words.family)

    refusal(act, names=str(folder))


# Targets


@dataclass(frozen=True)
class Target:
    """What is attacked: damaged cases, and the law that holds for each; `check` gets an empty folder to work in."""

    name: str
    cases: st.SearchStrategy[Any]
    check: Callable[[Any, Path], None]
    is_slow: bool = False  # tables on disk, and what `datasets` reads


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _each_format() -> Iterator[Target]:
    for name in FORMATS:
        cases = st.tuples(rows_of(name), st.sampled_from(SCORINGS))
        yield Target(f"row of {name}", cases, lambda case, _, name=name: check_rows(name, *case))


TABLES = (".csv", ".parquet")
TARGETS: tuple[Target, ...] = (
    *_each_format(),
    Target("file", files(), lambda case, folder: check_source(_file(folder, f"a{case[1]}", case[2]), case[0])),
    Target("sources", source_words(), lambda case, _: check_sources(case)),
    Target("template file", yaml_bytes(), lambda case, folder: check_templates(_file(folder, "a.yaml", case))),
    Target("template words", family_contents(), lambda case, _: check_family(case)),
    Target("recipe", recipes(), lambda case, folder: check_recipe(_file(folder, "a.yaml", case))),
    Target("command line", command_lines(), lambda case, _: check_command_line(case)),
    Target("saved words", saved_words(), lambda case, folder: check_saved(_file(folder, "coh.json", case).parent)),
    Target("prompt", mutated(_TURNS) | values(), lambda case, _: check_prompt(case)),
    Target(
        "prompts",
        st.one_of(
            mutated(PLAIN_ROWS).filter(lambda rows: type(rows) is list).map(as_json_lines),
            damaged_bytes(as_json_lines(PLAIN_ROWS)),
        ).flatmap(lambda content: st.sampled_from((".jsonl", ".txt", ".json")).map(lambda end: (end, content))),
        lambda case, folder: check_prompts(_file(folder, f"a{case[0]}", case[1])),
    ),
    Target(
        "outputs to judge",
        mutated(PLAIN_ROWS).filter(lambda rows: type(rows) is list).map(as_json_lines),
        lambda case, folder: check_judged(_file(folder, "a.jsonl", case)),
    ),
    Target(
        "table", files(TABLES), lambda case, folder: check_source(_file(folder, f"a{case[1]}", case[2]), case[0]), True
    ),
    Target(
        "store",
        files((".jsonl", ".json", *TABLES)),
        lambda case, folder: check_stores(_file(folder, f"a{case[1]}", case[2]), case[0], folder / "cache"),
        True,
    ),
)


def attack(target: Target, num_cases: int, seed: int | None = None, tried: Counter[str] | None = None) -> int:
    """Tries cases until one breaks the law, which is raised with the smallest such case; how many were tried.

    `tried` counts them under the target's name, also where one breaks the law.
    """
    number = 0

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),  # explaining would watch every line
        derandomize=False if seed is not None else settings.default.derandomize,
    )
    @given(target.cases)
    def law(case: Any) -> None:
        nonlocal number
        number += 1
        if tried is not None:
            tried[target.name] += 1
        folder = Path(scratch, str(number) if target.is_slow else "")  # tables are found again by the times of files
        folder.mkdir(exist_ok=True)
        target.check(case, folder)

    with tempfile.TemporaryDirectory(prefix="coh-fuzz-") as scratch:
        (hypothesis_seed(seed)(law) if seed is not None else law)()
    return number
