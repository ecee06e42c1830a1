"""What a model learned from the feedback of one source, as figures with intervals.

In: a model, its words, and groups that it was not trained on. Out: `SourceFigures`, computed from the log-probabilities
of whole training documents (`coh.score`):

- *loss* and *accuracy* on the targets of each kind of chain: nats per token, and how often the token was the likeliest;
- *pair accuracy*: how often the better output is the more probable one under good words, by the sum over its tokens,
  per token, and by the difference that the words make (log p under good words less log p under bad ones);
- *rank agreement*: Kendall's tau of that difference with people's ranks, for three outputs or more;
- *verdicts*: of single outputs with a verdict, how often the words make a good one likelier, or a bad one less likely;
- *questions*: how often the answer to "which is better?" is likelier where it is true than with the outputs changed
  over;
- *steering gap*: how much more the words move the better output than the worse one, mean over pairs of
  [log p(better | good) - log p(better | bad)] - [log p(worse | good) - log p(worse | bad)], in nats;
- *chain gain*: log p(better | worse one in front) - log p(better), in nats per token, both under good words;
- *calibration error*: of the difference that the words make between two outputs, the steering gap of one pair, read as
  the log-odds that the first is the better one.

Pairs of one prompt are not independent, and the intervals know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.records import Document, FeedbackGroup, as_messages
from coh.data.sources import prompt_hash
from coh.generation import num_positions
from coh.likelihood import RunScores, score_runs
from coh.measures import Estimate, Reliability, mean, percent, rank_agreement, ratio, reliability, share, wins
from coh.steering import Steering

Floats = NDArray[np.float64]
KINDS = {"p": "good outputs", "n": "bad outputs", "pn": "chains, better first", "np": "chains, worse first"}
VERDICTS = {"liked": True, "disliked": False}
BARE = as_messages("?")  # the shortest prompt
LABELS = {
    **{f"loss_{kind}": f"loss on {label} (nats per token)" for kind, label in KINDS.items()},
    **{f"accuracy_{kind}": f"accuracy on {label} (%)" for kind, label in KINDS.items()},
    "pair_accuracy": "pair accuracy, sum of log p (%)",
    "pair_accuracy_per_token": "pair accuracy, log p per token (%)",
    "pair_accuracy_by_words": "pair accuracy, by what the words change (%)",
    "rank_agreement": "agreement with rankings (Kendall's tau)",
    "verdict_accuracy": "verdicts told by the words (%)",
    "question_accuracy": "questions about pairs answered right (%)",
    "steering_gap": "steering gap (nats per pair)",
    "chain_gain": "chain gain (nats per token)",
    "calibration_error": "calibration error of the score, sum of log p",
}


@dataclass(frozen=True)
class SourceFigures:
    """What was measured on one source; a figure that its feedback cannot give is absent.

    `scores` are those of the better and of the worse outputs, nats per token, (pairs, 2). `log_p` is what the figures
    of pairs are computed from, (pairs, better or worse, under good or under bad words), in nats; `num_tokens` how many
    tokens the outputs have, (pairs, 2). `prompts` has a key of each pair's prompt. `templates` are the words it was
    measured in, and `num_too_long` counts the groups that were left out, since an output of theirs is longer than a
    document may be.
    """

    figures: dict[str, Estimate]
    reliability: Reliability | None
    scores: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    log_p: Floats = field(default_factory=lambda: np.zeros((0, 2, 2)))
    num_tokens: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    prompts: tuple[str, ...] = ()
    templates: str = ""
    num_too_long: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, for a file."""
        return {
            **{name: without_nan(asdict(figure)) for name, figure in self.figures.items()},
            "reliability": without_nan(asdict(self.reliability)) if self.reliability else None,
            "scores": np.round(self.scores, 6).tolist(),
            "prompts": list(self.prompts),
            "templates": self.templates,
            "num_too_long": self.num_too_long,
        }


def preferred_pairs(groups: Sequence[FeedbackGroup]) -> list[FeedbackGroup]:
    """Every group that is no tie as its best and its worst output."""
    return [
        FeedbackGroup(group.source, group.prompt, (group.outputs[0], group.outputs[-1]), (1, 2), task=group.task)
        for group in groups
        if len(group.outputs) > 1 and not group.is_tie
    ]


def is_measured(group: FeedbackGroup) -> bool:
    """Whether people preferred one of its outputs to another, or gave a verdict on its only one."""
    return group.is_good is not None or bool(preferred_pairs([group]))


