"""The figures of an evaluation: estimates with intervals, from arrays of log-probabilities, scores, ranks and texts.

Nothing here knows a model. Every estimate says how many things it rests on, and an interval: of 100 made in this way,
each from other rows of the same kind, about 95 hold the true figure, that of all such rows. Means and ratios have the
percentile bootstrap's, shares of wins have Wilson's. Rows of one prompt do not stand for themselves: where `prompts`
tells the prompt of each row, prompts are drawn again whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Prompts = Sequence[Hashable] | None
RESAMPLES = 2000
# Scripts that put no space between words: Thai and Lao, Burmese, Khmer, kana, Han.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
SURE = 1.959964  # standard errors on either side of an interval of 95 %


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of rows behind it. The interval is NaN where one row says nothing."""

    value: float
    low: float
    high: float
    n: int


def mean(values: ArrayLike, seed: int = 0, prompts: Prompts = None) -> Estimate:
    """The mean over rows; the interval is the percentile bootstrap's.

    >>> mean([1.0, 1.0, 1.0])
    Estimate(value=1.0, low=1.0, high=1.0, n=3)
    """
    return ratio(values, np.ones(len(np.atleast_1d(np.asarray(values)))), seed, prompts)


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0, prompts: Prompts = None) -> Estimate:
    """Sum over rows divided by sum over rows, such as nats by tokens: rows are drawn again whole.

    >>> ratio([2.0, 2.0], [1, 3]).value
    1.0
    """
    above, below = np.atleast_1d(np.asarray(numerators, float)), np.atleast_1d(np.asarray(denominators, float))
    num_rows = len(above)
    if not num_rows or not below.sum():
        return Estimate(float("nan"), float("nan"), float("nan"), num_rows)
    value = float(above.sum() / below.sum())
    above, below = _by_prompt(prompts, above, below)
    n = len(above)
    if n == 1:
        return Estimate(value, float("nan"), float("nan"), num_rows)
    rng = np.random.default_rng(seed)
    # One resample at a time: memory stays small for any number of rows.
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(n, size=n)
        drawn.append(above[rows].sum() / max(below[rows].sum(), np.finfo(float).tiny))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), num_rows)


def paired_difference(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], seed: int = 0, prompts: Prompts = None
) -> Estimate:
    """How much one ratio is above another over the same rows: each resample draws rows for both, so that what they
    share drops out. Each is given as its (numerators, denominators).

    >>> paired_difference(([3.0, 2.0], [1, 1]), ([2.5, 1.5], [1, 1]))
    Estimate(value=0.5, low=0.5, high=0.5, n=2)

    Raises:
        ValueError: they have not equally many rows.
    """
    columns = [np.asarray(values, float) for side in (first, second) for values in side]
    num_rows, other = len(columns[0]), len(columns[2])
    if num_rows != other:
        raise ValueError(f"{num_rows} rows against {other}: a paired difference is over the same rows")
    nothing = float("nan")
    if not num_rows:
        return Estimate(nothing, nothing, nothing, 0)
    value = float(columns[0].sum() / columns[1].sum() - columns[2].sum() / columns[3].sum())
    columns = _by_prompt(prompts, *columns)
    n = len(columns[0])
    if n == 1:
        return Estimate(value, nothing, nothing, num_rows)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    sums = [values[drawn].sum(axis=1) for values in columns]
    low, high = np.percentile(sums[0] / sums[1] - sums[2] / sums[3], [2.5, 97.5])
    return Estimate(value, float(low), float(high), num_rows)


def share(won: ArrayLike, prompts: Prompts = None) -> Estimate:
    """The mean of wins (0, 1/2 or 1) with Wilson's interval, which also holds for few pairs and for one-sided ones.

    The number of pairs is divided by the design effect: how much further sums over prompts spread than they would if
    pairs were independent, and at least 1. Where all pairs came out alike, those of one prompt count as one.

    >>> found = share([1, 1, 1])
    >>> round(found.low, 2), found.high
    (0.44, 1.0)
    """
    values = np.atleast_1d(np.asarray(won, float))
    n = len(values)
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(values.mean())
    apart = values - value if np.ptp(values) else np.ones(n)
    (by_prompt,) = _by_prompt(prompts, apart)
    if len(by_prompt) == 1:
        return Estimate(value, float("nan"), float("nan"), n)
    design_effect = max(1.0, float((by_prompt**2).sum() / (apart**2).sum()))
    return Estimate(value, *_wilson(value, n / design_effect), n)


def _wilson(value: float, n: float) -> tuple[float, float]:
    """The least and the greatest true share by which a share found among n is no surprise (Wilson, 1927)."""
    squared = SURE**2 / n
    middle = (value + squared / 2) / (1 + squared)
    half = float(np.sqrt(squared * value * (1 - value) + squared**2 / 4)) / (1 + squared)
    return middle - half if value > 0 else 0.0, middle + half if value < 1 else 1.0  # at the ends but for rounding


def _by_prompt(prompts: Prompts, *columns: Floats) -> list[Floats]:
    """Sums over the rows of each prompt, in the order of first rows; the rows themselves where none are named."""
    if prompts is None:
        return list(columns)
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
    return [np.bincount(places, column, len(numbers)).astype(float) for column in columns]


def sign_test(differences: ArrayLike, prompts: Prompts = None) -> float:
    """How often chance alone makes so many rows of one sign, or more, on either side; rows of 0 say nothing.

    >>> sign_test([1.0, 1.0, 1.0, 1.0, 0.0]), sign_test([1.0] * 6)
    (0.125, 0.03125)
    """
    from scipy.stats import binomtest

    (found,) = _by_prompt(prompts, np.asarray(differences, float))
    num_up, num_down = int((found > 0).sum()), int((found < 0).sum())
    return float(binomtest(num_up, num_up + num_down).pvalue) if num_up + num_down else 1.0


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


def terms(text: str) -> list[str]:
    """Words in small letters, without punctuation; where a script has no spaces, its letters one by one.

    >>> terms("Don't gieße 日本!")
    ['don', 't', 'gieße', '日', '本']
    """
    apart = UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFC", text.lower()))
    return "".join(sign if _is_of_word(sign) else " " for sign in apart).split()


def _is_of_word(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign).startswith("M")  # such as vowels that stand on letters


def words_of(text: str) -> list[str]:
    """Words as they are counted: what stands between white space; where a script has none, its letters one by one.

    >>> words_of("It's 日本!"), words_of("ok -")
    (["It's", '日', '本'], ['ok', '-'])
    """
    return [word for part in text.split() for word in (terms(part) if UNSPACED.search(part) else [part])]


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of different ones among all n-grams of words of all texts (Li and others, 2016); NaN where there are none.

    >>> distinct(["a b a b"], 2)
    0.6666666666666666
    """
    grams = [tuple(words[i : i + n]) for words in map(words_of, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


class _Terms:
    """`terms`, as rouge-score asks for them: words in ASCII are cut and stemmed by its own tokenizer."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._english = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        return [term for word in terms(text) for term in (self._english.tokenize(word) if word.isascii() else [word])]


def rouge(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Floats]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, in percent, one value for each output.

    Texts in ASCII have the figures of rouge-score itself, which knows no other letters.

    Raises:
        ImportError: the package rouge-score is not installed.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(names), tokenizer=_Terms())
    found = [scorer.score(reference, output) for output, reference in zip(outputs, references, strict=True)]
    return {name: np.array([100 * scores[name].fmeasure for scores in found]) for name in names}
