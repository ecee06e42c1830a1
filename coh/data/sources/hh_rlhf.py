"""Anthropic/hh-rlhf: two whole transcripts, `chosen` and `rejected`, that part at the assistant's last turn."""

from __future__ import annotations

import re

from coh.data.records import FeedbackGroup, Message, UnusableRow
from coh.data.sources.fields import text_at
from coh.data.sources.turns import pair_of_conversations

ROLE_OF_LABEL = {"Human": "user", "Assistant": "assistant"}

# A label counts at the start of a paragraph only: people and models also write "Human:" inside their messages. The
# pattern begins with a letter of its own, so that the search leaps from line to line.
_LABEL = re.compile(r"\n(Human|Assistant):")


def read_hh_rlhf(row: dict) -> FeedbackGroup:
    r"""The shared history as the prompt, the last assistant turns as the outputs.

    >>> chosen = "\n\nHuman: 2 + 2?\n\nAssistant: 4."
    >>> group = read_hh_rlhf({"chosen": chosen, "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5."})
    >>> group.prompt, group.outputs
    ((Message(role='user', content='2 + 2?'),), ('4.', '5.'))
    """
    chosen, rejected = turns_of(text_at(row, "chosen")), turns_of(text_at(row, "rejected"))
    return pair_of_conversations("hh_rlhf", chosen, rejected, task="conversation")


def turns_of(transcript: str) -> list[Message]:
    """The turns of a transcript, at paragraphs that start with "Human:" or "Assistant:"."""
    before, *turns = _paragraphs(transcript)
    if before[1].strip():
        raise UnusableRow("text before the first turn")
    return [Message(ROLE_OF_LABEL[label], text.strip()) for label, text in turns]


def _paragraphs(transcript: str) -> list[tuple[str, str]]:
    """The label and the text of each turn; in front of them what stands before the first, which has no label."""
    text = f"\n\n{transcript.lstrip()}"
    found, label, start, behind = [], "", 0, 0
    for match in _LABEL.finditer(text):
        words = text[behind : match.start()]
        behind = match.end()
        if "\n" in words[len(words.rstrip()) :]:  # a blank line
            found.append((label, text[start : match.start()]))
            label, start = match[1], behind
    return [*found, (label, text[start:])]


def is_transcript(row: dict) -> bool:
    """True where both texts begin as transcripts do; other pairs with these columns are plain preference pairs."""
    texts = (row.get("chosen"), row.get("rejected"))
    return row.get("prompt") is None and all(
        isinstance(text, str) and _LABEL.match(f"\n{text.lstrip()}") for text in texts
    )