def prompt_key(group: FeedbackGroup) -> str:
    """The same for all groups of one prompt, and in every process and run."""
    return f"{prompt_hash(group.prompt):016x}"


def longest_document(model: Any, max_length: int | None = None) -> int | None:
    """Tokens of the longest document that the model reads, or `max_length` where that is less."""
    config = getattr(model, "module", model).config  # DeepSpeed's engine has a `config` of its own
    limits = [limit for limit in (max_length, num_positions(config)) if limit]
    return min(limits, default=None)


def that_fit(steering: Steering, groups: Sequence[FeedbackGroup], max_length: int | None) -> list[FeedbackGroup]:
    """The groups of which every output fits a document with its words in front, if not the whole prompt."""
    if not max_length:
        return list(groups)
    lengths = _num_tokens(steering, groups)
    return [group for group, own in zip(groups, lengths) if max(own) + _num_words(steering, group) <= max_length]


def _num_tokens(steering: Steering, groups: Sequence[FeedbackGroup]) -> list[list[int]]:
    """How many tokens each output of each group has, its end included."""
    found = iter(steering.encoder.encode([f" {output}" for group in groups for output in group.outputs]))
    return [[len(next(found)) + 1 for _ in group.outputs] for group in groups]


def _num_words(steering: Steering, group: FeedbackGroup) -> int:
    """Tokens of all that stands in front of an output but the prompt."""
    made = [steering.output_documents(BARE, [""], words, group.task) for words in ("good", "bad")]
    return max(len(documents[0].input_ids) - sum(documents[0].target_mask) for documents in made)


class _Batch:
    """Documents under names, scored together: batches of one length come from all of them."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self._places: dict[str, slice] = {}
        self._prompts: dict[str, list[str]] = {}
        self._runs: RunScores | None = None
        self._first: NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, name: str, groups: Sequence[FeedbackGroup], documents: Sequence[Sequence[Document]]) -> None:
        """Those of each group."""
        self._prompts[name] = [prompt_key(group) for group, own in zip(groups, documents) for _ in own]
        self._places[name] = slice(len(self.documents), len(self.documents) + len(self._prompts[name]))
        self.documents += [document for own in documents for document in own]

    def prompts(self, name: str) -> list[str]:
        """The key of each document's prompt."""
        return self._prompts[name]

    def lengths(self, name: str) -> list[int]:
        """The tokens of each document before it is cut."""
        return [len(document.input_ids) for document in self.documents[self._places[name]]]

    def score(self, score: Callable[[Sequence[Document]], RunScores]) -> None:
        self._runs = score(self.documents)
        self._first = np.searchsorted(self._runs.document, np.arange(len(self.documents) + 1))

    def sums(self, name: str) -> Floats:
        """(documents, 3): log p, tokens, and tokens that were the likeliest, over all targets of a document."""
        assert self._runs is not None
        runs, place = self._runs, self._places[name]
        values = (runs.log_p, runs.num_tokens, runs.num_correct)
        return np.stack([np.bincount(runs.document, v, len(self.documents))[place] for v in values], axis=1)

    def last(self, name: str) -> Floats:
        """(documents, 2): log p and tokens of the last output of each document."""
        assert self._runs is not None
        stops = self._first[1:][self._places[name]] - 1
        return np.stack([self._runs.log_p[stops], self._runs.num_tokens[stops].astype(float)], axis=1)


def measure(
    model: Any,
    steering: Steering,
    groups: Sequence[FeedbackGroup],
    max_length: int | None = None,
    progress: str = "",
    *,
    tokens_per_batch: int | None = None,
    chains: bool = True,
) -> SourceFigures:
    """All figures that these groups can give.

    Args:
        max_length: tokens of a document, if the model reads as many. Longer ones lose the beginning of their prompt;
            groups with an output that does not fit are left out, and so are chains that do not.
        progress: what the progress bar says; none without it.
        tokens_per_batch: how much is scored at once; figures do not depend on it.
        chains: score chains of two outputs and questions too; without them the figures of single outputs cost less
            than half as much.
    """
    max_length = longest_document(model, max_length)
    kept = that_fit(steering, groups, max_length)
    pairs = preferred_pairs(kept)
    rankings = [group for group in kept if len(group.outputs) > 2 and not group.is_tie]
    joined = _that_fit_together(steering, pairs, max_length) if chains else []
    verdicts = {name: [group for group in kept if group.is_good is is_good] for name, is_good in VERDICTS.items()}
    batch = _documents(steering, pairs, {"ranked": rankings, **verdicts}, joined)
    sizes = {} if tokens_per_batch is None else {"tokens_per_batch": tokens_per_batch}
    batch.score(lambda found: score_runs(model, found, steering.end_of_output, max_length, progress, **sizes))
    found = _figures(batch, pairs, rankings, joined, max_length)
    return replace(found, templates=steering.words.family.name, num_too_long=len(groups) - len(kept))


