"""Templates as arrays of cells: what stands where in a chain, so that lengths are sums and tokens are slices.

A chain is a row of cells: the beginning-of-text token, then words, prompt, critiques and outputs in turn. All that can
be known of a template without a group is known here, for all templates at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coh.data.encoding import Encoder, Ids
from coh.data.hindsight import chain
from coh.data.pieces import Joints
from coh.data.templates import Template

NONE, WORDS, PROMPT, OUTPUT, CRITIQUE, VERBATIM = range(-1, 5)  # what a cell holds


@dataclass(frozen=True)
class Entry:
    """A template of the table; `ends_each` says whether an end-of-text token stands behind every output or the last.

    `verbatim` stands for a chain that brings its own words: whether each of its segments is a target.
    """

    template: Template
    ends_each: bool
    verbatim: tuple[bool, ...] = ()

    @property
    def num_cells(self) -> int:
        return 1 + (len(self.verbatim) or len(self.template.parts) + bool(self.template.answer))


class TemplateTable:
    """The cells of all templates.

    `kind`, `joint`, `slot`, `is_target` and `has_eos` are (templates, cells): what a cell holds, the white space in
    front of it, which output of the text it is or speaks of, whether it is a target, and whether the end-of-text token
    stands behind it. Where it holds words, these are `words_length` ids of `words` from `words_start` on, which counts
    from their end.
    """

    def __init__(self, entries: Sequence[Entry], encoder: Encoder, train_on: str) -> None:
        self.templates = [entry.template for entry in entries]
        shape = len(entries), max(entry.num_cells for entry in entries)
        self.kind = np.full(shape, NONE, np.int8)
        self.joint, self.slot = np.zeros(shape, np.int8), np.zeros(shape, np.int8)
        self.is_target, self.has_eos = np.zeros(shape, bool), np.zeros(shape, bool)
        self.prompt_cell, self.first_words = np.full(shape[0], -1), np.zeros(shape[0], np.int64)
        self.num_outputs = max(len(template.outputs) for template in self.templates)
        self.drop_stops = np.zeros((shape[0], max(self.num_outputs - 1, 1)), np.int64)
        parts = [part for template in self.templates for part in template.parts if part.slot]
        self.joints = Joints(
            tuple(sorted({part.text for part in parts if part.slot == "prompt"})),
            tuple(sorted({part.text for part in parts if part.slot not in ("prompt", "critique")})),
            tuple(sorted({part.text for part in parts if part.slot == "critique"})),
        )
        texts: list[dict[int, str]] = []  # of each template, the words in its cells
        for number, entry in enumerate(entries):
            texts.append({} if entry.verbatim else self._compile(number, entry.template))
            if entry.verbatim:
                self._compile_verbatim(number, entry.verbatim)
            targets = np.flatnonzero(self.is_target[number])
            self.has_eos[number, targets if entry.ends_each else targets[-1:]] = True
            if train_on == "last":
                self.is_target[number, targets[:-1]] = False
        self.kind[:, 0] = WORDS
        unique = sorted({text for cells in texts for text in cells.values()})
        ids_of = dict(zip(unique, encoder.encode(unique), strict=True))
        # The ids of all words in one array, the end-of-text token last.
        self.words: Ids = np.concatenate([encoder.bos, *ids_of.values(), encoder.eos])
        self.words_start = np.full(shape, -len(self.words), np.int64)
        self.words_length = np.zeros(shape, np.int32)
        self.words_length[:, 0] = len(encoder.bos)
        ends = np.cumsum([len(encoder.bos), *map(len, ids_of.values())]) - len(self.words)
        start_of = dict(zip(ids_of, ends.tolist()))
        for number, cells in enumerate(texts):
            for cell, text in cells.items():
                self.words_start[number, cell] = start_of[text]
                self.words_length[number, cell] = len(ids_of[text])

    def _compile(self, number: int, template: Template) -> dict[int, str]:
        """Fills a template's row of every array; gives its words by their cells."""
        segments = chain(template, "prompt", ["output"] * len(template.outputs), "critique")
        words: dict[int, str] = {}
        output_cells: list[int] = []
        for cell, segment in enumerate(segments, start=1):
            part = template.parts[cell - 1] if cell <= len(template.parts) else None
            self.is_target[number, cell] = segment.is_target
            if part is None or not part.slot:
                self.kind[number, cell] = WORDS
                words[cell] = segment.text
            elif part.slot in ("prompt", "critique"):
                kind, joints = (
                    (PROMPT, self.joints.prompt) if part.slot == "prompt" else (CRITIQUE, self.joints.critique)
                )
                self.kind[number, cell] = kind
                self.joint[number, cell] = joints.index(part.text)
                if kind == PROMPT:
                    self.prompt_cell[number] = cell
            else:
                self.kind[number, cell] = OUTPUT
                self.joint[number, cell] = self.joints.output.index(part.text)
                self.slot[number, cell] = len(output_cells)
                output_cells.append(cell)
        self.first_words[number] = output_cells[0] - 1
        if template.polarity != "question":  # without both outputs there is nothing to ask
            self.drop_stops[number, : len(output_cells) - 1] = [cell - 1 for cell in output_cells[1:]]
        return words

    def _compile_verbatim(self, number: int, is_target: Sequence[bool]) -> None:
        cells = slice(1, len(is_target) + 1)
        self.kind[number, cells] = VERBATIM
        self.slot[number, cells] = np.arange(len(is_target))
        self.is_target[number, cells] = is_target
        if not is_target[0]:
            self.prompt_cell[number] = 1
