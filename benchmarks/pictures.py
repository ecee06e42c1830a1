"""Draws how cost grows: one picture for each sweep of `growth.py`, tokens a second on the left, memory on the right.

In: the points of benchmarks/results/growth.json. Out: SVG files. A picture's heading says its point in the numbers that
were measured. Speeds are relative to a speed of the same run, so that a picture holds on other machines. Colours are of
middle lightness and the ground is left open, so that pictures read on light and on dark pages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

INK = "#6e7781"
COLOURS = {"coh": "#2f81f7", "naive": "#d9822b"}
MB = 2**20

Lines = dict[str, list[tuple[float, float, float, float]]]  # size; median, least and greatest of the rounds


@dataclass(frozen=True)
class Series:
    """The points of a sweep in order, and what a heading may ask of them."""

    points: tuple[Mapping[str, Any], ...]

    def side(self, name: str, place: int) -> Mapping[str, Any]:
        return self.points[place]["sides"][name]

    def speed(self, name: str, place: int) -> float:
        side = self.side(name, place)
        return side["tokens"] / median(side["seconds"])

    def memory(self, name: str, place: int) -> float:
        return self.side(name, place)["memory"] / MB

    def first(self) -> float:
        return self.points[0]["at"]

    def last(self) -> float:
        return self.points[-1]["at"]

    def times(self, place: int) -> str:
        """coh's speed as a multiple of naive's."""
        return f"{self.speed('coh', place) / self.speed('naive', place):.1f}"

    def part(self, place: int) -> str:
        """coh's memory in per cent of naive's."""
        return f"{100 * self.memory('coh', place) / self.memory('naive', place):.0f}"


def of_length(found: Series) -> str:
    return (
        f"Rows of {found.first():,.0f} tokens: {found.times(0)} times naive's speed in {found.part(0)} % of its "
        f"memory; of {found.last():,.0f}: {found.times(-1)} times in {found.part(-1)} %"
    )


def of_vocabulary(found: Series) -> str:
    few, many = (f"{size / 1000:,.0f}k words" for size in (found.first(), found.last()))
    return (
        f"{few}: {found.times(0)} times naive's speed in {found.part(0)} % of its memory; "
        f"{many}: {found.times(-1)} times in {found.part(-1)} %"
    )


def of_share(found: Series) -> str:
    return (
        f"Few targets cost little: {found.times(0)} times naive's speed where {found.first():g} % are targets, "
        f"{found.times(-1)} times at {found.last():g} %"
    )


def of_ratio(found: Series) -> str:
    return (
        f"{found.times(0)} times naive's speed without pretraining text, {found.times(-1)} times with {found.last():g} "
        f"rows of it for each of feedback"
    )


def of_rows(found: Series) -> str:
    grown = found.memory("coh, every epoch", -1) - found.memory("coh, every epoch", 0)
    times = found.speed("coh, every epoch", -1) / found.speed("naive, every epoch", -1)
    return (
        f"From {found.first():,.0f} to {found.last():,.0f} pairs memory grows by {grown:,.0f} MB; an epoch is read "
        f"{times:,.0f} times as fast as naive"
    )


@dataclass(frozen=True)
class Picture:
    """What stands along the axis, and what the heading says."""

    axis: str
    heading: Callable[[Series], str]
    base: int | None  # the base of a logarithmic axis


PICTURES = {
    "rows": Picture("preference pairs in the file", of_rows, 10),
    "length": Picture("tokens of a row", of_length, 2),
    "vocabulary": Picture("words in the vocabulary", of_vocabulary, 2),
    "share": Picture("targets, % of the feedback's tokens", of_share, 2),
    "ratio": Picture("rows of text for each row of feedback", of_ratio, None),
}


def series(points: Mapping[str, Mapping[str, Any]], sweep: str) -> Series:
    """A sweep's points by size."""
    return Series(tuple(sorted((p for p in points.values() if p["sweep"] == sweep), key=lambda point: point["at"])))


def lines_of(found: Series) -> tuple[Lines, Lines]:
    """Speeds, as multiples of the last side's at the first point, and memory in MB, by side."""
    names = list(found.points[0]["sides"])
    base = found.speed(names[-1], 0)
    speeds: Lines = {name: [] for name in names}
    memory: Lines = {name: [] for name in names}
    for place, point in enumerate(found.points):
        for name in names:
            side = point["sides"][name]
            rates = [side["tokens"] / seconds / base for seconds in side["seconds"]]
            speeds[name].append((point["at"], found.speed(name, place) / base, min(rates), max(rates)))
            memory[name].append((point["at"], *[found.memory(name, place)] * 3))
    return speeds, memory


