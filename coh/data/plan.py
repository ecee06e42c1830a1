"""Which documents stand in which rows, and in which order: arithmetic on lengths, without a look at any token.

A stream of rows is numbered without end across passes over its data. Every pass is planned in windows of documents, so
that time and memory to the first row do not grow with the data; every plan is a function of (seed, pass, window).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coh.data import draws
from coh.data.mapped import Ints
from coh.data.records import FeedbackError

Ids = NDArray[np.int32]

WINDOW = 2**12  # documents planned at a time, which is what is held in memory of a pass
CLOSE = 4  # tokens that a row may lack to be full: to fill them too would use up the short documents


@dataclass(frozen=True)
class Spans:
    """Parts of documents: which document, the first token, and the token behind the last."""

    document: Ints
    start: Ints
    stop: Ints


@dataclass(frozen=True)
class Stretches:
    """What spans are made of, in order: ids that stand one behind the other in memory, all of them targets or none.

    `span` says to which span each belongs. `address` is where its ids begin: counted through all `values` of the
    documents, or below zero, as in Python, from the end of their `words`.
    """

    span: Ints
    address: Ints
    length: Ints
    is_target: NDArray[np.bool_]


class Documents(Protocol):
    """The documents of one window: known by their lengths, and by where their ids are found."""

    @property
    def source(self) -> Ints:
        """The number of each document's source."""

    @property
    def lengths(self) -> Ints:
        """Tokens of each document."""

    @property
    def words(self) -> Ids:
        """Ids that occur in many documents."""

    @property
    def values(self) -> Sequence[Ids]:
        """Arrays of all other ids."""

    def stretches(self, spans: Spans) -> Stretches:
        """Where the ids of these spans are."""


def tokens_of(documents: Documents, number: int) -> tuple[Ids, NDArray[np.bool_], int]:
    """Ids, target mask and the number of the source of one document."""
    spans = Spans(np.array([number]), np.array([0]), documents.lengths[[number]])
    found = documents.stretches(spans)
    ids = _taken(runs(found.address, found.length), documents.words, documents.values)
    return ids, np.repeat(found.is_target, found.length), int(documents.source[number])


def runs(start: Ints, length: Ints) -> Ints:
    """The numbers of runs, each with its first number and its length.

    >>> runs(np.array([5, 1]), np.array([2, 3])).tolist()
    [5, 6, 1, 2, 3]
    """
    ends = np.cumsum(length)
    return np.repeat(start - ends + length, length) + np.arange(ends[-1] if len(ends) else 0)


def _taken(address: Ints, words: Ids, values: Sequence[Ids]) -> Ids:
    """The ids at some addresses, as `Stretches` count them."""
    if len(values) == 1 and len(values[0]):
        ids = values[0].take(address, mode="clip")
    else:
        ids, first = np.empty(len(address), np.int32), 0
        for array in values:
            own = np.flatnonzero((address >= first) & (address < first + len(array)))
            ids[own] = array[address[own] - first]
            first += len(array)
    is_word = np.flatnonzero(address < 0)
    ids[is_word] = words[address[is_word]]
    return ids


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.Generator(np.random.Philox(draws.key(seed, purpose, *counters)))


def permute(positions: Ints, size: int, key: int) -> Ints:
    """Where a random permutation of range(size) sends these positions, without holding the permutation.

    A Feistel network permutes the next power of four; positions that fall outside range(size) walk on until they are
    in.

    >>> sorted(permute(np.arange(10), 10, key=7).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    round_keys = [np.uint64(draws.key(key, "permute", number)) for number in range(4)]

    def mixed(right: Any, round_key: np.uint64) -> Any:
        value = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)  # wraps: multiplication modulo 2^64
        value = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return (value >> np.uint64(32)) & mask

    # A round's function of a half is looked up where all halves are few: below 2^24 positions.
    halves = np.arange(1 << half, dtype=np.uint64) if half <= 12 else None
    tables = [mixed(halves, round_key) for round_key in round_keys] if halves is not None else []
    result = np.asarray(positions, np.uint64).copy()
    value, walking = result, np.arange(len(result))
    while len(walking):
        left, right = value >> shift, value & mask
        for number, round_key in enumerate(round_keys):
            left, right = right, left ^ (tables[number].take(right) if tables else mixed(right, round_key))
        value = (left << shift) | right
        result[walking] = value
        outside = np.flatnonzero(value >= size)
        value, walking = value[outside], walking[outside]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Layout:
    """The rows of a window: row r holds the spans from row_starts[r] to row_starts[r + 1]."""

    document: Ints
    start: Ints
    stop: Ints
    row_starts: Ints

    @property
    def num_rows(self) -> int:
        return len(self.row_starts) - 1

    def spans(self, row: int) -> list[tuple[int, int, int]]:
        """(document, first token, token behind the last) of every span of a row."""
        part = slice(self.row_starts[row], self.row_starts[row + 1])
        return list(zip(self.document[part].tolist(), self.start[part].tolist(), self.stop[part].tolist()))

    def of_rows(self, rows: Ints) -> tuple[Spans, Ints]:
        """The spans of several rows one behind the other, and how many each row has."""
        counts = self.row_starts[rows + 1] - self.row_starts[rows]
        found = runs(self.row_starts[rows], counts)
        return Spans(self.document[found], self.start[found], self.stop[found]), counts


def pack_chunk(lengths: Ints, capacity: int) -> Layout:
    """All documents in one stream, cut wherever a row ends."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(np.concatenate([[0], ends]), np.append(np.arange(0, total, capacity), total))
    begins, stops = cuts[:-1], cuts[1:]
    document = np.searchsorted(ends, begins, side="right")
    offset = (ends - lengths)[document]
    row_starts = np.searchsorted(begins, np.arange(0, total, capacity))
    return Layout(document, begins - offset, stops - offset, np.append(row_starts, len(begins)))


