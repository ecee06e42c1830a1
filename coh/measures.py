"""The figures of an evaluation: estimates with intervals, from arrays of log-probabilities, scores, ranks and texts.

Nothing here knows a model. Every estimate says how many things it rests on, and the interval in which a repetition with
other rows of the same kind would fall 95 times of 100 (bootstrap over rows).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of rows behind it. The interval is NaN where one row says nothing."""

    value: float
    low: float
    high: float
    n: int


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """The mean over rows; the interval is the percentile bootstrap's.

    >>> mean([1.0, 1.0, 1.0])
    Estimate(value=1.0, low=1.0, high=1.0, n=3)
    """
    return ratio(values, np.ones(len(np.atleast_1d(np.asarray(values)))), seed)


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Estimate:
    """Sum over rows divided by sum over rows, such as nats by tokens: rows are drawn again whole.

    >>> ratio([2.0, 2.0], [1, 3]).value
    1.0
    """
    above, below = np.atleast_1d(np.asarray(numerators, float)), np.atleast_1d(np.asarray(denominators, float))
    n = len(above)
    if not n or not below.sum():
        return Estimate(float("nan"), float("nan"), float("nan"), n)
    value = float(above.sum() / below.sum())
    if n == 1:
        return Estimate(value, float("nan"), float("nan"), 1)
    rng = np.random.default_rng(seed)
    # How often each row stands in a resample, a few resamples at a time: memory stays small for any number of rows.
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(n, size=n)
        drawn.append(above[rows].sum() / max(below[rows].sum(), np.finfo(float).tiny))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


def paired_difference(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], seed: int = 0
) -> Estimate:
    """How much one ratio is above another over the same rows: each resample draws rows for both, so that what they
    share drops out. Each is given as its (numerators, denominators).

    >>> paired_difference(([3.0, 2.0], [1, 1]), ([2.5, 1.5], [1, 1]))
    Estimate(value=0.5, low=0.5, high=0.5, n=2)

    Raises:
        ValueError: they have not equally many rows.
    """
    sides = [[np.asarray(values, float) for values in side] for side in (first, second)]
    (above, below), (other_above, other_below) = sides
    n = len(above)
    if n != len(other_above):
        raise ValueError(f"{n} rows against {len(other_above)}: a paired difference is over the same rows")
    nothing = float("nan")
    if not n:
        return Estimate(nothing, nothing, nothing, 0)
    value = float(above.sum() / below.sum() - other_above.sum() / other_below.sum())
    if n == 1:
        return Estimate(value, nothing, nothing, 1)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    sums = [values[drawn].sum(axis=1) for values in (above, below, other_above, other_below)]
    low, high = np.percentile(sums[0] / sums[1] - sums[2] / sums[3], [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


def percent(estimate: Estimate) -> Estimate:
    """A share and its interval as percent."""
    return Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high, estimate.n)


def wins(better: ArrayLike, worse: ArrayLike) -> Floats:
    """1 where the first score is the higher one, 0 where it is lower, one half where they are equal.

    >>> wins([2.0, 1.0, 0.0], [1.0, 1.0, 1.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    first, second = np.asarray(better, float), np.asarray(worse, float)
    return (first > second) + 0.5 * (first == second)


def rank_agreement(scores: Sequence[float], ranks: Sequence[int]) -> float:
    """Kendall's tau-b of scores (higher is better) with people's ranks (1 is best): 1 same order, -1 reversed, 0 none.

    NaN where all scores, or all ranks, are equal.

    >>> round(rank_agreement([3.0, 2.0, 1.0], [1, 2, 3]), 6), round(rank_agreement([1.0, 2.0, 3.0], [1, 2, 3]), 6)
    (1.0, -1.0)
    """
    from scipy.stats import kendalltau

    return float(kendalltau(np.asarray(scores), -np.asarray(ranks)).statistic)


@dataclass(frozen=True)
class Reliability:
    """How often the higher score was right, by how sure it was: bins of equal width from one half to 1.

    `predicted` is the mean stated probability in each bin, `observed` the share that was right, `counts` how many;
    `error` is the expected calibration error, the mean distance of both weighted by counts.
    """

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]
    error: float


def reliability(differences: ArrayLike, num_bins: int = 5) -> Reliability:
    """Calibration of scores in nats: the difference (better less worse) states the probability sigmoid(|difference|).

    Differences of exactly 0 state one half and count half right.

    >>> reliability([2.0, 2.0, -0.1]).counts
    (1, 0, 0, 2, 0)
    """
    from scipy.special import expit

    found = np.asarray(differences, float)
    stated, right = expit(np.abs(found)), wins(found, np.zeros_like(found))
    place = np.minimum(((stated - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sums = [np.bincount(place, values, num_bins) for values in (stated, right)]
    predicted, observed = (np.divide(part, counts, out=np.full(num_bins, np.nan), where=counts > 0) for part in sums)
    error = float(np.abs(sums[0] - sums[1]).sum() / max(len(found), 1))
    return Reliability(tuple(predicted.tolist()), tuple(observed.tolist()), tuple(counts.tolist()), error)


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of different ones among all n-grams of words of all texts (Li and others, 2016); NaN where there are none.

    >>> distinct(["a b a b"], 2)
    0.6666666666666666
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def rouge(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Floats]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, in percent, one value for each output.

    Raises:
        ImportError: the package rouge-score is not installed.
    """
    from rouge_score.rouge_scorer import RougeScorer

    logging.getLogger("absl").setLevel(logging.WARNING)  # it tells of its tokenizer each time
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names), use_stemmer=True)
    found = [scorer.score(reference, output) for output, reference in zip(outputs, references, strict=True)]
    return {name: np.array([100 * scores[name].fmeasure for scores in found]) for name in names}
