"""Conversations in which only the last reply differs: what transcripts and message lists have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from coh.data.records import FeedbackGroup, Message, UnusableRow


def merged(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Consecutive turns of one role as one turn, with a blank line between their texts.

    >>> merged([Message("user", "Hello?"), Message("user", "Is anybody there?")])
    (Message(role='user', content='Hello?\\n\\nIs anybody there?'),)
    """
    by_role = groupby(turns, key=lambda turn: turn.role)
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
    """The shared history as the prompt, the two last replies as the outputs.

    Without a `task`, more than one turn in the prompt makes it a conversation.
    """
    prompt, better_reply = split_reply(better)
    other_prompt, worse_reply = split_reply(worse)
    if prompt != other_prompt:
        raise UnusableRow("histories differ")
    if task is None:
        task = "conversation" if sum(turn.role != "system" for turn in prompt) > 1 else "general"
    return FeedbackGroup(source, prompt, (better_reply, worse_reply), (1, 2), task=task)
