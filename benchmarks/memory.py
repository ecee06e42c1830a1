"""How much memory does a training step need at its peak, beside the weights and the gradients?

    python benchmarks/memory.py

Every side runs in a process of its own, with the same weights and batch: it makes weights and gradients, notes what
they take, frees the gradients as an optimizer does, and makes one step. On a CPU its peak is the most that was resident
since then, which Linux alone tells; on a GPU it is what torch had allocated. The figures are ratios, coh / other.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import Figure, finish, parser, ratio_figure, tell
from sides import DEVICE, LARGE, REAL, SMALL, TINY, Work, coh_loss, coh_model, naive_loss, step

import torch

WORKS = {
    work.name: work
    for work in (LARGE, SMALL, replace(REAL, name="smollm2-135m-512-tokens", num_rows=8, row_length=64), TINY)
}
LIMITS = ((LARGE.name, 0.25, 0.12), (SMALL.name, 0.35, 0.20), ("smollm2-135m-512-tokens", 0.45, 0.25))
# One arena, and whatever is large goes back to the system at once: what is resident is what is in use.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(peak: bool = False) -> int:
    """Bytes of this process that are in memory, or the most that were since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_of(side: str, work: Work) -> int:
    """Bytes that a step of this side needs beside weights and gradients; for a fresh process."""
    model, batch = work.model(), work.batch()
    model = coh_model(model) if side == "coh" else model
    loss = coh_loss if side == "coh" else naive_loss
    # What is loaded once (kernels, threads, buffers of the matrix library) is there after a step of a few tokens.
    small = {name: tensor[-2:, ..., :8] if tensor.dim() > 1 else tensor[-2:] for name, tensor in batch.items()}
    step(loss, model, small)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, model, batch)
        return torch.cuda.max_memory_allocated() - before
    before = resident()
    model.zero_grad(set_to_none=True)
    forget_peak()
    step(loss, model, batch)
    return resident(peak=True) - before


def measured(side: str, name: str) -> int:
    """`peak_of` in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--work", name]
    result = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{side} on {name} failed:\n{result.stderr}")
    return int(result.stdout.split()[-1])


def main() -> int:
    if "--side" in sys.argv:
        child = argparse.ArgumentParser()
        child.add_argument("--side")
        child.add_argument("--work")
        args = child.parse_args()
        print(peak_of(args.side, WORKS[args.work]))
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
