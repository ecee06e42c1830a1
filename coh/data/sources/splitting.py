"""Which prompts are trained on, which are held out: fixed, without a seed, and without leaks between sources.

A prompt's split is a function of the prompt alone, so a source that grows keeps every row in its split, and a prompt
that stands in two sources stands in the same split of both. Parts are index arrays into the stores; no row is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

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
        is_held_out = _is_held_out(only, test_size if use == "split" else 1.0)
        in_test = is_held_out & _is_second_half(only)
        return _where(only, ~is_held_out), _where(only, is_held_out & ~in_test), _where(only, in_test)
    held_out = [splits[name] for name in ("validation", "test") if name in splits]
    train = _all(splits["train"]) if use == "split" and "train" in splits else _none(next(iter(splits.values())))
    if len(held_out) == 2:
        return train, _all(held_out[0]), _all(held_out[1])
    in_test = _is_second_half(held_out[0])
    return train, _where(held_out[0], ~in_test), _where(held_out[0], in_test)


# A prompt's lowest bit says validation or test, the bits above it whether it is held out at all. So a prompt that one
# source holds out by hash and another by its own test split comes to the same half.
def _is_second_half(store: GroupStore) -> np.ndarray:
    return (store.prompt_hashes & 1).astype(bool)


def _is_held_out(store: GroupStore, fraction: float) -> np.ndarray:
    return (store.prompt_hashes >> 1) < int(fraction * 2 ** (_HASH_BITS - 1))


def _drop_prompts_of(kept: Sequence[Part], parts: list[Part], dropped: list[dict[str, int]], reason: str) -> None:
    """Take out of `parts`, in place, every group whose prompt stands in `kept`, and count them."""
    taken = np.unique(np.concatenate([part.prompt_hashes for part in kept])) if kept else np.array([], np.int64)
    for place, part in enumerate(parts):
        is_taken = np.isin(part.prompt_hashes, taken)
        if is_taken.any():
            parts[place] = replace(part, indices=part.indices[~is_taken])
            dropped[place][reason] = int(is_taken.sum())


def _all(store: GroupStore) -> Part:
    return Part(store, np.arange(store.num_rows))


def _none(store: GroupStore) -> Part:
    return Part(store, np.arange(0))


def _where(store: GroupStore, mask: np.ndarray) -> Part:
    return Part(store, np.flatnonzero(mask))
