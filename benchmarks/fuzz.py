"""Fuzz everything that reads what others wrote, for a given time and with fresh seeds.

python benchmarks/fuzz.py --minutes 60

Every reader, the sources, the templates, recipes, the command line, `coh.json` and files of prompts get damaged cases
(tests/nasty.py makes them and holds the laws): nothing but the package's own errors may come out, each naming its
place. Prints what was found, each fault once with its smallest case, and how many cases ran; exits with 1 on a fault.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from nasty import TARGETS, Target, attack

CASES_AT_ONCE = {False: 300, True: 30}  # of fast and of slow targets


def place_of(error: BaseException) -> str:
    """What makes two faults the same: the kind of error, and the line of the package it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/coh/" in frame.filename] or frames
    return f"{type(error).__name__} in {Path(own[-1].filename).name}, line {own[-1].lineno}"


def faults_of(target: Target, seed: int, tried: Counter[str]) -> list[BaseException]:
    """What some cases bring to light; several faults come as a group."""
    try:
        attack(target, CASES_AT_ONCE[target.is_slow], seed, tried)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return list(getattr(error, "exceptions", [error]))
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="to do the same again")
    parser.add_argument("--only", default="", help="targets whose names hold this")
    args = parser.parse_args()
    targets = [target for target in TARGETS if args.only in target.name]
    print(f"seed {args.seed}, {args.minutes:g} minutes, {len(targets)} targets", flush=True)
    tried, found = Counter[str](), dict[str, str]()
    stop, number = time.monotonic() + 60 * args.minutes, 0
    while time.monotonic() < stop:
        target = targets[number % len(targets)]
        for error in faults_of(target, args.seed + number, tried):
            place = f"{target.name}: {place_of(error)}"
            if place not in found:
                found[place] = "".join(traceback.format_exception(error, limit=-6))
                print(f"\n{place}\n{found[place]}", flush=True)
        number += 1
    print(f"\n{sum(tried.values()):,} cases ({', '.join(f'{name}: {count:,}' for name, count in tried.items())})")
    print(f"{len(found)} faults" + "".join(f"\n  {place}" for place in found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
