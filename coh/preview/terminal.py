"""Rows and figures for a terminal, in colour or with signs around what colour would tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from coh.preview.figures import Figures
from coh.preview.report import LOOKS, Table, glance, histogram, tables
from coh.preview.rows import DocumentView, RowView, Run, visible

STYLES = {
    "target": "1;32",
    "prompt": "36",
    "words": "33",
    "critique": "35",
    "output": "34",
    "record": "33",
    "text": "2",
    "special": "7",
    "border": "2",
    "title": "1",
    "problem": "1;31",
    "warning": "1;33",
    "good": "1;32",
}
# Where there is no colour.
SIGNS = {"target": ("⟦", "⟧"), "words": ("⟨", "⟩"), "critique": ("⟪", "⟫"), "record": ("⟨", "⟩"), "output": ("[", "]")}
MOST_ROWS = 12  # of a table
_BARS = " ▁▂▃▄▅▆▇█"
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def has_color(wish: str) -> bool:
    """Whether to use colour: as wished, or if a person looks at the output and the environment has no NO_COLOR."""
    if wish != "auto":
        return wish == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Terminal:
    """Turns rows and figures into text."""

    def __init__(self, color: bool) -> None:
        self.color = color

    def paint(self, text: str, *styles: str) -> str:
        """The text in these styles, which end with every line, so that no colour runs into the next."""
        if not self.color or not styles:
            return text
        codes = ";".join(STYLES[style] for style in styles)
        return "\n".join(f"\x1b[{codes}m{line}\x1b[0m" if line else "" for line in text.split("\n"))

    def rows(self, views: Sequence[RowView]) -> str:
        """The rows one below the other, with a legend on top."""
        return "\n\n".join([self._legend(views), *map(self.row, views)])

    def row(self, view: RowView) -> str:
        """A row: a title, then each document under its border."""
        kind = "pretraining text" if view.is_text else "feedback"
        parts = _count(len(view.documents), "document")
        title = f"Row {view.number}: {kind}, {parts}, {view.num_targets} of {view.length} tokens are targets"
        lines = [self.paint(title, "title")]
        for document in view.documents:
            looks = groupby(document.runs, key=lambda run: run.look)
            lines.append(self._border(document))
            lines.append("".join(self._signed(look, "".join(map(self._run, runs))) for look, runs in looks))
        lines.append(self.paint(f"└── {view.num_padding} of {view.length} tokens are padding", "border"))
        return "\n".join(lines)

    def _border(self, document: DocumentView) -> str:
        length = f"{document.num_tokens} tokens"
        if document.num_tokens < document.num_whole:
            length = f"{document.num_tokens} of {document.num_whole} tokens, cut where a row ends"
        about = (document.source, document.template, length, f"{document.num_targets} targets")
        return self.paint(f"├── {' · '.join(filter(None, about))}", "border")

    def _run(self, run: Run) -> str:
        styles = [run.look, *(["special"] if run.is_special else [])]
        if not run.tokens:
            return self.paint(visible(run.text), *styles)
        return "".join(
            self.paint(visible(text), *styles)
            + self.paint("".join(f"₍{number}₎" for number in ids).translate(_SUBSCRIPTS), "border")
            for text, ids in run.tokens
        )

    def _signed(self, look: str, text: str) -> str:
        """The text between the signs of its look, where there is no colour to tell."""
        start, end = ("", "") if self.color else SIGNS.get(look, ("", ""))
        return f"{start}{text}{end}"

    def _legend(self, views: Sequence[RowView]) -> str:
        runs = [run for view in views for document in view.documents for run in document.runs]
        looks = {run.look for run in runs}
        found = [self._signed(look, self.paint(meaning, look)) for look, meaning in LOOKS.items() if look in looks]
        if self.color and any(run.is_special for run in runs):
            found.append(self.paint("special token", "special"))
        return "   ".join(found)

    def figures(self, figures: Figures, problems: Sequence[str], warnings: Sequence[str]) -> str:
        """The figures of a split, and what is to be said of them."""
        lines = [self.paint(f"One pass over the {figures.split} split", "title")]
        shown = glance(figures)
        for what, amount, more in shown:
            lines.append(f"  {what:{max(len(what) for what, _, _ in shown)}}  {amount:>12}  {more}")
        lines += ["", *self._lengths(figures)]
        for table in tables(figures):
            lines += ["", *self._table(table)]
        lines += ["", *self._verdict(problems, warnings)]
        return "\n".join(lines)

    def _lengths(self, figures: Figures) -> Iterator[str]:
        bins = [times for _, _, times in histogram(figures)]
        most = max(1, *bins)
        bars = "".join(_BARS[-(-times * (len(_BARS) - 1) // most)] for times in bins)
        yield self.paint("Lengths of chains", "title")
        yield f"  {self.paint(bars, 'target')}"
        end = f"{figures.seq_length} tokens"
        yield f"  0{end:>{max(len(bars) - 1, len(end) + 1)}}"
        yield f"  the longest has {figures.summary['lengths']['most']}; the highest bar is {most:,} chains"

    def _table(self, table: Table) -> Iterator[str]:
        rows = [table.columns, *table.rows[:MOST_ROWS]]
        widths = [max(len(visible(row[column])) for row in rows) for column in range(len(table.columns))]
        yield self.paint(table.title, "title")
        for number, row in enumerate(rows):
            cells = [
                f"{visible(cell):<{width}}" if column < table.num_words else f"{cell:>{width}}"
                for column, (cell, width) in enumerate(zip(row, widths))
            ]
            line = "  ".join(cells).rstrip()
            yield f"  {self.paint(line, 'border') if number == 0 else line}"
        if len(table.rows) > MOST_ROWS:
            yield f"  and {len(table.rows) - MOST_ROWS} more"

    def _verdict(self, problems: Sequence[str], warnings: Sequence[str]) -> Iterator[str]:
        if problems:
            yield self.paint("This would make training wrong", "problem")
        for problem in problems:
            yield f"  {self.paint('✗', 'problem')} {visible(problem)}"
        for warning in warnings:
            yield f"  {self.paint('!', 'warning')} {visible(warning)}"
        if not problems:
            yield self.paint("Nothing was found that would make training wrong.", "good")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
