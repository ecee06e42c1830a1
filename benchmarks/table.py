"""Writes the results into docs/performance.md: the figures of every device, and what the plan expects.

    python benchmarks/table.py             # writes the page's tables from benchmarks/results/*.json
    python benchmarks/table.py --check     # exit 1 where the page is not what these files give
    python benchmarks/table.py --device    # the name of this machine's file of figures

In: the JSON that the programs here write with --output, one file for each device. Out: the tables between the comments
`<!-- figures -->` and `<!-- plan -->` and their ends; whatever else stands on the page is left alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, device

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
EMPTY = "No figures yet: `make bench` takes them."


def slug(name: str) -> str:
    """A device's name as the name of a file.

    >>> slug("NVIDIA A100-SXM4-80GB")
    'nvidia-a100-sxm4-80gb'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def results_file(kind: str = "", folder: Path = RESULTS) -> Path:
    """Where this machine's figures go; `kind` names a file of its own, which on a CPU needs no device in its name."""
    import torch  # noqa: F401  (knows the GPU)

    name = slug(device())
    if kind:
        name = kind if name == "cpu" else f"{kind}-{name}"
    return folder / f"{name}.json"


def number(value: float) -> str:
    """Three digits that count, and two of what is next to nothing.

    >>> [number(value) for value in (0.41234, 12.345, 1234.5, 3.0, 6.07e-7)]
    ['0.412', '12.3', '1,234', '3', '6.1e-07']
    """
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = max(0, 3 - len(f"{abs(value):.0f}")) if abs(value) >= 1 else 3
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def limit(figure: Mapping[str, Any], name: str) -> str:
    """A limit of a figure with its side, or nothing where it has none."""
    value = figure.get(name)
    return "" if value is None else f"{'≤' if figure['is_best_low'] else '≥'} {number(value)}"


def reached(figure: Mapping[str, Any]) -> str:
    """Which limit the value keeps."""

    def meets(name: str) -> bool:
        value = figure.get(name)
        if value is None:
            return False
        return figure["value"] <= value if figure["is_best_low"] else figure["value"] >= value

    if figure.get("target") is None and figure.get("moonshot") is None:
        return ""
    return "moonshot" if meets("moonshot") else "target" if meets("target") else "missed"


def row(name: str, figure: Mapping[str, Any]) -> str:
    """One line of the table."""
    unit = "" if figure["unit"] == "ratio" else f" {figure['unit']}"
    value = f"**{number(figure['value'])}**{unit} ({number(figure['low'])} to {number(figure['high'])})"
    cells = [
        f"`{name}`",
        figure["what"].replace("|", "\\|"),
        value,
        limit(figure, "target"),
        limit(figure, "moonshot"),
        reached(figure),
    ]
    return f"| {' | '.join(cells)} |"


def machine_line(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """What a device's figures were measured on and with, and how often."""
    machines = [figure["machine"] for figure in figures.values()]
    names = {"cpu": "one thread of a CPU"}
    parts = [names.get(machines[-1]["device"], machines[-1]["device"])]
    for package in list(dict.fromkeys(name for found in machines for name in found)):
        if package != "device":
            versions = dict.fromkeys(found[package] for found in machines if package in found)
            parts.append(f"{package} {' and '.join(versions)}")
    rounds = sorted({figure["rounds"] for figure in figures.values()})
    how_often = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return f"Measured on {', '.join(parts)}; {how_often} rounds."


def section(title: str, figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A device: its table, and the commands that measured it."""
    commands = dict.fromkeys(figure["command"] for figure in figures.values())
    return [
        f"### {title}",
        "",
        "| figure | what | value (least to greatest round) | target | moonshot | reached |",
        "|---|---|---|---|---|---|",
        *(row(name, figures[name]) for name in sorted(figures)),
        "",
        machine_line(figures),
        "",
        "```sh",
        *commands,
        "```",
    ]


def figures_text(folder: Path = RESULTS) -> str:
    """The tables of all devices, the CPU first."""
    lines: list[str] = []
    for path in sorted(folder.glob("*.json"), key=lambda path: (path.stem != "cpu", path.stem)):
        figures = json.loads(path.read_text(encoding="utf-8")).get("figures")
        if figures:  # other programs keep other things there
            device_name = list(figures.values())[-1]["machine"]["device"]
            lines += [*([""] if lines else []), *section("CPU" if device_name == "cpu" else device_name, figures)]
    return "\n".join(lines or [EMPTY])


def filled(page: str, name: str, text: str) -> str:
    """The page with `text` between the comments `<!-- name -->` and `<!-- /name -->`.

    >>> filled("a <!-- x -->old<!-- /x --> b", "x", "new")
    'a <!-- x -->\\n\\nnew\\n\\n<!-- /x --> b'

    Raises:
        ValueError: the page does not have both comments, once and in this order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs {begin} and behind it {end}, once each")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def page_text(page: str, folder: Path = RESULTS) -> str:
    """The page as it should be."""
    from plan import table

    return filled(filled(page, "figures", figures_text(folder)), "plan", table())


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or compare it."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page would change")
    options.add_argument("--device", action="store_true", help="print the file that this machine's figures belong in")
    options.add_argument("--page", type=Path, default=PAGE, help="the page")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the figures")
    args = options.parse_args(argv)
    if args.device:
        print(results_file(folder=args.results))
        return 0
    page = args.page.read_text(encoding="utf-8")
    wanted = page_text(page, args.results)
    if args.check:
        if page != wanted:
            print(f"{args.page.name} is not what {args.results.name}/ gives: run benchmarks/table.py", file=sys.stderr)
        return int(page != wanted)
    args.page.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
