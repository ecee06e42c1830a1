"""Which kinds of chain a group gives, and the drawing of one: kind, template and outputs, for many groups at once.

In: what is known of a store's groups without reading any text. Out: arrays, one entry a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, product, starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.mapped import Ints, blocks, folder_of, list_sizes, mapped, starts
from coh.data.records import TASKS
from coh.data.table import Entry
from coh.data.templates import RANKINGS, Family, Template

# Bit k of a group's code says whether it gives chains of kind k.
KINDS = ("p", "n", "pn", "np", "question", "critique", "refine", "revision", "tie", "verbatim")
PAIRS = ("pn", "np", "question")


def code_of(kinds: Sequence[str]) -> int:
    return sum(1 << KINDS.index(kind) for kind in kinds)


# What is kept of each group and of each output.
_GROUP = np.dtype([("task", "i1"), ("code", "i2"), ("pattern", "i4"), ("num_outputs", "i8")])
_OUTPUT = np.dtype([("rank", "i4"), ("is_critiqued", "?")])


class GroupArrays:
    """What is known of all groups of a store at once, without reading any text; mapped from files.

    `task` is a number among `TASKS`, `code` has a bit for each kind of chain that a group gives, and `pattern` tells
    which of `patterns` the group's own words have: whether each segment is a target (-1 for a group without them).
    """

    def __init__(self, dataset: Any) -> None:
        import pyarrow.compute as pc

        folder = folder_of(dataset)
        self.tasks: list[str] = pc.unique(dataset.data.column("task")).to_pylist()
        self.patterns = sorted({own for (lists,) in blocks(dataset, "verbatim") for own in _patterns(lists)} - {()})
        outputs = mapped(starmap(_of_outputs, blocks(dataset, "ranks", "critiques")), _OUTPUT, folder)
        self._ranks, self._is_critiqued = outputs["rank"], outputs["is_critiqued"]
        names = ("task", "ranks", "critiques", "revision", "is_good", "verbatim")
        groups = mapped(starmap(self._of_groups, blocks(dataset, *names)), _GROUP, folder)
        self.task, self.code, self.pattern = groups["task"], groups["code"], groups["pattern"]
        self.num_outputs = groups["num_outputs"]
        sizes = (list_sizes(ranks) for (ranks,) in blocks(dataset, "ranks"))
        self._first = mapped(starts(sizes), np.int64, folder)

    def rank(self, group: Ints, output: Ints) -> NDArray[np.int32]:
        """The rank of one output of each of these groups."""
        return self._ranks[self._first[group] + output]

    def is_tie(self, group: Ints) -> NDArray[np.bool_]:
        """Whether all outputs of each of these groups are equally good."""
        num_outputs = self.num_outputs[group]
        return (num_outputs > 1) & (self.rank(group, num_outputs - 1) == 1)

    def num_better(self, group: Ints, output: Ints) -> Ints:
        """How many outputs are ranked above this one, in each of these groups."""
        flat, is_own = self._table(group)
        return (is_own & (self._ranks[flat] < self.rank(group, output)[:, None])).sum(axis=1)

    def critiqued(self, group: Ints, pick: NDArray[np.float64]) -> Ints:
        """One of the outputs of which something was said, in each of these groups."""
        flat, is_own = self._table(group)
        return _picked(is_own & self._is_critiqued[flat], pick)

    def refinable(self, group: Ints, pick: NDArray[np.float64]) -> Ints:
        """One of the outputs of which something was said and to which another was preferred."""
        flat, is_own = self._table(group)
        return _picked(is_own & self._is_critiqued[flat] & (self._ranks[flat] > 1), pick)

    def _table(self, group: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """(groups, outputs) where each output is found, and whether there is one."""
        num_outputs = self.num_outputs[group][:, None]
        output = np.arange(num_outputs.max(initial=1))
        return self._first[group][:, None] + np.minimum(output, num_outputs - 1), output < num_outputs

    def _of_groups(self, task: Any, ranks: Any, critiques: Any, revision: Any, is_good: Any, verbatim: Any) -> Any:
        """A block of what is kept of each group."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = np.zeros(len(task), _GROUP)
        found["task"] = pc.index_in(task, pa.array(TASKS)).to_numpy()
        found["num_outputs"] = num_outputs = list_sizes(ranks)
        found["pattern"] = [self.patterns.index(own) if own else -1 for own in _patterns(verbatim)]
        ends = np.cumsum(num_outputs)
        outputs = _of_outputs(ranks, critiques)
        is_critiqued, is_worse = outputs["is_critiqued"], outputs["rank"] > 1
        is_tie = (num_outputs > 1) & ~is_worse[ends - 1]
        is_compared = (num_outputs > 1) & ~is_tie
        is_revision = pc.is_valid(revision).to_numpy(zero_copy_only=False)
        gives = dict.fromkeys(PAIRS, is_compared) | {
            "p": is_compared | pc.fill_null(is_good, False).to_numpy(zero_copy_only=False),
            "n": is_compared | ~pc.fill_null(is_good, True).to_numpy(zero_copy_only=False),
            "tie": is_tie,
            "critique": np.logical_or.reduceat(is_critiqued, ends - num_outputs),
            "refine": np.logical_or.reduceat(is_critiqued & is_worse, ends - num_outputs) & ~is_revision,
            "revision": is_revision & is_critiqued[ends - 1],
        }
        code = sum(mask.astype(np.int64) << KINDS.index(kind) for kind, mask in gives.items())
        found["code"] = np.where(found["pattern"] >= 0, code_of(["verbatim"]), code)
        return found


