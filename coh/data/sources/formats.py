"""Every form in which feedback is stored, by name, and how a form is found from the columns.

A format is one pure function from a row to a `FeedbackGroup`, registered in `FORMATS` with the columns it reads. Adding
one is writing that function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from coh.data.records import FeedbackError, FeedbackGroup, Message
from coh.data.sources.fields import missing
from coh.data.sources.hh_rlhf import is_transcript, read_hh_rlhf
from coh.data.sources.preference import read_preference
from coh.data.sources.summarize import read_summarize
from coh.data.sources.webgpt import question_of, read_webgpt, read_webgpt_quotes


@dataclass(frozen=True)
class Format:
    """How rows of one form become groups.

    `fits` looks at a row to tell apart forms that share their columns. A form with `is_found` off has to be asked for
    by name. `split_prompt` names the prompt that decides a row's split, where that is not the group's own.
    """

    read: Callable[[dict], FeedbackGroup]
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...] = ()
    fits: Callable[[dict], bool] | None = None
    is_found: bool = True
    split_prompt: Callable[[dict], tuple[Message, ...]] | None = None


_ANSWERS = ("question", "answer_0", "answer_1", "score_0", "score_1")

# Where several fit, the one that reads most columns is taken, then the first in this order.
FORMATS: dict[str, Format] = {
    "webgpt": Format(read_webgpt, _ANSWERS),
    "webgpt_quotes": Format(
        read_webgpt_quotes, (*_ANSWERS, "quotes_0", "quotes_1"), is_found=False, split_prompt=question_of
    ),
    "summarize": Format(read_summarize, ("info", "summaries", "choice")),
    "hh_rlhf": Format(read_hh_rlhf, ("chosen", "rejected"), fits=is_transcript),
    "preference": Format(read_preference, ("chosen", "rejected"), ("prompt",)),
}


def detect_format(columns: Sequence[str], first_rows: Sequence[dict] = ()) -> str:
    """The name of the format whose columns are all there, and that most of the first rows fit.

    >>> detect_format(["prompt", "chosen", "rejected"])
    'preference'
    >>> detect_format(["promt", "chosen", "rejcted"])
    Traceback (most recent call last):
    coh.data.records.FeedbackError: no format has the columns 'promt', 'chosen', 'rejcted'; the nearest is 'preference', ...
    """  # noqa: E501
    found = [name for name, form in FORMATS.items() if _is_there(form, columns) and _most_fit(form, first_rows)]
    if not found:
        raise FeedbackError(_no_format(columns))
    return max(found, key=lambda name: len(set(columns) & {*FORMATS[name].columns, *FORMATS[name].optional_columns}))


def check_columns(name: str, columns: Sequence[str]) -> None:
    """Raise `FeedbackError` where a format's column is missing, with the nearest one that is there."""
    for column in FORMATS[name].columns:
        if column not in columns:
            raise FeedbackError(f"not in the format {name!r}: {missing(column, column, columns)}")


def check_format(name: str) -> str:
    """The name itself, or an error with the nearest known one."""
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise FeedbackError(f"unknown feedback format {name!r}: {guess}Formats are auto, {', '.join(FORMATS)}")
    return name


def _is_there(form: Format, columns: Sequence[str]) -> bool:
    return form.is_found and set(form.columns) <= set(columns)


def _most_fit(form: Format, rows: Sequence[dict]) -> bool:
    return form.fits is None or 2 * sum(map(form.fits, rows)) > len(rows)


def _no_format(columns: Sequence[str]) -> str:
    """What is nearest, and what to rename; all formats where nothing is near."""
    seen = ", ".join(map(repr, columns)) or "none"
    found = {name: form for name, form in FORMATS.items() if form.is_found}
    renames = {name: _renames((*form.columns, *form.optional_columns), columns) for name, form in found.items()}

    def distance(name: str) -> tuple[float, int]:
        needed = found[name].columns
        num_near = sum(old is not None for old in renames[name].values())
        return sum(renames[name][column] is None for column in needed) / len(needed), -num_near

    best = min(found, key=distance)
    if distance(best)[0] > 0.5:
        known = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in found.items())
        return f"no format has the columns {seen}. Rename them to those of a format ({known})"
    steps = [f"rename {old!r} to {new!r}" for new, old in renames[best].items() if old not in (new, None)]
    steps += [f"add {column!r}" for column in found[best].columns if renames[best][column] is None]
    needed = ", ".join(found[best].columns)
    return f"no format has the columns {seen}; the nearest is {best!r}, which needs {needed}: {'; '.join(steps)}"


def _renames(needed: Sequence[str], columns: Sequence[str]) -> dict[str, str | None]:
    """For each needed column the one that it may be under another name; each is taken once."""
    found: dict[str, str | None] = {column: column for column in needed if column in columns}
    for column in needed:
        left = [other for other in columns if other not in found.values()]
        found.setdefault(column, next(iter(get_close_matches(column, left, n=1, cutoff=0.7)), None))
    return {column: found[column] for column in needed}
