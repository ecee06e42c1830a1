"""Are the gradients of coh those of the plain arithmetic, and as near to the truth?

    python benchmarks/gradients.py

The plain arithmetic forms all logits, takes the mean over targets of each stream, and adds the two; documents are kept
apart as coh keeps them. For a small model the figure is how far coh's gradients are from those, relative to their norm,
in the parameter where that is most. For SmolLM2-135M both are held against gradients in 64 bits: the figure is coh's
distance by that of the plain arithmetic, in the norm over all parameters. A round is another batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from harness import Figure, finish, parser, ratio_figure, tell
from sides import REAL, TINY, Work, coh_loss, coh_model, isolated_naive_loss, missing, step
from torch import Tensor

SMALL = replace(TINY, name="small", vocab_size=4096, row_length=64, hidden_size=64)
SHORT = replace(REAL, row_length=64)


def gradients(loss: Callable[..., Tensor], model: torch.nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """Of all parameters, in their order."""
    step(loss, model, batch)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def norm(tensors: list[Tensor]) -> float:
    """Over all of them, in 64 bits."""
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the differences."""
    return norm([ours.double() - theirs.double() for ours, theirs in zip(found, expected, strict=True)])


def against_naive(work: Work, rounds: int) -> Figure:
    """The greatest relative distance of a parameter's gradient."""
    model, plain = coh_model(work.model()), work.model()
    greatest = []
    for seed in range(rounds):
        batch = work.batch(seed)
        pairs = zip(gradients(coh_loss, model, batch), gradients(isolated_naive_loss, plain, batch), strict=True)
        greatest.append(max(distance([ours], [theirs]) / norm([theirs]) for ours, theirs in pairs))
    what = f"greatest relative difference of a parameter's gradient, coh and plain arithmetic: {work}"
    low, high = min(greatest), max(greatest)
    return Figure(
        "gradients/small-fp32", what, median(greatest), low, high, rounds, target=1e-6, unit="relative difference"
    )


def against_truth(work: Work, rounds: int, target: float | None = 1.0) -> Figure:
    """Distance of coh from gradients in 64 bits by that of the plain arithmetic."""
    model, plain, exact = coh_model(work.model()), work.model(), work.model().double()
    ours, theirs, norms = [], [], []
    for seed in range(rounds):
        batch = work.batch(seed)
        truth = gradients(isolated_naive_loss, exact, batch)
        ours.append(distance(gradients(coh_loss, model, batch), truth))
        theirs.append(distance(gradients(isolated_naive_loss, plain, batch), truth))
        norms.append(norm(truth))
    what = f"distance of gradients from those in 64 bits, coh / plain arithmetic: {work}"
    details = {"coh": ours, "naive": theirs, "norm": norms}
    return ratio_figure(f"gradients/{work.name}", what, ours, theirs, target=target, details=details)


def main() -> int:
    args = parser(__doc__).parse_args()
    truth = replace(TINY, name=SHORT.name) if args.smoke else SHORT
    found = []
    if args.only in "gradients/small-fp32":
        found.append(against_naive(SMALL, args.rounds))
        tell(found[-1])
    if args.only in f"gradients/{truth.name}":
        if (lacking := missing(truth)) is not None:
            print(f"gradients/{truth.name} is left out: {lacking}")
        else:
            found.append(against_truth(truth, args.rounds, target=None if args.smoke else 1.0))
            tell(found[-1])
    return finish(found, args)


if __name__ == "__main__":
    sys.exit(main())
