"""Rows that a model is to answer or to judge: prompts from a file, with or without outputs, ranked or not.

In: files and sources as training takes them, plain rows with a `prompt`, text files with a prompt a line. Out: prompts
and outputs as they are used everywhere, each with its place, so that an error can name it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from coh.data.records import FeedbackError, Message, UnusableRow, as_messages, clean_output
from coh.data.sources import check_format, load_groups, parse_columns, parse_sources
from coh.data.sources.fields import as_whole_text, describe, missing
from coh.data.sources.naming import find_format, renamed
from coh.data.sources.reading import RowSource, columns_of, open_source, read_file, read_text, unit_of
from coh.data.sources.specs import SUFFIXES, SourceSpec
from coh.data.sources.turns import turns_from

Prompt = str | Sequence[Message] | Sequence[dict[str, str]]
PLAIN = "outputs"  # the format of rows that nobody has ranked
OUTPUT_COLUMNS = ("outputs", "responses", "versions", "output", "response", "completion")
SPLITS = ("test", "validation", "train")
NUM_FIRST_ROWS = 20
# What JSON lets stand as it is, besides all that can be shown: control characters above ASCII, signs that part lines,
# halves of characters.
_UNSHOWN = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class PromptRow:
    """A prompt with the row that it stands in; `place` is what an error calls it."""

    place: str
    prompt: tuple[Message, ...]
    row: dict[str, Any]


@dataclass(frozen=True)
class JudgedRow:
    """Outputs to be judged. `human_ranks` (1 for the best) are there where people ranked them.

    `row` is what is written beside the scores. `task` is None where the model's own choice will do.
    """

    place: str
    prompt: tuple[Message, ...]
    outputs: tuple[str, ...]
    row: dict[str, Any]
    human_ranks: tuple[int, ...] = ()
    task: str | None = None


def as_line(fields: dict[str, Any]) -> str:
    """A row as one line of JSON, in which nothing is left that a terminal would obey or a file cannot hold.

    >>> as_line({"output": "Grüße \x9b1m"})
    '{"output": "Grüße \\\\u009b1m"}'
    """
    line = json.dumps(fields, ensure_ascii=False, default=str)
    return _UNSHOWN.sub(lambda letter: f"\\u{ord(letter[0]):04x}", line)


def as_prompt(prompt: Prompt) -> tuple[Message, ...]:
    """A prompt in any form that people write it in, as the turns it is: text, messages, or {"role", "content"}.

    >>> as_prompt([{"role": "user", "content": "Why is the sky blue?"}])
    (Message(role='user', content='Why is the sky blue?'),)

    Raises:
        FeedbackError: it says nothing, or is none of these.
    """
    if isinstance(prompt, (list, tuple)) and any(isinstance(turn, Message) for turn in prompt):
        turns = tuple(prompt)
    else:
        try:
            turns = turns_from(list(prompt) if isinstance(prompt, tuple) else prompt, "prompt", "user")
        except UnusableRow as reason:
            raise FeedbackError(f"field 'prompt' gives nothing to answer: {reason}") from None
    if not any(turn.content.strip() for turn in turns):
        raise FeedbackError("the prompt is empty: give the text that the output is for")
    if turns[-1].role == "assistant":
        raise FeedbackError("the prompt ends with the assistant's turn: end it with what is to be answered")
    return as_messages(turns)


def read_prompts(path: str | os.PathLike) -> list[PromptRow]:
    """The prompts of a file: rows with a `prompt` (.jsonl, .json, .csv, .parquet), or one on each line (.txt).

    Raises:
        FeedbackError: what a person has to mend, with file and row.
    """
    path = Path(path)
    if not path.is_file():
        raise FeedbackError(f"there is no file {str(path)!r}: check the path")
    if path.suffix.lower() == ".txt":
        lines = read_text(path).split("\n")  # other signs that part lines may stand in a text
        numbered = [(number, {"prompt": line.strip()}) for number, line in enumerate(lines, 1) if line.strip()]
    elif path.suffix.lower() in SUFFIXES:
        numbered = list(read_file(path))
    else:
        raise FeedbackError(f"{path}: the name of a file of prompts ends in one of .txt, {', '.join(SUFFIXES)}")
    if not numbered:
        raise FeedbackError(f"{path} holds no prompt: it must hold at least one")
    unit = "line" if path.suffix.lower() == ".txt" else unit_of(path)
    return [_prompt_row(f"{path}, {unit} {number}", row) for number, row in numbered]


def _prompt_row(place: str, row: dict[str, Any]) -> PromptRow:
    if "prompt" not in row:
        raise FeedbackError(f"{place}: {missing('prompt', 'prompt', list(row))}")
    try:
        return PromptRow(place, as_prompt(row["prompt"]), row)
    except FeedbackError as error:
        raise FeedbackError(f"{place}: {error}") from None


def read_judged(
    source: str,
    *,
    feedback_format: str = "auto",
    split: str | None = None,
    cache_dir: str | None = None,
    columns: Sequence[str] = (),
) -> Iterator[JudgedRow]:
    """The rows of a source: feedback in any form that training takes, else a prompt and outputs.

    Outputs that people ranked come best first, others in the order of the row.

    Args:
        source: as after --feedback_data: a built-in name, a file, a folder or a hub id.
        feedback_format: auto, the name of a format, or "outputs" for rows that nobody has ranked.
        split: of a source with several; by default test, or what comes nearest to it.
        columns: which of its columns are a format's, as in "prompt=question".

    Raises:
        FeedbackError: what a person has to mend, with file and row.
    """
    for spec in parse_sources([source]):
        chosen = spec.format if spec.format != "auto" else feedback_format
        if chosen in (PLAIN, "auto"):
            mapped = parse_columns(columns)
            sources = {name: renamed(source, mapped) for name, source in open_source(spec, cache_dir).items()}
            if chosen == PLAIN or _is_plain(next(iter(sources.values()))):
                yield from _plain_rows(spec, sources[_split_of(spec, sources, split)])
                continue
        stores = load_groups(spec, feedback_format=chosen, cache_dir=cache_dir, columns=columns)
        store = stores[_split_of(spec, stores, split)]
        for index in range(len(store)):
            group = store.group(index)
            number = int(store.dataset[index]["row"])
            place = f"{store.location}, row {number}"
            if group.verbatim:
                raise FeedbackError(
                    f"{place}: a record with `fields` brings its own words, so good and bad ones cannot be compared: "
                    "give rows with `prompt` and `outputs`, or feedback in another format"
                )
            row: dict[str, Any] = {
                "source": spec.name,
                "row": number,
                "prompt": [asdict(turn) for turn in group.prompt],
            }
            row["outputs"] = list(group.outputs)
            if group.is_good is not None:
                row["is_good"] = group.is_good
            ranks = group.ranks if len(group.outputs) > 1 else ()
            yield JudgedRow(place, group.prompt, group.outputs, row, ranks, group.task)


def check_judged_format(name: str) -> None:
    """Raises `FeedbackError` for a format that `read_judged` does not know."""
    if name not in ("auto", PLAIN):
        check_format(name)


def _split_of(spec: SourceSpec, splits: dict[str, Any], wanted: str | None) -> str:
    if wanted and wanted not in splits:
        raise FeedbackError(f"{spec} has no split {wanted!r}: choose one of {', '.join(splits)} with --split")
    return wanted or next((name for name in SPLITS if name in splits), next(iter(splits)))


def _is_plain(source: RowSource) -> bool:
    """Whether rows hold a prompt and outputs, and no format of feedback has their columns."""
    first = [row for _, row in islice(source.read(None), NUM_FIRST_ROWS)]
    columns = columns_of(first)
    try:
        find_format(columns, first)
    except FeedbackError:
        return "prompt" in columns and any(name in columns for name in OUTPUT_COLUMNS)
    return False


def _plain_rows(spec: SourceSpec, source: RowSource) -> Iterator[JudgedRow]:
    for place, (number, row) in enumerate(source.read(None)):
        if place == spec.limit:
            return
        where = f"{source.location}, {source.unit} {number}"
        prompt = _prompt_row(where, row).prompt
        try:
            yield JudgedRow(where, prompt, _outputs_of(row), row)
        except (FeedbackError, UnusableRow) as error:
            raise FeedbackError(f"{where}: {error}") from None


def _outputs_of(row: dict[str, Any]) -> tuple[str, ...]:
    column = next((name for name in OUTPUT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise FeedbackError(f"no outputs: name their field one of {', '.join(OUTPUT_COLUMNS)}")
    value = [row[column]] if isinstance(row[column], str) else row[column]
    if not isinstance(value, list) or not value:
        raise FeedbackError(f"field {column!r} is {describe(value)}, but must be a text or a list of texts")
    return tuple(clean_output(as_whole_text(text, f"{column}[{place}]")) for place, text in enumerate(value))
