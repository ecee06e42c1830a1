"""The pictures of a report, drawn by matplotlib: as SVG that takes the page's own colours, and as PNG for a text.

In: runs. Out: `Picture`s, each with the sentence that a reader who cannot see it needs. A picture without data is not
drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from coh.report.record import Run


class Palette(NamedTuple):
    """Colours of text, of what stands back, of lines in the background, and of each series."""

    ink: str
    faint: str
    line: str
    series: tuple[str, ...]


PRINT = Palette("#1d2126", "#646b73", "#d5d0c4", ("#2f7d4f", "#a86d00", "#3565ad", "#7a3fa3"))
# On a page the colours are the page's own, light or dark: these stand for them until the drawing is text.
STAND_IN = Palette("#010101", "#020202", "#030303", ("#040404", "#050505", "#060606", "#070707"))
VARIABLES = dict(
    zip(
        (*STAND_IN[:3], *STAND_IN.series),
        ("ink", "faint", "line", "bar", "words-line", "output-line", "critique-line"),
    )
)
LINES = ("-", "--", ":", "-.")
NAMES = {
    "loss_feedback": "feedback",
    "loss_pretrain": "pretraining text",
    "pair_accuracy": "sum of log p",
    "pair_accuracy_per_token": "log p per token",
    "pair_accuracy_by_words": "what the words change",
}
ACCURACIES = ("pair_accuracy", "pair_accuracy_per_token", "pair_accuracy_by_words")

Draw = Callable[[Sequence[Run], Any, Palette], str | None]  # draws on axes, and says what is drawn; None where nothing


@dataclass(frozen=True)
class Picture:
    """A drawing and what it says in words; `svg` stands in a page, `png` beside a text."""

    name: str
    caption: str
    svg: str
    png: bytes


def pictures(runs: Sequence[Run]) -> list[Picture]:
    """All pictures that the runs have data for, in the order of a report."""
    drawings: dict[str, tuple[Draw, float]] = {
        "loss": (_curves("Training loss (nats per token)", ("loss_feedback", "loss_pretrain")), 3.1),
        "evaluation": (_evaluation, 3.1),
        "accuracy": (_bars("Pair accuracy on held-out pairs (%)", ACCURACIES, 50), _bars_height(runs, ACCURACIES)),
        "gap": (_bars("Steering gap (nats per pair)", ("steering_gap",), 0), _bars_height(runs, ("steering_gap",))),
        "scores": (_histogram, 3.1),
        "reliability": (_reliability, 3.1),
        "rate": (_curves("Learning rate", ("learning_rate",)), 2.4),
        "norm": (_curves("Gradient norm", ("grad_norm",)), 2.4),
        "speed": (_curves("Tokens per second", ("tokens_per_second",)), 2.4),
    }
    found = (_render(name, draw, runs, height) for name, (draw, height) in drawings.items())
    return [picture for picture in found if picture]


def _style(palette: Palette) -> dict[str, Any]:
    return {
        "font.size": 11,
        "font.family": "sans-serif",
        "text.color": palette.ink,
        "axes.edgecolor": palette.line,
        "axes.labelcolor": palette.faint,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.line,
        "grid.linewidth": 0.6,
        "xtick.color": palette.faint,
        "ytick.color": palette.faint,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "lines.linewidth": 1.8,
        "svg.fonttype": "none",
        "figure.constrained_layout.use": True,
    }


def _render(name: str, draw: Draw, runs: Sequence[Run], height: float) -> Picture | None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    files = []
    for_page = {"format": "svg", "transparent": True, "metadata": {"Date": None, "Creator": None}}
    kinds: list[tuple[Palette, dict[str, Any]]] = [(STAND_IN, for_page), (PRINT, {"format": "png", "dpi": 144})]
    for palette, options in kinds:
        with mpl.rc_context(_style(palette)):
            figure = Figure(figsize=(6.2, height))
            caption = draw(runs, figure.add_subplot(), palette)
            if caption is None:
                return None
            file = io.BytesIO()
            figure.savefig(file, **options)
            files.append(file.getvalue())
    return Picture(name, caption or "", _for_page(files[0].decode(), name), files[1])


def _for_page(drawing: str, name: str) -> str:
    """An SVG file as a part of a page: as wide as its place, in its colours and its font."""
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", drawing, count=1)
    drawing = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", drawing)
    # Ids are unique in a page, so that no picture takes another one's clipping.
    drawing = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", drawing)
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(colour, f"var(--{variable})")
    return drawing


def _label(runs: Sequence[Run], run: Run, what: str) -> str:
    return ", ".join(filter(None, (run.name if len(runs) > 1 else "", what)))


def _curves(title: str, names: tuple[str, ...]) -> Draw:
    """Series of the training log: a colour for each series, or for each run where there is one series."""

    def draw(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
        told = []
        for number, run in enumerate(runs):
            for place, name in enumerate(names):
                if run.curve(name):
                    label = _label(runs, run, NAMES.get(name, ""))
                    look = place if len(names) > 1 else number
                    told.append(_line(axes, run.curve(name), label, palette.series[look % 4], LINES[number % 4]))
        return _finished(axes, title, told)

    return draw


def _evaluation(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
    """The loss of every source, and of pretraining text, whenever it was measured."""
    told = []
    for number, run in enumerate(runs):
        curves = {source: curve for source, curve in run.evaluated("loss").items() if source}
        for place, (source, curve) in enumerate(curves.items()):
            label = _label(runs, run, NAMES.get(f"loss_{source}", source))
            told.append(_line(axes, curve, label, palette.series[place % 4], LINES[number % 4], marker="o"))
    return _finished(axes, "Held-out loss by source (nats per token)", told)


def _line(axes: Any, curve: Sequence[tuple[int, float]], label: str, color: str, line: str, marker: str = "") -> str:
    steps, values = zip(*curve)
    marker = marker or ("o" if len(steps) == 1 else "")
    axes.plot(steps, values, color=color, linestyle=line, label=label or None, marker=marker, markersize=4)
    return f"{label} from {values[0]:.4g} to {values[-1]:.4g}".strip()


def _finished(axes: Any, title: str, told: Sequence[str]) -> str | None:
    if not told:
        return None
    axes.set_title(title)
    axes.set_xlabel("step")
    if len(told) > 1:
        axes.legend()
    return f"{title}: {'; '.join(told)}."


def _sides(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, moment) for run in runs for moment in run.measured]


def _bar_rows(runs: Sequence[Run], measures: tuple[str, ...]) -> list[tuple[str, str]]:
    """The (source, measure) pairs of which any run has a figure."""
    found = [run.measured[moment]["sources"] for run, moment in _sides(runs)]
    sources = dict.fromkeys(source for sources in found for source in sources)
    return [
        (source, measure)
        for source in sources
        for measure in measures
        if any(measure in sources.get(source, {}) for sources in found)
    ]


def _bars_height(runs: Sequence[Run], measures: tuple[str, ...]) -> float:
    return 1.2 + 0.2 * len(_bar_rows(runs, measures)) * max(2, len(_sides(runs)))


def _bars(title: str, measures: tuple[str, ...], chance: float) -> Draw:
    """A bar with its interval for each source and measure, of every run before and after; bars begin at chance."""

    def draw(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
        rows, sides = _bar_rows(runs, measures), _sides(runs)
        if not rows:
            return None
        thickness = 0.8 / len(sides)
        told: dict[int, list[str]] = {place: [] for place in range(len(rows))}
        for side, (run, moment) in enumerate(sides):
            sources, is_after = run.measured[moment]["sources"], moment == "after"
            own = [(n, figure) for n, (s, m) in enumerate(rows) if (figure := sources.get(s, {}).get(m))]
            values = np.array([figure["value"] for _, figure in own], float)
            bounds = np.array([[figure["low"], figure["high"]] for _, figure in own], float).reshape(-1, 2)
            look = palette.series[(runs.index(run) if len(runs) > 1 else 0) % 4]
            axes.barh(
                [place + (side - (len(sides) - 1) / 2) * thickness for place, _ in own],
                values - chance,
                thickness * 0.86,
                left=chance,
                color=look if is_after else palette.faint,
                alpha=0.9 if is_after else 0.4,
                label=_label(runs, run, moment),
                xerr=np.nan_to_num(np.abs(bounds - values[:, None])).T,
                error_kw={"ecolor": palette.ink, "elinewidth": 1, "capsize": 2.5},
            )
            for place, figure in own:
                told[place].append(f"{_label(runs, run, moment)} {figure['value']:.3g}")
        axes.axvline(chance, color=palette.faint, linewidth=1)
        labels = ["\n".join(filter(None, (source, NAMES.get(measure, "")))) for source, measure in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=min(4, len(sides)))
        said = [f"{label.replace(chr(10), ', ')}: {', '.join(told[place])}" for place, label in enumerate(labels)]
        return f"{title}. {'; '.join(said)}."

    return draw


def _histogram(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
    """Scores of people's better and worse outputs under the last run's model, over all sources."""
    values = np.array([pair for own in _last(runs, "scores").values() for pair in own])
    if len(values) < 2:
        return None
    low, high = np.percentile(values, [1, 99])
    bins = np.linspace(low, max(high, low + 1e-6), 25)
    for column, label in enumerate(("better outputs", "worse outputs")):
        inside, color = np.clip(values[:, column], low, high), palette.series[column]
        axes.hist(inside, bins, histtype="stepfilled", color=color, alpha=0.25)
        axes.hist(inside, bins, histtype="step", color=color, linewidth=1.6, label=label)
    axes.set_title("Scores of people's outputs, after training")
    axes.set_xlabel("log p under good words less log p under bad words, nats per token")
    axes.set_ylabel("outputs")
    axes.legend()
    better, worse = values.mean(0)
    return (
        f"Scores of {len(values)} held-out pairs after training: better outputs {better:.3g} on average, worse ones "
        f"{worse:.3g}."
    )


def _reliability(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
    """How often the last run's score is right, by how sure it is, over all sources."""
    found = list(_last(runs, "reliability").values())
    if not found:
        return None
    counts = np.sum([own["counts"] for own in found], axis=0)
    used = counts > 0
    predicted, observed = (
        100 * np.nansum([np.array(own[key], float) * own["counts"] for own in found], axis=0)[used] / counts[used]
        for key in ("predicted", "observed")
    )
    axes.plot([50, 100], [50, 100], color=palette.faint, linewidth=1, linestyle=":")
    axes.plot(predicted, observed, color=palette.series[0], marker="o")
    for x, y, count in zip(predicted, observed, counts[used]):
        axes.annotate(f"{count} pairs", (x, y), (6, -12), textcoords="offset points", color=palette.faint, fontsize=9)
    axes.set_xlim(49, 101)
    axes.set_title("Is the score as often right as it says?")
    axes.set_xlabel("probability that it states (%)")
    axes.set_ylabel("right (%)")
    pairs = ", ".join(f"states {p:.0f}, right {o:.0f}" for p, o in zip(predicted, observed))
    return f"Reliability of the score, in percent: {pairs}."


def _last(runs: Sequence[Run], key: str) -> dict[str, Any]:
    """Of the last run that was measured after training, one entry of each source."""
    for run in reversed(runs):
        sources = run.measured.get("after", {}).get("sources", {})
        found = {source: own[key] for source, own in sources.items() if own.get(key)}
        if found:
            return found
    return {}