def _of_outputs(ranks: Any, critiques: Any) -> Any:
    """A block of what is kept of each output."""
    import pyarrow.compute as pc

    flat = pc.list_flatten(ranks).to_numpy()
    found = np.zeros(len(flat), _OUTPUT)
    found["rank"] = flat
    has_words = pc.fill_null(pc.binary_length(pc.list_flatten(critiques)), 0).to_numpy() > 0
    found["is_critiqued"][np.repeat(list_sizes(critiques) > 0, list_sizes(ranks))] = has_words
    return found


def _patterns(verbatim: Any) -> Iterator[tuple[bool, ...]]:
    """Of each group, whether the segments of its own chain are targets."""
    import pyarrow.compute as pc

    sizes = list_sizes(verbatim).tolist()
    if not any(sizes):
        return iter([()] * len(sizes))
    flat = iter(pc.struct_field(pc.list_flatten(verbatim), "is_target").to_pylist())
    return (tuple(islice(flat, size)) for size in sizes)


def _picked(mask: NDArray[np.bool_], pick: NDArray[np.float64]) -> Ints:
    """Of each row of a mask one of the places that are set, from a draw in [0, 1)."""
    number = (pick * mask.sum(axis=1)).astype(np.int64)
    return (np.cumsum(mask, axis=1) > number[:, None]).argmax(axis=1)


@dataclass
class Choices:
    """The numbers of the templates that may be drawn for one task, by kind.

    `rankings` has them for every number of outputs and every pattern of ties, as (patterns, templates).
    """

    templates: dict[str, Ints] = field(default_factory=dict)
    rankings: dict[str, dict[int, Ints]] = field(default_factory=dict)

    @property
    def code(self) -> int:
        return code_of(list(self.templates))


def choices_for(task: str, family: Family, kinds: Sequence[str], max_outputs: int, entries: list[Entry]) -> Choices:
    """The templates of a family for a task, which are added to the entries of the table."""
    found = Choices()
    ends_each = family.eos == "each"

    def add(templates: Sequence[Template]) -> Ints:
        start = len(entries)
        entries.extend(Entry(template, ends_each) for template in templates)
        return np.arange(start, len(entries))

    with_ties = [*kinds, "tie"] if set(kinds) & set(PAIRS) else kinds
    for kind in with_ties:
        if family.choices(task, kind):
            found.templates[kind] = add(family.choices(task, kind))
        rankings = family.choices(task, RANKINGS[kind]) if kind in RANKINGS else ()
        if not rankings or max_outputs < 3:
            continue
        found.rankings[kind] = {}
        for num_outputs in range(3, max_outputs + 1):
            # In the order of their numbers: bit k of a pattern says that output k + 1 is as good as output k.
            patterns = [ties[::-1] for ties in product((False, True), repeat=num_outputs - 1)][:-1]
            found.rankings[kind][num_outputs] = np.array(
                [add([one.ranking(ties) for one in rankings]) for ties in patterns]
            )
    return found


