"""Records that bring their own words, as the authors of Chain of Hindsight wrote them.

A record is flat, and its entry `fields` says which of its texts follow each other: "[ask+prompt+good],answer,<|eos|>".
Brackets mean words, without loss; what stands without them the model learns to write; `+` joins texts with a space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from coh.data.records import FeedbackError, FeedbackGroup, Message, Segment, UnusableRow, as_messages, clean_output
from coh.data.sources.fields import as_whole_text, missing, shortened, text_at

BOS, EOS = "<|bos|>", "<|eos|>"
MOST_LETTERS = 10_000_000
_PART = re.compile(r"(\[?)([^\[\],]+)(\]?)")


class _Part(NamedTuple):
    keys: tuple[str, ...]
    is_target: bool


def read_fields(row: dict) -> FeedbackGroup:
    """The record's chain as it stands; its targets are the outputs, of which no order is known.

    >>> record = {"ask": "User:", "q": "2 + 2?", "good": "A good answer:", "a": "4", "fields": "[ask+q+good],a,<|eos|>"}
    >>> read_fields(record).outputs
    ('4',)
    """
    segments = read_field_record(row)
    # A conversation that is told twice, well and badly, has the same turns in front of its last ones.
    outputs = tuple(dict.fromkeys(clean_output(segment.text) for segment in segments if segment.is_target))
    return FeedbackGroup("fields", (), outputs, (1,) * len(outputs), verbatim=tuple(segments))


def read_field_record(row: dict) -> list[Segment]:
    """The stretches of a record's text in turn; between two of them stands their own white space, or else one space.

    The end-of-text token comes behind every target anyway, and the beginning one where a run asks for it, so `<|eos|>`
    and `<|bos|>` add nothing, however often they are written. But `<|eos|>` parts two targets that follow each other.

    >>> read_field_record({"q": "2 + 2?", "good": "Good:", "a": "4", "fields": "[q+good],a,<|eos|>"})
    [Segment(text='2 + 2? Good:', is_target=False), Segment(text='4', is_target=True)]
    """
    segments: list[tuple[list[str], bool]] = []  # pieces of text that follow each other, and whether they are a target
    space = ""
    can_join = False
    length = 0
    for part in _parts(text_at(row, "fields")):
        if part.keys in ((BOS,), (EOS,)):
            can_join = False
            continue
        texts = [_text(row, key) for key in part.keys]
        length += sum(map(len, texts))
        if length > MOST_LETTERS:  # each name may stand there any number of times
            raise UnusableRow(f"more than {MOST_LETTERS:,} letters")
        text = space + " ".join(texts)
        if part.is_target and not text.strip():
            raise UnusableRow("empty output")
        is_joined = can_join and segments[-1][1] == part.is_target
        if is_joined and not text[:1].isspace():
            text = f" {text}"
        bare = text.rstrip()
        space = text[len(bare) :] if segments or bare else ""
        if not bare:
            continue
        if is_joined:
            segments[-1][0].append(bare)
        else:
            segments.append(([bare if segments else bare.lstrip()], part.is_target))
        can_join = True
    return [Segment("".join(pieces), is_target) for pieces, is_target in segments]


def marked_prompt(row: dict) -> tuple[Message, ...]:
    """What decides a record's split: the texts of its first brackets, without markers, which differ between records of
    one prompt.
    """
    first = next((part.keys for part in _parts(text_at(row, "fields")) if part.keys not in ((BOS,), (EOS,))), ())
    keys = [key for key in first if "marker" not in key] or first
    return as_messages(" ".join(_text(row, key) for key in keys))


def _parts(fields: str) -> Iterator[_Part]:
    for word in _split(fields):
        match = _PART.fullmatch(word)
        if not match or bool(match[1]) != bool(match[3]):
            raise FeedbackError(
                f"field 'fields' has {shortened(word)!r}, but must hold names with commas between them, and + between "
                f"those that share brackets, as in [ask+prompt],answer,{EOS}"
            )
        yield _Part(tuple(key.strip() for key in match[2].split("+")), is_target=not match[1])


def _split(fields: str) -> list[str]:
    """At the commas, but for those in brackets: such a part is shown whole where it is refused."""
    commas, bracket = [], ""
    for match in reversed(list(re.finditer(r"[\[\],]", fields))):
        if match[0] != ",":
            bracket = match[0]
        elif bracket != "]":
            commas.append(match.start())
    return [fields[start + 1 : end].strip() for start, end in pairwise([-1, *reversed(commas), len(fields)])]


def _text(row: dict, key: str) -> str:
    if key not in row:
        raise FeedbackError(f"named in 'fields': {missing(key, key, [name for name in row if name != 'fields'])}")
    return as_whole_text(row[key], key)
