"""How much memory does a training step need at its peak, beside the weights and the gradients?

    python benchmarks/memory.py

Every side runs in a process of its own, with the same weights and batch. It makes weights and gradients, notes what
they take, and makes one step: the figures are ratios, coh / other, of what its peak is above that. Gradients are freed
before the step, as Trainer does; in the figures named "kept" they stay and are added to, as in the later micro-batches
of a step. On a CPU the peak is the most that was resident, which Linux tells; on a GPU it is what torch had allocated.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from harness import Figure, finish, in_turn, parser, ratio_figure, tell
from sides import DEVICE, LARGE, REAL, SMALL, TINY, Work, coh_loss, coh_model, missing, naive_loss, step

SHORT = replace(REAL, name="smollm2-135m-512-tokens", row_length=64)
WORKS = {work.name: work for work in (LARGE, SMALL, SHORT, TINY)}
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Comparison:
    """Of coh with naive, with gradients that are kept through the step or not."""

    work: Work
    target: float | None = None
    moonshot: float | None = None
    is_kept: bool = False

    @property
    def name(self) -> str:
        return f"memory/{self.work.name}" + "-kept" * self.is_kept


COMPARISONS = (
    Comparison(LARGE, 0.25, 0.12),
    Comparison(SMALL, 0.35, 0.20),
    Comparison(SHORT, 0.45, 0.25),
    *(Comparison(work, is_kept=True) for work in (LARGE, SMALL, SHORT)),
)
SMALLEST = (Comparison(TINY), Comparison(TINY, is_kept=True))
# One arena, and whatever is large goes back to the system at once: what is resident is what is in use.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(kind: str) -> int:
    """Bytes of this process in memory: RSS now, HWM the most since the peak began."""
    found = re.search(rf"Vm{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def peak_of(side: str, work: Work, is_kept: bool) -> int:
    """Bytes that a step of this side needs beside weights and gradients; for a fresh process."""
    model, batch = work.model(), work.batch()
    model, loss = (coh_model(model), coh_loss) if side == "coh" else (model, naive_loss)
    # What is loaded or made once (kernels, buffers of the matrix library) is there after a step of a few tokens.
    step(loss, model, {name: tensor[-2:, :8] if tensor.dim() > 1 else tensor[-2:] for name, tensor in batch.items()})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident("RSS")
        CLEAR.write_text("5")  # the peak begins anew here
    if not is_kept:
        model.zero_grad(set_to_none=True)
    loss(model, batch).backward()
    return (torch.cuda.max_memory_allocated() if DEVICE == "cuda" else resident("HWM")) - before


def in_own_process(side: str, comparison: Comparison) -> int:
    """What `peak_of` finds there."""
    words = [side, comparison.work.name, str(int(comparison.is_kept))]
    result = subprocess.run(
        [sys.executable, __file__, "--child", *words],
        env=os.environ | MALLOC,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{side} failed at {comparison.name}:\n{result.stderr}")
    return int(result.stdout.split()[-1])


def measured(comparison: Comparison, rounds: int) -> Figure:
    """Peak of coh by that of naive, round by round."""
    peaks: dict[str, list[int]] = {"coh": [], "naive": []}
    sides = {side: lambda side=side: peaks[side].append(in_own_process(side, comparison)) for side in peaks}
    in_turn(sides, rounds, warm_up=0)
    what = f"peak beside weights and gradients{' that are kept' * comparison.is_kept}, coh / naive: {comparison.work}"
    return ratio_figure(
        comparison.name,
        what,
        peaks["coh"],
        peaks["naive"],
        target=comparison.target,
        moonshot=comparison.moonshot,
        details={"bytes": peaks},
    )


def child(words: Sequence[str]) -> int:
    side, name, is_kept = words
    print(peak_of(side, WORKS[name], bool(int(is_kept))))
    return 0


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        return child(args.child)
    if DEVICE == "cpu" and not CLEAR.exists():
        print("memory is left out: on a CPU it needs Linux, which tells the peak of a process")
        return finish([], args)
    found = []
    for comparison in SMALLEST if args.smoke else COMPARISONS:
        if args.only not in comparison.name:
            continue
        if (lacking := missing(comparison.work)) is not None:
            print(f"{comparison.name} is left out: {lacking}")
            continue
        found.append(measured(comparison, args.rounds))
        tell(found[-1])
    return finish(found, args)


if __name__ == "__main__":
    sys.exit(main())
