"""The figures as tables of words, which terminal and page show alike."""

from __future__ import annotations

from coh.pages import Table
from coh.preview.figures import Figures

LOOKS = {
    "target": "target: what the model learns to write",
    "prompt": "prompt",
    "words": "feedback words",
    "critique": "what was said of an output",
    "output": "output that is no target",
    "record": "the record's own words",
    "text": "start of a text, which nothing predicts",
}


def glance(figures: Figures) -> list[tuple[str, str, str]]:
    """(what, how much, more about it) of the figures that matter most."""
    summary = figures.summary
    text = ", no pretraining text"
    if figures.text_rows:
        text = f" + {figures.text_rows:,} of text, which is read {figures.text_passes:.2g} times"
    bare = summary["rows_without_target"]
    return [
        ("chains", f"{figures.documents:,}", f"{len(summary['templates'])} templates"),
        ("tokens", f"{figures.tokens:,}", f"{figures.tokens / max(1, figures.documents):,.0f} a chain"),
        ("targets", _percent(figures.targets, figures.tokens), f"{figures.targets:,} tokens to learn"),
        ("rows", f"{figures.rows:,}", f"{summary['feedback_rows']:,} of feedback{text}"),
        ("padding", f"{summary['padding']:.2%}", f"of the feedback rows, {figures.seq_length} tokens each"),
        ("rows without target", f"{bare:,}", _percent(bare, summary["feedback_rows"]) + " of the feedback rows"),
    ]


def tables(figures: Figures) -> list[Table]:
    """All else, as tables; those that would be empty are left out."""
    found = [_sources(figures), _templates(figures), _losses(figures), _texts(figures), _splits(figures)]
    return [table for table in found if table.rows]


def _sources(figures: Figures) -> Table:
    return Table(
        "Sources",
        ("source", "format", "groups", "chains", "share", "asked for", "tokens", "targets"),
        tuple(
            (
                name,
                source.format,
                f"{source.groups:,}",
                f"{source.documents:,}",
                f"{source.share:.1%}",
                f"{source.asked:.1%}",
                f"{source.tokens:,}",
                _percent(source.targets, source.tokens),
            )
            for name, source in figures.sources.items()
        ),
        num_words=2,
    )


def _templates(figures: Figures) -> Table:
    found = figures.summary["templates"]
    rows = tuple((name, f"{times:,}", _percent(times, figures.documents)) for name, times in found.items())
    return Table("Templates", ("template", "chains", "share"), rows)


def _losses(figures: Figures) -> Table:
    """Everything that was shortened, cut or dropped."""
    too_long = figures.summary["chains"].get("output longer than a row", 0)
    rows = [
        ("all", what if what != "output longer than a row" else f"{what}: chain dropped", f"{times:,}", share)
        for what, times in figures.summary["chains"].items()
        if times and (share := _percent(times, figures.documents + too_long))
    ]
    for name, source in figures.sources.items():
        rows += [
            (name, f"dropped: {reason}", f"{times:,}", _percent(times, source.groups + sum(source.dropped.values())))
            for reason, times in source.dropped.items()
            if times
        ]
    return Table("Shortened and dropped", ("source", "what", "how many", "share"), tuple(rows), num_words=2)


def _texts(figures: Figures) -> Table:
    """Duplicates, and special tokens as letters."""
    rows = []
    for name, source in figures.sources.items():
        found = {"prompt and outputs of an earlier group": source.duplicates}
        found |= {f"letters of a special token in the {where}": count for where, count in source.literals.items()}
        rows += [(name, what, f"{count:,}", _percent(count, source.groups)) for what, count in found.items() if count]
    return Table("In the texts", ("source", "what", "groups", "share"), tuple(rows), num_words=2)


def _splits(figures: Figures) -> Table:
    dropped = sum(source.dropped.get("prompt is in evaluation", 0) for source in figures.sources.values())
    rows = [(name, f"{found['groups']:,}", f"{found['rows']:,}") for name, found in figures.splits.items()]
    if len(rows) > 1:
        rows.append(("prompts in training and evaluation", f"{figures.shared_prompts:,}", ""))
    if dropped:
        rows.append(("dropped from training for that reason", f"{dropped:,}", ""))
    return Table("Splits", ("split", "groups", "rows"), tuple(rows))


def histogram(figures: Figures) -> list[tuple[int, int, int]]:
    """(first length, last length, chains) of every bin that holds whole numbers of tokens."""
    bins, capacity = figures.summary["lengths"]["bins"], figures.seq_length
    edges = [-(-capacity * number // len(bins)) for number in range(len(bins) + 1)]
    lasts = [edge - 1 for edge in edges[1:-1]] + [capacity]
    return [(start, last, times) for start, last, times in zip(edges, lasts, bins)]


def _percent(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.1%}"
