"""What was measured of each pair, as figures and differences with intervals.

In: for every run the log-probabilities of the same held-out pairs. Out: estimates; differences between two arms are
bootstrapped over the pairs that both have, so that what makes a pair hard for both cancels. Seeds of an arm are
averaged pair by pair first. Pairs of one prompt are drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coh import measures
from coh.measures import Estimate, percent, ratio, share, sign_test, wins

Floats = NDArray[np.float64]
SURE = 1.96  # standard errors on either side of an interval of 95 %
CHANCE = 0.05  # what chance brings about more seldom is told
METRICS = {
    "pair_accuracy": "pair accuracy, sum (%)",
    "pair_accuracy_per_token": "per token (%)",
    "pair_accuracy_by_words": "by words (%)",
    "steering_gap": "steering gap (nats)",
    "loss_p": "loss, good outputs",
}


@dataclass(frozen=True)
class Measured:
    """What one run gave for each pair: `log_p` (pairs, better or worse, good or bad words), `num_tokens` (pairs, 2).

    `texts` has the summed loss and the tokens of every plain text, (texts, 2). `prompts` has a key of each pair's
    prompt, where it is known.
    """

    log_p: Floats
    num_tokens: Floats
    sources: tuple[str, ...]
    texts: Floats
    prompts: tuple[str, ...] = ()

    def part(self, source: str) -> Measured:
        """The pairs of one source."""
        own = np.array([name == source for name in self.sources], bool)
        prompts = tuple(prompt for prompt, is_own in zip(self.prompts, own) if is_own)
        return Measured(self.log_p[own], self.num_tokens[own], (source,) * int(own.sum()), self.texts, prompts)


@dataclass(frozen=True)
class Rows:
    """A figure as rows that can be drawn again: its value is the sum of `above` divided by that of `below`.

    `prompts` has a key of each row's prompt, if rows have any. An accuracy's rows are won (100), lost (0) or half won.
    """

    above: Floats
    below: Floats
    prompts: tuple[str, ...] | None = None
    is_accuracy: bool = False

    def estimate(self) -> Estimate:
        """The value and its interval."""
        if self.is_accuracy:
            return percent(share(self.above / 100, self.prompts))
        return ratio(self.above, self.below, prompts=self.prompts)


def rows_of(runs: Sequence[Measured], metric: str) -> Rows:
    """A metric's rows, averaged over the seeds of an arm."""
    found = [_rows(run, metric) for run in runs]
    above, below = np.mean([(rows.above, rows.below) for rows in found], axis=0)
    return replace(found[0], above=above, below=below)


def _rows(run: Measured, metric: str) -> Rows:
    if metric == "text_loss":
        return Rows(run.texts[:, 0], run.texts[:, 1])
    good, bad = run.log_p[..., 0], run.log_p[..., 1]
    moved, prompts = good - bad, run.prompts or None
    if metric == "loss_p":
        return Rows(-good[:, 0], run.num_tokens[:, 0], prompts)
    values = {
        "pair_accuracy": lambda: 100 * wins(good[:, 0], good[:, 1]),
        "pair_accuracy_per_token": lambda: 100 * wins(*(good / run.num_tokens).T),
        "pair_accuracy_by_words": lambda: 100 * wins(moved[:, 0], moved[:, 1]),
        "steering_gap": lambda: moved[:, 0] - moved[:, 1],
    }[metric]()
    return Rows(values, np.ones(len(values)), prompts, is_accuracy=metric != "steering_gap")


def paired_difference(first: Rows, second: Rows, seed: int = 0) -> Estimate:
    """How much the first figure is above the second, both over the same rows: each resample draws rows for both.

    >>> ones = np.ones(4)
    >>> paired_difference(Rows(np.array([3.0, 1.0, 4.0, 1.0]), ones), Rows(np.array([2.0, 0.0, 3.0, 0.0]), ones))
    Estimate(value=1.0, low=1.0, high=1.0, n=4)

    Raises:
        ValueError: they have not equally many rows, so they are not of the same pairs.
    """
    sides = ((first.above, first.below), (second.above, second.below))
    return measures.paired_difference(*sides, seed, first.prompts)


def compared(first: Rows, second: Rows) -> tuple[Estimate, str]:
    """The difference of two figures over the same rows, and its verdict.

    Of accuracies the bootstrap alone would tell too much: few pairs that one has right and the other wrong, all on one
    side, leave 0 out of its interval. So chance must also seldom put them on one side.

    >>> won, lost = (Rows(np.array([end] * 4 + [100.0] * 96), np.ones(100), is_accuracy=True) for end in (100.0, 0.0))
    >>> found, says = compared(won, lost)
    >>> found.low > 0, says
    (True, 'not told apart')
    """
    difference = paired_difference(first, second)
    chance = sign_test(first.above - second.above, first.prompts) if first.is_accuracy else 0.0
    return difference, verdict(difference, chance)


def verdict(difference: Estimate, chance: float = 0.0) -> str:
    """Whether the first is above the second, as its interval says, unless chance brings that about too often.

    >>> verdict(Estimate(2.0, 0.5, 3.5, 90)), verdict(Estimate(2.0, -0.5, 4.5, 90)), verdict(Estimate(-2.0, -3, -1, 90))
    ('yes', 'not told apart', 'no')
    """
    if not difference.low <= difference.high or chance >= CHANCE:  # no interval
        return "not told apart"
    return "yes" if difference.low > 0 else "no" if difference.high < 0 else "not told apart"


def accuracy_resolution(num_pairs: int, disagreement: float = 0.25) -> float:
    """The least difference of two pair accuracies, in points, that so many pairs tell from none.

    `disagreement` is the share of pairs that one of both gets right and the other wrong.

    >>> round(accuracy_resolution(300), 1), round(accuracy_resolution(1200), 1)
    (5.7, 2.8)
    """
    return float(100 * SURE * np.sqrt(disagreement / num_pairs))


def mean_resolution(values: Floats, correlation: float = 0.5) -> float:
    """The least difference of two means that these pairs tell from none, by how far one model's values spread.

    `correlation` is that of both models' values over the pairs.

    >>> round(mean_resolution(np.array([0.0, 2.0] * 50)), 3)
    0.197
    """
    if len(values) < 2:
        return float("nan")
    return float(SURE * np.std(values, ddof=1) * np.sqrt(2 * (1 - correlation) / len(values)))