def digest(points: Mapping[str, Mapping[str, Any]], sweep: str) -> str:
    """What a picture was drawn from, in short: it stands in the file, so that a stale picture is found."""
    text = json.dumps([series(points, sweep).points, PICTURES[sweep].axis], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def amount(value: float) -> str:
    """A number on an axis.

    >>> [amount(value) for value in (0.5, 256, 2_000, 32_000, 1_000_000)]
    ['0.5', '256', '2,000', '32k', '1M']
    """
    for size, letter, least in ((1e6, "M", 1e6), (1e3, "k", 1e4)):
        if value >= least and value % size == 0:
            return f"{value / size:g}{letter}"
    return f"{value:,g}"


def spread_out(heights: list[float], least: float) -> list[float]:
    """The heights of labels, moved apart until neighbours are `least` from each other; their order stays.

    >>> spread_out([0.5, 0.52, 0.9], 0.1)
    [0.46, 0.56, 0.9]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    found = [heights[i] for i in order]
    for _ in range(50):
        for i in range(len(found) - 1):
            lack = least - (found[i + 1] - found[i])
            if lack > 1e-9:
                found[i], found[i + 1] = found[i] - lack / 2, found[i + 1] + lack / 2
    return [round(found[order.index(i)], 6) for i in range(len(heights))]


def draw_lines(axes: Any, lines: Lines, picture: Picture, title: str) -> None:
    """One panel: a line for each side, named at its end, with the spread of the rounds around it."""
    for side, points in lines.items():
        colour, is_dashed = COLOURS[side.split(",")[0]], side.endswith("once")
        at, middle, least, greatest = zip(*points)
        style = {"linestyle": (0, (4, 2)) if is_dashed else "-", "linewidth": 1.8}
        axes.plot(at, middle, color=colour, marker="o", markersize=3.5, clip_on=False, **style)
        axes.fill_between(at, least, greatest, color=colour, alpha=0.18, linewidth=0)
    sizes = sorted({point[0] for points in lines.values() for point in points})
    values = [value for points in lines.values() for point in points for value in point[1:]]
    scale(axes, picture, sizes, values)
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=10)
    axes.set_xlabel(picture.axis, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(axis="y", color=INK, alpha=0.22, linewidth=0.6)
    axes.patch.set_alpha(0)
    for place, spine in axes.spines.items():
        spine.set_visible(place == "bottom")
        spine.set_color(INK)
    name_lines(axes, lines)


def scale(axes: Any, picture: Picture, sizes: list[float], values: list[float]) -> None:
    """The axes: logarithmic where values are far apart, else from 0."""
    from matplotlib.ticker import LogLocator

    if picture.base:
        axes.set_xscale("log", base=picture.base)
    if max(values) > 20 * max(min(values), 1e-9):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 200 * min(values) else (1,)))
        axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
    else:
        axes.set_ylim(0, max(values) * 1.08)
    axes.yaxis.set_major_formatter(lambda value, _: amount(value))
    axes.set_xticks(sizes, [amount(size) for size in sizes])
    axes.minorticks_off()


def name_lines(axes: Any, lines: Lines) -> None:
    """Each line's name behind its last point, none above another."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform(points[-1][:2]) for points in lines.values()]
    heights = spread_out([float(y) for _, y in ends], 0.085)
    for side, (x, _), y in zip(lines, ends, heights):
        place = {"xy": (x, y), "xycoords": "axes fraction", "xytext": (7, 0), "textcoords": "offset points"}
        style = {"fontsize": 9, "fontweight": "bold", "color": COLOURS[side.split(",")[0]]}
        axes.annotate(side, **place, **style, va="center", annotation_clip=False)


def draw(points: Mapping[str, Mapping[str, Any]], sweep: str, path: Path) -> None:
    """The picture of one sweep as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found, picture = series(points, sweep), PICTURES[sweep]
    settings = {"svg.hashsalt": sweep, "svg.fonttype": "none", "font.family": "sans-serif"}
    with pyplot.rc_context(settings):
        figure, panels = pyplot.subplots(1, 2, figsize=(9.4, 3.3))
        names = 0.155 if sweep == "rows" else 0.065  # share of the width that names of lines take
        figure.subplots_adjust(left=0.05, right=0.99 - names, top=0.76, bottom=0.16, wspace=0.18 + 4.2 * names)
        speeds, memory = lines_of(found)
        title = f"tokens a second; {list(speeds)[-1].split(',')[0]}'s first point = 1"
        draw_lines(panels[0], speeds, picture, title)
        draw_lines(panels[1], memory, picture, "memory, MB")
        heading = {"fontsize": 10.5, "fontweight": "bold", "color": INK, "va": "center"}
        figure.text(0.05, 0.95, picture.heading(found), **heading)
        told = {"Date": None, "Creator": None, "Description": digest(points, sweep)}
        figure.savefig(path, transparent=True, metadata=told)
        pyplot.close(figure)


def draw_all(points: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """The pictures of all sweeps that have points; their files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for sweep in PICTURES:
        if series(points, sweep).points:
            drawn.append(folder / f"growth-{sweep}.svg")
            draw(points, sweep, drawn[-1])
    return drawn
