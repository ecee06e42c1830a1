"""The things that travel along the path of the data: frozen, small, and checked where they are made.

A stored row of any format becomes a `FeedbackGroup`; a template turns the group into `Segment`s; encoding turns those
into a `Document` of token ids. After `FeedbackGroup` nobody knows where the feedback came from, except as a label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("system", "user", "assistant")
TASKS = ("general", "answer", "summary", "conversation")
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")


# What a terminal or a browser would obey instead of showing: control characters, and those that turn writing around.
# And halves of characters, which nothing can write.
_OBEYED = (*range(9), *range(11, 32), *range(127, 160), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F))
_SPELLED = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*_OBEYED, *range(0x2066, 0x206A), *range(0xD800, 0xE000))
}


def visible(text: str) -> str:
    r"""The text with all that cannot be seen spelled out, except spaces, tabs and line breaks.

    >>> visible("a\x1b[31mb\n")
    'a\\x1b[31mb\n'
    """
    return text.translate(_SPELLED)


class FeedbackError(ValueError):
    """Data or a template that a person has to mend: the message names the place, the value and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))  # it quotes data, and is read in terminals


class UnusableRow(Exception):
    """One row that gives no group, as `UnusableRow("empty output")`: counted under its reason, never trained on."""

    def __init__(self, reason: str) -> None:
        super().__init__(visible(reason))


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise FeedbackError(f"role {self.role!r} is not one of {', '.join(ROLES)}")


def as_messages(prompt: str | Sequence[Message]) -> tuple[Message, ...]:
    """A plain prompt as the conversation it is: one user turn.

    >>> as_messages("Why is the sky blue? ")
    (Message(role='user', content='Why is the sky blue?'),)
    """
    if isinstance(prompt, str):
        return (Message("user", prompt.strip()),) if prompt.strip() else ()
    return tuple(prompt)


class ChatText(str):
    """A prompt as a chat template renders it: the special tokens in it are real.

    Letters of a special token that came from a message are not; `LITERAL` stands behind the first of them.
    """

    LITERAL = "\ufdd0"  # a code point that Unicode keeps free of any character


def clean_output(text: str) -> str:
    r"""An output without white space around it, but with the indentation of its first line, which code needs.

    >>> clean_output(" 4\n"), clean_output("\n    if n == 0:\n        return 1\n")
    ('4', '    if n == 0:\n        return 1')
    """
    text = _BLANK_LINES.sub("", text).rstrip()
    bare = text.lstrip()
    indentation = text[: len(text) - len(bare)]
    return text if len(indentation) > 1 or indentation == "\t" else bare


def joined(joint: str, text: str) -> str:
    """A text behind the white space of its slot; the indentation of code takes the place of a mere space.

    >>> joined(" ", "4"), joined(" ", "    return 4")
    (' 4', '    return 4')
    """
    if not joint or (text[:1].isspace() and "\n" not in joint):
        return text
    return joint + text


@dataclass(frozen=True)
class Segment:
    """A stretch of a chain's text, and whether the model is to learn to write it."""

    text: str
    is_target: bool


@dataclass(frozen=True)
class FeedbackGroup:
    """Outputs for one prompt and what people said of them: the narrow waist of the package.

    Outputs stand best first. `ranks` has one number per output, 1 for the best; equal ranks are a tie. `critiques` is
    empty or holds words about each output ("" where there are none). `revision` repeats the first output where that was
    written from the last one and its critique. `is_good` is a verdict on a single output, which has no other to be
    compared with (a thumb up or down). `verbatim` is the whole chain where the record brings its own words.

    >>> group = FeedbackGroup("demo", as_messages("2 + 2?"), outputs=("4", "5"), ranks=(1, 2))
    >>> group.is_tie
    False
    """

    source: str
    prompt: tuple[Message, ...]
    outputs: tuple[str, ...]
    ranks: tuple[int, ...]
    critiques: tuple[str, ...] = ()
    revision: str | None = None
    task: str = "general"
    is_good: bool | None = None
    verbatim: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        if not self.outputs:
            raise UnusableRow("no output")
        if any(not output.strip() for output in self.outputs):
            raise UnusableRow("empty output")
        if any(output != clean_output(output) for output in self.outputs):
            raise FeedbackError("outputs are stored without white space around them: see `clean_output`")
        if len(set(self.outputs)) < len(self.outputs):
            raise UnusableRow("identical outputs")
        if len(self.ranks) != len(self.outputs):
            raise FeedbackError(f"{len(self.ranks)} ranks for {len(self.outputs)} outputs: give one rank per output")
        if list(self.ranks) != sorted(self.ranks) or self.ranks[0] != 1:
            raise FeedbackError(f"ranks {self.ranks} must rise from 1: order the outputs best first")
        if self.critiques and len(self.critiques) != len(self.outputs):
            raise FeedbackError(
                f"{len(self.critiques)} critiques for {len(self.outputs)} outputs: give one each or none"
            )
        if self.revision is not None and (self.revision != self.outputs[0] or len(self.outputs) < 2):
            raise FeedbackError("a revision stands first, before the output that it revises")
        if self.is_good is not None and len(self.outputs) > 1:
            raise FeedbackError("is_good is for a single output: several are compared by their ranks")
        if self.task not in TASKS:
            raise FeedbackError(f"task {self.task!r} is not one of {', '.join(TASKS)}")

    @property
    def is_tie(self) -> bool:
        """True where people preferred no output to another."""
        return len(self.outputs) > 1 and self.ranks[0] == self.ranks[-1]


@dataclass(frozen=True)
class Document:
    """One chain, or one pretraining text, as tokens; `target_mask` has an entry per id.

    `prompt` is where the prompt stands, (start, stop): what loses its beginning where a document is too long.
    """

    input_ids: tuple[int, ...]
    target_mask: tuple[bool, ...]
    source: str
    prompt: tuple[int, int] = (0, 0)
