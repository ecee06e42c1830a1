"""Feedback groups -> documents: for every pass, which words stand around which outputs, and the tokens of the result.

A pass takes each source by its share, draws a polarity, a template and outputs for every group, and knows each
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
from coh.data.encoding import Encoder, Ids, shorten
from coh.data.hindsight import chain, group_prompt, prompt_text
from coh.data.pieces import GroupPieces
from coh.data.plan import Ints, generator, permute
from coh.data.records import FeedbackError
from coh.data.templates import POLARITIES, Family, Template

NONE, WORDS, PROMPT, OUTPUT = -2, -1, 0, 1  # what a cell holds; OUTPUT + n is output n of the text
WINDOW = 2**20  # groups planned at a time
WHOLE_WINDOW = 2**13  # the same where whole texts must be encoded, which holds their tokens


@dataclass(frozen=True)
class Source:
    """A labelled store of groups, those of them that are used, and why others are not."""

    name: str
    store: Any
    indices: Ints
    dropped: dict[str, int] = field(default_factory=dict)


class GroupArrays:
    """What is known of all groups of a store at once, without reading any text."""

    def __init__(self, dataset: Any) -> None:
        import pyarrow.compute as pc

        columns = dataset.data
        tasks = pc.dictionary_encode(columns.column("task")).combine_chunks()
        self.tasks: list[str] = tasks.dictionary.to_pylist()
        self.task = tasks.indices.to_numpy()
        self.num_outputs = pc.list_value_length(columns.column("ranks")).to_numpy().astype(np.int64)
        self._ranks = pc.list_flatten(columns.column("ranks")).to_numpy()
        self._first = np.cumsum(self.num_outputs) - self.num_outputs
        self.is_tie = (self.num_outputs > 1) & (self.rank(np.arange(len(self.task)), self.num_outputs - 1) == 1)

    def rank(self, group: Ints, output: Ints) -> NDArray[np.int32]:
        """The rank of one output of each of these groups."""
        return self._ranks[self._first[group] + output]


class TemplateTable:
    """All templates as arrays of cells: the beginning-of-text token, then words, prompt and outputs in turn."""

    def __init__(self, templates: Sequence[Template], family: Family, encoder: Encoder, train_on: str) -> None:
        self.templates = list(templates)
        shape = len(self.templates), max(len(template.parts) for template in self.templates) + 2
        self.kind = np.full(shape, NONE, np.int8)
        self.joint = np.zeros(shape, np.int8)
        self.is_target = np.zeros(shape, bool)
        self.has_eos = np.zeros(shape, bool)
        self.words: list[list[Ids | None]] = []
        self.prompt_cell = np.full(shape[0], -1)
        self.first_words = np.zeros(shape[0], np.int64)
        self.num_droppable = np.zeros(shape[0], np.int64)
        parts = [part for template in self.templates for part in template.parts]
        self.prompt_joints = sorted({part.text for part in parts if part.slot == "prompt"})
        self.output_joints = sorted({part.text for part in parts if part.slot not in ("", "prompt")})
        for number, template in enumerate(self.templates):
            self._compile(number, template, family, encoder, train_on)
        self.words_length = np.array([[0 if ids is None else len(ids) for ids in row] for row in self.words], np.int32)

    def _compile(self, number: int, template: Template, family: Family, encoder: Encoder, train_on: str) -> None:
        segments = chain(template, "prompt", ["output"] * len(template.outputs))
        slots = [part.slot for part in template.parts] + [""] * (len(segments) - len(template.parts))
        words = iter(encoder.encode([segment.text for segment, slot in zip(segments, slots) if not slot]))
        self.words.append([encoder.bos] + [None] * (self.kind.shape[1] - 1))
        self.kind[number, 0] = WORDS
        outputs_seen = 0
        for cell, (segment, slot) in enumerate(zip(segments, slots), start=1):
            self.is_target[number, cell] = segment.is_target
            if not slot:
                self.kind[number, cell] = WORDS
                self.words[number][cell] = next(words)
            elif slot == "prompt":
                self.kind[number, cell] = PROMPT
                self.prompt_cell[number] = cell
                self.joint[number, cell] = self.prompt_joints.index(template.parts[cell - 1].text)
            else:
                if not outputs_seen:
                    self.first_words[number] = cell - 1
                self.kind[number, cell] = OUTPUT + outputs_seen
                self.joint[number, cell] = self.output_joints.index(template.parts[cell - 1].text)
                outputs_seen += 1
        targets = np.flatnonzero(self.is_target[number])
        self.has_eos[number, targets if family.eos == "each" else targets[-1:]] = True
        if train_on == "last":
            self.is_target[number, targets[:-1]] = False
        self.num_droppable[number] = 0 if template.polarity == "question" else outputs_seen - 1


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

    @property
    def num_targets(self) -> Ints:
        """Target tokens of each document."""
        return (self.cell_lengths * self.chains.table.is_target[self.template]).sum(axis=1).astype(np.int64)

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


class Chains:
    """The documents of every pass over some sources.

    Args:
        sources: what is read.
        weights: a share for each source, or None for their sizes.
        polarities: which of p, n, pn, np, question are drawn, all equally often; ties are drawn with two-output ones.
        capacity: tokens of a row, which no document exceeds.
        train_on: "all" outputs of a chain are targets, or the "last".
        seed: of every draw.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        family: Family,
        encoder: Encoder,
        *,
        polarities: Sequence[str],
        capacity: int,
        weights: Sequence[float] | None = None,
        train_on: str = "all",
        seed: int = 0,
    ) -> None:
        self.family, self.encoder, self.capacity, self.seed = family, encoder, capacity, seed
        self.dropped: dict[str, Counter[str]] = {source.name: Counter(source.dropped) for source in sources}
        self._arrays = [GroupArrays(source.store.dataset) for source in sources]
        self.tasks = tasks = sorted({task for arrays in self._arrays for task in arrays.tasks})
        pairs = [polarity for polarity in polarities if len(POLARITIES[polarity]) == 2]
        # choices[task][is_tie]: the numbers of the templates that may be drawn, a list for each polarity.
        templates: list[Template] = []
        self._choices: list[tuple[list[Ints], list[Ints]]] = []
        for task in tasks:
            found: tuple[list[Ints], list[Ints]] = ([], [])
            for is_tie, wanted in ((0, polarities), (1, ["tie"] if pairs else [])):
                for polarity in wanted:
                    choices = family.choices(task, polarity)
                    if choices:
                        found[is_tie].append(np.arange(len(templates), len(templates) + len(choices)))
                        templates += choices
            if not found[0]:
                raise FeedbackError(
                    f"templates {family.name} have none of {', '.join(polarities)} for {task} or general: choose "
                    f"others with --chains"
                )
            self._choices.append(found)
        self.table = TemplateTable(templates, family, encoder, train_on)
        self._task = [np.array([tasks.index(task) for task in arrays.tasks])[arrays.task] for arrays in self._arrays]
        self.sources = [self._usable(number, source) for number, source in enumerate(sources)]
        if not any(len(source.indices) for source in self.sources):
            raise FeedbackError(f"no usable feedback in {', '.join(source.name for source in sources)}: {self.dropped}")
        self._shares = self._documents_per_pass(weights)
        self._ends = np.cumsum(self._shares)
        self.pieces = [
            GroupPieces(
                source.store.dataset,
                encoder,
                lambda messages, task: prompt_text(messages, task, family.roles),
                self.table.prompt_joints,
                self.table.output_joints,
                family.roles,
            )
            for source in self.sources
        ]
        self.is_exact = encoder.holds_law(self._examples())
        self.window_size = WINDOW if self.is_exact else WHOLE_WINDOW
        self.num_windows = -(-int(self._ends[-1]) // self.window_size)

    def _usable(self, number: int, source: Source) -> Source:
        """Leaves out, and counts, the groups for which the templates have no words."""
        arrays = self._arrays[number]
        speechless = np.array([not ties for _, ties in self._choices])[self._task[number]] & arrays.is_tie
        single = arrays.num_outputs < 2
        for mask, reason in ((speechless & ~single, "tie, and no template for ties"), (single, "one output only")):
            count = int(mask[source.indices].sum())
            if count:
                self.dropped[source.name][reason] += count
        return replace(source, indices=source.indices[~(speechless | single)[source.indices]])

    def _documents_per_pass(self, weights: Sequence[float] | None) -> Ints:
        sizes = np.array([len(source.indices) for source in self.sources], np.int64)
        if weights is None:
            return sizes
        shares = np.where(sizes > 0, np.asarray(weights, np.float64), 0)
        exact = shares / shares.sum() * sizes.sum()
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: int(sizes.sum() - counts.sum())]] += 1  # largest remainders
        return counts

    def _examples(self) -> list[Any]:
        """Real chains to try the law of pieces on: sixteen groups of each source, in the templates in turn."""
        examples = []
        for source in self.sources:
            for number, index in enumerate(source.indices[:16].tolist()):
                group = source.store.group(index)
                template = self.table.templates[number * 7 % len(self.table.templates)]
                outputs = [group.outputs[n % len(group.outputs)] for n in range(len(template.outputs))]
                examples.append(chain(template, group_prompt(group, self.family), outputs))
        return examples

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
        num = len(group)
        pick, polarity, template_pick, swap = rng.random((4, num))
        num_outputs, task = np.zeros(num, np.int64), np.zeros(num, np.int64)
        better, worse, is_tie = np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num, bool)
        for number in np.unique(source).tolist():
            mask = source == number
            arrays, own = self._arrays[number], group[mask]
            num_outputs[mask], task[mask] = arrays.num_outputs[own], self._task[number][own]
            better[mask], worse[mask] = _two_of(num_outputs[mask], pick[mask])
            is_tie[mask] = arrays.rank(own, better[mask]) == arrays.rank(own, worse[mask])
        template = np.zeros(num, np.int64)
        for task_number, found in enumerate(self._choices):
            for tie in (0, 1):
                mask = (task == task_number) & (is_tie == bool(tie))
                if not mask.any():
                    continue
                choices = found[tie]
                if not choices:  # tied outputs inside a longer ranking, and no words for ties: take its two ends
                    better[mask], worse[mask] = 0, num_outputs[mask] - 1
                    choices = found[0]
                drawn = (polarity[mask] * len(choices)).astype(np.int64)
                sizes = np.array([len(options) for options in choices])[drawn]
                starts = np.array([options[0] for options in choices])[drawn]
                template[mask] = starts + (template_pick[mask] * sizes).astype(np.int64)
        flip = is_tie & (swap < 0.5)
        better[flip], worse[flip] = worse[flip], better[flip]
        by_slot = {"better": better, "first": better, "worse": worse, "second": worse}
        outputs = np.full((num, 2), -1, np.int64)
        for number in np.unique(template).tolist():
            mask = template == number
            for place, slot in enumerate(self.table.templates[number].outputs):
                outputs[mask, place] = by_slot[slot][mask]
        return template, outputs

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
        template, group = documents.template[which], documents.group[which]
        kind, joint = (
            self.table.kind[template, cell].astype(np.int64),
            self.table.joint[template, cell].astype(np.int64),
        )
        pieces = self.pieces[source]
        output = documents.outputs[which, np.maximum(kind - OUTPUT, 0)]
        return np.where(kind == PROMPT, pieces.prompt(group, joint), pieces.output(group, output, joint))

    def cell(self, documents: ChainDocuments, number: int, cell: int) -> Ids:
        """The ids of one cell of one document, before shortening and without end-of-text token."""
        words = self.table.words[documents.template[number]][cell]
        if words is not None:
            return words
        source = int(documents.source[number])
        return self.pieces[source].table[int(self._piece(documents, number, cell, source))]

    def _whole(self, documents: ChainDocuments, number: int) -> list[Ids]:
        """The cells of one document, encoded as one text."""
        group = self.sources[documents.source[number]].store.group(int(documents.group[number]))
        template = self.table.templates[documents.template[number]]
        outputs = [group.outputs[output] for output in documents.outputs[number][: len(template.outputs)]]
        cells = self.encoder.whole(chain(template, group_prompt(group, self.family), outputs))
        empty = np.zeros(0, np.int32)
        return [self.encoder.bos, *cells, *[empty] * (self.table.kind.shape[1] - len(cells) - 1)]

    def _shorten(self, documents: ChainDocuments, lengths: NDArray[np.int32]) -> ChainDocuments:
        table, template = self.table, documents.template
        kept, too_long = shorten(
            lengths,
            self.capacity,
            table.prompt_cell[template],
            table.first_words[template],
            table.num_droppable[template],
        )
        prompts = np.take_along_axis(lengths - kept, np.maximum(table.prompt_cell[template], 0)[:, None], axis=1)[:, 0]
        lost_outputs = ((kept == 0) & (lengths > 0) & (table.kind[template] >= OUTPUT)).any(axis=1)
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


def _two_of(num_outputs: Ints, pick: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """A pair first < second out of each range(n), all pairs equally likely, from one draw in [0, 1)."""
    number = (pick * (num_outputs * (num_outputs - 1) // 2)).astype(np.int64)  # pairs counted by their second member
    second = ((1 + np.sqrt(1 + 8 * number)) / 2).astype(np.int64)
    return number - second * (second - 1) // 2, second
