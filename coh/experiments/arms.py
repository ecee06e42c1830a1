"""The arms of an ablation: each is one way to train, and differs from the arm `coh` in one thing.

In: which arms and seeds are asked for. Out: the runs that are to be there, the most telling first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

REFERENCE = "coh"
BASE = "base"
# What every arm has, but for the one option that makes it an arm.
COMMON = {"templates": ("marker",), "chains": ("p", "n", "pn", "np")}


@dataclass(frozen=True)
class Arm:
    """One way to train: what differs from `coh`, and whether it is compared so closely that it takes several seeds."""

    what: str
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    trainer: Literal["none", "coh", "dpo"] = "coh"
    is_close: bool = False

    @property
    def settings(self) -> dict[str, tuple[str, ...]]:
        """Options of `coh.coh_train` by their names."""
        return {**COMMON, **dict(self.options)}


ARMS = {
    "base": Arm("the model before training", trainer="none"),
    "coh": Arm("Chain of Hindsight: marker words, lambda 1, no forgetting", is_close=True),
    "sft": Arm("better outputs alone", (("chains", ("p",)),), is_close=True),
    "p_n": Arm("single outputs, good and bad, no chains", (("chains", ("p", "n")),), is_close=True),
    "dpo": Arm("DPO (the package trl) on the same pairs, no plain text", trainer="dpo", is_close=True),
    "coh_prose": Arm("varied sentences as words", (("templates", ("prose",)),)),
    "lambda_0": Arm("no weight on plain text", (("pt_loss_weight", ("0",)),)),
    "fcm_5": Arm("forgets up to 5 %", (("fcm_max_ratio", ("0.05",)),)),
    "fcm_15": Arm("forgets up to 15 %", (("fcm_max_ratio", ("0.15",)),)),
    "last": Arm("the last output of a chain is the target", (("train_on", ("last",)),)),
    "chunk": Arm("rows cut from one stream", (("packing", ("chunk",)),)),
    "lr_3e-5": Arm("learning rate 3e-5", (("learning_rate", ("3e-5",)),)),
    "lr_3e-4": Arm("learning rate 3e-4", (("learning_rate", ("3e-4",)),)),
}


@dataclass(frozen=True)
class Run:
    """An arm with a seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.arm}-{self.seed}"


def wanted_runs(arms: Sequence[str], seeds: Sequence[int], other_seeds: Sequence[int]) -> list[Run]:
    """What is to be there: the close arms with all `seeds`, the others with `other_seeds`, the base once.

    The close arms' first seed comes first, then the other arms, then the other seeds.

    >>> [run.name for run in wanted_runs(["base", "coh", "last"], [0, 1], [5])]
    ['base-0', 'coh-0', 'last-5', 'coh-1']
    """
    chosen = {name: arm for name, arm in ARMS.items() if name in arms}
    base = [Run(BASE, 0)] if BASE in chosen else []
    close = [name for name, arm in chosen.items() if arm.is_close]
    others = [name for name, arm in chosen.items() if not arm.is_close and name != BASE]
    first = [Run(name, seed) for seed in seeds[:1] for name in close]
    more = [Run(name, seed) for seed in other_seeds for name in others]
    return [*base, *first, *more, *(Run(name, seed) for seed in seeds[1:] for name in close)]
