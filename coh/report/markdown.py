"""A report as a text in Markdown, with its pictures in a folder beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coh.data.records import visible
from coh.pages import Table
from coh.report import tables
from coh.report.pictures import Picture
from coh.report.record import Run
from coh.report.repeat import start
from coh.report.verdict import Verdict, verdict

MOST_OUTPUTS = 8


def as_text(runs: Sequence[Run], pictures: Sequence[Picture], images: str) -> str:
    """The same as the page says; `images` is the folder of the pictures, as the text sees it."""
    lines = [f"# {_text(' and '.join(run.name for run in runs))}", ""]
    lines += [line for run in runs for line in _verdict(verdict(run), run.name if len(runs) > 1 else "")]
    for run in runs:
        if len(runs) > 1:
            lines += [f"## {_text(run.name)}", ""]
        for what, much, more in tables.glance(run):
            lines.append(f"- {_text(what)}: **{_text(much)}**" + (f" ({_text(more)})" if more else ""))
        lines.append("")
    lines += _outputs(runs)
    for picture in pictures:
        lines += [f"![{_text(picture.caption)}]({images}/{picture.name}.png)", ""]
    lines += ["## Figures", ""]
    found = [*([tables.changed(runs)] if len(runs) > 1 else []), *tables.tables(runs)]
    lines += [line for table in found if table.rows for line in _table(table)]
    lines += ["## To repeat it", ""]
    for run in runs:
        started = start(run)
        if started:
            lines += [f"{_text(started.remark)}\n"] if started.remark else []
            lines += [f"```{started.language}", started.code, "```", ""] if started.code else []
        lines += _table(tables.facts(run))
    for run in runs:
        if run.missing:
            name = f"{run.name}: " if len(runs) > 1 else ""
            lines += [f"*{_text(name)}Not recorded, and so not shown: {_text(', '.join(run.missing))}.*", ""]
    return "\n".join(lines)


def _verdict(found: Verdict, name: str) -> Iterator[str]:
    """The answer, with the name of its run where there are several."""
    yield f"**{_text(f'{name}: {found.answer}' if name else found.answer)}** {_text(found.evidence)}"
    yield ""
    if found.command:
        yield f"{_text(found.remark)}\n\n```sh\n{found.command}\n```\n"


def _outputs(runs: Sequence[Run]) -> Iterator[str]:
    """What the models wrote for the same prompts, under good and under bad words."""
    shown = list(tables.written_rows(runs, MOST_OUTPUTS))
    if shown:
        yield "## What it writes\n"
    for source, prompt, sides in shown:
        yield f"**{_text(source)}**: {_quoted(prompt)}\n"
        for _, head, words in sides:
            yield f"- *{_text(head)}*: {_quoted(words or '(nothing: it ends at once)')}"
        yield ""


def _text(words: str) -> str:
    """Words that Markdown shows as they are.

    >>> _text("a|b *c* <d>")
    'a\\\\|b \\\\*c\\\\* &lt;d>'
    """
    shown = visible(words)
    for sign in "\\`*_[]|#":
        shown = shown.replace(sign, f"\\{sign}")
    return shown.replace("<", "&lt;")


def _quoted(words: str) -> str:
    return _text(" ".join(words.split()))


def _table(table: Table) -> Iterator[str]:
    yield f"### {_text(table.title)}"
    yield ""
    yield "| " + " | ".join(_text(column) for column in table.columns) + " |"
    yield "|" + "|".join("---" if n < table.num_words else "---:" for n in range(len(table.columns))) + "|"
    for row in table.rows:
        yield "| " + " | ".join(_quoted(cell) for cell in row) + " |"
    yield ""
