"""Single outputs with a verdict, as TRL takes unpaired preferences: `prompt`, `completion` and `label`."""

from __future__ import annotations

from coh.data.records import FeedbackGroup
from coh.data.sources.fields import is_true_at, value_at
from coh.data.sources.turns import prompt_and_outputs, prompt_from, task_of


def read_thumbs(row: dict) -> FeedbackGroup:
    """One output, and whether people found it good.

    >>> group = read_thumbs({"prompt": "2 + 2?", "completion": "5", "label": False})
    >>> group.outputs, group.is_good
    (('5',), False)
    """
    prompt, outputs = prompt_and_outputs(prompt_from(row), {"completion": value_at(row, "completion")})
    return FeedbackGroup("thumbs", prompt, outputs, (1,), task=task_of(prompt), is_good=is_true_at(row, "label"))
