"""What every timing here shares: sides measured in turn, ratios with their spread, results as JSON to compare with.

A program gives two or more sides of the same work as functions. They are called in turn, round by round, so that what
the machine does besides falls on all of them. On a CPU one thread's own time is counted, on a GPU the time until it is
done. From each round comes one ratio; a figure is the median of the rounds, with the least and the greatest.

    python benchmarks/step.py                                # measures and prints
    python benchmarks/step.py --output new.json              # and writes the figures
    python benchmarks/step.py --check benchmarks/results/cpu.json   # and fails where one got worse than that file says

Everything that imports it runs on one thread, unless `OMP_NUM_THREADS` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout is measured, whatever is installed

SLACK = 1.15  # --check lets a figure be this much worse than it was, since machines are noisy
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "trl", "deepspeed", "numpy")


@dataclass(frozen=True)
class Figure:
    """One measured number with its spread, and what it is held against.

    `is_best_low` says whether less is better. `target` and `moonshot` are limits of the same unit, where there are any.
    """

    name: str
    what: str
    value: float
    low: float
    high: float
    rounds: int
    is_best_low: bool = True
    target: float | None = None
    moonshot: float | None = None
    unit: str = "ratio"
    details: dict[str, Any] = field(default_factory=dict)

    def meets(self, limit: float | None) -> bool:
        """Whether the value is on the right side of a limit; without one it is.

        >>> Figure("step", "", 0.4, 0.39, 0.41, 5, target=0.42).meets(0.42)
        True
        """
        if limit is None:
            return True
        return self.value <= limit if self.is_best_low else self.value >= limit


def device() -> str:
    """Where the work is done: the GPU's name, or "cpu"."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"


def clock() -> float:
    """Seconds of work so far: of the GPU's once it is done, else of this process on the CPU, all its threads."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def in_turn(
    sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1, tick: Callable[[], float] = clock
) -> dict[str, list[float]]:
    """Seconds of every side in every round. The order turns round from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warm_up, rounds):
        names = list(sides) if number % 2 else list(sides)[::-1]
        for name in names:
            start = tick()
            sides[name]()
            if number >= 0:
                seconds[name].append(tick() - start)
    return seconds


def ratio_of(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios.

    >>> ratio_of([1, 2, 9], [2, 2, 3])
    (1.0, 0.5, 3.0)
    """
    ratios = [above / below for above, below in zip(numerators, denominators)]
    return median(ratios), min(ratios), max(ratios)


def ratio_figure(
    name: str, what: str, ours: Sequence[float], theirs: Sequence[float], unit: str = "ratio", **more: Any
) -> Figure:
    """The figure of ours / theirs, round by round."""
    value, low, high = ratio_of(ours, theirs)
    return Figure(name, what, value, low, high, len(ours), unit=unit, **more)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all programs here have."""
    found = argparse.ArgumentParser(
        description=(description or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    found.add_argument("--rounds", type=int, default=5, help="rounds in which all sides take their turn")
    found.add_argument("--only", default="", help="measure only figures whose name contains this")
    found.add_argument("--smoke", action="store_true", help="smallest sizes: shows that the program runs, no more")
    found.add_argument("--output", type=Path, help="JSON file that the figures are added to, by name")
    found.add_argument("--check", type=Path, help="JSON file of earlier figures: exit 1 where one got worse")
    return found


def machine() -> dict[str, str]:
    """What the figures were measured on and with."""
    versions = {name: metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {"device": device(), "python": platform.python_version(), **versions}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def tell(figure: Figure) -> None:
    """One line on the terminal, as soon as a figure is there."""
    verdict = ""
    if figure.target is not None:
        reached = "moonshot" if figure.meets(figure.moonshot) and figure.moonshot is not None else "target"
        sign = "<=" if figure.is_best_low else ">="
        verdict = f"  {reached if figure.meets(figure.target) else 'MISSED'} ({sign} {figure.target:g})"
    spread = f"({figure.low:.3g} to {figure.high:.3g})"
    print(f"{figure.name:32} {figure.value:9.4g} {spread:22}{verdict}  {figure.what}", flush=True)


def finish(figures: Sequence[Figure], args: argparse.Namespace) -> int:
    """Write and compare as the options ask; the exit status."""
    earlier = json.loads(args.check.read_text())["figures"] if args.check else {}
    worse = [line for figure in figures if (line := regression(figure, earlier.get(figure.name)))]
    if args.output:
        known = json.loads(args.output.read_text())["figures"] if args.output.exists() else {}
        command = " ".join(["python", *_as_typed()])
        known |= {figure.name: asdict(figure) | {"command": command, "machine": machine()} for figure in figures}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"figures": known}, indent=1) + "\n")
    for line in worse:
        print(line, file=sys.stderr)
    return int(bool(worse))


def _as_typed() -> list[str]:
    """This command without the options that say where figures go."""
    words, found = [os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]], []
    while words:
        word = words.pop(0)
        if word in ("--output", "--check"):
            words.pop(0)
        else:
            found.append(word)
    return found


def regression(figure: Figure, earlier: Mapping[str, Any] | None) -> str | None:
    """What got worse, as a sentence: the target is missed, or the figure is beyond the slack of what it was.

    >>> regression(Figure("step", "", 0.5, 0.5, 0.5, 5), {"value": 0.4})
    'step: 0.5, was 0.4'
    """
    if not figure.meets(figure.target):
        return f"{figure.name}: {figure.value:.4g}, target {figure.target:g}"
    if earlier is None:
        return None
    allowed = earlier["value"] * SLACK if figure.is_best_low else earlier["value"] / SLACK
    return None if figure.meets(allowed) else f"{figure.name}: {figure.value:.4g}, was {earlier['value']:.4g}"
