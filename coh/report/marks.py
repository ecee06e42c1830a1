"""Texts, tables, code and paths as Markdown shows them, in reports and in model cards: nothing in them is obeyed."""

from __future__ import annotations

import re
from urllib.parse import quote

from coh.data.records import visible
from coh.pages import Table


def plain(words: str) -> str:
    """Words that Markdown shows as they are, on one line.

    >>> plain("a|b *c* <d> $e$")
    'a\\\\|b \\\\*c\\\\* &lt;d> \\\\$e\\\\$'
    """
    shown = " ".join(visible(words).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", shown)


def block(code: str, language: str = "") -> str:
    """A block of code, behind a fence that is longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{fence}{language}\n{visible(code)}\n{fence}"


def path(words: str) -> str:
    """A path as the target of a link, with / between its parts.

    >>> path("my report (1)/loss.png")
    'my%20report%20%281%29/loss.png'
    """
    return quote(words)


def table(found: Table) -> str:
    """A table without its title."""
    lines = ["| " + " | ".join(map(plain, found.columns)) + " |"]
    lines.append("|" + "|".join("---" if n < found.num_words else "---:" for n in range(len(found.columns))) + "|")
    return "\n".join([*lines, *("| " + " | ".join(map(plain, row)) + " |" for row in found.rows)])
