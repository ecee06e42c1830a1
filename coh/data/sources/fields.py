"""Values out of a row, checked: what is missing or of the wrong type is said with the field's name and the nearest one.

A null value gives no group (`UnusableRow`); a missing field or a wrong type is for a person to mend (`FeedbackError`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from coh.data.records import FeedbackError, UnusableRow

MOST_NAMES, MOST_LETTERS = 40, 60  # of what is quoted from the data in an error message
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}


def describe(value: Any, width: int = 40) -> str:
    """What a value is, for an error message.

    >>> describe([1, 2])
    'a list ([1, 2])'
    """
    try:
        shown = repr(value)
    except RecursionError:  # lists in lists without end
        shown = "…"
    return f"{_KINDS.get(type(value), 'an object')} ({shown[:width]}{'…' if len(shown) > width else ''})"


def value_at(row: dict, path: str, within: str = "") -> Any:
    """The value of `path`, which names fields inside fields with dots; `within` says where the row itself stands.

    >>> value_at({"question": {"full_text": "Why?"}}, "question.full_text")
    'Why?'
    """
    value: Any = row
    walked: list[str] = []
    for key in path.split("."):
        if value is None:
            raise UnusableRow(f"null {within}{'.'.join(walked)}")
        if not isinstance(value, dict):
            raise FeedbackError(
                f"field '{within}{'.'.join(walked)}' is {describe(value)}, but must be an object with {key!r}"
            )
        if key not in value:
            raise FeedbackError(missing(within + ".".join([*walked, key]), key, list(value)))
        value = value[key]
        walked.append(key)
    return value


def text_at(row: dict, path: str) -> str:
    """The text of `path` without white space around it."""
    return as_text(value_at(row, path), path)


def as_text(value: Any, path: str) -> str:
    return as_whole_text(value, path).strip()


def as_whole_text(value: Any, path: str) -> str:
    """A text with the white space around it, which may be the indentation of code."""
    if value is None:
        raise UnusableRow(f"null {shortened(path)}")
    if not isinstance(value, str):
        raise FeedbackError(f"field {shortened(path)!r} is {describe(value)}, but must be text")
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise UnusableRow(f"half a character in {shortened(path)}")  # no file and no tokenizer can hold it
    return value


def list_at(row: dict, path: str, length: int | None = None) -> list:
    """The list of `path`, of this length where one is given."""
    value = value_at(row, path)
    if value is None:
        raise UnusableRow(f"null {path}")
    if not isinstance(value, list):
        raise FeedbackError(f"field {path!r} is {describe(value)}, but must be a list")
    if length is not None and len(value) != length:
        raise FeedbackError(f"field {path!r} has {len(value)} entries for {length} outputs: give one for each")
    return value


def is_true_at(row: dict, path: str) -> bool:
    """The verdict of `path`: true or false, 1 or 0, and the same as text, because every value of a CSV file is text."""
    value = value_at(row, path)
    if _is_blank(value):
        raise UnusableRow(f"null {path}")
    verdict = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower().removesuffix(".0"))
    if verdict is None:
        raise FeedbackError(f"field {path!r} is {describe(value)}, but must be true or false (or 1 or 0)")
    return verdict


def number_at(row: dict, path: str) -> float:
    """The number of `path`; text that holds a number will do, because every value of a CSV file is text."""
    return as_number(value_at(row, path), path)


def as_number(value: Any, path: str) -> float:
    if _is_blank(value):
        raise UnusableRow(f"null {path}")
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise FeedbackError(f"field {path!r} is {describe(value)}, but must be a number")
    if math.isnan(number):
        raise UnusableRow(f"{path} is not a number (NaN)")
    if math.isinf(number):
        raise UnusableRow(f"{path} is infinite")
    return number


def _is_blank(value: Any) -> bool:
    """Null, or the nothing that a CSV file has in its place."""
    return value is None or (isinstance(value, str) and not value.strip())


def missing(path: str, key: str, present: Sequence[str]) -> str:
    """What to say of a field that is not there.

    >>> missing("info.post", "post", ["id", "psot"])
    "field 'info.post' is missing: the nearest there is is 'psot'; rename it"
    """
    near = get_close_matches(key[:MOST_LETTERS], present[:1000], n=1, cutoff=0.6)
    guess = f"the nearest there is is {near[0]!r}; rename it" if near else f"there are {names(present)}"
    return f"field {shortened(path)!r} is missing: {guess}"


def names(present: Sequence[str]) -> str:
    """Names that stand in the data, for an error message: the first ones, and not all of a very long one.

    >>> names(["id", "text"])
    "'id', 'text'"
    """
    more = f" and {len(present) - MOST_NAMES} more" if len(present) > MOST_NAMES else ""
    return (", ".join(repr(shortened(name)) for name in present[:MOST_NAMES]) or "none") + more


def shortened(text: str, width: int = MOST_LETTERS) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
