"""openai/webgpt_comparisons: two answers to a question, each with a score and with the quotes that it cites.

A citation such as [2] or [1, 3] points to an answer's own quotes. `read_webgpt` shows no quotes, so it takes the
citations out; `read_webgpt_quotes` shows them in the prompt and renumbers the citations to match. The answers alone are
outputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from coh.data.records import FeedbackError, FeedbackGroup, Message, UnusableRow, as_messages
from coh.data.sources.fields import as_text, describe, number_at, text_at, value_at
from coh.data.sources.scores import SCORING, Scoring, ranked_group

_MARK = r"\[[1-9]\d?(?:\s*,\s*[1-9]\d?)*\]"
# At the start of a line the space after a mark goes with it, elsewhere the space before it. A run of spaces is read
# from its start alone (the look behind): else its length would count twice.
_MARKS = re.compile(rf"^[ \t]*(?:{_MARK}[ \t]*)+|(?<![ \t])(?:[ \t]*{_MARK})+", flags=re.MULTILINE)


def read_webgpt(row: dict, scoring: Scoring = SCORING) -> FeedbackGroup:
    """The question as the prompt, the answers without their citations.

    >>> answers = {"answer_0": "Four [1].", "answer_1": "Five.", "score_0": -0.5, "score_1": 0.5}
    >>> read_webgpt({"question": {"full_text": "2 + 2?"}, **answers}).outputs
    ('Five.', 'Four.')
    """
    answers = [_MARKS.sub("", text_at(row, f"answer_{side}")).strip() for side in (0, 1)]
    return _group(row, "webgpt", text_at(row, "question.full_text"), answers, scoring)


def read_webgpt_quotes(row: dict, scoring: Scoring = SCORING) -> FeedbackGroup:
    """As `read_webgpt`, with the numbered quotes of both answers before the question.

    They stand before it because a prompt that is too long loses its left end first: rather a source than the question.
    """
    question = text_at(row, "question.full_text")
    if not question:
        raise UnusableRow("empty prompt")
    number_of: dict[tuple[str, str], int] = {}
    answers = []
    for side in (0, 1):
        numbers = [number_of.setdefault(quote, len(number_of) + 1) for quote in _quotes(row, f"quotes_{side}")]
        answers.append(_renumbered(text_at(row, f"answer_{side}"), numbers))
    sources = [f"[{number}] {title}\n{extract}".strip() for (title, extract), number in number_of.items()]
    return _group(row, "webgpt_quotes", "\n\n".join([*sources, question]), answers, scoring)


def _group(row: dict, source: str, prompt: str, answers: Sequence[str], scoring: Scoring) -> FeedbackGroup:
    if not prompt:
        raise UnusableRow("empty prompt")
    levels = scoring.levels([number_at(row, "score_0"), number_at(row, "score_1")])
    return ranked_group(source, as_messages(prompt), answers, levels, task="answer")


def _quotes(row: dict, path: str) -> list[tuple[str, str]]:
    """The (title, extract) pairs of an answer; white space is normalised so that a quote made twice is one."""
    if value_at(row, path) is None:
        return []
    titles, extracts = value_at(row, f"{path}.title") or [], value_at(row, f"{path}.extract") or []
    if not isinstance(titles, list) or not isinstance(extracts, list) or len(titles) != len(extracts):
        raise FeedbackError(
            f"field {path!r} is {describe(row[path])}, but must hold two lists of one length, 'title' and 'extract'"
        )
    return [
        (_quoted(title, f"{path}.title[{place}]"), _quoted(extract, f"{path}.extract[{place}]"))
        for place, (title, extract) in enumerate(zip(titles, extracts, strict=True))
    ]


def _quoted(text: Any, path: str) -> str:
    return "" if text is None else " ".join(as_text(text, path).split())


def _renumbered(answer: str, numbers: Sequence[int]) -> str:
    """The answer with citation k as `numbers[k - 1]`; citations of quotes that do not exist go."""

    def rename(match: re.Match) -> str:
        cited = [int(number) for number in re.findall(r"\d+", match[0])]
        known = sorted({numbers[number - 1] for number in cited if number <= len(numbers)})
        if not known:
            return ""
        before, _, rest = match[0].partition("[")
        after = rest[len(rest.rstrip()) :]
        return f"{before}[{', '.join(map(str, known))}]{after}"

    return _MARKS.sub(rename, answer).strip()


def question_of(row: dict) -> tuple[Message, ...]:
    """What decides the split of a row with quotes: its question, however many pages were quoted for it."""
    return as_messages(text_at(row, "question.full_text"))
