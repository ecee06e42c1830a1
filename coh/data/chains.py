"""Feedback groups -> documents: for every pass, which words stand around which outputs, and the tokens of the result.

A pass takes each source by its share, draws a kind of chain, a template and outputs for every group, and knows each
document's length at once; tokens are read one document at a time from the pieces that were encoded before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data import draws
from coh.data.choices import Choices, Draw, GroupArrays, choices_for, code_of
from coh.data.encoding import Encoder, Ids, shorten
from coh.data.forms import Form
from coh.data.hindsight import chain
from coh.data.mapped import BLOCK, Ints, folder_of, mapped
from coh.data.pieces import GroupPieces
from coh.data.plan import WINDOW, Spans, Stretches, generator, permute, tokens_of
from coh.data.records import TASKS, FeedbackError, FeedbackGroup, Segment, joined
from coh.data.table import CRITIQUE, OUTPUT, PROMPT, Entry, TemplateTable
from coh.data.templates import Template

WHOLE_WINDOW = 2**13  # groups planned at a time where whole texts must be encoded, which holds their tokens
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
    cell_starts: Ints  # where the ids of each cell begin, as `Stretches` count it
    counts: Counter[str]
    whole: Ids | None = None  # the ids of all cells, where texts are encoded in one go

    @property
    def lengths(self) -> Ints:
        return self.cell_lengths.sum(axis=1).astype(np.int64)

    @property
    def words(self) -> Ids:
        return self.chains.table.words

    @property
    def values(self) -> list[Ids]:
        return [pieces.table.values for pieces in self.chains.pieces] if self.whole is None else [self.whole]

    def stretches(self, spans: Spans) -> Stretches:
        """Where the ids of these spans are: a stretch for each cell, and one for each end-of-text token."""
        document, table = spans.document, self.chains.table
        template, lengths = self.template[document], self.cell_lengths[document].astype(np.int64)
        ends = np.cumsum(lengths, axis=1)
        # A cell with an end-of-text token is two stretches.
        has_eos = table.has_eos[template] & (lengths > 0)
        borders = np.stack([ends - lengths, ends - has_eos, ends], axis=2)
        address = np.stack([self.cell_starts[document], np.full(lengths.shape, -len(self.chains.encoder.eos))], axis=2)
        kept = np.clip(borders, spans.start[:, None, None], spans.stop[:, None, None])
        size = np.diff(kept, axis=2)
        span, cell, half = np.nonzero(size)
        skipped = kept[span, cell, half] - borders[span, cell, half]
        is_target = table.is_target[template[span], cell]
        return Stretches(span, address[span, cell, half] + skipped, size[span, cell, half], is_target)

    def tokens(self, number: int) -> tuple[Ids, NDArray[np.bool_], int]:
        """Ids, target mask and the number of the source of one document."""
        return tokens_of(self, number)

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
        # Of each of all tasks that there are, its number among those of this run.
        self._task_numbers = np.array([self.tasks.index(task) if task in self.tasks else -1 for task in TASKS])
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
        arrays, given = self._arrays[number], ",".join(polarities)
        wanted = np.array([choices.code for choices in self._choices[number]])
        reasons = ("tie, and no template for ties", "one output only", f"gives none of --chains {given}")
        counts = np.zeros(len(reasons), np.int64)

        def used() -> Iterator[Ints]:
            for begin in range(0, len(source.indices), BLOCK):
                group = source.indices[begin : begin + BLOCK]
                code, is_tie = arrays.code[group], arrays.is_tie(group)
                is_mute = (code & wanted[self._tasks(number, group)]) == 0
                bare = (arrays.num_outputs[group] < 2) & (code == 0)
                counts[:] += [(is_mute & mask).sum() for mask in (is_tie, bare, ~bare & ~is_tie)]
                yield group[~is_mute]

        indices = mapped(used(), np.int64, folder_of(source.store.dataset))
        self.dropped[source.name].update({reason: count for reason, count in zip(reasons, counts.tolist()) if count})
        return replace(source, indices=indices)

    def _tasks(self, source: int, group: Ints) -> Ints:
        """The numbers of these groups' tasks among those of this run."""
        return self._task_numbers[self._arrays[source].task[group]]

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
        nothing = np.zeros((len(group), self.table.kind.shape[1]), np.int64)
        documents = ChainDocuments(self, source, group, template, outputs, nothing.astype(np.int32), nothing, Counter())
        if self.is_exact:
            self._find_pieces(documents)
        else:
            self._encode_whole(documents)
        return self._shorten(documents)

    def tasks_of(self, documents: ChainDocuments) -> dict[str, int]:
        """How many documents of a window belong to each task."""
        counts: Counter[str] = Counter()
        for number in np.unique(documents.source).tolist():
            codes = self._tasks(number, documents.group[documents.source == number])
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
            arrays = self._arrays[number]
            own = np.flatnonzero(source == number)
            # Groups of one task that give the same kinds of chain are drawn together.
            block = self._tasks(number, group[own]) << 16 | arrays.code[group[own]]
            for code in np.unique(block).tolist():
                which = own[block == code]
                choices = self._choices[number][code >> 16]
                drawn = Draw(arrays, choices, group[which], picks[:, which], self.max_outputs, outputs.shape[1])
                template[which], outputs[which] = drawn.template, drawn.outputs
                if code & code_of(["verbatim"]):
                    template[which] = choices.templates["verbatim"][arrays.pattern[group[which]]]
        sides = self._sides[template]
        return template, np.where(sides >= 0, np.take_along_axis(outputs, np.maximum(sides, 0), axis=1), -1)

    def _find_pieces(self, documents: ChainDocuments) -> None:
        """Where the ids of each cell are, and how many tokens it has."""
        table, template = self.table, documents.template
        documents.cell_lengths[:], documents.cell_starts[:] = table.words_length[template], table.words_start[template]
        before = np.cumsum([0, *(len(pieces.table.values) for pieces in self.pieces)])
        for cell in range(table.kind.shape[1]):
            slots = np.flatnonzero(table.kind[template, cell] >= PROMPT)
            for number in np.unique(documents.source[slots]).tolist():
                own = slots[documents.source[slots] == number]
                piece, pieces = self._piece(documents, own, cell, number), self.pieces[number].table
                documents.cell_lengths[own, cell] = pieces.lengths(piece)
                documents.cell_starts[own, cell] = pieces.starts[piece] + before[number]
        documents.cell_lengths += table.has_eos[template]

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

    def _encode_whole(self, documents: ChainDocuments) -> None:
        """The same of documents that are each encoded as one text."""
        found: list[Ids] = []
        for number in range(len(documents.group)):
            segments = self._segments(
                int(documents.source[number]),
                int(documents.group[number]),
                int(documents.template[number]),
                documents.outputs[number],
            )
            cells = [self.encoder.bos, *self.encoder.whole(segments)]
            documents.cell_lengths[number, : len(cells)] = [len(ids) for ids in cells]
            found += cells
        documents.whole = np.concatenate(found)
        ends = np.cumsum(documents.cell_lengths, dtype=np.int64).reshape(documents.cell_lengths.shape)
        documents.cell_starts[:] = ends - documents.cell_lengths
        documents.cell_lengths += self.table.has_eos[documents.template]

    def _shorten(self, documents: ChainDocuments) -> ChainDocuments:
        table, template, lengths = self.table, documents.template, documents.cell_lengths
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
        return ChainDocuments(
            self,
            documents.source[fits],
            documents.group[fits],
            template[fits],
            documents.outputs[fits],
            kept[fits],
            (documents.cell_starts + (lengths - kept))[fits],  # a shortened prompt keeps its end
            counts,
            documents.whole,
        )
