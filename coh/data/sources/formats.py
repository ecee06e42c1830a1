"""Every form in which feedback is stored, by name, and how a form is found from the columns.

A format is one pure function from a row to a `FeedbackGroup`, registered in `FORMATS` with the columns it reads. Adding
one is writing that function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from coh.data.records import FeedbackError, FeedbackGroup, Message
from coh.data.sources.critiques import read_critique
from coh.data.sources.field_records import marked_prompt, read_fields
from coh.data.sources.fields import missing, names, shortened
from coh.data.sources.helpsteer import prompt_of, read_helpsteer
from coh.data.sources.hh_rlhf import is_transcript, read_hh_rlhf
from coh.data.sources.preference import read_preference, read_scored_preference
from coh.data.sources.rankings import prompt_of_whole, read_ranked, read_rated, read_rated_rows, read_ultrafeedback
from coh.data.sources.scores import ATTRIBUTES, SCORING, Scoring
from coh.data.sources.summarize import read_summarize
from coh.data.sources.thumbs import read_thumbs
from coh.data.sources.webgpt import question_of, read_webgpt, read_webgpt_quotes


@dataclass(frozen=True)
class Format:
    """How rows of one form become groups.

    `read` makes a group of a row, and of a `Scoring` where the form `has_scores`. With `group_by`, consecutive rows for
    which it gives the same are one group, and `read` takes a list of rows.

    `optional_columns` are read where they are there; None means that a row names them itself. `fits` looks at a row to
    tell apart forms that share their columns. `is_scattered` is for rows of a group that stand anywhere in their file.
    A form with `is_found` off has to be asked for by name. `split_prompt` names the prompt that decides a row's split,
    where that is not the group's own.
    """

    read: Callable[..., FeedbackGroup]
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...] | None = ()
    has_scores: bool = False
    group_by: Callable[[dict], Any] | None = None
    is_scattered: bool = False
    fits: Callable[[dict], bool] | None = None
    is_found: bool = True
    split_prompt: Callable[[dict], tuple[Message, ...]] | None = None

    @property
    def columns_read(self) -> tuple[str, ...] | None:
        """All columns that matter; None where every one may."""
        return None if self.optional_columns is None else (*self.columns, *self.optional_columns)

    def group(self, rows: Sequence[dict], scoring: Scoring = SCORING) -> FeedbackGroup:
        """The group that these rows are: one row, unless the form takes several together."""
        given = rows if self.group_by else rows[0]
        return self.read(given, scoring) if self.has_scores else self.read(given)


LISTS = ("responses", "ranks", "scores", "completions", "summaries", "fields", "critiques")
_ANSWERS = ("question", "answer_0", "answer_1", "score_0", "score_1")

# Where several fit, the one that reads most columns is taken, then the first in this order.
FORMATS: dict[str, Format] = {
    "webgpt": Format(read_webgpt, _ANSWERS, has_scores=True),
    "webgpt_quotes": Format(
        read_webgpt_quotes,
        (*_ANSWERS, "quotes_0", "quotes_1"),
        has_scores=True,
        is_found=False,
        split_prompt=question_of,
    ),
    "summarize": Format(read_summarize, ("info", "summaries", "choice")),
    "hh_rlhf": Format(read_hh_rlhf, ("chosen", "rejected"), fits=is_transcript),
    "preference": Format(read_preference, ("chosen", "rejected"), ("prompt",)),
    "scored_preference": Format(
        read_scored_preference,
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        ("prompt",),
        has_scores=True,
    ),
    "ranked": Format(read_ranked, ("prompt", "responses", "ranks"), ("critiques",)),
    "rated": Format(read_rated, ("prompt", "responses", "scores"), ("critiques",), has_scores=True),
    "ultrafeedback": Format(read_ultrafeedback, ("completions",), ("prompt", "instruction"), has_scores=True),
    "helpsteer": Format(read_helpsteer, ("prompt", "response", *ATTRIBUTES), has_scores=True, group_by=prompt_of),
    "rated_rows": Format(
        read_rated_rows, ("prompt", "response", "score"), has_scores=True, group_by=prompt_of_whole, is_scattered=True
    ),
    "thumbs": Format(read_thumbs, ("prompt", "completion", "label")),
    "critique": Format(read_critique, ("prompt", "response", "critique"), ("revision",)),
    "fields": Format(read_fields, ("fields",), optional_columns=None, split_prompt=marked_prompt),
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
        raise FeedbackError(_no_format(columns, first_rows))
    return max(found, key=lambda name: len({*columns} & {*(FORMATS[name].columns_read or columns)}))


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


def _no_format(columns: Sequence[str], rows: Sequence[dict] = ()) -> str:
    """What is nearest, and what to rename; all formats where nothing is near."""
    seen = names(columns)
    has_lists = not rows or any(isinstance(value, list) for row in rows for value in row.values())
    columns = [shortened(column) for column in columns[:1000]]
    found = {name: form for name, form in FORMATS.items() if form.is_found and (has_lists or not _wants_lists(form))}
    renames = {name: _renames(form.columns_read or form.columns, columns) for name, form in found.items()}

    def distance(name: str) -> tuple[float, int]:
        num_near = sum(old is not None for old in renames[name].values())
        # A column under another name is half as far as a missing one.
        steps = [
            1.0 if renames[name][column] is None else 0.5
            for column in found[name].columns
            if renames[name][column] != column
        ]
        return sum(steps) / len(found[name].columns), -num_near

    best = min(found, key=distance)
    if distance(best)[0] > 0.5:
        known = "; ".join(f"{name}: {', '.join(form.columns)}" for name, form in found.items())
        return (
            f"no format has the columns {seen}. Say which is which, as in --feedback_columns prompt=... chosen=... "
            f"rejected=..., by the columns of a format ({known})"
        )
    steps = [f"rename {old!r} to {new!r}" for new, old in renames[best].items() if old not in (new, None)]
    steps += [f"add {column!r}" for column in found[best].columns if renames[best][column] is None]
    needed = ", ".join(found[best].columns)
    return f"no format has the columns {seen}; the nearest is {best!r}, which needs {needed}: {'; '.join(steps)}"


def _wants_lists(form: Format) -> bool:
    return any(column in LISTS for column in form.columns)


def _renames(needed: Sequence[str], columns: Sequence[str]) -> dict[str, str | None]:
    """For each needed column the one that it may be under another name; each is taken once."""
    found: dict[str, str | None] = {column: column for column in needed if column in columns}
    for column in needed:
        left = [other for other in columns if other not in found.values()]
        found.setdefault(column, next(iter(get_close_matches(column, left, n=1, cutoff=0.7)), None))
    return {column: found[column] for column in needed}
