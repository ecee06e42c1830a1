"""Pages of HTML that need nothing beside them, and how they look: no script, no font, no image from elsewhere.

Two palettes, by what the reader's system prefers, and one layout from phone to wide screen and paper. Every text that
comes from data is escaped, and what cannot be seen in it is spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from coh.data.records import visible

MOST_ROWS = 12  # of a table, before it is folded
WIDE = 6  # columns of a table that a phone shows row by row


@dataclass(frozen=True)
class Table:
    """A table of texts; the first `num_words` columns are words, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_words: int = 1


def text(words: str) -> str:
    """Words as HTML.

    >>> text("<b> & \x1b")
    '&lt;b&gt; &amp; \\\\x1b'
    """
    return escape(visible(words))


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page; `style` is added to the common look."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def glance(entries: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """The figures that matter most: (what, how much, more about it)."""
    yield '<dl class="glance">'
    for what, amount, more in entries:
        yield f"<div><dt>{text(what)}</dt><dd>{text(amount)}</dd><dd>{text(more)}</dd></div>"
    yield "</dl>"


def table(found: Table) -> Iterator[str]:
    """A table as a card; what is beyond the first rows is folded."""
    yield f'<section class="table"><h2>{text(found.title)}</h2>'
    yield from _grid(found, found.rows[:MOST_ROWS])
    more = found.rows[MOST_ROWS:]
    if more:
        yield f"<details><summary>{len(more)} more</summary>"
        yield from _grid(found, more)
        yield "</details>"
    yield "</section>"


def _grid(found: Table, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    names = ["word" if column < found.num_words else "number" for column in range(len(found.columns))]
    heads = "".join(f'<th scope="col" class="{name}">{text(word)}</th>' for name, word in zip(names, found.columns))
    wide = ' class="wide"' if len(found.columns) >= WIDE else ""
    head = f"<thead><tr>{heads}</tr></thead>" if any(found.columns) else ""
    yield f'<div class="scroll"><table{wide}>{head}<tbody>'
    for row in rows:
        cells = (
            f'<td class="{name}" data-column="{text(column)}">{text(cell)}</td>'
            for name, column, cell in zip(names, found.columns, row)
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


STYLE = """\
:root {
  --paper: #f7f6f2; --card: #ffffff; --ink: #1d2126; --faint: #646b73; --line: #e0ddd4; --bar: #2f7d4f;
  --target: #d8f1de; --target-line: #1c7a3c; --words: #fdeec4; --words-line: #a86d00; --prompt: #2c4a78;
  --critique: #efe0f8; --critique-line: #7a3fa3; --output: #dfeafb; --output-line: #3565ad;
  --strip: #a9bedd; --problem: #b3261e; --problem-back: #fdeceb; --warning: #8a5a00; --warning-back: #fff5dd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131619; --card: #1b1f24; --ink: #e4e5e2; --faint: #99a1aa; --line: #31373e; --bar: #58b67c;
    --target: #17402a; --target-line: #58c583; --words: #46360f; --words-line: #dfac48; --prompt: #a9c4ee;
    --critique: #3b2850; --critique-line: #c299e6; --output: #20375a; --output-line: #80aef0;
    --strip: #4a6490; --problem: #ff9d94; --problem-back: #3a1c1b; --warning: #f0c265; --warning-back: #352a12;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; }
h2 { margin: 0 0 0.75rem; font-size: 1.05rem; }
header p { margin: 0.25rem 0 1.5rem; color: var(--faint); overflow-wrap: anywhere; }
.verdict { margin: 0 0 0.75rem; padding: 0.8rem 1.1rem; border-left: 4px solid; border-radius: 6px; }
.verdict h2 { margin: 0; font-size: 1rem; }
.verdict ul { margin: 0.4rem 0 0; padding-left: 1.2rem; color: var(--ink); overflow-wrap: anywhere; }
.problem { background: var(--problem-back); color: var(--problem); }
.warning { background: var(--warning-back); color: var(--warning); }
.good { background: var(--target); color: var(--target-line); }
.glance {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.75rem; margin: 1.5rem 0 0.75rem;
}
.glance div, .card, .table {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem;
}
.glance dt { color: var(--faint); font-size: 0.85rem; }
.glance dd { margin: 0; color: var(--faint); font-size: 0.85rem; line-height: 1.35; }
.glance dt + dd { color: var(--ink); font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0.75rem; }
.tables { margin-top: 0.75rem; align-items: start; }
.table { min-width: 0; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 500; text-align: left; }
th, td { padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0.2rem; }
td.word { white-space: normal; overflow-wrap: break-word; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; }
details { margin-top: 0.5rem; font-size: 0.9rem; }
summary { color: var(--faint); cursor: pointer; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 0.9rem 3rem; }
  h1 { font-size: 1.6rem; }
  .glance { grid-template-columns: 1fr 1fr; gap: 0.5rem; }
  .glance div, .card, .table { padding: 0.75rem 0.8rem; }
  .glance dt + dd { font-size: 1.3rem; }
  th, td { padding-right: 0.6rem; }
  .wide, .wide tbody, .wide tr { display: block; }
  .wide thead { display: none; }
  .wide tr { padding: 0.4rem 0; border-bottom: 1px solid var(--line); }
  .wide tr:last-child { border-bottom: 0; }
  .wide td { display: flex; justify-content: space-between; padding: 0.1rem 0; border: 0; }
  .wide td::before { content: attr(data-column); color: var(--faint); }
  .wide td:first-child { font-weight: 600; }
  .wide td:first-child::before { content: none; }
}
@media print {
  main { max-width: none; padding: 0; }
  .card, .table, .glance div { break-inside: avoid; }
}
"""
