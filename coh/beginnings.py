"""Documents that begin alike, read together: their beginning once, and behind it what is left of each.

Outputs of one prompt, each under good and under bad words, repeat the prompt in every document. In: such documents.
Out: rows in which the prompt stands once, with positions and owners of the tokens, by which `coh.masking` lets every
document see what it would see alone. What a model says of a document stays the same; the work is that of fewer tokens.

    documents    p p p a a      p p p b b b
    one row      p p p a a b b b
    positions    0 1 2 3 4 3 4 5
    owners       0 0 0 1 1 2 2 2        an a sees p and a, a b sees p and b
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Targets = NDArray[np.bool_]
LONGEST = 8  # times its longest document: behind one mask, the pairs that it hides grow with the square of the row


@dataclass(frozen=True)
class SharedRow:
    """Documents, by number and length, that have their first `num_shared` tokens in common; 0 for one alone."""

    numbers: tuple[int, ...]
    lengths: tuple[int, ...]
    num_shared: int = 0

    def __len__(self) -> int:
        return self.num_shared + sum(length - self.num_shared for length in self.lengths)

    def places(self) -> Iterator[tuple[int, slice]]:
        """Each document's number, and where in the row its own part stands.

        >>> list(SharedRow((7, 2), (5, 6), num_shared=3).places())
        [(7, slice(3, 5, None)), (2, slice(5, 8, None))]
        """
        start = self.num_shared
        for number, length in zip(self.numbers, self.lengths):
            stop = start + length - self.num_shared
            yield number, slice(start, stop)
            start = stop

    def positions(self) -> list[int]:
        """The position of each token in its document.

        >>> SharedRow((0, 1), (5, 6), num_shared=3).positions()
        [0, 1, 2, 3, 4, 3, 4, 5]
        """
        own = [place for length in self.lengths for place in range(self.num_shared, length)]
        return [*range(self.num_shared), *own]

    def owners(self) -> list[int]:
        """Whose each token is: 0 is everybody's.

        >>> SharedRow((0, 1), (5, 6), num_shared=3).owners()
        [0, 0, 0, 1, 1, 2, 2, 2]
        """
        own = [turn for turn, length in enumerate(self.lengths, 1) for _ in range(self.num_shared, length)]
        return [0] * self.num_shared + own


def share_beginnings(documents: Sequence[tuple[Ids, Targets]], longest: int) -> list[SharedRow]:
    """Rows of at most `longest` tokens in which documents stand together that share half of their tokens or more.

    A target is never shared, and the token in front of a document's first one is not either: it has to predict that
    document's own.

    >>> off, ids = np.zeros(8, bool), np.arange(8)
    >>> share_beginnings([(ids, off), (ids[::-1], off), (np.append(ids[:6], 1), off[:7])], longest=100)
    [SharedRow(numbers=(2, 0), lengths=(7, 8), num_shared=6), SharedRow(numbers=(1,), lengths=(8,), num_shared=0)]
    """
    sharable = [max(int(np.argmax(targets)) if targets.any() else len(ids), 1) - 1 for ids, targets in documents]
    # The bytes of numbers whose greatest digit stands first are in the order of the numbers.
    order = sorted(range(len(documents)), key=lambda number: documents[number][0].astype(">i8").tobytes())
    rows, family, shared = [], order[:1], 0
    for one, other in pairwise(order):
        begins = min(_num_alike(documents[one][0], documents[other][0]), sharable[one], sharable[other])
        if 2 * begins < min(len(documents[one][0]), len(documents[other][0])):
            rows += _rows(family, shared, documents, longest)
            family, shared = [], 0
        else:
            shared = min(shared, begins) if len(family) > 1 else begins
        family.append(other)
    return rows + _rows(family, shared, documents, longest)


def _num_alike(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(np.argmax(differs)) if differs.any() else length


def _rows(
    family: Sequence[int], num_shared: int, documents: Sequence[tuple[Ids, Targets]], longest: int
) -> list[SharedRow]:
    """The documents of a family, which share so many tokens, the shortest first, in as few rows as may be."""
    rows: list[SharedRow] = []
    lengths = {number: len(documents[number][0]) for number in family}
    for number in sorted(family, key=lengths.__getitem__):
        length = lengths[number]
        if rows and 2 * num_shared >= length:
            last = rows[-1]
            joined = SharedRow((*last.numbers, number), (*last.lengths, length), num_shared)
            if len(joined) <= min(longest, LONGEST * length):
                rows[-1] = joined
                continue
        rows.append(SharedRow((number,), (length,)))
    return rows
