"""A report as a text in Markdown, with its pictures in a folder beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coh.report import tables
from coh.report.answer import Verdict, answer
from coh.report.marks import block, path, plain, table
from coh.report.pictures import Picture
from coh.report.record import Run
from coh.report.repeat import start

MOST_OUTPUTS = 8


def as_text(runs: Sequence[Run], pictures: Sequence[Picture], images: str) -> str:
    """The same as the page says; `images` is the folder of the pictures, as the text sees it."""
    lines = [f"# {plain(' and '.join(run.name for run in runs))}", ""]
    lines += [line for run in runs for line in _verdict(answer(run), run.name if len(runs) > 1 else "")]
    for run in runs:
        if len(runs) > 1:
            lines += [f"## {plain(run.name)}", ""]
        for what, much, more in tables.glance(run):
            lines.append(f"- {plain(what)}: **{plain(much)}**" + (f" ({plain(more)})" if more else ""))
        lines.append("")
    lines += _outputs(runs)
    for picture in pictures:
        lines += [f"![{plain(picture.caption)}]({path(f'{images}/{picture.name}.png')})", ""]
    lines += ["## Figures", ""]
    found = [*([tables.changed(runs)] if len(runs) > 1 else []), *tables.tables(runs)]
    lines += [line for one in found if one.rows for line in _table(one)]
    lines += ["## To repeat it", ""]
    for run in runs:
        started = start(run)
        if started:
            lines += [plain(started.remark), ""] if started.remark else []
            lines += [block(started.code, started.language), ""] if started.code else []
        lines += _table(tables.facts(run))
    for run in runs:
        if run.missing:
            name = f"{run.name}: " if len(runs) > 1 else ""
            lines += [f"*{plain(f'{name}Not recorded, and so not shown')}: {plain(', '.join(run.missing))}.*", ""]
    return "\n".join(lines)


def _verdict(found: Verdict, name: str) -> Iterator[str]:
    """The answer, with the name of its run where there are several."""
    yield f"**{plain(f'{name}: {found.answer}' if name else found.answer)}** {plain(found.evidence)}"
    yield ""
    if found.command:
        yield f"{plain(found.remark)}\n\n{block(found.command, 'sh')}\n"


def _outputs(runs: Sequence[Run]) -> Iterator[str]:
    """What the models wrote for the same prompts, under good and under bad words."""
    shown = list(tables.written_rows(runs, MOST_OUTPUTS))
    if shown:
        yield "## What it writes\n"
    for source, prompt, sides in shown:
        yield f"**{plain(source)}**: {plain(prompt)}\n"
        for _, head, words in sides:
            yield f"- *{plain(head)}*: {plain(words or '(nothing: it ends at once)')}"
        yield ""


def _table(found: tables.Table) -> Iterator[str]:
    yield f"### {plain(found.title)}"
    yield ""
    yield table(found)
    yield ""
