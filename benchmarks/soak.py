"""Does a long run stay as it began? Memory and speed of thousands of steps, evaluation and saves included.

    python benchmarks/soak.py --steps 5000

A tiny model is trained by the real command on generated pairs; outside, this program reads the process's memory and its
time on the CPU whenever a checkpoint appears. It prints both for each tenth of the run, and their ratio, last tenth to
second: the first one warms up. Exits with 1 where memory grew by more than a tenth, or a step became a quarter dearer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from harness import ROOT

sys.path.insert(0, str(ROOT / "tests"))
TENTHS = 10
MOST_MEMORY, MOST_TIME = 1.1, 1.25


def memory_of(pid: int) -> float:
    """MiB that a process holds of its own, without files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def cpu_seconds_of(pid: int) -> float:
    """Seconds that a process spent on the CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watched(command: list[str], checkpoints: Path, env: dict[str, str]) -> list[tuple[int, float, float]]:
    """(step, MiB, CPU seconds) at each checkpoint of a run."""
    found: dict[int, tuple[int, float, float]] = {}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        os.set_blocking(process.stderr.fileno(), False)  # type: ignore[union-attr]
        tail = b""
        while process.poll() is None:
            tail = (tail + (process.stderr.read() or b""))[-4000:]  # type: ignore[union-attr]
            for folder in checkpoints.glob("checkpoint-*"):
                step = int(folder.name.split("-")[1])
                if step not in found:
                    try:
                        found[step] = step, memory_of(process.pid), cpu_seconds_of(process.pid)
                    except (OSError, IndexError):  # it has just ended
                        continue
                    print(f"step {step}: {found[step][1]:.0f} MiB, {found[step][2]:.0f} s of CPU", flush=True)
            time.sleep(0.2)
        if process.returncode:
            raise SystemExit(f"the run ended with {process.returncode}:\n{tail.decode(errors='replace')}")
    return [found[step] for step in sorted(found)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    parser.add_argument("--output", type=Path, help="JSON file for what was measured")
    parser.add_argument("--smoke", action="store_true", help="few steps: shows that the program runs, no more")
    args = parser.parse_args()
    from toys import training_folder

    steps = 2 * TENTHS if args.smoke else args.steps
    with tempfile.TemporaryDirectory() as scratch:
        folder = training_folder(Path(scratch))
        every = max(1, steps // TENTHS)
        options = {
            "model_name": folder / "model",
            "feedback_data": f"mine={folder / 'pairs.jsonl'}",
            "pretrain_data": folder / "text.jsonl",
            "templates": "marker",
            "seq_length": 256,
            "per_device_train_batch_size": 2,
            "max_steps": steps,
            "eval_strategy": "steps",
            "eval_steps": every,
            "save_steps": every,
            "save_total_limit": 2,
            "logging_steps": 10,
            "webgpt_dataset_test_size": 0.3,
            "use_cpu": "true",
            "eval_pairs": "0",
            "write_report": "false",
            "disable_tqdm": "true",
            "output_dir": folder / "out",
            "cache_dir": folder / "cache",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        found = watched([sys.executable, "-m", "coh.coh_train", *words], folder / "out", env)
    seconds = [later[2] - earlier[2] for earlier, later in pairwise(found)]
    growth, slowing = found[-1][1] / found[1][1], seconds[-1] / seconds[0]
    print(f"{steps} steps: memory, last to second tenth: {growth:.3f}; time of a step, the same: {slowing:.3f}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        measured = {"steps": steps, "memory": growth, "time": slowing, "checkpoints": found}
        args.output.write_text(json.dumps(measured, indent=1) + "\n")
    return 0 if args.smoke else int(growth > MOST_MEMORY or slowing > MOST_TIME)


if __name__ == "__main__":
    sys.exit(main())
