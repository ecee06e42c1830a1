"""Whether the words came to mean something to a model: the answer that a report begins with.

In: a `Run` with its figures before and after training. Out: a `Verdict`: one sentence, what it rests on, and, where
that is too little, the command that measures more. It is about the steering gap, over all sources measured both times.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coh.evaluate_args import EvaluateArgs
from coh.measures import Estimate, mean
from coh.measuring import told
from coh.report.record import EVALUATION, Run
from coh.report.repeat import IN_MEMORY
from coh.report.tables import estimate, option

LEAST_PAIRS, MORE_PAIRS = 20, 300
PROMPTS = 4  # of each source, for which outputs are written again: they would be gone from the report otherwise
GAP = "steering_gap"
WORDS = "what the words came to mean"
MORE = "Measure more, where more is held out, or name other rows that it was not trained on, with --split all:"
BESIDE = "Measure the model beside the one that it came from:"
# What training and `coh.evaluate` call alike, and what the held-out rows depend on, or the text.
SHARED = (
    "feedback_format",
    "feedback_columns",
    "tie_margin",
    "attributes",
    "webgpt_dataset_test_size",
    "pretrain_data",
    "pretrain_docs",
    "cache_dir",
    "trust_remote_code",
)
UNKNOWN_ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Verdict:
    """The answer in a sentence, its evidence, and what to do where it is none: a remark and a command, or nothing.

    `look` is "good", "warning" or "problem".
    """

    look: str
    answer: str
    evidence: str = ""
    remark: str = ""
    command: str = ""


def verdict(run: Run) -> Verdict:
    """What the figures of a run say; no more than their intervals do."""
    before, after = (_sources(run, moment) for moment in ("before", "after"))
    names = [name for name in after if name in before]
    if not names:
        return _unmeasured(run, before, after)
    first, last = (_pooled([found[name] for name in names]) for found in (before, after))
    num_pairs = min(first.n, last.n)
    if num_pairs < LEAST_PAIRS:
        answer = f"{num_pairs} held-out {'pair is' if num_pairs == 1 else 'pairs are'} too few to say {WORDS}."
        evidence = (
            f"The steering gap was {first.value:.3f} nats per pair before training and {last.value:.3f} after it."
        )
        return Verdict("warning", answer, evidence, _remark(run, MORE), measuring(run))
    change = _paired(before, after, names)
    evidence, direction = _evidence(first, last, change), _direction(first, last, change)
    if direction > 0:
        what = "more to the model than before training" if first.low > 0 else "something to the model"
        return Verdict("good", f"Yes: the words came to mean {what}.", evidence)
    if direction < 0 and last.low > 0:
        less = "Less than before: the words still mean something to the model, but less than before training."
        return Verdict("problem", less, evidence)
    if direction < 0:
        return Verdict("problem", "No: what the words do moved the other way in training.", evidence)
    answer = f"Not told: by {num_pairs} held-out pairs, {WORDS} may as well be nothing."
    return Verdict("warning", answer, evidence, _remark(run, MORE), measuring(run))


def _sources(run: Run, moment: str) -> dict[str, dict[str, Any]]:
    """What was measured on each source that has pairs."""
    found = run.measured.get(moment, {}).get("sources", {})
    return {name: own for name, own in found.items() if own.get(GAP) and own[GAP]["n"]}


def _unmeasured(run: Run, before: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """There is nothing to compare: what there is, and how the rest is had."""
    answer = f"Not measured: {WORDS}."
    gap = f"the steering gap is {told(_pooled(list(after.values())))} nats per pair" if after else ""
    if after and before:
        evidence = "No source was measured both before training and after it."
    elif after:
        evidence = f"After training {gap}, but it was not measured before."
    else:
        evidence = f"There is no figure of held-out pairs {'after training' if before else 'in this folder'}."
    return Verdict("warning", answer, evidence, _remark(run, BESIDE), measuring(run))


def _pooled(entries: Sequence[Mapping[str, Any]]) -> Estimate:
    """The gap over the pairs of all sources; their rows are apart, so that the squares of their spreads add up.

    A source that has no interval, since it has a single pair, counts in the mean alone.
    """
    gaps = [estimate(entry[GAP]) for entry in entries]
    n = sum(gap.n for gap in gaps)
    value = sum(gap.value * gap.n for gap in gaps) / n
    spread = [gap for gap in gaps if not math.isnan(gap.low)]
    if not spread:
        return Estimate(value, math.nan, math.nan, n)
    below, above = (
        math.sqrt(sum((gap.n / n * (end - gap.value)) ** 2 for gap, end in zip(spread, ends)))
        for ends in ([gap.low for gap in spread], [gap.high for gap in spread])
    )
    return Estimate(value, value - below, value + above, n)


def _paired(before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str]) -> Estimate | None:
    """How much further apart the scores of better and worse outputs came, pair by pair, in nats per token.

    None where the scores of a source are not of the same pairs both times.
    """
    changes: list[Any] = []
    prompts: list[Any] = []
    for name in names:
        scores = [np.asarray(found[name].get("scores") or [], float).reshape(-1, 2) for found in (before, after)]
        counts = [found[name][GAP]["n"] for found in (before, after)]
        too_long = [found[name].get("num_too_long", 0) for found in (before, after)]
        own = [found[name].get("prompts") or [(name, n) for n in range(counts[0])] for found in (before, after)]
        is_known = len(scores[0]) == len(scores[1]) == counts[0] == counts[1] and len(own[0]) == counts[0]
        if not is_known or too_long[0] != too_long[1] or own[0] != own[1]:
            return None
        changes.append((scores[1][:, 0] - scores[1][:, 1]) - (scores[0][:, 0] - scores[0][:, 1]))
        prompts += own[0]
    return mean(np.concatenate(changes), prompts=prompts)


def _direction(before: Estimate, after: Estimate, change: Estimate | None) -> int:
    """1 where the words gained meaning, -1 where they lost it, 0 where that is not told.

    The change per token has to agree with that of the gap itself, which has other weights: long outputs count more.
    Without pairs of scores, the intervals must not meet.
    """
    gained = change.low > 0 if change else after.low > before.high
    lost = change.high < 0 if change else after.high < before.low
    if gained and after.value > before.value and after.low > 0:
        return 1
    return -1 if lost and after.value < before.value else 0


def _evidence(before: Estimate, after: Estimate, change: Estimate | None) -> str:
    """The figures that the answer rests on, each with its interval."""
    pairs = f"{after.n} held-out pairs" if before.n == after.n else f"{before.n} and {after.n} held-out pairs"
    gap = f"steering gap (what the words do for the better output beyond the worse) {told(before)} nats per pair before"
    found = f"Over {pairs}: {gap}, {told(after)} after"
    if change is None:
        return f"{found}; which pair is which was not kept, so the two intervals stand for themselves."
    sign = "+" if change.value >= 0 else ""
    return f"{found}; the change pair by pair, per token: {sign}{told(change)} nats. In brackets: 95 % intervals."


def _remark(run: Run, words: str) -> str:
    """What the command is for, and what its rows are where the run's own are not known."""
    is_unknown = _held_out(run.arguments)[0] == [UNKNOWN_ROWS]
    return f"{words[:-1]} ({UNKNOWN_ROWS}: feedback that it was not trained on):" if is_unknown else words


