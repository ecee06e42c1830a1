"""What people's numbers say about outputs: scores and ranks -> an order with ties -> a group.

`Scoring` holds the options of a run: by how much two scores must differ, and which attributes make up a score where
outputs are rated by several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from coh.data.records import FeedbackError, FeedbackGroup, Message, UnusableRow
from coh.data.sources.turns import task_of

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


@dataclass(frozen=True)
class Scoring:
    """How scores become an order.

    `tie_margin` is the largest difference that is still a tie. `attributes` are names with weights: their weighted sum
    is the score of an output that was rated by attributes.
    """

    tie_margin: float = 0.0
    attributes: tuple[tuple[str, float], ...] = (("helpfulness", 1.0),)

    def __post_init__(self) -> None:
        if not 0 <= self.tie_margin < math.inf:
            raise FeedbackError(f"the tie margin is {self.tie_margin}: give a difference of scores, 0 or more")

    def levels(self, scores: Sequence[float]) -> list[int]:
        """A rank for each score, 1 for the highest. A score ties with the best of its rank, so that ties do not drift.

        >>> Scoring(tie_margin=1).levels([3, 5, 4, 2])
        [2, 1, 1, 2]
        """
        if not all(map(math.isfinite, scores)):
            raise UnusableRow("score is infinite")  # a weighted sum of numbers that a float can just hold
        levels = [0] * len(scores)
        level, best = 0, math.inf
        for place in sorted(range(len(scores)), key=lambda place: -scores[place]):
            behind = best - scores[place]
            # 0.8 is behind 0.7 by a little more than 0.1 where numbers are binary.
            if behind > self.tie_margin and not math.isclose(behind, self.tie_margin, rel_tol=1e-9):
                level, best = level + 1, scores[place]
            levels[place] = level
        return levels


SCORING = Scoring()


def parse_attributes(words: str | Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Attributes and their weights from `NAME` or `NAME=WEIGHT`, in a list or with commas between them.

    >>> parse_attributes("helpfulness=0.65,verbosity=-0.4")
    (('helpfulness', 0.65), ('verbosity', -0.4))
    """
    weights: dict[str, float] = {}
    for word in words.split(",") if isinstance(words, str) else words:
        name, equals, weight = (part.strip() for part in word.partition("="))
        if name not in ATTRIBUTES:
            near = get_close_matches(name, ATTRIBUTES, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise FeedbackError(f"unknown attribute {name!r}: {guess}Attributes are {', '.join(ATTRIBUTES)}")
        if name in weights:
            raise FeedbackError(f"attribute {name!r} is named twice: name each once")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            weights[name] = math.nan
        if not math.isfinite(weights[name]):
            raise FeedbackError(f"attribute {word.strip()!r}: {weight!r} is no number; write one, as in {name}=0.5")
    if not any(weights.values()):
        raise FeedbackError("every attribute has the weight 0: give one another")
    return tuple(weights.items())


def ranked_group(
    source: str,
    prompt: tuple[Message, ...],
    outputs: Sequence[str],
    levels: Sequence[float],
    critiques: Sequence[str] = (),
    task: str | None = None,
) -> FeedbackGroup:
    """Outputs in the order of their levels, the lowest best, and renumbered 1, 2, 2, 3.

    Of identical outputs on one level one is kept; on two levels they contradict each other, and the row gives no group.

    >>> group = ranked_group("demo", (Message("user", "2 + 2?"),), ["5", "4", "4"], [7, 2, 2])
    >>> group.outputs, group.ranks
    (('4', '5'), (1, 2))
    """
    said = list(critiques) or [""] * len(outputs)
    kept: dict[str, int] = {}
    for place in sorted(range(len(outputs)), key=levels.__getitem__):
        twin = kept.setdefault(outputs[place], place)
        if levels[twin] != levels[place]:
            raise UnusableRow("identical outputs")
        said[twin] = said[twin] or said[place]
    if len(kept) < 2 <= len(outputs):
        raise UnusableRow("identical outputs")
    if len(kept) == 1 and not any(said):
        raise UnusableRow("one output only")
    places = list(kept.values())
    rank_of = {level: rank for rank, level in enumerate(sorted({levels[place] for place in places}), start=1)}
    return FeedbackGroup(
        source,
        prompt,
        outputs=tuple(kept),
        ranks=tuple(rank_of[levels[place]] for place in places),
        critiques=tuple(said[place] for place in places) if any(said) else (),
        task=task or task_of(prompt),
    )
