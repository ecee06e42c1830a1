"""The pictures of a report, drawn by matplotlib: as SVG that takes the page's own colours, and as PNG for a text.

In: runs. Out: `Picture`s, each with the sentence that a reader who cannot see it needs. A picture without data is not
drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from coh.data.records import visible
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
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 4)), (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2, 2, 2)))
MARKERS = ("o", "s", "^", "D")
HATCHES = ("", "////", "....", "xxxx")
TEXT = "pretrain"  # plain text, which has a look of its own beside the sources of feedback
SHIELD = "\u200b"
MOST_LETTERS = 32  # of a name in a picture: two of them fit beside each other
WIDTH = 6.2  # inches, as all heights here
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
        "text.parse_math": False,  # names of runs and of sources may have $ in them
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
        "legend.handlelength": 2.8,  # or a long dash looks like a line
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
            figure = Figure(figsize=(WIDTH, height))
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


def _name(words: str) -> str:
    """A name of somebody's as it stands in a picture: on one line, and without its middle where it is long."""
    shown = " ".join(visible(words).split())
    return shown if len(shown) <= MOST_LETTERS else f"{shown[: MOST_LETTERS // 2 - 1]}…{shown[-MOST_LETTERS // 2 :]}"


def _label(runs: Sequence[Run], run: Run, what: str) -> str:
    return ", ".join(filter(None, (_name(run.name) if len(runs) > 1 else "", _name(what))))


def _key(label: str) -> str | None:
    """A label as matplotlib keeps it for the legend, from which it would leave one out that begins with "_"."""
    return f"{SHIELD}{label}" if label.startswith("_") else label or None


