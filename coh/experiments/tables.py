"""What the results of an experiment say, as a page of tables: figures, differences, the paper's orderings, the cost.

In: results by run. Out: Markdown. Nothing is left out because it came out otherwise than hoped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coh.experiments.arms import ARMS, BASE, REFERENCE, Run
from coh.experiments.comparing import (
    METRICS,
    Measured,
    accuracy_resolution,
    compared,
    mean_resolution,
    paired_difference,
    rows_of,
)
from coh.experiments.records import measured
from coh.measures import Estimate
from coh.measuring import told

BY_SOURCE = ("pair_accuracy_by_words", "steering_gap")
COUNTS = ("tokens", "text_tokens", "targets", "reference_tokens", "compute")
ACCURACIES = ("pair_accuracy", "pair_accuracy_per_token", "pair_accuracy_by_words", "steering_gap")
# (first, second, what the paper's GPT-J has of each, pair accuracy on hh-rlhf in percent)
ORDERINGS = (
    ("coh", "base", "81.2 > 43.8"),
    ("coh", "sft", "81.2 > 64.8"),
    ("coh", "p_n", "81.2 > 78.8"),
    ("coh", "lambda_0", "81.2 > 60.8"),
    ("coh_prose", "coh", "82.4 > 81.2"),
    ("fcm_5", "coh", "81.2 > 79.6"),
    ("fcm_5", "fcm_15", "81.2 > 80.5"),
    ("p_n", "sft", "78.8 > 64.8"),
    ("sft", "base", "64.8 > 43.8"),
)
TOLD = (
    "A difference is {} where its interval leaves out 0 and, of accuracies, a sign test over the pairs that one has "
    "right and the other wrong gives p < 0.05 too. Of many comparisons one in twenty is told by chance alone."
)
Results = Mapping[Run, Mapping[str, Any]]


def by_arm(results: Results) -> dict[str, list[Measured]]:
    """What was measured of each arm, a value for each seed, in the arms' order."""
    runs = sorted(results, key=lambda run: (list(ARMS).index(run.arm), run.seed))
    found: dict[str, list[Measured]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(measured(results[run]))
    return found


def page(results: Results) -> str:
    """All tables of an experiment."""
    if not results:
        return "Nothing is measured yet."
    arms = by_arm(results)
    some = next(iter(arms.values()))[0]
    parts = [
        f"# Ablation\n\n{resolution_text(some, arms.get(BASE, [None])[0])}",
        "## The arms\n\nEach arm but `coh` differs from it in one thing. In parentheses 95 % intervals over pairs; "
        "seeds are averaged pair by pair first, and ± is their standard deviation. `base` was taught no words, `sft` "
        "and `dpo` only those for a good output: all three are asked in the words of `coh`.\n\n" + figures_table(arms),
        "## Differences\n\nOver the same pairs (paired bootstrap). The interval says how far other pairs would change "
        f"the figure, not how far other seeds would. {TOLD.format('in bold')}\n\n" + differences_table(arms),
        "## By source\n\n" + sources_table(arms),
        "## The paper's orderings\n\nThe paper's figures are the pair accuracy of GPT-J 6B on hh-rlhf (%). "
        f"{TOLD.format('*yes* (above 0) or *no* (below)')}\n\n" + orderings_table(arms),
        "## What it cost\n\nTokens are what the model reads in training, without padding. Compute counts a token "
        "that is read forward only, as DPO's reference is, as a third of one that is trained on.\n\n"
        + cost_table(results),
    ]
    return "\n\n".join(parts)


def resolution_text(some: Measured, base: Measured | None) -> str:
    """Which differences these pairs can tell."""
    num_pairs = len(some.log_p)
    if not num_pairs:
        return "No pairs are measured."
    text = (
        f"{num_pairs} held-out pairs tell differences of {accuracy_resolution(num_pairs):.1f} points of pair accuracy "
        "from none, where two models answer a quarter of them differently."
    )
    if base is not None and num_pairs > 1:
        least = mean_resolution(rows_of([base], "steering_gap").above)
        text += (
            f" By the spread of the gap before training, they tell differences of {least:.2f} nats of the steering gap "
            "(two models whose gaps correlate by one half)."
        )
    return text


def figures_table(arms: Mapping[str, Sequence[Measured]]) -> str:
    """A line for each arm: what it is, and its figures."""
    has_drift = BASE in arms and len(arms[BASE][0].texts) > 0
    header = ["arm", "what it is", "seeds", *METRICS.values(), *(["drift of text (nats)"] if has_drift else [])]
    lines = []
    for name, runs in arms.items():
        cells = [_figure(runs, metric) for metric in METRICS]
        if has_drift:
            cells.append("-" if name == BASE else told(drift(runs, arms[BASE])))
        lines.append([f"`{name}`", ARMS[name].what, str(len(runs)), *cells])
    return _table(header, lines)


def drift(runs: Sequence[Measured], base: Sequence[Measured]) -> Estimate:
    """By how much the loss on held-out plain text is above the base's."""
    return paired_difference(rows_of(runs, "text_loss"), rows_of(base, "text_loss"))


def _figure(runs: Sequence[Measured], metric: str) -> str:
    text = told(rows_of(runs, metric).estimate())
    if len(runs) > 1:
        spread = np.std([rows_of([run], metric).estimate().value for run in runs], ddof=1)
        text += f" ± {spread:.2f}"
    return text


def differences_table(arms: Mapping[str, Sequence[Measured]]) -> str:
    """Every arm less `coh`, and less the base."""
    lines = []
    for other in (REFERENCE, BASE):
        for name, runs in arms.items():
            if other in arms and name != other and (other, name) != (BASE, REFERENCE):
                metrics = [*METRICS, *(["text_loss"] if len(runs[0].texts) and len(arms[other][0].texts) else [])]
                cells = [_told(*compared(rows_of(runs, m), rows_of(arms[other], m))) for m in metrics]
                lines.append([f"`{name}` less `{other}`", *cells])
    return _table(["", *METRICS.values(), "loss of text"], lines)


def _told(difference: Estimate, says: str) -> str:
    text = f"{difference.value:+.2f} ({difference.low:+.2f}, {difference.high:+.2f})"
    return text if says == "not told apart" else f"**{text}**"


def sources_table(arms: Mapping[str, Sequence[Measured]]) -> str:
    """Accuracy by words and steering gap on each source."""
    names = list(dict.fromkeys(name for runs in arms.values() for run in runs for name in run.sources))
    counts = {name: next(iter(arms.values()))[0].sources.count(name) for name in names}
    header = ["arm", *(f"{name} ({counts[name]}): {what}" for name in names for what in ("by words (%)", "gap"))]
    lines = []
    for arm, runs in arms.items():
        parts = [[run.part(name) for run in runs] for name in names]
        cells = [told(rows_of(part, metric).estimate()) for part in parts for metric in BY_SOURCE]
        lines.append([f"`{arm}`", *cells])
    return _table(header, lines)


def orderings_table(arms: Mapping[str, Sequence[Measured]]) -> str:
    """Whether each ordering of the paper's holds here, by every form of pair accuracy and by the steering gap."""
    lines = []
    for first, second, there in ORDERINGS:
        cells = ["not measured"] * len(ACCURACIES)
        if first in arms and second in arms:
            found = [compared(rows_of(arms[first], m), rows_of(arms[second], m)) for m in ACCURACIES]
            cells = [f"{says}: {one.value:+.2f} ({one.low:+.2f}, {one.high:+.2f})" for one, says in found]
        lines.append([f"`{first}` above `{second}`", there, *cells])
    lines.append(["general skill is kept (`coh` no worse than `base`)", "40.95, base 40.60 (lm-eval)", *_kept(arms)])
    note = (
        "The paper has no DPO; its PPO has 68.8 %. Its lm-eval averages stand beside the loss on plain text here, in "
        "the first column: *yes* where the interval of the drift is below 0.05 nats, *no* where it is above."
    )
    return _table(["ordering", "paper", *(METRICS[m] for m in ACCURACIES)], lines) + f"\n\n{note}"


def _kept(arms: Mapping[str, Sequence[Measured]], least: float = 0.05) -> list[str]:
    blank = ["-"] * (len(ACCURACIES) - 1)
    if REFERENCE not in arms or BASE not in arms or not len(arms[BASE][0].texts):
        return ["not measured", *blank]
    found = drift(arms[REFERENCE], arms[BASE])
    says = "yes" if found.high < least else "no" if found.low > least else "not told apart"
    return [f"{says}: {found.value:+.3f} ({found.low:+.3f}, {found.high:+.3f}) nats", *blank]


def cost_table(results: Results) -> str:
    """Tokens and time of every run."""
    lines = []
    for run in sorted(results, key=lambda run: (list(ARMS).index(run.arm), run.seed)):
        spent = results[run].get("training")
        if spent:
            counts = [f"{spent[name]:,.0f}" for name in COUNTS]
            times = [f"{spent[name] / 60:.1f}" for name in ("seconds", "cpu_seconds")]
            learning = [f"{value:.3f}" for value in (*spent["learning"][:1], *spent["learning"][-1:])]
            lines.append([f"`{run.arm}`", str(run.seed), str(spent["steps"]), *counts, *times, " to ".join(learning)])
    header = ["arm", "seed", "steps", "tokens", "of them text", "targets", "reference's", "compute"]
    return _table([*header, "minutes", "of one core", "training loss"], lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [list(header), ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
