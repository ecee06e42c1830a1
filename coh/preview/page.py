"""Rows and figures as one page of HTML that needs nothing beside it: no script, no font, no image from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coh import pages
from coh.pages import text
from coh.preview.figures import Figures
from coh.preview.report import LOOKS, glance, histogram, tables
from coh.preview.rows import DocumentView, RowView, Run
from coh.preview.style import STYLE


def page(
    title: str, figures: Figures, views: Sequence[RowView], problems: Sequence[str], warnings: Sequence[str]
) -> str:
    """The page; `title` says what is looked at."""
    body = [
        f"<header><h1>What would be trained</h1><p>{text(title)} · {text(figures.split)} split</p></header>",
        *_verdict(problems, warnings),
        *pages.glance(glance(figures)),
        *_lengths(figures),
        '<div class="tables">',
        *(line for table in tables(figures) for line in pages.table(table)),
        "</div>",
        *_rows(views),
    ]
    return pages.page(f"Preview: {title}", body, STYLE)


def _verdict(problems: Sequence[str], warnings: Sequence[str]) -> Iterator[str]:
    if problems:
        yield '<section class="verdict problem"><h2>✗ This would make training wrong</h2><ul>'
        yield from (f"<li>{text(problem)}</li>" for problem in problems)
        yield "</ul></section>"
    else:
        yield '<section class="verdict good"><h2>✓ Nothing was found that would make training wrong</h2></section>'
    if warnings:
        yield '<section class="verdict warning"><h2>! Worth knowing</h2><ul>'
        yield from (f"<li>{text(warning)}</li>" for warning in warnings)
        yield "</ul></section>"


def _lengths(figures: Figures) -> Iterator[str]:
    bins = histogram(figures)
    most = max(1, *(times for _, _, times in bins))
    yield '<section class="card lengths"><h2>Lengths of chains</h2>'
    yield f'<p class="axis"><span>{most:,} chains</span></p>'
    yield f'<svg viewBox="0 0 {len(bins)} 100" preserveAspectRatio="none" role="img" aria-label="Lengths of chains">'
    for place, (start, last, times) in enumerate(bins):
        height = max(100 * times / most, 1 if times else 0)
        yield (
            f'<rect x="{place + 0.06:.2f}" y="{100 - height:.2f}" width="0.88" height="{height:.2f}">'
            f"<title>{start} to {last} tokens: {times:,} chains</title></rect>"
        )
    longest = figures.summary["lengths"]["most"]
    yield "</svg>"
    yield (
        f'<p class="axis"><span>0</span><span>the longest has {longest} tokens</span>'
        f"<span>{figures.seq_length}, a row</span></p></section>"
    )


def _rows(views: Sequence[RowView]) -> Iterator[str]:
    if not views:
        return
    runs = [run for view in views for document in view.documents for run in document.runs]
    looks = {run.look for run in runs}
    yield '<section class="rows"><h2>Rows</h2><p class="legend">'
    yield from (f'<span class="{look}">{text(meaning)}</span>' for look, meaning in LOOKS.items() if look in looks)
    if any(run.is_special for run in runs):
        yield '<span class="special">special token</span>'
    yield "</p>"
    for view in views:
        yield from _row(view)
    yield "</section>"


def _row(view: RowView) -> Iterator[str]:
    kind = "pretraining text" if view.is_text else "feedback"
    yield f'<article class="card row" id="row-{view.number}">'
    yield (
        f"<h3>Row {view.number} <small>{kind} · {view.num_targets} of {view.length} tokens are targets · "
        f"{view.num_padding} padding</small></h3>"
    )
    yield from _ribbon(view)
    for document in view.documents:
        yield from _document(document)
    yield "</article>"


def _ribbon(view: RowView) -> Iterator[str]:
    """The whole row as a strip: how much of it is what."""
    yield '<div class="ribbon" aria-hidden="true">'
    for place, document in enumerate(view.documents):
        if place:
            yield "<b></b>"
        for run in document.runs:
            yield f'<i class="{run.look}" style="flex-grow:{len(run.ids)}"></i>'
    if view.num_padding:
        yield f'<i class="padding" style="flex-grow:{view.num_padding}"></i>'
    yield "</div>"


def _document(document: DocumentView) -> Iterator[str]:
    length = f"{document.num_tokens} tokens"
    if document.num_tokens < document.num_whole:
        length = f"{document.num_tokens} of {document.num_whole} tokens, cut where a row ends"
    about = filter(None, (document.source, document.template, length, f"{document.num_targets} targets"))
    yield f'<section class="document"><h4>{"".join(f"<span>{text(part)}</span>" for part in about)}</h4>'
    yield f'<div class="body">{"".join(map(_run, document.runs))}</div></section>'


def _run(run: Run) -> str:
    inner = text(run.text)
    if run.tokens:
        inner = "".join(
            f"<span>{text(words)}<sub>{' '.join(map(str, numbers))}</sub></span>" for words, numbers in run.tokens
        )
    names = f"{run.look} special" if run.is_special else run.look
    return f'<span class="{names}" title="{text(LOOKS[run.look])}">{inner}</span>'
