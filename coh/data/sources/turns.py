"""Conversations in which only the last reply differs: what transcripts, message lists and plain texts have in common.

A text is one turn; a list of {"role", "content"} is the turns that it holds. Such a list that was written as text, as a
table of plain values has it, is refused: its brackets and braces would be learned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any

from coh.data.records import ROLES, FeedbackError, FeedbackGroup, Message, UnusableRow, clean_output
from coh.data.sources.fields import as_text, as_whole_text, describe, shortened, value_at

_MESSAGE = ("role", "content")
# As JSON, as Python or as numpy writes it.
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*(["'])(role|content)\1\s*:.*\}\s*\]\s*""", re.DOTALL)


def turns_from(value: Any, path: str, role: str | None) -> tuple[Message, ...]:
    """A text as one turn of `role`, or a list of {"role", "content"} as the turns it holds."""
    if isinstance(value, list):
        return tuple(_message(item, f"{path}[{place}]") for place, item in enumerate(value))
    if role is None and value is not None:
        raise FeedbackError(f"field {path!r} is {describe(value)}, but the other side is a list of messages")
    check_no_messages(value, path)
    return (_turn(role or "user", value, path),)


def check_no_messages(value: Any, path: str) -> None:
    """Raises `FeedbackError` for a text that is a list of messages, written down."""
    if isinstance(value, str) and _WRITTEN_MESSAGES.fullmatch(value) and all(name in value for name in _MESSAGE):
        raise FeedbackError(
            f"field {path!r} is a list of messages written as {describe(value)}: save the rows as .jsonl or .parquet, "
            "with the list itself"
        )


def _message(item: Any, path: str) -> Message:
    if not isinstance(item, dict):
        raise FeedbackError(f"field {path!r} is {describe(item)}, but must be a message with 'role' and 'content'")
    role = as_text(value_at(item, "role", within=f"{path}."), f"{path}.role")
    if role in ("tool", "function"):
        raise UnusableRow(f"{role} message")
    if role not in ROLES:
        near = get_close_matches(role, ROLES, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise FeedbackError(f"field '{path}.role' is {shortened(role)!r}, but must be one of {', '.join(ROLES)}{guess}")
    return _turn(role, value_at(item, "content", within=f"{path}."), f"{path}.content")


def _turn(role: str, value: Any, path: str) -> Message:
    text = as_whole_text(value, path)
    return Message(role, clean_output(text) if role == "assistant" else text.strip())


def prompt_from(row: dict, column: str = "prompt") -> tuple[Message, ...]:
    """The prompt of a row that has one: something is said, and the assistant's answer is to come."""
    prompt = turns_from(value_at(row, column), column, role="user")
    if not any(turn.content for turn in prompt):
        raise UnusableRow("empty prompt")
    if prompt[-1].role == "assistant":
        raise UnusableRow("prompt ends with the assistant's turn")
    return prompt


def with_reply(prompt: tuple[Message, ...], value: Any, path: str) -> tuple[Message, ...]:
    """Prompt and reply as one conversation; some data sets repeat the prompt's messages in front of the reply."""
    turns = turns_from(value, path, role="assistant")
    if all(turn.role == "assistant" for turn in turns):
        return prompt + turns
    if not any(turns[place : place + len(prompt)] == prompt for place in range(len(turns))):
        raise UnusableRow("prompt differs from the conversation")
    return turns


def prompt_and_outputs(
    prompt: tuple[Message, ...], replies: Mapping[str, Any]
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The history that all replies share, and the replies as texts; `replies` has each under its path in the row.

    >>> prompt_and_outputs((Message("user", "2 + 2?"),), {"responses[0]": " 4", "responses[1]": "Five."})
    ((Message(role='user', content='2 + 2?'),), ('4', 'Five.'))
    """
    if not replies:
        raise UnusableRow("no output")
    if any(isinstance(reply, str) and not reply.strip() for reply in replies.values()):
        raise UnusableRow("empty output")
    split = [split_reply(with_reply(prompt, reply, path)) for path, reply in replies.items()]
    history = split[0][0]
    if any(other != history for other, _ in split):
        raise UnusableRow("histories differ")
    return history, tuple(output for _, output in split)


def task_of(prompt: Sequence[Message]) -> str:
    """Anything but a single user turn is a conversation: its turns are written with the names of their roles.

    >>> task_of([Message("system", "Be brief."), Message("user", "Hi!")])
    'conversation'
    """
    return "conversation" if prompt and [turn.role for turn in prompt] != ["user"] else "general"


def merged(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Consecutive turns of one role as one turn, with a blank line between their texts.

    >>> merged([Message("user", "Hello?"), Message("user", "Is anybody there?")])
    (Message(role='user', content='Hello?\\n\\nIs anybody there?'),)
    """
    if all(one.role != other.role for one, other in pairwise(turns)):
        return tuple(turns)
    by_role = groupby(turns, key=attrgetter("role"))
    return tuple(Message(role, "\n\n".join(turn.content for turn in same)) for role, same in by_role)


def split_reply(turns: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """A conversation as (what was said before, the assistant's last reply).

    >>> split_reply([Message("user", "2 + 2?"), Message("assistant", "4")])
    ((Message(role='user', content='2 + 2?'),), '4')
    """
    if not turns or turns[-1].role != "assistant":
        raise UnusableRow("last turn is not the assistant's")
    if not turns[-1].content:
        raise UnusableRow("empty last reply")
    if any(not turn.content for turn in turns):
        raise UnusableRow("empty turn")
    if any(turn.role == "system" for turn in turns[1:]):
        raise UnusableRow("system message after the start")
    *history, reply = merged(turns)
    if not any(turn.role == "user" for turn in history):
        raise UnusableRow("empty prompt")
    return tuple(history), reply.content


def pair_of_conversations(
    source: str, better: Sequence[Message], worse: Sequence[Message], task: str | None = None
) -> FeedbackGroup:
    """The shared history as the prompt, the two last replies as the outputs; `task` is found where none is given."""
    prompt, better_reply = split_reply(better)
    other_prompt, worse_reply = split_reply(worse)
    if prompt != other_prompt:
        raise UnusableRow("histories differ")
    return FeedbackGroup(source, prompt, (better_reply, worse_reply), (1, 2), task=task or task_of(prompt))
