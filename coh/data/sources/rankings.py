"""Any number of outputs for one prompt, with a rank or a score for each, and with critiques where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coh.data.records import FeedbackError, FeedbackGroup
from coh.data.sources.fields import as_number, as_text, describe, list_at, number_at, value_at
from coh.data.sources.scores import SCORING, Scoring, ranked_group
from coh.data.sources.turns import prompt_and_outputs, prompt_from


def read_ranked(row: dict) -> FeedbackGroup:
    """`responses` by their `ranks`: the lowest number is the best, equal ones are a tie.

    >>> group = read_ranked({"prompt": "2 + 2?", "responses": ["Five.", "4", "Four."], "ranks": [9, 1, 1]})
    >>> group.outputs, group.ranks
    (('4', 'Four.', 'Five.'), (1, 1, 2))
    """
    return _group(row, "ranked", _numbers(row, "ranks"))


def read_rated(row: dict, scoring: Scoring = SCORING) -> FeedbackGroup:
    """`responses` by their `scores`: the highest number is the best.

    >>> read_rated({"prompt": "2 + 2?", "responses": ["Five.", "4"], "scores": [-0.5, 2]}).outputs
    ('4', 'Five.')
    """
    return _group(row, "rated", scoring.levels(_numbers(row, "scores")))


def read_rated_rows(rows: Sequence[dict], scoring: Scoring = SCORING) -> FeedbackGroup:
    """One `response` a row with its `score`: all rows of a prompt are a group.

    >>> rows = [{"prompt": "2 + 2?", "response": text, "score": stars} for text, stars in (("Five.", "1"), ("4", "5"))]
    >>> read_rated_rows(rows).outputs
    ('4', 'Five.')
    """
    replies = {f"response ({number})": value_at(row, "response") for number, row in enumerate(rows, start=1)}
    prompt, outputs = prompt_and_outputs(prompt_from(rows[0]), replies)
    return ranked_group("rated_rows", prompt, outputs, scoring.levels([number_at(row, "score") for row in rows]))


def prompt_of_whole(row: dict) -> Any:
    """What rows of one group have in common; a row that lacks its response or score is in no group with whole ones."""
    response, score = row.get("response"), row.get("score")
    is_whole = all(value is not None and str(value).strip() for value in (response, score))
    return row.get("prompt") if is_whole else (response, score)


def read_ultrafeedback(row: dict, scoring: Scoring = SCORING) -> FeedbackGroup:
    """`completions`, objects with a response, a score and a critique; the prompt is called prompt or instruction.

    >>> answers = [{"response": "5", "overall_score": 2.0}, {"response": "4", "overall_score": 9.0}]
    >>> read_ultrafeedback({"instruction": "2 + 2?", "completions": answers}).outputs
    ('4', '5')
    """
    places = {f"completions[{place}]": item for place, item in enumerate(list_at(row, "completions"))}
    for path, item in places.items():
        if not isinstance(item, dict):
            raise FeedbackError(f"field {path!r} is {describe(item)}, but must be an object with 'response'")
    replies = {f"{path}.response": value_at(item, "response", f"{path}.") for path, item in places.items()}
    prompt, outputs = prompt_and_outputs(prompt_from(row, "prompt" if "prompt" in row else "instruction"), replies)
    levels = scoring.levels([_score(item, path) for path, item in places.items()])
    critiques = [_said(item.get("critique"), f"{path}.critique") for path, item in places.items()]
    return ranked_group("ultrafeedback", prompt, outputs, levels, critiques)


def _group(row: dict, source: str, levels: Sequence[float]) -> FeedbackGroup:
    replies = {f"responses[{place}]": reply for place, reply in enumerate(list_at(row, "responses"))}
    prompt, outputs = prompt_and_outputs(prompt_from(row), replies)
    critiques = []
    if row.get("critiques") is not None:
        said = list_at(row, "critiques", len(outputs))
        critiques = [_said(words, f"critiques[{place}]") for place, words in enumerate(said)]
    return ranked_group(source, prompt, outputs, levels, critiques)


def _numbers(row: dict, path: str) -> list[float]:
    """One number for each of the responses."""
    numbers = list_at(row, path, len(list_at(row, "responses")))
    return [as_number(number, f"{path}[{place}]") for place, number in enumerate(numbers)]


def _score(completion: dict, path: str) -> float:
    """The overall score, or the mean of the fine-grained ones where there is no overall one."""
    name = "overall_score"
    if completion.get(name) is None and "fine-grained_score" in completion:
        name = "fine-grained_score"
    return as_number(value_at(completion, name, f"{path}."), f"{path}.{name}")


def _said(words: Any, path: str) -> str:
    return "" if words is None else as_text(words, path)
