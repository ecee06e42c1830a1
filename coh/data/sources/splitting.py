"""Which prompts are trained on, which are held out: fixed, without a seed, and without leaks between sources.

A prompt's split is a function of the prompt alone, so a source that grows keeps every row in its split, and a prompt
that stands in two sources stands in the same split of both. Parts are index arrays into the stores; no row is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from coh.data.mapped import BLOCK, folder_of, mapped
from coh.data.records import FeedbackError, Message

if TYPE_CHECKING:
    from coh.data.sources.stores import GroupStore

USES = ("split", "train", "evaluation")

_HASH_BITS = 63  # what an int64 holds


@dataclass(frozen=True, eq=False)
class Part:
    """Some groups of a store, by their indices in ascending order."""

    store: GroupStore
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def name(self) -> str:
        """The source's name."""
        return self.store.name

    @property
    def prompt_hashes(self) -> np.ndarray:
        return self.store.prompt_hashes[self.indices]


@dataclass(frozen=True, eq=False)
class Splits:
    """One part per source in each split, in the sources' order (a part may be empty); `dropped` counts per source why
    groups are in no split."""

    train: tuple[Part, ...]
    validation: tuple[Part, ...]
    test: tuple[Part, ...]
    dropped: tuple[dict[str, int], ...]


def prompt_hash(prompt: Sequence[Message]) -> int:
    """A number from 0 to 2**63 - 1 for a prompt; white space and nothing else is ignored.

    >>> prompt_hash([Message("user", "Why  is it?")]) == prompt_hash([Message("user", "Why is\\nit?")])
    True
    """
    text = "\x1e".join(f"{turn.role}\x1f{' '.join(turn.content.split())}" for turn in prompt)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - _HASH_BITS)


def split_groups(
    sources: Sequence[Mapping[str, GroupStore]], *, test_size: float, uses: Sequence[str] | None = None
) -> Splits:
    """Train, validation and test over all sources of a run, each prompt in one of them only.

    A source with one split gives the fraction `test_size` of its prompts to evaluation, half of it to validation and
    half to test. Where a source has one held-out split, that is halved in the same way; where it has both, they stay as
    they are. `uses` has one word per source: "split" as said; "train" uses nothing of it for evaluation; "evaluation"
    nothing of it for training (its held-out splits, or all of it where it has one split).
    """
    if not 0 <= test_size < 1:
        raise FeedbackError(f"test_size is {test_size}: the fraction held out is at least 0 and below 1, as in 0.1")
    uses = uses or ["split"] * len(sources)
    assigned = [_assign(splits, test_size, use) for splits, use in zip(sources, uses, strict=True)]
    train, validation, test = map(list, zip(*assigned, strict=True)) if assigned else ([], [], [])
    dropped: list[dict[str, int]] = [{} for _ in sources]
    _drop_prompts_of(test, validation, dropped, "prompt is in test")
    _drop_prompts_of([*validation, *test], train, dropped, "prompt is in evaluation")
    return Splits(tuple(train), tuple(validation), tuple(test), tuple(dropped))


def _assign(splits: Mapping[str, GroupStore], test_size: float, use: str) -> tuple[Part, Part, Part]:
    """The train, validation and test part of one source, by itself."""
    if use not in USES:
        raise FeedbackError(f"a source is used as one of {', '.join(USES)}, not {use!r}")
    only = next(iter(splits.values())) if len(splits) == 1 else None
    if use == "train":
        store = splits.get("train", only)
        if store is None:
            raise FeedbackError(f"{next(iter(splits.values())).name} has no train split, but is to be trained on")
        return _all(store), _none(store), _none(store)
    if only is not None:
        fraction = test_size if use == "split" else 1.0
        held_out = _where(_all(only), lambda hashes: _is_held_out(hashes, fraction))
        train = _where(_all(only), lambda hashes: ~_is_held_out(hashes, fraction))
        return train, *_halves(held_out)
    held_out_splits = [splits[name] for name in ("validation", "test") if name in splits]
    train = _all(splits["train"]) if use == "split" and "train" in splits else _none(next(iter(splits.values())))
    if len(held_out_splits) == 2:
        return train, _all(held_out_splits[0]), _all(held_out_splits[1])
    return train, *_halves(_all(held_out_splits[0]))


# A prompt's lowest bit says validation or test, the bits above it whether it is held out at all. So a prompt that one
# source holds out by hash and another by its own test split comes to the same half.
def _halves(held_out: Part) -> tuple[Part, Part]:
    """What is kept for validation, and for test."""
    return _where(held_out, lambda hashes: hashes & 1 == 0), _where(held_out, lambda hashes: hashes & 1 == 1)


def _is_held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    return (hashes >> 1) < int(fraction * 2 ** (_HASH_BITS - 1))


def _drop_prompts_of(kept: Sequence[Part], parts: list[Part], dropped: list[dict[str, int]], reason: str) -> None:
    """Take out of `parts`, in place, every group whose prompt stands in `kept`, and count them."""
    taken = np.unique(np.concatenate([np.array([], np.int64), *(part.prompt_hashes for part in kept)]))
    for place, part in enumerate(parts):
        left = _where(part, lambda hashes: ~_is_in(taken, hashes))
        if len(left) < len(part):
            parts[place] = left
            dropped[place][reason] = len(part) - len(left)


def _is_in(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether each of these values stands in an ordered array."""
    return np.searchsorted(ordered, values, side="right") > np.searchsorted(ordered, values)


def _all(store: GroupStore) -> Part:
    blocks = (np.arange(start, min(start + BLOCK, len(store))) for start in range(0, len(store), BLOCK))
    return Part(store, mapped(blocks, np.int64, folder_of(store.dataset)))


def _none(store: GroupStore) -> Part:
    return Part(store, np.arange(0))


def _where(part: Part, condition: Callable[[np.ndarray], np.ndarray]) -> Part:
    """Those groups of a part whose prompt hashes fulfil a condition."""
    blocks = (part.indices[start : start + BLOCK] for start in range(0, len(part), BLOCK))
    chosen = (block[condition(part.store.prompt_hashes[block])] for block in blocks)
    return replace(part, indices=mapped(chosen, np.int64, folder_of(part.store.dataset)))
