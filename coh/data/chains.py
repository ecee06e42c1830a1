"""Feedback groups -> documents: for every pass, which words stand around which outputs, and the tokens of the result.

A pass takes each source by its share, draws a kind of chain, a template and outputs for every group, and knows each
document's length at once; tokens are read one document at a time from the pieces that were encoded before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data import draws
from coh.data.choices import Choices, Draw, GroupArrays, choices_for, code_of
from coh.data.encoding import Encoder, Ids, shorten
from coh.data.forms import Form
from coh.data.hindsight import chain
from coh.data.pieces import GroupPieces
from coh.data.plan import Ints, generator, permute
from coh.data.records import FeedbackError, FeedbackGroup, Segment, joined
from coh.data.table import CRITIQUE, OUTPUT, PROMPT, Entry, TemplateTable
from coh.data.templates import Template

WINDOW = 2**20  # groups planned at a time
WHOLE_WINDOW = 2**13  # the same where whole texts must be encoded, which holds their tokens
# Which of a pair, (better, worse), stands in a slot.
_SIDES = {"better": 0, "first": 0, "output": 0, "worse": 1, "second": 1}


@dataclass(frozen=True)
class Source:
    """A labelled store of groups, those of them that are used, the words for them, and why others are not used."""

    name: str
    store: Any
    indices: Ints
    form: Form
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass
class ChainDocuments:
    """The documents of one window; `cell_lengths` is (documents, cells), end-of-text tokens included."""

    chains: Chains
    source: Ints
    group: Ints
    template: Ints
    outputs: Ints  # (documents, outputs of the text): which output of the group
    cell_lengths: NDArray[np.int32]
    counts: Counter[str]
    whole: list[list[Ids]] | None = None

    @property
    def lengths(self) -> Ints:
        return self.cell_lengths.sum(axis=1).astype(np.int64)

    def tokens(self, number: int) -> tuple[Ids, NDArray[np.bool_], int]:
        table, template, lengths = self.chains.table, self.template[number], self.cell_lengths[number]
        cells: list[Ids] = []
        for cell in np.flatnonzero(lengths):
            length = int(lengths[cell]) - int(table.has_eos[template, cell])
            ids = self.whole[number][cell] if self.whole else self.chains.cell(self, number, int(cell))
            cells.append(ids[len(ids) - length :])  # a shortened prompt keeps its end
            if table.has_eos[template, cell]:
                cells.append(self.chains.encoder.eos)
        return np.concatenate(cells), np.repeat(table.is_target[template], lengths), int(self.source[number])

    def kinds(self, number: int) -> NDArray[np.int8]:
        """What each token of a document belongs to: WORDS, PROMPT, OUTPUT, CRITIQUE or VERBATIM."""
        return np.repeat(self.chains.table.kind[self.template[number]], self.cell_lengths[number])


class Chains:
    """The documents of every pass over some sources.

    Args:
        sources: what is read.
        weights: a share for each source, or None for their sizes.
        polarities: which kinds of chain are drawn, all equally often where a group gives them; ties are worded where
            two outputs are compared.
        capacity: tokens of a row, which no document exceeds.
        max_outputs: of a chain, where there are words for rankings.
        train_on: "all" outputs of a chain are targets, or the "last".
        seed: of every draw.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        *,
        polarities: Sequence[str],
        capacity: int,
        max_outputs: int = 2,
        weights: Sequence[float] | None = None,
        train_on: str = "all",
        seed: int = 0,
    ) -> None:
        self.encoder, self.capacity, self.max_outputs, self.seed = encoder, capacity, max_outputs, seed
        self.dropped: dict[str, Counter[str]] = {source.name: Counter(source.dropped) for source in sources}
        self._arrays = [GroupArrays(source.store.dataset) for source in sources]
        self.tasks = sorted({task for arrays in self._arrays for task in arrays.tasks})
        self._task = [
            np.array([self.tasks.index(task) for task in arrays.tasks])[arrays.task] for arrays in self._arrays
        ]
        entries: list[Entry] = []
        self._choices = [
            self._choices_of(arrays, source, polarities, entries) for arrays, source in zip(self._arrays, sources)
        ]
        self.table = TemplateTable(entries, encoder, train_on)
        self._sides = self._sides_of(entries)
        self.sources = [self._usable(number, source, polarities) for number, source in enumerate(sources)]
        if not any(len(source.indices) for source in self.sources):
            raise FeedbackError(f"no usable feedback in {', '.join(source.name for source in sources)}: {self._why()}")
        self._shares = self._documents_per_pass(weights)
        self._ends = np.cumsum(self._shares)
        self.pieces = [
            GroupPieces(source.store.dataset, encoder, source.form, self.table.joints) for source in self.sources
        ]
        self.is_exact = encoder.holds_law(self._examples())
        self.window_size = WINDOW if self.is_exact else WHOLE_WINDOW
        self.num_windows = -(-int(self._ends[-1]) // self.window_size)

    def _choices_of(
        self, arrays: GroupArrays, source: Source, polarities: Sequence[str], entries: list[Entry]
    ) -> list[Choices]:
        """What may be drawn for each task; adds to the table's entries what is not yet there."""
        num_outputs = min(self.max_outputs, int(arrays.num_outputs.max(initial=1)))
        found = []
        for task in self.tasks:
            if task not in arrays.tasks:  # another source's; these templates need no words for it
                found.append(Choices())
                continue
            choices = choices_for(task, source.form.family, polarities, num_outputs, entries)
            if arrays.patterns:
                start = len(entries)
                entries += [
                    Entry(Template(f"{task}.verbatim.{n}", ""), True, pattern)
                    for n, pattern in enumerate(arrays.patterns, 1)
                ]
                choices.templates["verbatim"] = np.arange(start, len(entries))
            if not choices.templates:
                where = task if task == "general" else f"{task} or general"
                raise FeedbackError(
                    f"templates {source.form.family.name} have none of {', '.join(polarities)} for {where}: choose "
                    f"others with --chains"
                )
            found.append(choices)
        return found

    def _sides_of(self, entries: Sequence[Entry]) -> NDArray[np.int64]:
        """(templates, outputs of a text) which of the outputs drawn stands in each slot, -1 for none."""
        sides = np.full((len(entries), max(2, self.table.num_outputs)), -1)
        for number, entry in enumerate(entries):
            for place, slot in enumerate(entry.template.outputs):
                sides[number, place] = _SIDES.get(slot, place)
        return sides

    def _usable(self, number: int, source: Source, polarities: Sequence[str]) -> Source:
        """Leaves out, and counts, the groups that give none of the kinds of chain for which there are words."""
        arrays = self._arrays[number]
        wanted = np.array([choices.code for choices in self._choices[number]])[self._task[number]]
        is_mute = (arrays.code & wanted) == 0
        bare = (arrays.num_outputs < 2) & (arrays.code == 0)
        for mask, reason in (
            (is_mute & arrays.is_tie, "tie, and no template for ties"),
            (is_mute & bare, "one output only"),
            (is_mute & ~bare & ~arrays.is_tie, f"gives none of --chains {','.join(polarities)}"),
        ):
            count = int(mask[source.indices].sum())
            if count:
                self.dropped[source.name][reason] += count
        return replace(source, indices=source.indices[~is_mute[source.indices]])

    def _why(self) -> str:
        return "; ".join(
            f"{name}: {', '.join(f'{reason} {count}' for reason, count in reasons.items())}"
            for name, reasons in self.dropped.items()
            if reasons
        )

    def _documents_per_pass(self, weights: Sequence[float] | None) -> Ints:
        sizes = np.array([len(source.indices) for source in self.sources], np.int64)
        if weights is None:
            return sizes
        shares = np.where(sizes > 0, np.asarray(weights, np.float64), 0)
        if not shares.any():
            raise FeedbackError(f"no usable feedback in the sources with a weight above 0: {self._why()}")
        exact = shares / shares.sum() * sizes.sum()
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: int(sizes.sum() - counts.sum())]] += 1  # largest remainders
        return counts

    def _examples(self) -> list[list[Segment]]:
        """Real chains to try the law of pieces on: groups of each source, in the templates that are drawn for them."""
        found = []
        rng = generator(0, "examples")
        for number, source in enumerate(self.sources):
            group = source.indices[:64]
            if len(group):
                template, outputs = self._draw(np.full(len(group), number), group, rng)
                found += [self._segments(number, *drawn) for drawn in zip(group.tolist(), template.tolist(), outputs)]
        return found

    def _segments(self, source: int, group: int, template: int, outputs: Ints) -> list[Segment]:
        """The text of one document, a segment for each of its cells but the first."""
        read: FeedbackGroup = self.sources[source].store.group(group)
        if read.verbatim:
            return [
                replace(segment, text=joined(" " if place else "", segment.text))
                for place, segment in enumerate(read.verbatim)
            ]
        form, written = self.sources[source].form, self.table.templates[template]
        texts = [read.outputs[output] for output in outputs[: len(written.outputs)].tolist()]
        critique = read.critiques[int(outputs[0])] if read.critiques else ""
        return chain(written, form.prompt(read), texts, critique)

    def window(self, epoch: int, window: int) -> ChainDocuments:
        """The documents of one window of a pass, without those that cannot fit a row."""
        positions = np.arange(window * self.window_size, min((window + 1) * self.window_size, int(self._ends[-1])))
        slots = permute(positions, int(self._ends[-1]), draws.key(self.seed, "order", epoch))
        source = np.searchsorted(self._ends, slots, side="right")
        group = self._groups(source, slots, epoch)
        template, outputs = self._draw(source, group, generator(self.seed, "chains", epoch, window))
        documents = ChainDocuments(self, source, group, template, outputs, np.zeros(0, np.int32), Counter())
        documents.whole = None if self.is_exact else [self._whole(documents, number) for number in range(len(group))]
        return self._shorten(documents, self._measure(documents))

    def tasks_of(self, documents: ChainDocuments) -> dict[str, int]:
        """How many documents of a window belong to each task."""
        counts: Counter[str] = Counter()
        for number in np.unique(documents.source).tolist():
            codes = self._task[number][documents.group[documents.source == number]]
            counts.update({self.tasks[code]: int(times) for code, times in zip(*np.unique(codes, return_counts=True))})
        return counts

    def _groups(self, source: Ints, slots: Ints, epoch: int) -> Ints:
        """Which group each slot means: a source's own passes run on across the epochs, each a new permutation."""
        group = np.zeros(len(slots), np.int64)
        for number in np.unique(source).tolist():
            mask = source == number
            size, share = len(self.sources[number].indices), int(self._shares[number])
            through = epoch * share + slots[mask] - (int(self._ends[number]) - share)
            own_pass, place = np.divmod(through, size)
            for turn in np.unique(own_pass).tolist():
                turn_mask = own_pass == turn
                place[turn_mask] = permute(place[turn_mask], size, draws.key(self.seed, "source", number, turn))
            group[mask] = self.sources[number].indices[place]
        return group

    def _draw(self, source: Ints, group: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """A template and the outputs for its slots, for every document."""
        template = np.zeros(len(group), np.int64)
        outputs = np.full((len(group), self._sides.shape[1]), -1, np.int64)
        picks = rng.random((4 + (self.max_outputs if self.max_outputs > 2 else 0), len(group)))
        for number in np.unique(source).tolist():
            arrays, task = self._arrays[number], self._task[number]
            own = np.flatnonzero(source == number)
            # Groups of one task that give the same kinds of chain are drawn together.
            block = task[group[own]] << 16 | arrays.code[group[own]]
            for code in np.unique(block).tolist():
                which = own[block == code]
                choices = self._choices[number][code >> 16]
                drawn = Draw(arrays, choices, group[which], picks[:, which], self.max_outputs, outputs.shape[1])
                template[which], outputs[which] = drawn.template, drawn.outputs
                if code & code_of(["verbatim"]):
                    template[which] = choices.templates["verbatim"][arrays.pattern[group[which]]]
        sides = self._sides[template]
        return template, np.where(sides >= 0, np.take_along_axis(outputs, np.maximum(sides, 0), axis=1), -1)

    def _measure(self, documents: ChainDocuments) -> NDArray[np.int32]:
        table, template = self.table, documents.template
        if documents.whole is not None:
            lengths = np.array([[len(ids) for ids in cells] for cells in documents.whole], np.int32)
        else:
            lengths = table.words_length[template].copy()
            for cell in range(table.kind.shape[1]):
                slots = np.flatnonzero(table.kind[template, cell] >= PROMPT)
                for number in np.unique(documents.source[slots]).tolist():
                    mask = slots[documents.source[slots] == number]
                    lengths[mask, cell] = self.pieces[number].table.lengths[self._piece(documents, mask, cell, number)]
        return lengths + table.has_eos[template]

    def _piece(self, documents: ChainDocuments, which: Any, cell: int, source: int) -> Any:
        """The piece numbers of one cell of these documents, all of one source."""
        template, group, pieces = documents.template[which], documents.group[which], self.pieces[source]
        kind, joint, slot = (
            array[template, cell].astype(np.int64) for array in (self.table.kind, self.table.joint, self.table.slot)
        )
        output = documents.outputs[which, np.minimum(slot, documents.outputs.shape[1] - 1)]
        return np.select(
            [kind == PROMPT, kind == OUTPUT, kind == CRITIQUE],
            [
                pieces.prompt(group, joint),
                pieces.output(group, output, joint),
                pieces.critique(group, output, joint),
            ],
            pieces.verbatim(group, slot),
        )

    def cell(self, documents: ChainDocuments, number: int, cell: int) -> Ids:
        """The ids of one cell of one document, before shortening and without end-of-text token."""
        words = self.table.words[documents.template[number]].get(cell)
        if words is not None:
            return words
        source = int(documents.source[number])
        return self.pieces[source].table[int(self._piece(documents, number, cell, source))]

    def _whole(self, documents: ChainDocuments, number: int) -> list[Ids]:
        """The cells of one document, encoded as one text."""
        segments = self._segments(
            int(documents.source[number]),
            int(documents.group[number]),
            int(documents.template[number]),
            documents.outputs[number],
        )
        cells = self.encoder.whole(segments)
        empty = np.zeros(0, np.int32)
        return [self.encoder.bos, *cells, *[empty] * (self.table.kind.shape[1] - len(cells) - 1)]

    def _shorten(self, documents: ChainDocuments, lengths: NDArray[np.int32]) -> ChainDocuments:
        table, template = self.table, documents.template
        kept, too_long = shorten(
            lengths,
            self.capacity,
            table.prompt_cell[template],
            table.first_words[template],
            table.drop_stops[template],
        )
        prompts = np.take_along_axis(lengths - kept, np.maximum(table.prompt_cell[template], 0)[:, None], axis=1)[:, 0]
        lost_outputs = ((kept == 0) & (lengths > 0) & (table.kind[template] == OUTPUT)).any(axis=1)
        fits = ~too_long
        counts = Counter(
            {
                "prompt shortened": int((prompts[fits] > 0).sum()),
                "older output left out": int(lost_outputs[fits].sum()),
                "output longer than a row": int(too_long.sum()),
            }
        )
        whole = [cells for cells, fit in zip(documents.whole, fits) if fit] if documents.whole is not None else None
        return ChainDocuments(
            self,
            documents.source[fits],
            documents.group[fits],
            template[fits],
            documents.outputs[fits],
            kept[fits],
            counts,
            whole,
        )
