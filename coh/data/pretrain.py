"""Plain text -> documents in which every token is a target, to keep the model's language while it learns.

In: `c4`, `sample`, a hub data set, or a file with a text column. Out: the texts' documents for every window of a
pass, as `plan` takes them. A hub data set is streamed once to `num_docs` documents and kept on disk.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data import draws
from coh.data.encoding import Encoder, Ids
from coh.data.mapped import BLOCK, Ints, folder_of, mapped
from coh.data.pieces import IdTable, encode_column
from coh.data.plan import WINDOW, Spans, Stretches, permute, tokens_of
from coh.data.records import FeedbackError, UnusableRow
from coh.data.sources.fields import as_text, missing, names
from coh.data.sources.reading import read_file, read_text, unit_of
from coh.data.sources.specs import SUFFIXES
from coh.data.sources.tables import counts

log = logging.getLogger("coh")

SAMPLE = Path(__file__).parent / "sample" / "pretrain.jsonl"
HUB_NAMES = {"c4": ("allenai/c4", "en")}
VERSION = 2  # part of the cache's key: raise it when the same input gives other texts
HELD_OUT = 20  # every twentieth text is kept for evaluation


class TextError(FeedbackError):
    """Plain text that cannot be read."""


def load_texts(name: str, num_docs: int, cache_dir: str | None = None) -> Any:
    """The first `num_docs` texts of a file or a hub data set, kept on disk, as a dataset with the column `text`.

    Rows with nothing in that column are left out, and counted in the log.

    Raises:
        TextError: it cannot be read.
        FeedbackError: it has no column of text, something else in it, or no text at all.
    """
    from datasets import Dataset, Features, Value, load_dataset
    from datasets.exceptions import DatasetGenerationError

    path = SAMPLE if name == "sample" else Path(name)
    suffix = path.suffix.lower()
    if path.is_file():
        changed = path.stat()
        identity = f"{path.resolve()}/{changed.st_size}/{changed.st_mtime_ns}"
    elif suffix in (*SUFFIXES, ".txt") or name.startswith((".", "/")):
        raise FeedbackError(f"--pretrain_data {name}: there is no such file")
    else:
        repository, config = HUB_NAMES.get(name, (*name.split(":", 1), None)[:2])
        identity = f"{repository}/{config}"

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        if not path.is_file():
            streamed = enumerate(load_dataset(repository, config, split="train", streaming=True), start=1)
            yield from ((f"--pretrain_data {name}, row {number}", row) for number, row in streamed)
        elif suffix == ".txt":
            paragraphs = enumerate(read_text(path).split("\n\n"), start=1)
            yield from ((f"{path}, paragraph {number}", {"text": text}) for number, text in paragraphs if text.strip())
        elif suffix in SUFFIXES:
            yield from ((f"{path}, {unit_of(path)} {number}", row) for number, row in read_file(path))
        else:
            raise FeedbackError(f"--pretrain_data {name}: the name must end in one of {', '.join((*SUFFIXES, '.txt'))}")

    def texts() -> Iterator[dict[str, str]]:
        found = None
        for found in islice(_texts_of(rows(), name), num_docs):
            yield {"text": found}
        if not found:
            raise FeedbackError(f"--pretrain_data {name} holds no text: give another file, sample, or none")

    key = f"coh-texts-{draws.key(VERSION, f'{identity}/{num_docs}'):016x}"
    try:
        return Dataset.from_generator(
            texts, features=Features({"text": Value("string")}), cache_dir=cache_dir, fingerprint=key
        )
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, FeedbackError):
            raise cause from error
        remedy = (
            "check the file" if path.is_file() else "check the name and the network, or give a file, sample or none"
        )
        raise TextError(f"--pretrain_data {name} cannot be read: {remedy} ({cause})") from error


def _texts_of(rows: Iterable[tuple[str, dict[str, Any]]], name: str) -> Iterator[str]:
    """The texts of rows, each with its place; how many had none is said at the end."""
    column, left_out = "", Counter[str]()
    for place, row in rows:
        try:
            column = column or _text_column(row)
            if column not in row:
                raise FeedbackError(missing(column, column, list(row)))
            text = as_text(row[column], column)
        except UnusableRow as reason:
            left_out[str(reason)] += 1
            continue
        except FeedbackError as error:
            raise FeedbackError(f"{place}: {error}") from None
        if text:
            yield text
        else:
            left_out["empty text"] += 1
    if left_out:
        log.info("--pretrain_data %s: %d rows are left out (%s)", name, left_out.total(), counts(left_out))


def _text_column(row: dict[str, Any]) -> str:
    """The column to learn from: `text`, or the only one that holds text."""
    strings = [column for column, value in row.items() if isinstance(value, str)]
    if "text" in row or len(strings) == 1:
        return "text" if "text" in row else strings[0]
    if not strings and None in row.values():
        raise UnusableRow("null text")  # which column it is shows in a later row
    raise FeedbackError(f"no column `text` among {names(list(row))}: rename the one to learn from")


@dataclass(frozen=True)
class TextDocuments:
    """The documents of one window: each text with its end-of-text token."""

    texts: Texts
    number: Ints
    lengths: Ints

    @property
    def source(self) -> Ints:
        return np.broadcast_to(np.int64(self.texts.source), self.number.shape)

    @property
    def words(self) -> Ids:
        return np.concatenate([self.texts.encoder.bos, self.texts.encoder.eos])

    @property
    def values(self) -> list[Ids]:
        return [self.texts.table.values]

    def stretches(self, spans: Spans) -> Stretches:
        """Where the ids of these spans are: beginning-of-text token, text, end-of-text token, all of them targets."""
        number, length = self.number[spans.document], self.lengths[spans.document]
        zero, num_bos = np.zeros_like(number), len(self.texts.encoder.bos)
        borders = np.stack([zero, zero + num_bos, length - 1, length], axis=1)
        address = np.stack([zero - len(self.words), self.texts.table.starts[number], zero - 1], axis=1)
        kept = np.clip(borders, spans.start[:, None], spans.stop[:, None])
        size = np.diff(kept, axis=1)
        span, cell = np.nonzero(size)
        skipped = kept[span, cell] - borders[span, cell]
        return Stretches(span, address[span, cell] + skipped, size[span, cell], np.ones(len(span), bool))

    def tokens(self, number: int) -> tuple[Ids, NDArray[np.bool_], int]:
        return tokens_of(self, number)


class Texts:
    """The documents of every pass over pretraining text.

    Args:
        dataset: a `datasets.Dataset` with the column `text`.
        held_out: take the part that is kept for evaluation, or the other one.
        source: the number of the source that the documents carry.
    """

    def __init__(self, dataset: Any, encoder: Encoder, *, held_out: bool, source: int, seed: int) -> None:
        self.encoder, self.source, self._seed = encoder, source, seed
        self.table: IdTable = encode_column(dataset, lambda batch: batch["text"], encoder, ["texts"], "Encoding text")

        def used() -> Iterator[Ints]:
            for begin in range(0, len(dataset), BLOCK):
                number = np.arange(begin, min(begin + BLOCK, len(dataset)))
                is_held_out = number % HELD_OUT == HELD_OUT - 1
                yield number[(is_held_out == held_out) & (self.table.lengths(number) > 0)]

        self._used = mapped(used(), np.int64, folder_of(dataset))
        self.num_windows = -(-len(self._used) // WINDOW)

    def __len__(self) -> int:
        return len(self._used)

    def window(self, epoch: int, window: int) -> TextDocuments:
        """The documents of one window of a pass."""
        positions = np.arange(window * WINDOW, min((window + 1) * WINDOW, len(self._used)))
        number = self._used[permute(positions, len(self._used), draws.key(self._seed, "texts", epoch))]
        special = len(self.encoder.bos) + len(self.encoder.eos)
        return TextDocuments(self, number, self.table.lengths(number) + special)