def _that_fit_together(steering: Steering, pairs: Sequence[FeedbackGroup], max_length: int | None) -> list[int]:
    """Which pairs' chains and questions lose nothing but the beginning of the prompt."""
    found = []
    for number, pair in enumerate(pairs):
        bare = replace(pair, prompt=BARE)
        asked = steering.question_documents(bare, number) or ()
        made = [*steering.chain_documents(bare, "pn"), *steering.chain_documents(bare, "np"), *asked]
        if not max_length or max((len(document.input_ids) for document in made), default=0) <= max_length:
            found.append(number)
    return found


def _documents(
    steering: Steering,
    pairs: Sequence[FeedbackGroup],
    others: Mapping[str, Sequence[FeedbackGroup]],
    joined: Sequence[int],
) -> _Batch:
    batch = _Batch()
    for words in ("good", "bad"):
        batch.add(words, pairs, [steering.documents(pair, words) for pair in pairs])
        for name, groups in others.items():
            batch.add(f"{words} {name}", groups, [steering.documents(group, words) for group in groups])
    together = [pairs[number] for number in joined]
    for kind in ("pn", "np"):
        batch.add(kind, together, [steering.chain_documents(pair, kind) for pair in together])
    asked = [steering.question_documents(pairs[number], number) or () for number in joined]
    batch.add("true", together, [documents[:1] for documents in asked])
    batch.add("false", together, [documents[1:] for documents in asked])
    return batch


def _figures(
    batch: _Batch,
    pairs: Sequence[FeedbackGroup],
    rankings: Sequence[FeedbackGroup],
    joined: Sequence[int],
    max_length: int | None,
) -> SourceFigures:
    good, bad = batch.sums("good").reshape(-1, 2, 3), batch.sums("bad").reshape(-1, 2, 3)
    log_p, num_tokens = good[..., 0], good[..., 1]
    moved, prompts = log_p - bad[..., 0], batch.prompts("good")[::2]
    figures = _figures_of_documents(batch, good, bad, joined, max_length)
    calibration = None
    if pairs:
        for name, values in (("", log_p), ("_per_token", log_p / num_tokens), ("_by_words", moved)):
            figures[f"pair_accuracy{name}"] = percent(share(wins(values[:, 0], values[:, 1]), prompts))
        gaps = moved[:, 0] - moved[:, 1]
        figures["steering_gap"] = mean(gaps, prompts=prompts)
        calibration = reliability(gaps)
        figures["calibration_error"] = Estimate(calibration.error, float("nan"), float("nan"), len(pairs))
    verdicts = _verdict_accuracy(batch)
    if verdicts.n:
        figures["verdict_accuracy"] = verdicts
    agreement = _rank_agreement(batch, rankings)
    if agreement.n:
        figures["rank_agreement"] = agreement
    return SourceFigures(
        {name: figures[name] for name in LABELS if name in figures},
        calibration,
        moved / num_tokens,
        np.stack([log_p, bad[..., 0]], axis=-1),
        num_tokens,
        tuple(prompts),
    )


