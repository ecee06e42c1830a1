"""Rows as they are stored, with their numbers: local files, and data sets in folders or on the hub through `datasets`.

In: a `SourceSpec`. Out: the rows of each of its splits, and by what to know whether they have changed. JSON is read
here and not through `datasets`, whose errors name neither the file nor the line, and which cannot tell a missing column
from a null. CSV, Parquet and whole data sets are read by `datasets`, which runs no code of a data set.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coh.data.records import FeedbackError
from coh.data.sources.fields import describe, shortened
from coh.data.sources.specs import SUFFIXES, SourceSpec

if TYPE_CHECKING:
    from datasets import Dataset

# The names under which data sets keep what is here called train, validation and test; the first that is there is taken.
SPLIT_NAMES = {
    "train": ("train", "train_prefs"),
    "validation": ("validation", "valid", "val", "dev", "validation_prefs"),
    "test": ("test", "test_prefs"),
}

TOO_DEEP = "nested too deeply"
MOST_LEVELS = 64

# These keep a loading script on their main branch, which `datasets` no longer runs; the hub keeps the same rows as
# Parquet files on a branch of its own. To be removed when their main branches hold data files.
_PARQUET_BRANCH = "refs/convert/parquet"
_ON_PARQUET_BRANCH = ("openai/webgpt_comparisons", "openai/summarize_from_feedback")


@dataclass(frozen=True)
class RowSource:
    """The rows of one split. `read` starts over at every call; given columns, it may leave out the others.

    `identity` changes when the rows do. `unit` is what a row's number counts: a line of the file, or a row.
    """

    location: str
    unit: str
    identity: tuple[str | int, ...]
    read: Callable[[Sequence[str] | None], Iterator[tuple[int, dict]]]


def open_source(spec: SourceSpec, cache_dir: str | os.PathLike | None = None) -> dict[str, RowSource]:
    """The splits of a source by name; a file has one, "train"."""
    if spec.kind == "file":
        return {"train": _open_file(Path(spec.location))}
    return {name: _open_dataset(f"{spec} ({name})", rows) for name, rows in load_splits(spec, cache_dir).items()}


def _open_file(path: Path) -> RowSource:
    changed = path.stat()
    return RowSource(
        location=str(path),
        unit="line" if path.suffix.lower() == ".jsonl" else "row",
        identity=(str(path.resolve()), changed.st_size, changed.st_mtime_ns),
        read=lambda columns: read_file(path),
    )


def _open_dataset(location: str, dataset: Dataset) -> RowSource:
    def read(columns: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
        # Only what is asked for: webgpt keeps each answer's token ids too, ten times as much as its words.
        present = [name for name in dataset.column_names if columns is None or name in columns]
        yield from enumerate(_undecoded(dataset.select_columns(present).to_iterable_dataset()), start=1)

    # `datasets` names its files by hub revision, or by the names and times of a folder's files.
    files = [file["filename"] for file in dataset.cache_files]
    return RowSource(location, "row", (str(dataset.split), *files), read)


def _undecoded(rows: Any) -> Any:
    """The rows with images and the like left as they are stored: decoding one would open a path that the data names."""
    return rows.decode(False) if rows.features else rows


def read_file(path: Path) -> Iterator[tuple[int, dict]]:
    """The rows of a local file and their numbers from 1: in .jsonl the line, elsewhere the row.

    Raises `FeedbackError` with file, line and column where something cannot be read.
    """
    if path.stat().st_size == 0:
        raise FeedbackError(f"{path} is empty: it must hold at least one row")
    readers = {".jsonl": _read_json_lines, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    return readers[path.suffix.lower()](path)


def load_splits(spec: SourceSpec, cache_dir: str | os.PathLike | None = None) -> dict[str, Dataset]:
    """The train, validation and test split of a folder or a hub data set, as far as it has them.

    A data set with one split only gives that one, whatever its name.
    """
    from datasets import DatasetDict, load_dataset

    options = {"name": spec.config}
    if spec.location in _ON_PARQUET_BRANCH and spec.kind == "hub":
        options = {"revision": _PARQUET_BRANCH, "data_dir": spec.config or "default"}
    try:
        found: DatasetDict = load_dataset(
            spec.location, cache_dir=os.fspath(cache_dir) if cache_dir else None, **options
        )
    except Exception as error:  # the hub, the network, the disk and every reader raise their own kinds
        raise FeedbackError(_cannot_load(spec, error)) from error
    if len(found) == 1:
        return dict(found)
    chosen = {
        name: next((found[other] for other in others if other in found), None) for name, others in SPLIT_NAMES.items()
    }
    splits = {name: split for name, split in chosen.items() if split is not None}
    if not splits:
        raise FeedbackError(
            f"{spec} has the splits {', '.join(found)}, and none of train, validation and test: "
            "save the split you want as a file and name that"
        )
    return splits


def _cannot_load(spec: SourceSpec, error: Exception) -> str:
    where = "the folder" if spec.kind == "folder" else "the hub data set"
    if "scripts are no longer supported" in str(error):
        remedy = "it is a program and no data; save its rows as a .jsonl or .parquet file and give that"
    elif spec.kind == "hub":
        remedy = f"check the name and the network, or give a local copy, as in {spec.name}=FILE.jsonl"
    else:
        remedy = f"it must hold files with rows ({', '.join(SUFFIXES)})"
    return f"cannot load {where} {spec}: {remedy} ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    is_empty = True
    with path.open("rb") as file:  # in bytes, because only \n ends a line of JSON
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, f"{path}, line {number}")
            if line.strip():
                is_empty = False
                yield number, _parse_line(line, path, number)
    if is_empty:
        raise FeedbackError(f"{path} holds blank lines only: it must hold at least one row")


def _parse_line(line: str, path: Path, number: int) -> dict:
    try:
        row = json.loads(line.rstrip("\r\n"))
    except (ValueError, RecursionError) as error:
        if number == 1 and line.strip() in ("[", "{"):
            remedy = "a .jsonl file holds one object a line; a file that holds one list is named .json"
        else:
            remedy = "mend or delete the line"
        place = f"line {number}, column {getattr(error, 'colno', 1)}"
        raise FeedbackError(
            f"{path}, {place}: no JSON ({_reason(error)}): {remedy}. It reads: {_shown(line)}"
        ) from None
    return _checked_row(row, f"{path}, line {number}")


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError):
        return getattr(error, "msg", "a number has too many digits")
    return TOO_DEEP


def _read_json(path: Path) -> Iterator[tuple[int, dict]]:
    text = _decode(path.read_bytes(), str(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # one object a line, under the name .json
            yield from _read_json_lines(path)
            return
        place = f"line {error.lineno}, column {error.colno}"
        raise FeedbackError(f"{path}, {place}: no JSON ({error.msg}): mend the file there") from None
    except (ValueError, RecursionError) as error:
        raise FeedbackError(f"{path}: no JSON of rows ({_reason(error)})") from None
    if not isinstance(rows, list):
        raise FeedbackError(f"{path} holds {describe(rows)}, but must hold a list of objects, one for each row")
    if not rows:
        raise FeedbackError(f"{path} holds an empty list: it must hold at least one row")
    for number, row in enumerate(rows, start=1):
        yield number, _checked_row(row, f"{path}, row {number}")


def _read_csv(path: Path) -> Iterator[tuple[int, dict]]:
    from datasets import Features, Value

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header: list[str] = next((words for words in csv.reader(file) if words), [])
    except UnicodeDecodeError as error:
        raise FeedbackError(_not_utf8(str(path), error)) from None
    except csv.Error as error:
        raise FeedbackError(f"{path} cannot be read as csv: {error}") from None
    if not header:
        raise FeedbackError(f"{path} holds blank lines only: it must hold a line of names, and at least one row")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise FeedbackError(f"{path}: two columns are named {shortened(twice[0])!r}: rename one, or delete it")
    # All columns as text, and nothing as null: otherwise the answer "42" becomes a number and the answer "NA" nothing.
    features = Features({column: Value("string") for column in header})
    yield from _read_table("csv", path, features=features, na_filter=False)


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    yield from _read_table("parquet", path)


def _read_table(kind: str, path: Path, **options: object) -> Iterator[tuple[int, dict]]:
    from datasets import load_dataset

    is_empty = True
    try:
        # Streamed, so that no second copy of the file is written before the groups are.
        rows = load_dataset(kind, data_files=str(path), split="train", streaming=True, **options)
        for number, row in enumerate(_undecoded(rows), 1):
            is_empty = False
            yield number, row
    except UnicodeDecodeError as error:
        raise FeedbackError(_not_utf8(str(path), error)) from None
    except Exception as error:  # every reader raises its own kinds
        raise FeedbackError(f"{path} cannot be read as {kind}: {_first_line(error.__cause__ or error)}") from error
    if is_empty:
        raise FeedbackError(f"{path} has no rows: it must hold at least one")


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FeedbackError(_not_utf8(place, error)) from None


def _not_utf8(place: str, error: UnicodeDecodeError) -> str:
    bad = error.object[error.start]
    return f"{place}: not UTF-8 (byte {error.start + 1} is 0x{bad:02x}): save the file as UTF-8"


def _checked_row(row: object, place: str) -> dict:
    if not isinstance(row, dict):
        raise FeedbackError(f"{place}: a row is {describe(row)}, but must be an object with named fields")
    if _is_deep(row):
        raise FeedbackError(f"{place}: {TOO_DEEP}: a row of feedback has a few levels, not more than {MOST_LEVELS}")
    return row


def _is_deep(row: dict) -> bool:
    """Whether lists and objects stand in each other so often that comparing or showing them might not end well."""
    values: list[Any] = [row]
    for _ in range(MOST_LEVELS):
        outer = [
            value.values() if isinstance(value, dict) else value for value in values if type(value) in (dict, list)
        ]
        values = [inner for value in outer for inner in value]
        if not values:
            return False
    return True


def _shown(line: str, width: int = 60) -> str:
    line = line.strip()
    return line[:width] + ("…" if len(line) > width else "")


def columns_of(rows: Sequence[dict]) -> list[str]:
    """All columns of some rows, in the order in which they appear."""
    return list(dict.fromkeys(column for row in rows for column in row))
