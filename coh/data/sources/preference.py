"""Preference pairs as TRL takes them: `chosen` and `rejected`, plain or as message lists, with or without `prompt`."""

from __future__ import annotations

from difflib import get_close_matches
from os.path import commonprefix
from typing import Any

from coh.data.records import ROLES, FeedbackError, FeedbackGroup, Message, UnusableRow, as_messages
from coh.data.sources.fields import as_text, describe, text_at, value_at
from coh.data.sources.turns import pair_of_conversations


def read_preference(row: dict) -> FeedbackGroup:
    """An explicit prompt as it is; an implicit one from what both sides begin with.

    >>> read_preference({"chosen": "The sky is blue.", "rejected": "The sky is green."}).outputs
    ('blue.', 'green.')
    >>> read_preference({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}).prompt
    (Message(role='user', content='The sky is'),)
    """
    chosen, rejected = value_at(row, "chosen"), value_at(row, "rejected")
    if row.get("prompt") is not None:
        prompt = turns_from(row["prompt"], "prompt", role="user")
        if not any(turn.content for turn in prompt):
            raise UnusableRow("empty prompt")
        if prompt[-1].role == "assistant":
            raise UnusableRow("prompt ends with the assistant's turn")
        better, worse = (_conversation(row, side, prompt) for side in ("chosen", "rejected"))
    elif isinstance(chosen, str) and isinstance(rejected, str):
        better, worse = _split_at_shared_words(text_at(row, "chosen"), text_at(row, "rejected"))
    else:
        better, worse = (turns_from(row[side], side, role=None) for side in ("chosen", "rejected"))
    return pair_of_conversations("preference", better, worse)


def turns_from(value: Any, path: str, role: str | None) -> tuple[Message, ...]:
    """A text as one turn of `role`, or a list of {"role", "content"} as the turns it holds."""
    if isinstance(value, list):
        return tuple(_message(item, f"{path}[{place}]") for place, item in enumerate(value))
    if role is None and value is not None:
        raise FeedbackError(f"field {path!r} is {describe(value)}, but the other side is a list of messages")
    return (Message(role or "user", as_text(value, path)),)


def _message(item: Any, path: str) -> Message:
    if not isinstance(item, dict):
        raise FeedbackError(f"field {path!r} is {describe(item)}, but must be a message with 'role' and 'content'")
    role = as_text(value_at(item, "role", within=f"{path}."), f"{path}.role")
    if role in ("tool", "function"):
        raise UnusableRow(f"{role} message")
    if role not in ROLES:
        near = get_close_matches(role, ROLES, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise FeedbackError(f"field '{path}.role' is {role!r}, but must be one of {', '.join(ROLES)}{guess}")
    return Message(role, as_text(value_at(item, "content", within=f"{path}."), f"{path}.content"))


def _conversation(row: dict, side: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """Prompt and reply as one conversation; some data sets repeat the prompt's messages on both sides."""
    turns = turns_from(row[side], side, role="assistant")
    if all(turn.role == "assistant" for turn in turns):
        return prompt + turns
    if not any(turns[place : place + len(prompt)] == prompt for place in range(len(turns))):
        raise UnusableRow("prompt differs from the conversation")
    return turns


def _split_at_shared_words(chosen: str, rejected: str) -> list[tuple[Message, ...]]:
    """Two texts as conversations: the words that both begin with (whole words only) are the prompt."""
    if chosen == rejected:
        raise UnusableRow("identical outputs")
    length = len(commonprefix([chosen, rejected]))  # noqa: RUF071 (letter by letter is what is wanted)
    while length and not chosen[length - 1].isspace():
        length -= 1
    prompt = as_messages(chosen[:length])
    return [(*prompt, Message("assistant", text[length:].strip())) for text in (chosen, rejected)]
