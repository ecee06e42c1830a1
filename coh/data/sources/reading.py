"""Rows as they are stored, with their numbers: local files, and data sets in folders or on the hub through `datasets`.

In: a `SourceSpec`. Out: the rows of each of its splits, and by what to know whether they have changed. JSON is read
here and not through `datasets`, whose errors name neither the file nor the line, and which cannot tell a missing column
from a null; so is CSV, whose texts it would take for numbers and nulls, and whose columns it shifts where a row has one
field too many. Parquet and whole data sets are read by `datasets`, which runs no code of a data set.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from coh.data.records import FeedbackError
from coh.data.sources.fields import describe, names, shortened
from coh.data.sources.specs import SUFFIXES, SourceSpec

if TYPE_CHECKING:
    from datasets import Dataset

# The names under which data sets keep what is here called train, validation and test; the first that is there is taken.
SPLIT_NAMES = {
    "train": ("train", "train_prefs"),
    "validation": ("validation", "valid", "val", "dev", "validation_prefs"),
    "test": ("test", "test_prefs"),
}

T = TypeVar("T")
TOO_DEEP = "nested too deeply"
MOST_LEVELS = 64
MOST_LETTERS_OF_A_CELL = 2**31 - 1  # Python's own limit, 131072, is less than a long conversation

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
    files = _csv_files(spec, cache_dir) if spec.kind == "folder" else {}
    if files:
        return {name: _open_csv_files(f"{spec} ({name})", paths) for name, paths in files.items()}
    return {name: _open_dataset(f"{spec} ({name})", rows) for name, rows in load_splits(spec, cache_dir).items()}


def _open_file(path: Path) -> RowSource:
    return RowSource(
        location=str(path),
        unit=unit_of(path),
        identity=_identity(path),
        read=lambda columns: read_file(path),
    )


def _open_csv_files(location: str, paths: Sequence[Path]) -> RowSource:
    def read(columns: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
        yield from enumerate((row for path in paths for _, row in read_file(path)), start=1)

    return RowSource(location, "row", (location, *(part for path in paths for part in _identity(path))), read)


def _identity(path: Path) -> tuple[str | int, ...]:
    changed = path.stat()
    return str(path.resolve()), changed.st_size, changed.st_mtime_ns


def unit_of(path: Path) -> str:
    """What a row's number counts in a file."""
    return "line" if path.suffix.lower() == ".jsonl" else "row"


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


def read_text(path: Path) -> str:
    """A whole file of text, whose lines end in \\n whatever ended them."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FeedbackError(_not_utf8(str(path), error)) from None


def _csv_files(spec: SourceSpec, cache_dir: str | os.PathLike | None) -> dict[str, list[Path]]:
    """The files of each split of a folder whose data are CSV, to be read as single ones are; nothing for any other."""
    from datasets import load_dataset_builder

    try:
        made = load_dataset_builder(
            spec.location, name=spec.config, cache_dir=cache_dir and os.fspath(cache_dir)
        ).config
    except Exception as error:  # as in `load_splits`
        raise FeedbackError(_cannot_load(spec, error)) from error
    found = {str(name): [Path(file) for file in files] for name, files in (made.data_files or {}).items()}
    # TSV and the like have a separator of their own, which is left to `datasets`.
    is_csv = getattr(made, "sep", None) == "," and all(
        file.suffix.lower() == ".csv" for files in found.values() for file in files
    )
    return _usual_splits(spec, found) if is_csv else {}


def load_splits(spec: SourceSpec, cache_dir: str | os.PathLike | None = None) -> dict[str, Dataset]:
    """The train, validation and test split of a folder or a hub data set, as far as it has them."""
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
    return _usual_splits(spec, found)


def _usual_splits(spec: SourceSpec, found: Mapping[str, T]) -> dict[str, T]:
    """The splits under the names that they have here; one that is alone is taken, whatever its name."""
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
    if isinstance(rows, dict) and not (len(rows) == 1 and all(isinstance(value, list) for value in rows.values())):
        rows = [rows]  # one object a line, and one line; but {"data": [...]} is no row
    if not isinstance(rows, list):
        raise FeedbackError(f"{path} holds {describe(rows)}, but must hold a list of objects, one for each row")
    if not rows:
        raise FeedbackError(f"{path} holds an empty list: it must hold at least one row")
    for number, row in enumerate(rows, start=1):
        yield number, _checked_row(row, f"{path}, row {number}")


def _read_csv(path: Path) -> Iterator[tuple[int, dict]]:
    """All as text, and nothing as null: the answer "42" is no number, and the answer "NA" is not nothing."""
    csv.field_size_limit(max(csv.field_size_limit(), MOST_LETTERS_OF_A_CELL))
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (fields for fields in csv.reader(file, strict=True) if len(fields) > 1 or "".join(fields).strip())
            header = _csv_header(next(lines, []), path)
            for number, fields in enumerate(lines, start=1):
                yield number, _csv_row(header, fields, f"{path}, row {number}")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise FeedbackError(f"{path}: not UTF-8 after row {number} (0x{byte:02x}): save the file as UTF-8") from None
    except csv.Error as error:
        raise FeedbackError(
            f"{path} cannot be read as csv after row {number}: {error}: close every text that begins with a quotation "
            "mark, and write those inside it twice"
        ) from None
    if not number:
        raise FeedbackError(f"{path} has no rows: it must hold at least one")


def _csv_header(fields: Sequence[str], path: Path) -> list[str]:
    """The names of the columns; those without one, such as the numbers that pandas writes in front, are given one."""
    if not fields:
        raise FeedbackError(f"{path} holds blank lines only: it must hold a line of names, and at least one row")
    twice = [name for name, count in Counter(fields).items() if count > 1 and name.strip()]
    if twice:
        raise FeedbackError(f"{path}: two columns are named {shortened(twice[0])!r}: rename one, or delete it")
    return [name if name.strip() else f"Unnamed: {place}" for place, name in enumerate(fields)]


def _csv_row(header: Sequence[str], fields: Sequence[str], place: str) -> dict[str, str]:
    """A row by its names. Commas at its end add nothing, and what is missing there is empty."""
    if "".join(fields[len(header) :]).strip():
        raise FeedbackError(
            f"{place}: {len(fields)} fields for {len(header)} columns ({names(header)}): put texts that hold a comma "
            "in quotation marks, or give every column a name"
        )
    return dict(zip(header, [*fields, *[""] * (len(header) - len(fields))]))


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    from datasets import load_dataset
    from pyarrow.parquet import read_metadata

    try:
        num_rows = read_metadata(path).num_rows
        if num_rows:
            # Streamed, so that no second copy of the file is written before the groups are.
            rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
            yield from enumerate(_undecoded(rows), 1)
    except Exception as error:  # every reader raises its own kinds
        raise FeedbackError(f"{path} cannot be read as parquet: {_first_line(error.__cause__ or error)}") from error
    if not num_rows:
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
