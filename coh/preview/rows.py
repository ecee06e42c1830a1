"""Rows as they are trained, taken apart for people: documents, and runs of tokens of one kind, with their text.

In: a `CoHDataset` and the number of a row. Out: a `RowView`, whose ids and targets are those of the dataset's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.records import visible
from coh.data.table import CRITIQUE, OUTPUT, PROMPT, VERBATIM, WORDS
from coh.modeling import special_tokens

__all__ = ["DocumentView", "RowView", "Run", "planned", "split_text", "view_row", "visible"]

IGNORED = -100
TEXT = "text"  # pretraining text
KINDS = {WORDS: "words", PROMPT: "prompt", OUTPUT: "output", CRITIQUE: "critique", VERBATIM: "record"}


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind; `tokens` has the text and the ids of each, if they were asked for.

    A character that is spread over several tokens stands with the last of them, so a token may bring several ids.
    """

    kind: str
    is_target: bool
    is_special: bool
    text: str
    ids: tuple[int, ...]
    tokens: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def look(self) -> str:
        """What the run is shown as: a target is a target, whatever it stands in."""
        return "target" if self.is_target else self.kind


@dataclass(frozen=True)
class DocumentView:
    """A document, or the part of it that stands in the row; `num_whole` counts the tokens of all of it."""

    source: str
    template: str
    runs: tuple[Run, ...]
    num_whole: int

    @property
    def num_tokens(self) -> int:
        return sum(len(run.ids) for run in self.runs)

    @property
    def num_targets(self) -> int:
        return sum(len(run.ids) for run in self.runs if run.is_target)


@dataclass(frozen=True)
class RowView:
    """A row: its documents, then padding up to `length`."""

    number: int
    is_text: bool
    documents: tuple[DocumentView, ...]
    length: int

    @property
    def num_padding(self) -> int:
        return self.length - sum(document.num_tokens for document in self.documents)

    @property
    def num_targets(self) -> int:
        return sum(document.num_targets for document in self.documents)


def planned(dataset: Any, number: int) -> tuple[bool, Any, list[tuple[int, int, int]]]:
    """Whether a row is text, the window's documents, and which of them stand in it: (document, start, stop)."""
    is_text, place = dataset.place(number)
    stream = dataset.text_rows if is_text else dataset.feedback_rows
    window, inside = stream.locate(place)
    documents, layout, order = stream.plan(window)
    return is_text, documents, layout.spans(int(order[inside]))


def view_row(dataset: Any, tokenizer: Any, number: int, with_tokens: bool = False) -> RowView:
    """One row of the dataset; `with_tokens` finds the text of every single token as well, which takes longer."""
    row = dataset[number]
    is_text, documents, spans = planned(dataset, number)
    special = np.array(sorted(tokenizer.convert_tokens_to_ids(special_tokens(tokenizer))))
    views, begin = [], 0
    for document, start, stop in spans:
        part = slice(begin, begin + stop - start)
        ids = row["input_ids"][part]
        if is_text:
            kinds = np.full(len(ids), max(KINDS) + 1)
            num_whole, source, template = int(documents.lengths[document]), dataset.source_names[-1], ""
        else:
            kinds = documents.kinds(document)[start:stop]
            num_whole, source = int(documents.lengths[document]), dataset.source_names[documents.source[document]]
            template = dataset.chains.table.templates[documents.template[document]].name
        looks = np.stack([kinds, row["labels"][part] != IGNORED, np.isin(ids, special)])
        views.append(DocumentView(source, template, _runs(tokenizer, ids, looks, with_tokens), num_whole))
        begin = part.stop
    return RowView(number, is_text, tuple(views), dataset.args.seq_length)


def _runs(tokenizer: Any, ids: NDArray[Any], looks: NDArray[Any], with_tokens: bool) -> tuple[Run, ...]:
    """The runs of a document; `looks` has a column (kind, is target, is special) for each token."""
    changes = (looks[:, 1:] != looks[:, :-1]).any(axis=0)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(ids)]
    stops = list(range(1, len(ids) + 1)) if with_tokens else borders[1:]
    texts = split_text(tokenizer, ids.tolist(), stops)
    runs: list[Run] = []
    for start, stop in pairwise(borders):
        kind, is_target, is_special = looks[:, start].tolist()
        own = tuple(ids[start:stop].tolist())
        tokens: tuple[tuple[str, tuple[int, ...]], ...] = ()
        text = texts[len(runs)]
        if with_tokens:
            text = "".join(texts[start:stop])
            tokens = _whole_characters(texts[start:stop], own)
        runs.append(Run(KINDS.get(kind, TEXT), bool(is_target), bool(is_special), text, own, tokens))
    return tuple(runs)


def _whole_characters(texts: Sequence[str], ids: Sequence[int]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(text, ids), where the ids of tokens without text of their own stand with the next one's."""
    found, waiting = [], list[int]()
    for text, number in zip(texts, ids):
        waiting.append(number)
        if text:
            found.append((text, tuple(waiting)))
            waiting = []
    if waiting:
        found.append(("", tuple(waiting)))
    return tuple(found)


def split_text(tokenizer: Any, ids: Sequence[int], stops: Sequence[int]) -> list[str]:
    """The text of a document in pieces, each up to the token behind which it stops; joined they are the decoded whole.

    A character that is cut by a border goes to the right.
    """
    whole = _decode(tokenizer, ids)
    cuts = [0]
    for stop in stops[:-1]:
        begin = _decode(tokenizer, ids[:stop])
        if not whole.startswith(begin):  # it ends inside a character
            begin = begin[: next(n for n, one in enumerate(begin) if whole[n : n + 1] != one)]
        cuts.append(max(cuts[-1], len(begin)))
    return [whole[start:stop] for start, stop in pairwise([*cuts, len(whole)])]


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
