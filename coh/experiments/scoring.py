"""Which held-out pairs and texts are measured, and what a model gives for each of them.

Every arm is measured on the same pairs, in the same order: each output under good and under bad words. Models that were
taught no words, or other forms of training, are asked in the words of the arm `coh`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from coh import evaluate
from coh.data.pretrain import Texts, load_texts
from coh.data.records import FeedbackGroup
from coh.data.sources.splitting import prompt_hash
from coh.evaluate_args import EvaluateArgs, held_out_groups
from coh.measuring import measure, preferred_pairs, that_fit
from coh.steering import Steering

Pairs = dict[str, list[FeedbackGroup]]


def choose_pairs(
    groups: Mapping[str, Sequence[FeedbackGroup]],
    most: int,
    fitting: Callable[[list[FeedbackGroup]], list[FeedbackGroup]] = list,
    seed: int = 0,
) -> Pairs:
    """At most so many pairs, shuffled, in turn of each source that has any left, so that small ones count.

    `fitting` gives those that can be measured; what it leaves out does not change the order of the others.

    >>> from coh.data.records import as_messages
    >>> group = [FeedbackGroup("s", as_messages(f"{n}?"), ("a", "b"), (1, 2)) for n in range(9)]
    >>> {name: len(own) for name, own in choose_pairs({"small": group[:2], "large": group}, 8).items()}
    {'small': 2, 'large': 6}
    """
    rng = np.random.default_rng(seed)
    found = {name: fitting([own[int(n)] for n in rng.permutation(len(own))]) for name, own in groups.items()}
    turns = [(n, place, name) for place, (name, own) in enumerate(found.items()) for n in range(len(own))]
    taken = [name for _, _, name in sorted(turns)[:most]]
    return {name: own[: taken.count(name)] for name, own in found.items() if name in taken}


def held_out_pairs(args: EvaluateArgs, most: int, steerings: Sequence[Steering], max_length: int) -> Pairs:
    """The pairs that all arms are measured on: those that fit a document in the words of each."""

    def fitting(pairs: list[FeedbackGroup]) -> list[FeedbackGroup]:
        for steering in steerings:
            pairs = that_fit(steering, pairs, max_length)
        return pairs

    return choose_pairs({name: preferred_pairs(own) for name, own in held_out_groups(args).items()}, most, fitting)


def text_scores(
    model: Any, steering: Steering, name: str, most: int, max_length: int, cache_dir: str | None
) -> list[list[float]]:
    """Summed loss and tokens of each of the first `most` held-out texts, cut after `max_length` tokens."""
    if name == "none":
        return []
    texts = Texts(load_texts(name, 100_000, cache_dir), steering.encoder, held_out=True, source=0, seed=0)
    found = evaluate.text_scores(model, steering, texts, max_length, "Scoring text", most)
    return [[round(float(loss), 5), int(num_tokens)] for loss, num_tokens in found]


def pair_scores(model: Any, steering: Steering, pairs: Pairs, max_length: int) -> list[dict[str, Any]]:
    """For each pair its source and prompt, log p by (better, worse) and (good, bad words), and the outputs' tokens."""
    found = []
    for source, own in pairs.items():
        figures = measure(model, steering, own, max_length, f"Scoring {source}", chains=False)
        for pair, log_p, num_tokens in zip(own, figures.log_p, figures.num_tokens, strict=True):
            found.append(
                {
                    "source": source,
                    "prompt": f"{prompt_hash(pair.prompt):016x}",
                    "log_p": np.round(log_p, 5).tolist(),
                    "num_tokens": num_tokens.astype(int).tolist(),
                }
            )
    return found
