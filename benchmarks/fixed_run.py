"""Has a change that was not meant to change the loss changed it? Twenty steps of a tiny model, to the last bit.

    python benchmarks/fixed_run.py --output before.json     # before the change
    python benchmarks/fixed_run.py --check before.json      # after it: exits with 1 where a loss is another
    python benchmarks/fixed_run.py --check benchmarks/results/fixed_run.json

The steps are those of `coh.coh_train` on the bundled sample, feedback and pretraining text, on one thread of the CPU.
Each loss is printed as a hexadecimal number, which hides no bit. Another processor, torch or transformers may add up in
another order, so a file holds for what it names as its machine; elsewhere the losses are compared to within 1e-5.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from harness import ROOT, machine

sys.path.insert(0, str(ROOT / "tests"))

KINDS = ("loss", "loss_feedback", "loss_pretrain")


def losses(num_steps: int, extra: Sequence[str] = ()) -> list[dict[str, str]]:
    """The losses of each step, as hexadecimal numbers; `extra` are options of coh.coh_train."""
    import torch
    from toys import tiny_model_folder

    from coh import coh_train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {
            "model_name": tiny_model_folder(folder / "model"),
            "feedback_data": "sample",
            "pretrain_data": "sample",
            "pretrain_ratio": "0.25",
            "seq_length": "512",
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "out"),
            "max_steps": str(num_steps),
            "per_device_train_batch_size": "4",
            "learning_rate": "1e-3",
            "logging_steps": "1",
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "use_cpu": "true",
            "eval_pairs": "0",
            "write_report": "false",
            "disable_tqdm": "true",
        }
        coh_train.main([word for name, value in options.items() for word in (f"--{name}", value)] + list(extra))
        history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    steps = [{kind: entry[kind] for kind in KINDS if kind in entry} for entry in history]
    return [{kind: float(value).hex() for kind, value in step.items()} for step in steps if "loss" in step]


def differences(found: Sequence[dict[str, str]], expected: Sequence[dict[str, str]]) -> list[float]:
    """How far each loss is from what was expected, relative to it, in the order of the steps.

    >>> differences([{"loss": "0x1.8p+0"}], [{"loss": "0x1.0p+0"}])
    [0.5]
    """
    values = [
        (float.fromhex(step[kind]), float.fromhex(earlier[kind]))
        for step, earlier in zip(found, expected, strict=True)
        for kind in KINDS
        if kind in earlier
    ]
    return [abs(ours - theirs) / abs(theirs) for ours, theirs in values]


def processor() -> str:
    """Its name, where the system tells."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", told.read_text()) if told.exists() else []
    return names[0] if names else platform.machine()


def here() -> dict[str, str]:
    """What decides about the last bit."""
    import torch

    return machine() | {
        "device": "cpu",
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--output", type=Path, help="JSON file for the losses and the machine")
    parser.add_argument("--check", type=Path, help="JSON file to compare with: exit 1 where a loss is another")
    parser.add_argument("--smoke", action="store_true", help="two steps: shows that the program runs, no more")
    args, extra = parser.parse_known_args(argv)
    if find_spec("datasets") is None:
        print("nothing is run, since it needs datasets: pip install datasets")
        return 0
    found = losses(2 if args.smoke else args.steps, extra)
    for number, step in enumerate(found, start=1):
        print(f"step {number:2}  " + "  ".join(f"{kind} {value}" for kind, value in step.items()), flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"machine": here(), "losses": found}, indent=1) + "\n")
    return compare(found, json.loads(args.check.read_text())) if args.check else 0


def compare(found: Sequence[dict[str, str]], stored: dict) -> int:
    """Say how the losses compare with stored ones; the exit status."""
    greatest = max(differences(found, stored["losses"]))
    if not greatest:
        print("the same to the last bit")
        return 0
    changed = {name: value for name, value in stored["machine"].items() if here().get(name) != value}
    print(f"not the same: greatest relative difference {greatest:.2g}")
    if changed:
        print(f"the file is of another machine ({changed}), so 1e-5 is allowed")
    return int(greatest > (1e-5 if changed else 0))


if __name__ == "__main__":
    sys.exit(main())