def measuring(run: Run) -> str:
    """The commands that measure a run's model on more of what was held out of its own data, and tell of it anew."""
    data, split = _held_out(run.arguments)
    words = ["python -m coh.evaluate", f"--model {shlex.quote(str(run.folder))}"]
    if run.arguments.get("model_name"):
        words.append(f"--base {shlex.quote(str(run.arguments['model_name']))}")
    words += [f"--feedback_data {option(data)}", f"--split {split}", f"--max_pairs {MORE_PAIRS}"]
    words += [f"--{name} {value}" for name, value in _shared(run.arguments)]
    if run.arguments.get("seq_length"):
        words.append(f"--max_length {run.arguments['seq_length']}")
    words += [f"--num_prompts {PROMPTS}", f"--json {shlex.quote(str(run.folder / EVALUATION))}"]
    return " ".join(words) + f"\npython -m coh.report {shlex.quote(str(run.folder))}"


def _held_out(arguments: Mapping[str, Any]) -> tuple[list[str], str]:
    """Feedback that a run was not trained on, and which split of it."""
    trained, apart = (list(arguments.get(name) or []) for name in ("feedback_data", "eval_feedback_data"))
    data = apart or trained
    if not data or IN_MEMORY.search(str(data)):  # the rows are gone
        return [UNKNOWN_ROWS], "all"
    return data, "all" if apart and not set(apart) & set(trained) else "held_out"


def _shared(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The options of training that `coh.evaluate` needs too, where they are not its defaults."""
    for one in dataclasses.fields(EvaluateArgs):
        value = arguments.get(one.name)
        if one.name not in SHARED or value in (None, [], ""):
            continue
        made = one.default_factory
        default = one.default if made is dataclasses.MISSING else made()
        if isinstance(value, list) and not isinstance(default, list):
            if len(set(value)) > 1:  # one for each source, which it cannot be told
                continue
            value = value[0]
        if value != default:
            yield one.name, option(value) if isinstance(value, (list, bool)) else shlex.quote(option(value))
