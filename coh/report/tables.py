"""The figures of a report as tables of words, which page and text show alike."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from coh.harness import COUNT
from coh.measures import Estimate
from coh.measuring import LABELS, told
from coh.pages import Table
from coh.report.record import Run
from coh.written import LABELS as WRITTEN_LABELS
from coh.written import WIN_LABELS

MOST_TEMPLATES = 40
FACTS = ("started", "device", "processes", "engine", "commit", "commit_of_working_folder")
COMMITS = {"commit": "commit of coh", "commit_of_working_folder": "commit of the working folder"}
OPTIONS = ("model_name", "seed", "data_seed")
NOT_COMPARED = ("output_dir", "logging_dir", "run_name")  # two runs always differ in them
TEXT_LABELS = {
    "text_loss": "loss on plain text (nats per token)",
    "text_loss_above_base": "above that before training, text by text",
}


def glance(run: Run) -> list[tuple[str, str, str]]:
    """(what, how much, more about it) of what matters most in a run."""
    found = []
    for measure, what in (("pair_accuracy_by_words", "pair accuracy, by words"), ("steering_gap", "steering gap")):
        entry = _over_sources(run, measure)
        if entry:
            found.append((what, *entry))
    for name, what in (("loss_feedback", "feedback loss"), ("loss_pretrain", "text loss")):
        curve = run.curve(name)
        if curve:
            found.append((what, f"{curve[-1][1]:.3f}", f"{curve[0][1]:.3f} at step {curve[0][0]}"))
    if run.num_tokens:
        found.append(("tokens read", f"{run.num_tokens:,}", f"in {run.num_steps:,} steps"))
    seconds = run.curve("train_runtime")
    if seconds:
        found.append(("time", _time(seconds[-1][1]), str((run.about.get("run") or {}).get("device", ""))))
    return found


def _time(seconds: float) -> str:
    """Seconds as people say them.

    >>> _time(59), _time(3700)
    ('59 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _over_sources(run: Run, measure: str) -> tuple[str, str] | None:
    """A measure over all pairs of all sources after training, and before it."""
    means, num_pairs = {}, 0
    for moment, found in run.measured.items():
        every = [own[measure] for own in found["sources"].values() if measure in own]
        figures = [figure for figure in every if figure["value"] is not None]
        if figures:
            num_pairs = sum(f["n"] for f in figures)
            means[moment] = sum(f["value"] * f["n"] for f in figures) / num_pairs
    if "after" not in means:
        return None
    is_share = "accuracy" in measure
    # A sign in front of nothing but zeros would be no news.
    told = {m: f"{value:.1f} %" if is_share else f"{round(value, 3) + 0.0:.3f}" for m, value in means.items()}
    before = f"; {told['before']} before" if "before" in told else ""
    pairs = f"{num_pairs:,} held-out pair{'' if num_pairs == 1 else 's'}"
    return told["after"], f"{'of' if is_share else 'nats per pair, over'} {pairs}{before}"


def tables(runs: Sequence[Run]) -> list[Table]:
    """All figures; tables that would be empty are left out."""
    results = [*_measured(runs), _text(runs), _benchmarks(runs), *_written(runs)]
    found = [*results, _sources(runs), _losses(runs), _templates(runs)]
    return [table for table in found if table.rows]


def _columns(runs: Sequence[Run]) -> list[tuple[str, dict[str, Any]]]:
    """Every measurement with the head of its column."""
    return [
        (f"{run.name}, {moment}" if len(runs) > 1 else moment, run.measured[moment])
        for run in runs
        for moment in run.measured
    ]


def _measured(runs: Sequence[Run]) -> list[Table]:
    columns = _columns(runs)
    sources = dict.fromkeys(source for _, found in columns for source in found["sources"])
    tables = []
    for source in sources:
        own = [found["sources"].get(source, {}) for _, found in columns]
        rows = _figure_rows(LABELS, own)
        pairs = max((figures["steering_gap"]["n"] for figures in own if "steering_gap" in figures), default=0)
        title = f"Measured on {source}" + (f", {pairs} held-out pairs" if pairs else "")
        tables.append(Table(title, ("", *(head for head, _ in columns)), rows))
    return tables


def _figure_rows(labels: dict[str, str], columns: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (label, *(told(estimate(column[key])) if column.get(key) else "-" for column in columns))
        for key, label in labels.items()
        if any(column.get(key) for column in columns)
    )


def estimate(entry: Mapping[str, Any]) -> Estimate:
    """A figure as evaluation.json has it; what is null there is NaN.

    >>> estimate({"value": 2.0, "low": None, "high": None, "n": 1})
    Estimate(value=2.0, low=nan, high=nan, n=1)
    """
    value, low, high = (float("nan") if entry[key] is None else float(entry[key]) for key in ("value", "low", "high"))
    return Estimate(value, low, high, entry["n"])


def _text(runs: Sequence[Run]) -> Table:
    columns = [(head, found) for head, found in _columns(runs) if found.get("text_loss")]
    rows = _figure_rows(TEXT_LABELS, [found for _, found in columns])
    return Table("General skill", ("", *(head for head, _ in columns)), rows)


def _benchmarks(runs: Sequence[Run]) -> Table:
    """What lm-eval found beside the feedback."""
    columns = [(head, benchmarks(found)) for head, found in _columns(runs) if found.get("benchmarks")]
    num_asked = {key: found.n for _, own in columns for key, found in own.items()}
    rows = tuple(
        (*key, f"{n:,}" if n else "-", *(str(own[key]) if key in own else "-" for _, own in columns))
        for key, n in num_asked.items()
    )
    heads = ("task", "measure", "examples", *(head for head, _ in columns))
    return Table("Benchmarks of lm-eval, ± standard error", heads, rows, num_words=2)


class Benchmark(NamedTuple):
    """A figure of lm-eval, its standard error (NaN where it has none), and by how many examples (0: not known)."""

    value: float
    error: float
    n: int

    def __str__(self) -> str:
        digits = 1 if abs(self.value) >= 10 else 3
        error = "" if math.isnan(self.error) else f" ± {self.error:.{digits}f}"
        return f"{self.value:.{digits}f}{error}"


def benchmarks(measured: Mapping[str, Any]) -> dict[tuple[str, str], Benchmark]:
    """The figures of lm-eval by task and measure. Its names are "measure,filter"; what has another is no measure.

    >>> benchmarks({"benchmarks": {"piqa": {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 25}}})
    {('piqa', 'acc'): Benchmark(value=0.5, error=0.1, n=25)}
    """
    found = {}
    for task, values in (measured.get("benchmarks") or {}).items():
        for key, value in values.items():
            measure, comma, how = key.partition(",")
            if comma and value is not None and not measure.endswith("_stderr"):
                error = values.get(f"{measure}_stderr,{how}")
                name = measure if how == "none" else f"{measure} ({how})"
                found[task, name] = Benchmark(value, math.nan if error is None else error, int(values.get(COUNT) or 0))
    return found


def _written(runs: Sequence[Run]) -> list[Table]:
    """What was written under good and bad words, as figures; with the judge's verdicts where there was one."""
    tables = []
    columns = [(head, found.get("written") or {}) for head, found in _columns(runs)]
    for source in dict.fromkeys(source for _, found in columns for source in found):
        for head, written in ((head, found[source]) for head, found in columns if source in found):
            names = tuple(written["figures"])
            rows = _figure_rows(WRITTEN_LABELS, [written["figures"][words] for words in names])
            title = f"Written for {len(written['outputs'])} prompts of {source}, {head}"
            tables.append(Table(title, ("", *(f"{words} words" for words in names)), rows))
            wins = _figure_rows(_win_labels(written), [written["wins"]])
            tables.append(Table(f"Won on {source}, {head}", (f"judged by {written['judge']}", "%"), wins))
    return tables


def _win_labels(written: Mapping[str, Any]) -> dict[str, str]:
    """What was won against; comparisons that the judge did not judge count as ties, which is said."""
    missed = written.get("num_not_judged", {})
    notes = {name: f" ({missed[name]} not judged: ties)" if missed.get(name) else "" for name in WIN_LABELS}
    return {name: label + notes[name] for name, label in WIN_LABELS.items()}


def _sources(runs: Sequence[Run]) -> Table:
    rows = [
        (
            *([run.name] if len(runs) > 1 else []),
            name,
            f"{found.get('documents', 0):,}",
            f"{found.get('share', 0):.1%}",
            f"{found.get('tokens', 0):,}",
            f"{found.get('targets', 0) / max(1, found.get('tokens', 0)):.1%}",
        )
        for run in runs
        for name, found in run.summary.get("sources", {}).items()
    ]
    first = ("run",) if len(runs) > 1 else ()
    heads = (*first, "source", "chains", "share", "tokens", "targets")
    return Table("Data of an epoch", heads, tuple(rows), num_words=1 + len(first))


def _losses(runs: Sequence[Run]) -> Table:
    """Everything that was shortened, cut or dropped."""
    rows = []
    for run in runs:
        first = [run.name] if len(runs) > 1 else []
        rows += [(*first, "all", what, f"{n:,}") for what, n in run.summary.get("chains", {}).items() if n]
        for source, reasons in run.summary.get("dropped", {}).items():
            rows += [(*first, source, f"dropped: {what}", f"{n:,}") for what, n in reasons.items() if n]
    heads = (*(("run",) if len(runs) > 1 else ()), "source", "what", "how many")
    return Table("Shortened and dropped", heads, tuple(rows), num_words=len(heads) - 1)


def _templates(runs: Sequence[Run]) -> Table:
    names = dict.fromkeys(name for run in runs for name in run.summary.get("templates", {}))
    rows = tuple(
        (name, *(f"{run.summary.get('templates', {}).get(name, 0):,}" for run in runs))
        for name in list(names)[:MOST_TEMPLATES]
    )
    title = "Templates"
    if len(names) > MOST_TEMPLATES:
        title += f", the {MOST_TEMPLATES} most frequent of {len(names)}"
    return Table(title, ("template", *([run.name for run in runs] if len(runs) > 1 else ["chains"])), rows)


def facts(run: Run) -> Table:
    """What one needs to repeat the run: versions, seeds, commit, device."""
    about = run.about.get("run") or {}
    rows = [(COMMITS.get(name, name), str(about[name])) for name in FACTS if about.get(name)]
    rows += [(name, option(run.arguments[name])) for name in OPTIONS if run.arguments.get(name) is not None]
    rows += [(name, version) for name, version in (run.about.get("versions") or {}).items() if version]
    return Table(f"To repeat {run.name}", ("", ""), tuple(rows), num_words=2)


def command(run: Run) -> str:
    """The command that started the run, as it can be pasted; empty where it is not known."""
    return str((run.about.get("run") or {}).get("command", ""))


def option(value: Any) -> str:
    """The value of an option as it is written on the command line; "-" where none is given.

    >>> option(["p", "two words"]), option(True), option({"a": 1}), option(None)
    ("p 'two words'", 'true', '{"a": 1}', '-')
    """
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return " ".join(shlex.quote(option(one)) for one in value)
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


def changed(runs: Sequence[Run]) -> Table:
    """The options in which runs differ."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.arguments if name not in NOT_COMPARED):
        found[name] = [option(run.arguments.get(name)) for run in runs]
    rows = tuple((name, *values) for name, values in found.items() if len(set(values)) > 1)
    return Table("Options that differ", ("option", *(run.name for run in runs)), rows, num_words=1 + len(runs))


def written_rows(runs: Sequence[Run], most: int) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
    """(source, prompt, sides) of prompts for which models wrote; a side is (look, head, output).

    Prompts for which more of them wrote come first: there they can be compared.
    """
    found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for head, measured in _columns(runs):
        for source, written in (measured.get("written") or {}).items():
            for row in written["outputs"][:most]:
                sides = found.setdefault((source, row["prompt"]), [])
                sides += [(words, f"{words} words, {head}", row[words]) for words in ("good", "bad")]
                if not any(look == "people" for look, *_ in sides):
                    sides.append(("people", "people's best", row["people"]))
    for sides in found.values():
        sides.sort(key=lambda side: side[0] == "people")
    shown = [(source, prompt, sides) for (source, prompt), sides in found.items()]
    return sorted(shown, key=lambda row: -len(row[2]))
