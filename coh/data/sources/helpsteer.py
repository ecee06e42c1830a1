"""nvidia/HelpSteer and HelpSteer2: a response a row, rated by five attributes; rows of one prompt stand together.

A row alone compares nothing, so all consecutive rows of a prompt are read as one group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from coh.data.records import FeedbackGroup, Message
from coh.data.sources.fields import number_at, value_at
from coh.data.sources.scores import SCORING, Scoring, ranked_group
from coh.data.sources.turns import prompt_and_outputs, prompt_from

_TURN = re.compile(r"<extra_id_1>(User|Assistant)\n")  # how HelpSteer2 parts the later turns of a prompt


def read_helpsteer(rows: Sequence[dict], scoring: Scoring = SCORING) -> FeedbackGroup:
    """The responses to one prompt by the weighted sum of their attributes, which is helpfulness alone by default.

    >>> rows = [{"prompt": "2 + 2?", "response": text, "helpfulness": n} for text, n in (("Five.", 1), ("4", 4))]
    >>> read_helpsteer(rows).outputs
    ('4', 'Five.')
    """
    turns = [turn for said in prompt_from(rows[0]) for turn in _turns(said)]
    replies = {f"response ({number})": value_at(row, "response") for number, row in enumerate(rows, start=1)}
    prompt, outputs = prompt_and_outputs(tuple(turns), replies)
    # Rounded, because sums that are equal on paper differ in the last bit.
    scores = [round(sum(w * number_at(row, name) for name, w in scoring.attributes), 9) for row in rows]
    return ranked_group("helpsteer", prompt, outputs, scoring.levels(scores))


def prompt_of(row: dict) -> Any:
    """What rows of one group have in common."""
    return row.get("prompt")


def _turns(said: Message) -> list[Message]:
    first, *rest = _TURN.split(said.content)
    later = [Message(role.lower(), text.strip()) for role, text in zip(rest[::2], rest[1::2])]
    return [Message(said.role, first.rstrip()), *later]