def _figures_of_documents(
    batch: _Batch, good: Floats, bad: Floats, joined: Sequence[int], max_length: int | None
) -> dict[str, Estimate]:
    """Losses and accuracies on each kind of chain, and what only chains and questions tell."""
    found: dict[str, Estimate] = {}
    prompts = batch.prompts("good")[::2]
    by_kind = {
        "p": (np.concatenate([good[:, 0], batch.sums("good liked")]), [*prompts, *batch.prompts("good liked")]),
        "n": (np.concatenate([bad[:, 1], batch.sums("bad disliked")]), [*prompts, *batch.prompts("bad disliked")]),
        **{kind: (batch.sums(kind), batch.prompts(kind)) for kind in ("pn", "np")},
    }
    for kind, (sums, own) in by_kind.items():
        if len(sums):
            found[f"loss_{kind}"] = ratio(-sums[:, 0], sums[:, 1], prompts=own)
            found[f"accuracy_{kind}"] = percent(ratio(sums[:, 2], sums[:, 1], prompts=own))
    if joined and len(batch.prompts("np")) == len(joined):
        second, alone = batch.last("np"), good[joined, 0]
        gains = second[:, 0] / second[:, 1] - alone[:, 0] / alone[:, 1]
        # Where the chain lost more of its prompt than the output alone did, that would be a part of the gain.
        whole = [n for n, length in enumerate(batch.lengths("np")) if length <= (max_length or length)]
        if whole:
            keys = batch.prompts("np")
            found["chain_gain"] = mean(gains[whole], prompts=[keys[n] for n in whole])
    true, false = batch.sums("true")[:, 0], batch.sums("false")[:, 0]
    if len(true):
        found["question_accuracy"] = percent(share(wins(true, false), batch.prompts("true")))
    return found


def _verdict_accuracy(batch: _Batch) -> Estimate:
    """Over single outputs with a verdict, whether the score has the sign of the verdict; 0 counts half."""
    liked, disliked = (batch.sums(f"good {name}")[:, 0] - batch.sums(f"bad {name}")[:, 0] for name in VERDICTS)
    prompts = [key for name in VERDICTS for key in batch.prompts(f"good {name}")]
    return percent(share(wins(np.concatenate([liked, -disliked]), np.zeros(len(prompts))), prompts))


def _rank_agreement(batch: _Batch, rankings: Sequence[FeedbackGroup]) -> Estimate:
    """The mean tau; rankings whose scores are all equal have none."""
    moved = batch.sums("good ranked")[:, 0] - batch.sums("bad ranked")[:, 0]
    borders = np.cumsum([len(group.outputs) for group in rankings])[:-1]
    taus = np.array(
        [rank_agreement(own.tolist(), group.ranks) for own, group in zip(np.split(moved, borders), rankings)]
    )
    has_one = ~np.isnan(taus)
    return mean(taus[has_one], prompts=[prompt_key(group) for group, is_there in zip(rankings, has_one) if is_there])


def table(columns: dict[str, SourceFigures]) -> str:
    """Figures of some models or sources side by side, as text; a figure that one of them lacks is a dash.

    >>> figures = {"loss_p": Estimate(2.0, 1.9, 2.1, 30)}
    >>> print(table({"before": SourceFigures(figures, None)}))
                                                                      before
    loss on good outputs (nats per token)               2.000 (1.900, 2.100)
    """
    figures = {name: column.figures for name, column in columns.items()}
    too_long = max((column.num_too_long for column in columns.values()), default=0)
    note = f"\n{too_long} more groups have an output longer than a document may be." if too_long else ""
    return figure_table(LABELS, figures) + note


def figure_table(labels: Mapping[str, str], columns: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A line for each label that any column has."""
    width = max([26, *(len(name) + 2 for name in columns)])
    lines = [f"{'':46}" + "".join(f"{name:>{width}}" for name in columns)]
    for key, label in labels.items():
        found = [column.get(key) for column in columns.values()]
        if any(found):
            cells = [told(figure) if figure else "-" for figure in found]
            lines.append(f"{label:46}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def without_nan(value: Any) -> Any:
    """The same with None for what is not a number, which JSON does not know.

    >>> without_nan({"low": float("nan"), "bins": (1.0, float("nan"))})
    {'low': None, 'bins': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def told(figure: Estimate) -> str:
    """A value with its interval.

    >>> told(Estimate(61.666, 50.1, 73.2, 60)), told(Estimate(0.004, 0.0002, 0.0078, 60))
    ('61.7 (50, 73)', '0.004 (0.0002, 0.008)')
    """
    digits, of_bounds = (1, 0) if abs(figure.value) >= 10 else (3, 3)
    value = f"{figure.value:.{digits}f}"
    if np.isnan(figure.low):
        return value
    return f"{value} ({_bound(figure.low, of_bounds)}, {_bound(figure.high, of_bounds)})"


def _bound(value: float, digits: int) -> str:
    """An end of an interval; on which side of 0 it lies is seen however near it is."""
    text = f"{value:.{digits}f}"
    return f"{value:.1g}" if value and not float(text) else text
