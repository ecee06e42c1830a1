"""Columns that people call otherwise: as they map them (`--feedback_columns prompt=question`), or in wide use.

In: the columns of some rows, and what a person said of them. Out: the format, and which column is read as which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from coh.data.records import FeedbackError
from coh.data.sources.fields import names, shortened
from coh.data.sources.formats import FORMATS, check_columns, detect_format
from coh.data.sources.reading import RowSource

# Names in wide use for a column of a format, which stand for it where it is not there itself.
SYNONYMS = {
    "prompt": ("question", "instruction", "query", "input"),
    "response": ("answer", "completion", "output", "reply"),
    "completion": ("response", "answer", "output", "reply"),
    "score": ("rating", "stars"),
}
# Formats that can do without a column `prompt`: where there is one by another name, it must not be passed over.
PROMPT_IS_OPTIONAL = {
    "preference": ("prompt",),
    "scored_preference": ("prompt",),
    "ultrafeedback": ("prompt", "instruction"),
}
COLUMNS = tuple(dict.fromkeys(name for form in FORMATS.values() for name in form.columns_read or form.columns))


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """Which column is read as which, from `NAME=COLUMN`, where NAME is a format's own.

    >>> parse_columns(["prompt=question", "chosen=good_answer"])
    {'prompt': 'question', 'chosen': 'good_answer'}
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, column = (part.strip() for part in word.partition("="))
        if not equals or not column:
            raise FeedbackError(f"{word!r} names no column: write a format's column and yours, as in prompt=question")
        if name not in COLUMNS:
            near = get_close_matches(name, COLUMNS, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise FeedbackError(f"{word!r}: no format has a column {name!r}: {guess}They are {', '.join(COLUMNS)}")
        if name in found or column in found.values():
            raise FeedbackError(f"{word!r}: {name if name in found else column} is named twice: name each once")
        found[name] = column
    return found


def find_format(
    columns: Sequence[str], first_rows: Sequence[dict], asked: str = "auto", mapped: Mapping[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """The format of rows, and which column is read as which of the format's.

    >>> find_format(["question", "chosen", "rejected"], [{"question": "Why?", "chosen": "So.", "rejected": "No."}])
    ('preference', {'prompt': 'question'})

    Raises:
        FeedbackError: the columns are those of no format, or leave open which is the prompt.
    """
    known = dict(mapped or {})
    absent = [column for column in known.values() if column not in columns]
    if absent:
        near = get_close_matches(absent[0], columns, n=1)
        guess = f"did you mean {near[0]!r}?" if near else f"there are {names(columns)}"
        raise FeedbackError(f"--feedback_columns: there is no column {shortened(absent[0])!r}: {guess}")
    columns = _named(columns, known)
    rows = [_renamed(row, known) for row in first_rows]
    try:
        name = asked if asked != "auto" else detect_format(columns, rows)
    except FeedbackError:
        for form in (form for form in FORMATS.values() if form.is_found):
            more = _by_synonyms(form.columns, columns)
            if more:
                return find_format(_unnamed(columns, known), first_rows, asked, known | more)
        raise
    more = _by_synonyms(FORMATS[name].columns, columns) or {}
    check_columns(name, _named(columns, more))
    if name in PROMPT_IS_OPTIONAL and not {*PROMPT_IS_OPTIONAL[name]} & {*columns} and not _are_messages(rows):
        more |= _prompt_of(columns)
    return name, known | {ours: known.get(theirs, theirs) for ours, theirs in more.items()}


def renamed(source: RowSource, mapped: Mapping[str, str]) -> RowSource:
    """The same rows, with columns under the names of a format."""
    if not mapped:
        return source

    def read(columns: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
        wanted = columns if columns is None else [mapped.get(column, column) for column in columns]
        yield from ((number, _renamed(row, mapped)) for number, row in source.read(wanted))

    return replace(source, read=read)


def _by_synonyms(needed: Sequence[str], columns: Sequence[str]) -> dict[str, str] | None:
    """For each needed column that is not there the only one of its synonyms that is; None where one has none."""
    found: dict[str, str] = {}
    for column in needed:
        if column not in columns:
            there = [name for name in SYNONYMS.get(column, ()) if name in columns and name not in needed]
            there = [name for name in there if name not in found.values()]
            if len(there) != 1:
                return None
            found[column] = there[0]
    return found


def _prompt_of(columns: Sequence[str]) -> dict[str, str]:
    """The column that is the prompt of pairs of texts; none where it stands in the texts themselves."""
    there = [name for name in SYNONYMS["prompt"] if name in columns]
    if len(there) > 1:
        raise FeedbackError(
            f"any of the columns {names(there)} may be the prompt: say which, as in "
            f"--feedback_columns prompt={there[0]}"
        )
    near = get_close_matches("prompt", columns, n=1, cutoff=0.7)
    if near and not there:
        raise FeedbackError(
            f"there is no column 'prompt': the nearest is {near[0]!r}; rename it, or give "
            f"--feedback_columns prompt={near[0]}"
        )
    return {"prompt": there[0]} if there else {}


def _are_messages(rows: Sequence[dict]) -> bool:
    """Whether both sides are conversations, which hold their prompt themselves."""
    sides = [row["chosen"] for row in rows if row.get("chosen") is not None]
    return bool(sides) and not any(isinstance(side, str) for side in sides)


def _named(columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    ours = {theirs: name for name, theirs in mapped.items()}
    return [ours.get(column, column) for column in columns if column not in mapped or column in ours]


def _unnamed(columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    return [mapped.get(column, column) for column in columns]


def _renamed(row: dict, mapped: Mapping[str, str]) -> dict:
    ours = {theirs: name for name, theirs in mapped.items()}
    return {ours.get(key, key): value for key, value in row.items() if key not in mapped or key in ours}
