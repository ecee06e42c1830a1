"""What an epoch's rows are made of, as figures and as one table for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 32  # of the histogram of lengths


def span_targets(documents: Any, layout: Any) -> NDArray[np.int64]:
    """Targets of every span of a layout as its row's labels have them: a span's first token is none."""
    table, template = documents.chains.table, documents.template
    ends = np.cumsum(documents.cell_lengths, axis=1, dtype=np.int64)
    found = np.zeros(len(layout.document), np.int64)
    for cell in range(ends.shape[1]):  # of a span and a cell, what both cover
        end = ends[layout.document, cell]
        start = end - documents.cell_lengths[layout.document, cell]
        shared = np.minimum(layout.stop, end) - np.maximum(layout.start + 1, start)
        found += np.where(table.is_target[template, cell][layout.document], np.maximum(shared, 0), 0)
    return found


def summarize(dataset: Any) -> dict[str, Any]:
    """One epoch of a `CoHDataset`'s feedback: documents, tokens and share per source, their lengths, and what was
    shortened or left out.

    `lengths` says how many documents are of which length, in bins of equal width up to a row; `most` is the longest.
    """
    chains, capacity = dataset.chains, dataset.args.seq_length
    sources: dict[str, Counter[str]] = {source.name: Counter() for source in chains.sources}
    counts: Counter[str] = Counter()
    templates: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    num_rows = num_tokens = num_cut = num_bare = longest = 0
    histogram = np.zeros(min(NUM_BINS, capacity), np.int64)
    for window in range(chains.num_windows):
        documents, layout, _ = dataset.feedback_rows.plan(window)
        lengths, targets = documents.lengths, span_targets(documents, layout)
        source_of_span = documents.source[layout.document]
        for number, source in enumerate(chains.sources):
            own = documents.source == number
            sources[source.name].update(
                documents=int(own.sum()),
                tokens=int(lengths[own].sum()),
                targets=int(targets[source_of_span == number].sum()),
            )
        counts.update(documents.counts)
        for number, times in zip(*np.unique(documents.template, return_counts=True)):
            templates[chains.table.templates[number].name] += int(times)
        tasks.update(chains.tasks_of(documents))
        num_rows += layout.num_rows
        num_tokens += int(lengths.sum())
        num_cut += len(layout.document) - len(lengths)
        targets_before = np.append(0, np.cumsum(targets))
        num_bare += int((np.diff(targets_before[layout.row_starts]) == 0).sum())
        longest = max(longest, int(lengths.max(initial=0)))
        histogram += np.histogram(lengths, len(histogram), (0, capacity))[0]
    total = sum(found["documents"] for found in sources.values())
    return {
        "sources": {name: {**found, "share": found["documents"] / total} for name, found in sources.items()},
        "tasks": dict(tasks.most_common()),
        "dropped": {name: dict(found) for name, found in chains.dropped.items() if found},
        "chains": {**counts, "cut where a row ends": num_cut},
        "templates": dict(templates.most_common()),
        "lengths": {"most": longest, "bins": histogram.tolist()},
        "feedback_rows": num_rows,
        "rows_without_target": num_bare,
        "padding": 1 - num_tokens / (num_rows * capacity),
        "text_documents": len(dataset.texts) if dataset.texts else 0,
    }


def table(summary: dict[str, Any]) -> str:
    """The summary as text: a line per source, then rows, padding, and everything that was shortened, cut or dropped."""
    width = max(8, *(len(name) for name in summary["sources"]))
    lines = [f"{'source':{width}} {'chains':>9} {'share':>7} {'tokens':>11} {'targets':>8}"]
    for name, found in summary["sources"].items():
        part = found["targets"] / max(1, found["tokens"])
        lines.append(f"{name:{width}} {found['documents']:9,} {found['share']:7.1%} {found['tokens']:11,} {part:8.1%}")
    lines.append(
        f"{summary['feedback_rows']:,} feedback rows an epoch, {summary['padding']:.2%} padding; "
        f"{len(summary['templates'])} templates; {summary['text_documents']:,} pretraining texts"
    )
    if summary["rows_without_target"]:
        lines.append(f"feedback rows without any target: {summary['rows_without_target']:,}")
    lines += [f"chains, {what}: {count:,}" for what, count in summary["chains"].items() if count]
    for name, reasons in summary["dropped"].items():
        lines += [f"{name}, dropped, {reason}: {count:,}" for reason, count in reasons.items() if count]
    return "\n".join(lines)
