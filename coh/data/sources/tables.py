"""Groups as rows of a table, there and back: what a store keeps of a group, and what is counted of rows without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coh.data.records import FeedbackError, FeedbackGroup, Message, Segment, UnusableRow, visible
from coh.data.sources.formats import Format
from coh.data.sources.reading import RowSource
from coh.data.sources.scores import Scoring
from coh.data.sources.splitting import prompt_hash

if TYPE_CHECKING:
    from datasets import Features

ROWS_WRITTEN = 4096  # at a time
PLACES_TOLD = 3  # rows named for each reason to drop some


def table_features() -> Features:
    """The columns of a table of groups."""
    from datasets import Features, Value

    return Features(
        {
            "task": Value("string"),
            "prompt": [{"role": Value("string"), "content": Value("string")}],
            "outputs": [Value("string")],
            "ranks": [Value("int32")],
            "critiques": [Value("string")],
            "revision": Value("string"),
            "is_good": Value("bool"),
            "verbatim": [{"text": Value("string"), "is_target": Value("bool")}],
            "row": Value("int64"),
            "prompt_hash": Value("int64"),
        }
    )


def table_rows(
    source: RowSource,
    form: Format,
    scoring: Scoring,
    limit: int | None,
    dropped: Counter[str],
    places: dict[str, list[int]] | None = None,
) -> Iterator[dict]:
    """What is stored of each group; rows that give none are counted in `dropped`, the first of them are in `places`."""
    num_groups = 0
    places = {} if places is None else places
    for first, last, rows in _together(source.read(form.columns_read), form):
        try:
            group = form.group(rows, scoring)
            split_prompt = form.split_prompt(rows[0]) if form.split_prompt else group.prompt
        except UnusableRow as reason:
            dropped[str(reason)] += len(rows)
            if len(places.setdefault(str(reason), [])) < PLACES_TOLD:
                places[str(reason)].append(first)
            continue
        except FeedbackError as error:
            place = f"{source.unit} {first}" if first == last else f"{source.unit}s {first} to {last}"
            raise FeedbackError(f"{source.location}, {place}: {error}") from None
        yield row_of(group, first, split_prompt)
        num_groups += 1
        if num_groups == limit:
            return
    if not num_groups:
        raise FeedbackError(
            f"{source.location}: none of its rows gives a group ({counts(dropped, places, source.unit)})"
        )


def write_table(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """The rows as an Arrow file, which `Dataset.from_file` maps into memory."""
    import pyarrow as pa

    schema = table_features().arrow_schema
    with pa.ipc.new_stream(str(path), schema) as writer:
        while batch := list(islice(rows, ROWS_WRITTEN)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def row_of(group: FeedbackGroup, number: int, split_prompt: Sequence[Message]) -> dict[str, Any]:
    """What the table holds of a group from the row with this number."""
    return {
        "task": group.task,
        "prompt": [vars(turn) for turn in group.prompt],
        "outputs": group.outputs,
        "ranks": group.ranks,
        "critiques": group.critiques,
        "revision": group.revision,
        "is_good": group.is_good,
        "verbatim": [vars(segment) for segment in group.verbatim],
        "row": number,
        "prompt_hash": prompt_hash(split_prompt),
    }


def group_of(row: dict[str, Any], source: str) -> FeedbackGroup:
    """The group that a row of the table holds."""
    return FeedbackGroup(
        source=source,
        prompt=tuple(Message(**turn) for turn in row["prompt"]),
        outputs=tuple(row["outputs"]),
        ranks=tuple(row["ranks"]),
        critiques=tuple(row["critiques"]),
        revision=row["revision"],
        task=row["task"],
        is_good=row["is_good"],
        verbatim=tuple(Segment(**segment) for segment in row["verbatim"]),
    )


def shown(group: FeedbackGroup) -> Iterator[str]:
    """A group in some lines: a chain with words of its own as it stands, any other by its parts.

    >>> list(shown(FeedbackGroup("demo", (Message("user", "2 + 2?"),), ("5",), (1,), is_good=False)))
    ['user: 2 + 2?', 'output, bad: 5']
    """
    for segment in group.verbatim:
        yield f"{'output' if segment.is_target else 'words'}: {_shortened(segment.text)}"
    if group.verbatim:
        return
    for turn in group.prompt:
        yield f"{turn.role}: {_shortened(turn.content)}"
    verdict = {True: ", good", False: ", bad", None: ""}[group.is_good]
    for place, (rank, output) in enumerate(zip(group.ranks, group.outputs)):
        what = f", rank {rank}" if len(group.outputs) > 1 else verdict
        yield f"output{what}: {_shortened(output)}"
        if group.critiques and group.critiques[place]:
            yield f"  critique: {_shortened(group.critiques[place])}"


def _shortened(text: str, width: int = 100) -> str:
    """One line; control characters are spelled out, because a terminal would obey them."""
    text = visible(" ".join(text.split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def counts(dropped: dict[str, int], places: Mapping[str, Sequence[int]] | None = None, unit: str = "row") -> str:
    """Reasons and how often, the most frequent first, with the first rows that each was met in.

    >>> counts({"empty prompt": 2, "null label": 9}, {"empty prompt": [4, 7], "null label": [1, 2, 3]})
    'null label: 9 (rows 1, 2, 3, ...), empty prompt: 2 (rows 4, 7)'
    """

    def where(reason: str, count: int) -> str:
        found = (places or {}).get(reason, ())
        more = ", ..." if count > len(found) else ""
        return f" ({unit}{'s' if count > 1 else ''} {', '.join(map(str, found))}{more})" if found else ""

    by_count = sorted(dropped.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason}: {count}{where(reason, count)}" for reason, count in by_count)


def _together(rows: Iterable[tuple[int, dict]], form: Format) -> Iterator[tuple[int, int, list[dict]]]:
    """The rows of each group, and the numbers of the first and the last."""
    if form.group_by is None:  # by itself, and without a look at the next: a cap reads no further than it has to
        for number, row in rows:
            yield number, number, [row]
        return
    key = form.group_by
    if form.is_scattered:
        gathered: dict[str, list[tuple[int, dict]]] = {}
        for number, row in rows:
            gathered.setdefault(repr(key(row)), []).append((number, row))
        grouped: Iterable[Iterable[tuple[int, dict]]] = gathered.values()
    else:
        grouped = (same for _, same in groupby(rows, key=lambda numbered: key(numbered[1])))
    for same in grouped:
        numbers, together = zip(*same)
        yield numbers[0], numbers[-1], list(together)
