"""How long does the forward and backward of a training step take, compared with the earlier way and with trl?

    python benchmarks/step.py

The figures are ratios, coh / other: below 1 coh is faster. Both sides of a figure have the same weights and the same
batch; their losses are compared before anything is timed. What the sides do stands in benchmarks/sides.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial

from harness import Figure, finish, in_turn, parser, ratio_figure, tell
from sides import (
    DEVICE,
    LARGE,
    REAL,
    SMALL,
    TINY,
    Work,
    coh_loss,
    coh_model,
    isolated_naive_loss,
    missing,
    naive_loss,
    step,
    trl_loss,
    trl_model,
)


@dataclass(frozen=True)
class Comparison:
    """Of coh with `other`, which is "naive" or "trl", at the same work."""

    other: str
    work: Work
    target: float | None
    moonshot: float | None

    @property
    def name(self) -> str:
        return f"step/{self.work.name}" if self.other == "naive" else f"step/{self.other}-{self.work.name}"


# trl's head takes all positions where it has no kernels for the device, on a CPU; on a GPU, where it takes targets
# alone, there is nothing that it has to be beaten by.
ON_CPU = DEVICE == "cpu"
COMPARISONS = (
    Comparison("naive", LARGE, 0.42, 0.30),
    Comparison("naive", SMALL, 0.54, 0.40),
    Comparison("naive", REAL, 0.75, 0.60),
    Comparison("trl", LARGE, 0.45 if ON_CPU else None, 0.30 if ON_CPU else None),
    Comparison("trl", SMALL, 0.45 if ON_CPU else None, 0.30 if ON_CPU else None),
)


def measured(comparison: Comparison, rounds: int) -> Figure:
    """Seconds of coh's step by those of the other's, round by round."""
    work, batch = comparison.work, comparison.work.batch()
    model, other = coh_model(work.model()), work.model()
    # The earlier way let documents see each other, which takes less time than transformers' way to isolate them.
    loss, same_loss = naive_loss, isolated_naive_loss
    if comparison.other == "trl":
        other, loss, same_loss = trl_model(other), trl_loss, trl_loss
    ours, theirs = step(coh_loss, model, batch), step(same_loss, other, batch)
    assert abs(ours - theirs) <= 1e-4 * abs(theirs), f"{comparison.name}: the losses are {ours} and {theirs}"
    sides = {"coh": partial(step, coh_loss, model, batch), "other": partial(step, loss, other, batch)}
    seconds = in_turn(sides, rounds, warm_up=0)  # the comparison has warmed them up
    return ratio_figure(
        comparison.name,
        f"forward and backward, coh / {comparison.other}: {work}",
        seconds["coh"],
        seconds["other"],
        target=comparison.target,
        moonshot=comparison.moonshot,
        details={"seconds": seconds, "losses": [ours, theirs]},
    )


def smallest(comparison: Comparison) -> Comparison:
    """The same on a tiny model, whose figure says nothing and has no target."""
    return replace(comparison, work=replace(TINY, name=comparison.work.name), target=None, moonshot=None)


def main() -> int:
    args = parser(__doc__).parse_args()
    found = []
    for comparison in map(smallest, COMPARISONS) if args.smoke else COMPARISONS:
        if args.only not in comparison.name:
            continue
        if (lacking := missing(comparison.work, comparison.other)) is not None:
            print(f"{comparison.name} is left out: {lacking}")
            continue
        found.append(measured(comparison, args.rounds))
        tell(found[-1])
    return finish(found, args)


if __name__ == "__main__":
    sys.exit(main())
