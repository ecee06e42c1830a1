"""A report as one page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from coh import pages
from coh.pages import Table, text
from coh.report import tables
from coh.report.answer import Verdict, answer
from coh.report.pictures import Picture
from coh.report.record import Run
from coh.report.repeat import start

MOST_OUTPUTS = 8  # of a source, that are shown side by side
MOST_CAPTION = 140
ROW_BY_ROW, ACROSS = 3, 4  # columns for which a phone, and half of a page, are too narrow
STYLE = """\
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0.75rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: 0.4rem; color: var(--faint); font-size: 0.8rem; }
.section { margin: 2.5rem 0 0.75rem; font-size: 1.4rem; letter-spacing: -0.01em; }
.outputs { display: grid; gap: 0.75rem; }
.outputs p { margin: 0 0 0.6rem; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.outputs .prompt { color: var(--prompt); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0.75rem; }
.sides div { padding: 0.6rem 0.8rem; border-radius: 8px; font-size: 0.92rem; }
.sides h3 { margin: 0 0 0.3rem; font-size: 0.8rem; font-weight: 600; }
.sides div p { margin: 0; }
.sides .good { background: var(--target); color: var(--ink); }
.sides .bad { background: var(--words); }
.sides .people { grid-column: 1 / -1; background: var(--output); }
.across { grid-column: 1 / -1; }
.across th { white-space: normal; vertical-align: bottom; }
.across td.word { min-width: 11rem; }
.across td:first-child { position: sticky; left: 0; background: var(--card); }
@media (max-width: 60rem) { .across td.number { white-space: normal; } }
.table p { margin: 0 0 0.6rem; }
.verdict p { margin: 0.3rem 0 0; color: var(--ink); font-size: 0.9rem; overflow-wrap: anywhere; }
.verdict pre { margin-top: 0.3rem; color: var(--ink); }
.quiet { margin: 2.5rem 0 0; color: var(--faint); font-size: 0.85rem; overflow-wrap: anywhere; }
.quiet h2 { margin: 0 0 0.3rem; font-size: 0.85rem; }
.quiet ul { margin: 0; padding-left: 1.2rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
pre span { display: inline-block; max-width: 100%; }
"""


def as_page(runs: Sequence[Run], pictures: Sequence[Picture]) -> str:
    """The whole page for one run, or for several side by side."""
    names = " and ".join(run.name for run in runs)
    model = ", ".join(dict.fromkeys(str(run.arguments.get("model_name", "")) for run in runs if run.arguments))
    body = [f"<header><h1>{text(names)}</h1><p>{text(f'Chain of Hindsight · {model}' if model else '')}</p></header>"]
    body += [line for run in runs for line in _verdict(answer(run), run.name if len(runs) > 1 else "")]
    for run in runs:
        if len(runs) > 1:
            body.append(f'<h2 class="section">{text(run.name)}</h2>')
        body += pages.glance(tables.glance(run))
    body += _outputs(runs)
    body += ['<h2 class="section">Pictures</h2><div class="pictures">', *(_picture(p) for p in pictures), "</div>"]
    body += ['<h2 class="section">Figures</h2><div class="tables">']
    found = [*([tables.changed(runs)] if len(runs) > 1 else []), *tables.tables(runs)]
    body += [line for table in found if table.rows for line in _table(table)]
    body += ["</div>", '<h2 class="section">To repeat it</h2>', '<div class="tables">']
    for run in runs:
        body += _start(run, len(runs) > 1)
        body += pages.table(tables.facts(run))
    body.append("</div>")
    body += _missing(runs)
    return pages.page(f"Report: {names}", body, STYLE)


def _table(found: Table) -> Iterator[str]:
    """A table; one with many columns takes the whole width, and on a phone it is shown row by row."""
    for line in pages.table(found):  # texts in it are escaped, so these are its own tags
        if len(found.columns) >= ACROSS:
            line = line.replace('<section class="table">', '<section class="table across">')
        if len(found.columns) >= ROW_BY_ROW:
            line = line.replace("<table>", '<table class="wide">')
        yield line


def _start(run: Run, is_one_of_several: bool) -> Iterator[str]:
    """The command of a run, or the call from Python."""
    started = start(run)
    if started:
        title = f"{started.title} of {run.name}" if is_one_of_several else started.title
        yield f'<section class="table"><h2>{text(title)}</h2>'
        if started.remark:
            yield f"<p>{text(started.remark)}</p>"
        if started.code:
            yield _code(started.code)
        yield "</section>"


def _code(code: str) -> str:
    """Code, of which no word is broken at the end of a line but where it is longer than that: `--name` least of all."""
    words = re.sub(r"(\S+)", r"<span>\1</span>", text(code))
    return f"<pre>{words}</pre>"


def _verdict(found: Verdict, name: str) -> Iterator[str]:
    """The answer, with the name of its run where there are several."""
    yield f'<section class="verdict {found.look}"><h2>{text(f"{name}: {found.answer}" if name else found.answer)}</h2>'
    yield f"<p>{text(found.evidence)}</p>"
    if found.command:
        yield f"<p>{text(found.remark)}</p>{_code(found.command)}"
    yield "</section>"


def _missing(runs: Sequence[Run]) -> Iterator[str]:
    """What the page could have shown, as a note at its end: what an answer needs is said where the answer is."""
    found = [(run, run.missing) for run in runs if run.missing]
    if found:
        yield '<section class="quiet"><h2>Not recorded, and so not shown</h2><ul>'
        for run, missing in found:
            name = f"{run.name}: " if len(runs) > 1 else ""
            yield f"<li>{text(name + ', '.join(missing))}</li>"
        yield "</ul></section>"


def _picture(picture: Picture) -> str:
    svg = picture.svg.replace("<svg", f'<svg role="img" aria-label="{text(picture.caption)}"', 1)
    # What is long repeats a table further down: it is read aloud only.
    shown = f"<figcaption>{text(picture.caption)}</figcaption>" if len(picture.caption) <= MOST_CAPTION else ""
    return f'<figure class="card">{svg}{shown}</figure>'


def _outputs(runs: Sequence[Run]) -> Iterator[str]:
    """What the models wrote for the same prompts, under good and under bad words."""
    shown = list(tables.written_rows(runs, MOST_OUTPUTS))
    if not shown:
        return
    yield '<h2 class="section">What it writes</h2><div class="outputs">'
    for source, prompt, sides in shown:
        yield f'<article class="card"><h2>{text(source)}</h2><p class="prompt">{text(prompt)}</p><div class="sides">'
        for look, head, words in sides:
            yield f'<div class="{look}"><h3>{text(head)}</h3><p>{text(words or "(nothing: it ends at once)")}</p></div>'
        yield "</div></article>"
    yield "</div>"