def _curves(title: str, names: tuple[str, ...]) -> Draw:
    """Series of the training log: a colour for each series, or for each run where there is one series."""

    def draw(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
        told = []
        for number, run in enumerate(runs):
            for name in names:
                if run.curve(name):
                    label = _label(runs, run, NAMES.get(name, ""))
                    look = _look_of_run(palette, number)
                    if len(names) > 1:
                        color = palette.faint if name.endswith(TEXT) else palette.series[0]
                        look = {"color": color, "linestyle": LINES[number % len(LINES)]}
                    told.append(_line(axes, run.curve(name), label, look))
        return _finished(axes, title, told)

    return draw


def _evaluation(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
    """The loss of every source, and of pretraining text, whenever it was measured."""
    told = []
    curves = [run.evaluated("loss") for run in runs]
    sources = dict.fromkeys(source for own in curves for source in own if source)
    ordered = [*(source for source in sources if source != TEXT), TEXT]
    for number, (run, own) in enumerate(zip(runs, curves)):
        for place, source in enumerate(ordered):
            if source not in own:
                continue
            # Runs are told apart by their lines; one alone has lines to spare for its sources.
            look = _look(palette, place, number if len(runs) > 1 else place // 4)
            if source == TEXT:
                look = {"color": palette.faint, "linestyle": LINES[number % len(LINES)], "marker": "x"}
            label = _label(runs, run, NAMES.get(f"loss_{source}", source))
            told.append(_line(axes, own[source], label, look))
    return _finished(axes, "Held-out loss by source (nats per token)", told)


def _look(palette: Palette, place: int, line: int) -> dict[str, Any]:
    """How a source's curve looks: four colours, a marker for each four, and the line that stands for what else."""
    marker = MARKERS[place // 4 % len(MARKERS)]
    return {"color": palette.series[place % 4], "marker": marker, "linestyle": LINES[line % len(LINES)]}


def _look_of_run(palette: Palette, number: int) -> dict[str, Any]:
    """How the only curve of a run looks; lines differ too, since equal curves lie on each other."""
    return {"color": palette.series[number % 4], "linestyle": LINES[(number + number // 4) % len(LINES)]}


def _line(axes: Any, curve: Sequence[tuple[int, float]], label: str, look: dict[str, Any]) -> str:
    steps, values = zip(*curve)
    dot = {"marker": "o"} if len(steps) == 1 else {}
    axes.plot(steps, values, label=_key(label), markersize=4, **(dot | look))
    return f"{label} from {values[0]:.4g} to {values[-1]:.4g}".strip()


def _finished(axes: Any, title: str, told: Sequence[str]) -> str | None:
    if not told:
        return None
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(told) > 1:
        _legend(axes)
    return f"{title}: {'; '.join(told)}."


def _legend(axes: Any) -> None:
    """The legend below the axes, where no curve is, in as many columns as its words leave room for."""
    figure, labels = axes.figure, axes.get_legend_handles_labels()[1]
    column = 0.75 + 0.078 * max(map(len, labels))
    num_columns = int(min(4, len(labels), max(1, (WIDTH - 0.2) // column)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * -(-len(labels) // num_columns))
    legend = figure.legend(loc="outside lower center", ncols=num_columns)
    for words in legend.get_texts():
        words.set_text(words.get_text().removeprefix(SHIELD))


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
        if any(_figure(sources, source, measure) for sources in found)
    ]


def _figure(sources: Mapping[str, Any], source: str, measure: str) -> Mapping[str, Any] | None:
    """A figure, if there is one and it is a number: a model that has diverged gives none."""
    figure = sources.get(source, {}).get(measure)
    return figure if figure and figure["value"] is not None else None


def _bars_height(runs: Sequence[Run], measures: tuple[str, ...]) -> float:
    return 0.9 + 0.2 * len(_bar_rows(runs, measures)) * max(2, len(_sides(runs)))


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
            own = [(n, figure) for n, (s, m) in enumerate(rows) if (figure := _figure(sources, s, m))]
            values = np.array([figure["value"] for _, figure in own], float)
            bounds = np.array([[figure["low"], figure["high"]] for _, figure in own], float).reshape(-1, 2)
            number = runs.index(run)
            look = palette.series[number % 4] if is_after or len(runs) > 1 else palette.faint
            axes.barh(
                [place + (side - (len(sides) - 1) / 2) * thickness for place, _ in own],
                values - chance,
                thickness * 0.86,
                left=chance,
                color=look,
                alpha=0.9 if is_after else 0.4,
                hatch=HATCHES[number // 4 % len(HATCHES)],
                label=_key(_label(runs, run, moment)),
                xerr=np.nan_to_num(np.abs(bounds - values[:, None])).T,
                error_kw={"ecolor": palette.ink, "elinewidth": 1, "capsize": 2.5},
            )
            for place, figure in own:
                told[place].append(f"{_label(runs, run, moment)} {figure['value']:.3g}")
        axes.axvline(chance, color=palette.faint, linewidth=1)
        labels = ["\n".join(filter(None, (_name(source), NAMES.get(measure, "")))) for source, measure in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.xaxis.get_major_locator().set_params(nbins=5)  # more, as -0.125, would run into each other
        axes.set_title(title)
        _legend(axes)
        said = [f"{label.replace(chr(10), ', ')}: {', '.join(told[place])}" for place, label in enumerate(labels)]
        return f"{title}. {'; '.join(said)}."

    return draw


def _histogram(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
    """Scores of people's better and worse outputs under each run's model, over all sources."""
    found = {
        number: np.array([pair for own in _after(run, "scores") for pair in own], float).reshape(-1, 2)
        for number, run in enumerate(runs)
    }
    found = {number: values[np.isfinite(values).all(axis=1)] for number, values in found.items()}
    found = {number: values for number, values in found.items() if len(values) > 1}
    if not found:
        return None
    low, high = np.percentile(np.concatenate(list(found.values())), [1, 99])
    bins = np.linspace(low, max(high, low + 1e-6), 25)
    told = []
    for number, values in found.items():
        for column, what in enumerate(("better outputs", "worse outputs")):
            inside, weights = np.clip(values[:, column], low, high), np.full(len(values), 100 / len(values))
            color = palette.series[number % 4 if len(runs) > 1 else column]
            line = LINES[(column + 2 * (number // 4)) % len(LINES)]
            label = _label(runs, runs[number], what)
            if len(runs) == 1:
                axes.hist(inside, bins, weights=weights, histtype="stepfilled", color=color, alpha=0.25)
            look = {"color": color, "linestyle": line, "linewidth": 1.6, "label": _key(label)}
            axes.hist(inside, bins, weights=weights, histtype="step", **look)
        better, worse = values.mean(0)
        averages = f"better outputs {better:.3g} on average, worse ones {worse:.3g}, of {len(values)} pairs"
        told.append(_label(runs, runs[number], averages))
    axes.set_title("Scores of people's outputs, after training")
    axes.set_xlabel("log p under good words less log p under bad words, nats per token")
    axes.set_ylabel("share of outputs (%)")
    _legend(axes)
    return f"Scores of held-out pairs after training: {'; '.join(told)}."


def _reliability(runs: Sequence[Run], axes: Any, palette: Palette) -> str | None:
    """How often each run's score is right, by how sure it is, over all sources."""
    told = []
    for number, run in enumerate(runs):
        found = _after(run, "reliability")
        if not found:
            continue
        counts = np.sum([own["counts"] for own in found], axis=0)
        used = counts > 0
        predicted, observed = (
            100 * np.nansum([np.array(own[key], float) * own["counts"] for own in found], axis=0)[used] / counts[used]
            for key in ("predicted", "observed")
        )
        label = _label(runs, run, "")
        axes.plot(predicted, observed, marker="o", label=_key(label), **_look_of_run(palette, number))
        for x, y, count in zip(predicted, observed, counts[used]) if len(runs) == 1 else ():
            place = {"xytext": (6, -12), "textcoords": "offset points"}
            axes.annotate(f"{count} pairs", (x, y), **place, color=palette.faint, fontsize=9)
        points = [f"states {p:.0f}, right {o:.0f} ({n} pairs)" for p, o, n in zip(predicted, observed, counts[used])]
        told.append(_label(runs, run, ", ".join(points)))
    if not told:
        return None
    axes.plot([50, 100], [50, 100], color=palette.faint, linewidth=1, linestyle=":", zorder=1)
    axes.set_xlim(49, 101)
    axes.set_title("Is the score as often right as it says?")
    axes.set_xlabel("probability that it states (%)")
    axes.set_ylabel("right (%)")
    if len(runs) > 1:
        _legend(axes)
    return f"Reliability of the score after training, in percent: {'; '.join(told)}."


def _after(run: Run, key: str) -> list[Any]:
    """One entry of each source that has it, as measured after training."""
    sources = run.measured.get("after", {}).get("sources", {})
    return [own[key] for own in sources.values() if own.get(key)]