class Draw:
    """A template and outputs for every one of these groups, all of which give the same kinds of chain.

    Args:
        picks: (4, groups) numbers, or (4 + max_outputs, groups) where rankings are drawn, in [0, 1).
        width: columns of `outputs`, at least as many as any template has outputs.

    `template` is (groups,) the number of a template; `outputs` is (groups, width) which outputs of the group are drawn,
    of a pair the better and the worse one, of a ranking those of its text in order; -1 for none.
    """

    def __init__(
        self,
        arrays: GroupArrays,
        choices: Choices,
        group: Ints,
        picks: NDArray[np.float64],
        max_outputs: int,
        width: int,
    ) -> None:
        self._arrays, self._choices, self._max_outputs = arrays, choices, max_outputs
        self._group, self._picks = group, picks
        self.template = np.zeros(len(group), np.int64)
        self.outputs = np.full((len(group), width), -1, np.int64)
        code = int(arrays.code[group[0]]) & choices.code
        kinds = [kind for place, kind in enumerate(KINDS) if code >> place & 1]
        drawn = (picks[0] * len(kinds)).astype(np.int64)
        for number, kind in enumerate(kinds):
            places = np.flatnonzero(drawn == number)
            if kind in choices.rankings:
                is_long = arrays.num_outputs[group[places]] > 2
                tied = self._rankings(kind, places[is_long])
                places = np.concatenate([places[~is_long], tied])
            self._pairs(kind, places)

    def _rankings(self, kind: str, places: Ints) -> Ints:
        """Draws chains of three outputs and more; gives the places where all outputs drawn are tied."""
        left = []
        sizes = np.minimum(self._arrays.num_outputs[self._group[places]], self._max_outputs)
        for size in np.unique(sizes).tolist():
            own = places[sizes == size]
            group = self._group[own]
            chosen = some_of(self._arrays.num_outputs[group], self._picks[4 : 4 + size, own])
            chosen = chosen if kind == "pn" else chosen[:, ::-1]
            rank = self._arrays.rank(group[:, None], chosen)
            pattern = ((rank[:, 1:] == rank[:, :-1]) << np.arange(size - 1)).sum(axis=1)
            is_tied = pattern == (1 << size - 1) - 1
            left.append(own[is_tied])
            own, chosen, pattern = own[~is_tied], chosen[~is_tied], pattern[~is_tied]
            options = self._choices.rankings[kind][size]
            self.template[own] = options[pattern, (self._picks[2, own] * options.shape[1]).astype(np.int64)]
            self.outputs[own, :size] = chosen
        return np.concatenate(left) if left else places[:0]

    def _pairs(self, kind: str, places: Ints) -> None:
        """Draws chains of one output or two."""
        group, pick, swap = self._group[places], self._picks[1, places], self._picks[3, places]
        better, worse = np.zeros(len(group), np.int64), np.zeros(len(group), np.int64)
        is_tie = np.zeros(len(group), bool)
        num_outputs = self._arrays.num_outputs[group]
        if kind == "critique":
            better = self._arrays.critiqued(group, pick)
        elif kind == "refine":
            worse = self._arrays.refinable(group, pick)
            better = (swap * self._arrays.num_better(group, worse)).astype(np.int64)
        elif kind == "revision":
            worse = num_outputs - 1
        elif kind != "verbatim":
            several = num_outputs > 1
            better[several], worse[several] = two_of(num_outputs[several], pick[several])
            is_tie = several & (self._arrays.rank(group, better) == self._arrays.rank(group, worse))
            if "tie" not in self._choices.templates:  # tied outputs of a ranking, and no words for it: take its ends
                better[is_tie], worse[is_tie] = 0, num_outputs[is_tie] - 1
                is_tie[:] = False
            flip = is_tie & (swap < 0.5)
            better[flip], worse[flip] = worse[flip], better[flip]
        for mask, name in ((~is_tie, kind), (is_tie, "tie")):
            if mask.any():
                options = self._choices.templates[name]
                self.template[places[mask]] = options[(self._picks[2, places[mask]] * len(options)).astype(np.int64)]
        self.outputs[places, 0], self.outputs[places, 1] = better, worse


def two_of(num_outputs: Ints, pick: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """A pair first < second out of each range(n), all pairs equally likely, from one draw in [0, 1)."""
    number = (pick * (num_outputs * (num_outputs - 1) // 2)).astype(np.int64)  # pairs counted by their second member
    second = ((1 + np.sqrt(1 + 8 * number)) / 2).astype(np.int64)
    return number - second * (second - 1) // 2, second


def some_of(num_outputs: Ints, picks: NDArray[np.float64]) -> Ints:
    """As many of each range(n) as there are rows of picks in [0, 1), in order, all subsets equally likely.

    Floyd's way: the next number is drawn among one more than before, and where it is taken already, the last of them.

    >>> some_of(np.array([5]), np.array([[0.0], [0.3], [0.9]])).tolist()
    [[0, 1, 4]]
    """
    size = len(picks)
    chosen = np.full((len(num_outputs), size), -1)
    for place in range(size):
        last = num_outputs - size + place
        drawn = (picks[place] * (last + 1)).astype(np.int64)
        is_taken = (chosen == drawn[:, None]).any(axis=1)
        chosen[:, place] = np.where(is_taken, last, drawn)
    return np.sort(chosen, axis=1)
