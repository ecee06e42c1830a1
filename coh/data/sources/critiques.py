"""Single outputs with what people said of them, and an improved output where somebody wrote one."""

from __future__ import annotations

from typing import Any

from coh.data.records import FeedbackGroup, UnusableRow
from coh.data.sources.fields import text_at, value_at
from coh.data.sources.turns import prompt_and_outputs, prompt_from, task_of


def read_critique(row: dict) -> FeedbackGroup:
    """The response with its critique; a revision stands before it, as the better one.

    No revision, or an empty one, leaves the response and its critique. A revision that changes nothing gives no group:
    the critique asks for something that was not done.

    >>> row = {"prompt": "2 + 2?", "response": "5", "critique": "One too many.", "revision": "4"}
    >>> group = read_critique(row)
    >>> group.outputs, group.critiques
    (('4', '5'), ('', 'One too many.'))
    """
    replies = {"response": value_at(row, "response")}
    revision = row.get("revision")
    if revision is not None and not _is_blank(revision):
        replies = {"revision": revision, **replies}
    critique = text_at(row, "critique")
    prompt, outputs = prompt_and_outputs(prompt_from(row), replies)
    if not critique:
        raise UnusableRow("empty critique")
    if len(outputs) == 1:
        return FeedbackGroup("critique", prompt, outputs, (1,), (critique,), task=task_of(prompt))
    return FeedbackGroup("critique", prompt, outputs, (1, 2), ("", critique), revision=outputs[0], task=task_of(prompt))


def _is_blank(reply: Any) -> bool:
    return not reply.strip() if isinstance(reply, str) else reply == []