def pack_fit(lengths: Ints, capacity: int) -> Layout:
    """Rows that are full to the last token, as far as the lengths allow.

    A row begins with the longest document there is. It goes on with the longest that fits if that all but fills it, or
    else with the longest that leaves room for exactly one or two others, if there are such. Only documents longer than
    a row are cut (pretraining text), into whole rows and a rest.
    """
    pieces = np.maximum(1, -(-lengths // capacity))
    document = np.repeat(np.arange(len(lengths)), pieces)
    piece = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = piece * capacity
    stop = np.minimum(start + capacity, lengths[document])
    sizes = stop - start
    row_sizes, row_starts = _full_rows(np.bincount(sizes, minlength=capacity + 1), capacity)
    order = np.empty(len(sizes), np.int64)
    order[np.argsort(row_sizes, kind="stable")] = np.argsort(sizes, kind="stable")
    return Layout(document[order], start[order], stop[order], row_starts)


def _full_rows(counts: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Sizes in the order of their rows, and where rows begin; `counts[n]` pieces have n tokens.

    Sets of sizes are numbers: bit n says that there is a piece of n tokens. So all pairs that fill up a row are found
    by one shift and one `&`.
    """
    left = counts.tolist()
    there = mirrored = 0  # bit n of `mirrored` is bit capacity - n of `there`
    for size in np.flatnonzero(counts).tolist():
        there |= 1 << size
        mirrored |= 1 << capacity - size
    pairs = 0  # sums of two, as there were at the beginning, mirrored
    for size in np.flatnonzero(counts).tolist():
        pairs |= mirrored >> size
    placed: list[int] = []
    row_starts = [0]
    shortest = (there & -there).bit_length() - 1
    while there:
        room = capacity
        fitting = there
        while fitting:
            # Its highest bit is taken. The two in the middle leave room for exactly one piece, and for a pair.
            if room == capacity:
                found = there
            elif room - fitting.bit_length() + 1 <= CLOSE:
                found = fitting
            else:
                found = there & mirrored >> capacity - room or there & pairs >> capacity - room or fitting
            size = found.bit_length() - 1
            placed.append(size)
            left[size] -= 1
            if not left[size]:
                there ^= 1 << size
                mirrored ^= 1 << capacity - size
            room -= size
            if room < shortest:
                break
            fitting = there & (2 << room) - 1
        row_starts.append(len(placed))
    return np.array(placed, np.int64), np.array(row_starts, np.int64)


PACKINGS: dict[str, Callable[[Ints, int], Layout]] = {"fit": pack_fit, "chunk": pack_chunk}


@dataclass(frozen=True)
class RowArrays:
    """Some rows, one behind the other: (tokens,) each. The source is -1 on padding, the position counts from the start
    of each document and of the padding.
    """

    ids: Ids
    targets: NDArray[np.bool_]
    source: NDArray[np.int64]
    position: Ints


class _WindowRows:
    """All rows of a window, as stretches in the order of the rows, so that to read some is a slice of each array."""

    def __init__(self, documents: Documents, layout: Layout, order: Ints, capacity: int, pad_id: int) -> None:
        self._capacity, self._values = capacity, documents.values
        self._words = np.concatenate([np.full(capacity, pad_id, np.int32), documents.words])
        spans, counts = layout.of_rows(order)
        size, row = spans.stop - spans.start, np.repeat(np.arange(len(order)), counts)
        padding = capacity - np.bincount(row, size, len(order)).astype(np.int64)
        padded = np.flatnonzero(padding)

        def with_padding(of_row: Ints, *columns: tuple[Any, Any]) -> list[Any]:
            """Where each row begins; and columns, each with its value for the padding that ends a row."""
            key = np.concatenate([of_row, padded])
            place = np.argsort(key, kind="stable")
            return [
                np.searchsorted(key[place], np.arange(len(order) + 1)),
                *(np.concatenate([own, np.broadcast_to(pad, len(padded))])[place] for own, pad in columns),
            ]

        found = documents.stretches(spans)
        self._first, self._length, address, self._is_target = with_padding(
            row[found.span],
            (found.length.astype(np.int32), padding[padded].astype(np.int32)),
            (found.address, -len(self._words)),
            (found.is_target, False),
        )
        # Less the place in the window, so that an address is a sum with the number of the token.
        self._offset = address - _before(self._length)
        self._first_span, self._size, self._source = with_padding(
            row, (size, padding[padded]), (documents.source[spans.document].astype(np.int32), np.int32(-1))
        )
        self._begin = _before(self._size)

    def read(self, row: int, count: int) -> RowArrays:
        """So many rows from one on."""
        token = np.arange(row * self._capacity, (row + count) * self._capacity)
        part = slice(self._first[row], self._first[row + count])
        length = self._length[part]
        of_spans = slice(self._first_span[row], self._first_span[row + count])
        size = self._size[of_spans]
        return RowArrays(
            _taken(np.repeat(self._offset[part], length) + token, self._words, self._values),
            np.repeat(self._is_target[part], length),
            np.repeat(self._source[of_spans].astype(np.int64), size),
            token - np.repeat(self._begin[of_spans], size),
        )


def _before(sizes: Ints) -> Ints:
    ends = np.cumsum(sizes, dtype=np.int64)
    return ends - sizes


class NothingFits(FeedbackError):
    """Every document is longer than a row."""


class RowStream:
    def __init__(
        self,
        window: Callable[[int, int], Documents],
        num_windows: int,
        capacity: int,
        packing: str,
        seed: int,
        name: str,
    ) -> None:
        self._window, self.num_windows, self._capacity = window, num_windows, capacity
        self._packing, self._seed, self._name = packing, seed, name
        self._ends: list[int] = []  # rows up to and with window number n, counted through all passes
        self._plans: OrderedDict[int, tuple[Documents, Layout, Ints]] = OrderedDict()
        self._rows: tuple[int, int, _WindowRows] | None = None  # of the window that was read last, with padding

    def plan(self, number: int) -> tuple[Documents, Layout, Ints]:
        """Documents, layout and row order of the window with this number, counted through all passes."""
        if number not in self._plans:
            epoch, window = divmod(number, self.num_windows)
            documents = self._window(epoch, window)
            layout = PACKINGS[self._packing](documents.lengths, self._capacity)
            # Rows were made the longest documents first: shuffle them. A chunked stream keeps its order.
            order = np.arange(layout.num_rows)
            if self._packing == "fit":
                generator(self._seed, f"{self._name}/rows", epoch, window).shuffle(order)
            self._plans[number] = documents, layout, order
            while len(self._plans) > 2:
                self._plans.popitem(last=False)
        self._plans.move_to_end(number)
        return self._plans[number]

    def rows_until(self, passes: int) -> int:
        """Rows of the first so many passes."""
        return self._end(passes * self.num_windows - 1) if passes else 0

    def _end(self, number: int) -> int:
        while len(self._ends) <= number:
            self._ends.append((self._ends[-1] if self._ends else 0) + self.plan(len(self._ends))[1].num_rows)
            if len(self._ends) == self.num_windows and self._ends[-1] == 0:
                raise NothingFits(f"no {self._name} fits a row of {self._capacity} tokens: raise --seq_length")
        return self._ends[number]

    def locate(self, row: int) -> tuple[int, int]:
        """The window (counted through all passes) and the row inside it."""
        while not self._ends or self._ends[-1] <= row:
            self._end(len(self._ends))
        number = bisect_right(self._ends, row)
        return number, row - (self._ends[number - 1] if number else 0)

    def read(self, rows: Sequence[int], pad_id: int) -> RowArrays:
        """These rows, one behind the other."""
        parts: list[RowArrays] = []
        done = 0
        while done < len(rows):
            row = rows[done]
            number, inside = self.locate(row)
            most = min(self._ends[number] - row, len(rows) - done)
            count = next((n for n in range(1, most) if rows[done + n] != row + n), most)
            parts.append(self._window_rows(number, pad_id).read(inside, count))
            done += count
        if len(parts) == 1:
            return parts[0]
        return RowArrays(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(RowArrays)))

    def _window_rows(self, number: int, pad_id: int) -> _WindowRows:
        if self._rows is None or self._rows[:2] != (number, pad_id):
            self._rows = None  # before the next ones are made, so that there are never two
            self._rows = number, pad_id, _WindowRows(*self.plan(number), self._capacity, pad_id)
        return self._rows[2]
