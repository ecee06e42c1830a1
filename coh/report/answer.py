"""The answer that a report begins with: the verdict, or that a run's feedback compares nothing that could be measured.

In: a `Run`. Out: a `Verdict`. It is given by pairs: single outputs with a thumb up or down have figures of their own in
the tables, and outputs that are equally good and chains with words of their own have none.
"""

from __future__ import annotations

import dataclasses

from coh.data.choices import PAIRS
from coh.data.templates import RANKINGS
from coh.report.record import Run
from coh.report.verdict import GAP, LEAST_PAIRS, UNKNOWN_ROWS, WORDS, Verdict, measuring, verdict

COMPARING = {*PAIRS, *RANKINGS.values(), "refine"}  # kinds of chain that only outputs of unlike rank give
REMEDY = (
    "Name preference pairs (a prompt with a better and a worse output) under --eval_feedback_data when training, or "
    f"measure the model by such pairs now, here {UNKNOWN_ROWS}:"
)


def answer(run: Run) -> Verdict:
    """What can be said of a run, and what to do where that is nothing."""
    if not is_without_pairs(run):
        return verdict(run)
    bare = {"feedback_data": None, "eval_feedback_data": None, "feedback_format": None, "feedback_columns": None}
    unknown = dataclasses.replace(run, about={**run.about, "arguments": {**run.arguments, **bare}})
    evidence = "Nothing in its feedback is compared: no prompt has a better and a worse output."
    return Verdict("warning", f"Not measured: {WORDS}.", evidence, REMEDY, measuring(unknown))


def is_without_pairs(run: Run) -> bool:
    """Whether nothing was measured since nothing in the feedback is compared: many chains, and none of a pair.

    False where that is not known: pairs may give chains of single outputs alone, if no others were wanted.
    """
    if any(GAP in own for found in run.measured.values() for own in (found.get("sources") or {}).values()):
        return False
    if run.arguments.get("eval_feedback_data") and not run.arguments.get("eval_pairs"):
        return False  # what was named to be measured was not asked for
    words = (run.about.get("templates") or {}).get("tasks") or {}
    worded = {kind for own in words.values() for kind in own}
    counts = run.summary.get("templates", {})
    told = {kind for name in counts for kind in name.split(".")[1:2]}
    could_tell = worded & {*PAIRS} & {*(run.arguments.get("chains") or ())}
    return sum(counts.values()) >= LEAST_PAIRS and bool(could_tell) and not told & COMPARING
