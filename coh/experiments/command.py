"""Compare ways to train a model on feedback, at equal numbers of tokens, on the same held-out pairs.

    python -m coh.experiments ablation --model_name gpt2 --feedback_data sample --output_dir outputs/ablation

In: a model, feedback, and plain text. Out: a folder for each arm and seed with `result.json`, what was measured of
every pair; and `table.md`, over all results of the folder. What is done is not done again, so the command can be
stopped and started at any time, arms and seeds can be added, and several processes can fill one folder at once.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from coh.arguments import ConfigError, parse
from coh.data.records import FeedbackError
from coh.data.templates import load_family
from coh.evaluate_args import EvaluateArgs
from coh.experiments.arms import ARMS, BASE, Run, wanted_runs
from coh.experiments.comparing import accuracy_resolution
from coh.experiments.preference import MISSING, is_installed, train_dpo
from coh.experiments.records import RESULT, check_settings, claim, is_done, measured, read_results, write_json
from coh.experiments.scoring import Pairs, held_out_pairs, pair_scores, text_scores
from coh.experiments.tables import page, resolution_text
from coh.experiments.training import Clock, Spent, parsed, train_coh
from coh.guards import Stopped
from coh.modeling import ModelError, load_model, load_tokenizer
from coh.saved import Words, installed_versions
from coh.steering import Steering

logger = logging.getLogger("coh")
TABLE = "table.md"
# Options that do not change a result.
FREE = ("experiment", "arms", "seeds", "other_seeds", "threads", "output_dir", "cache_dir")


@dataclass
class ExperimentsArgs:
    """What is compared, on what, and how long each arm trains."""

    model_name: str = field(metadata={"help": "Model that every arm starts from: a folder or a hub id."})
    feedback_data: list[str] = field(metadata={"help": "Feedback to train on, named as for coh.coh_train."})
    experiment: Literal["ablation"] = field(default="ablation", metadata={"help": "Which experiment."})
    eval_feedback_data: list[str] | None = field(
        default=None,
        metadata={"help": "Feedback to measure on, never trained on; by default what is held out of --feedback_data."},
    )
    feedback_weights: list[float] | None = field(
        default=None, metadata={"help": "Share of each source, as for coh.coh_train; by default their sizes."}
    )
    held_out: float = field(
        default=0.25, metadata={"help": "Share of prompts, by hash, held out of a source that has one split."}
    )
    pretrain_data: str = field(default="sample", metadata={"help": "Plain text beside it; every arm reads the same."})
    pretrain_ratio: float = field(
        default=0.25, metadata={"help": "Rows of plain text for one of feedback; a fifth of all rows is a cheap guard."}
    )
    arms: list[str] = field(
        default_factory=lambda: list(ARMS), metadata={"help": f"Arms to run, of {', '.join(ARMS)}; all by default."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "Seeds of the arms that are compared most closely: coh, sft, p_n and dpo."},
    )
    other_seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of the other arms."})
    tokens: int = field(
        default=100_000, metadata={"help": "Tokens that each arm trains on, text included and padding not."}
    )
    seq_length: int = field(default=512, metadata={"help": "Tokens of a row."})
    rows_per_step: int = field(
        default=2, metadata={"help": "Rows of an optimizer step; 2 make some 100 steps of the default budget."}
    )
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak learning rate of every arm but dpo; high, since the runs are short."}
    )
    dpo_learning_rate: float = field(
        default=2e-5, metadata={"help": "Peak learning rate of dpo; a fifth, since its loss has no text to hold on to."}
    )
    dpo_beta: float = field(default=0.1, metadata={"help": "How much dpo is held to its reference; trl's own value."})
    max_pairs: int = field(
        default=150, metadata={"help": "Held-out pairs to measure; 150 tell 8 points of accuracy apart, 300 tell 6."}
    )
    max_texts: int = field(default=40, metadata={"help": "Held-out plain texts whose loss tells the drift."})
    max_length: int = field(
        default=384, metadata={"help": "Tokens of a document that is measured; longer prompts lose their beginning."}
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16, on hardware that is fast at it."})
    use_cpu: bool = field(default=False, metadata={"help": "Compute on the CPU where there is a GPU too."})
    threads: int | None = field(
        default=None, metadata={"help": "Threads of the CPU; by default what OMP_NUM_THREADS says, or all cores."}
    )
    output_dir: str = field(default="outputs/ablation", metadata={"help": "Folder of results; what is there stays."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and prepared data are kept."})

    def __post_init__(self) -> None:
        least = {"tokens": 1, "seq_length": 16, "rows_per_step": 1, "max_pairs": 2, "max_texts": 0, "max_length": 16}
        problems = [
            f"--{name} {getattr(self, name)}: give {number} or more."
            for name, number in least.items()
            if getattr(self, name) < number
        ]
        for name in ("learning_rate", "dpo_learning_rate", "dpo_beta"):
            if not 0 < getattr(self, name) < float("inf"):
                problems.append(f"--{name} {getattr(self, name)}: give a number above 0.")
        if not 0 < self.held_out < 1:
            problems.append(f"--held_out {self.held_out}: give a share between 0 and 1, such as 0.25.")
        if self.threads is not None and self.threads < 1:
            problems.append(f"--threads {self.threads}: give 1 or more.")
        for name in ("seeds", "other_seeds"):
            if min(getattr(self, name), default=0) < 0:
                problems.append(f"--{name} {' '.join(map(str, getattr(self, name)))}: give numbers of 0 or more.")
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown:
            problems.append(f"--arms {' '.join(unknown)}: choose among {', '.join(ARMS)}.")
        if problems:
            raise ConfigError(problems)

    @property
    def evaluate_args(self) -> EvaluateArgs:
        """What chooses the groups to be measured."""
        return EvaluateArgs(
            self.model_name,
            self.eval_feedback_data or self.feedback_data,
            split="all" if self.eval_feedback_data else "held_out",
            webgpt_dataset_test_size=self.held_out,
            cache_dir=self.cache_dir,
        )


def options(args: ExperimentsArgs, run: Run, folder: Path) -> dict[str, tuple[str, ...]]:
    """The options of `coh.coh_train` for a run."""
    common: dict[str, Any] = {
        "model_name": args.model_name,
        "feedback_data": args.feedback_data,
        "eval_feedback_data": args.eval_feedback_data,
        "feedback_weights": args.feedback_weights,
        "webgpt_dataset_test_size": args.held_out,
        "pretrain_data": args.pretrain_data,
        "pretrain_ratio": args.pretrain_ratio,
        "seq_length": args.seq_length,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": args.rows_per_step,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "seed": run.seed,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "bf16": args.bf16,
        "use_cpu": args.use_cpu,
        "cache_dir": args.cache_dir,
        "output_dir": folder,
    }
    lists = {name: value if isinstance(value, list) else [value] for name, value in common.items() if value is not None}
    return {name: tuple(map(str, value)) for name, value in lists.items()} | ARMS[run.arm].settings


def train(args: ExperimentsArgs, run: Run, folder: Path) -> tuple[Any, Any, Spent | None]:
    """The model of a run with its tokenizer, and what it cost."""
    arm = ARMS[run.arm]
    if arm.trainer == "none":
        from coh.generation import place_model

        model = place_model(
            load_model(args.model_name, dtype="float32", cache_dir=args.cache_dir), "cpu" if args.use_cpu else "auto"
        )
        return model, load_tokenizer(args.model_name, args.cache_dir), None
    given = options(args, run, folder)
    if arm.trainer == "dpo":
        return train_dpo(given, args.tokens, args.dpo_learning_rate, args.dpo_beta)
    return train_coh(given, args.tokens)


def do(args: ExperimentsArgs, run: Run, pairs: Pairs, folder: Path) -> dict[str, Any]:
    """Trains and measures one run; its result, as plain values."""
    model, tokenizer, spent = train(args, run, folder)
    model.eval()
    steering = Steering.of(Words(load_family(ARMS[run.arm].settings["templates"][0])), tokenizer)
    clock = Clock()
    scores = pair_scores(model, steering, pairs, args.max_length)
    texts = text_scores(model, steering, args.pretrain_data, args.max_texts, args.max_length, args.cache_dir)
    seconds, cpu_seconds = clock.read()
    return {
        "arm": run.arm,
        "seed": run.seed,
        "what": ARMS[run.arm].what,
        "options": {name: list(words) for name, words in ARMS[run.arm].settings.items()},
        "training": spent.as_json() if spent else None,
        "measuring": {"seconds": seconds, "cpu_seconds": cpu_seconds},
        "pairs": scores,
        "texts": texts,
        "versions": installed_versions(),
    }


def check(args: ExperimentsArgs, runs: Sequence[Run]) -> list[Run]:
    """The runs that can be: every arm's options are tried, and what one lacks is said before any work.

    Raises:
        ConfigError: options that no training would take.
    """
    seen: set[str] = set()
    for run in runs:
        if run.arm not in seen and run.arm != BASE:
            parsed(options(args, run, Path(args.output_dir)))
        seen.add(run.arm)
    if any(run.arm == "dpo" for run in runs) and not is_installed():
        logger.warning("%s; the other arms go on without it", MISSING)
        return [run for run in runs if run.arm != "dpo"]
    return list(runs)


def carry_out(args: ExperimentsArgs) -> str:
    """Everything that is not there yet; the tables over all that is."""
    folder = Path(args.output_dir)
    runs = check(args, wanted_runs(args.arms, args.seeds, args.other_seeds))
    tokenizer = load_tokenizer(args.model_name, args.cache_dir)
    templates = sorted({arm.settings["templates"][0] for arm in ARMS.values()})
    steerings = [Steering.of(Words(load_family(name)), tokenizer) for name in templates]
    pairs = held_out_pairs(args.evaluate_args, args.max_pairs, steerings, args.max_length)
    if sum(map(len, pairs.values())) < 2:
        raise FeedbackError("fewer than two held-out pairs: raise --held_out, or name --eval_feedback_data")
    common = {one.name: getattr(args, one.name) for one in fields(args) if one.name not in FREE}
    check_settings(folder, common)
    announce(args, runs, pairs)
    began, num_done = time.monotonic(), 0
    waiting = [run for run in runs if not is_done(folder, run)]
    for number, run in enumerate(waiting, start=1):
        with claim(folder, run) as place:
            if place is None:
                logger.info("%s: another process has it", run.name)
                continue
            logger.info("%d of %d: %s, %s", number, len(waiting), run.name, ARMS[run.arm].what)
            result = do(args, run, pairs, place)
            write_json(place.parent / RESULT, result)
        num_done += 1
        each = (time.monotonic() - began) / num_done
        logger.info("%s is done; %.1f minutes a run so far, %d to go", run.name, each / 60, len(waiting) - number)
        if run.arm == BASE:
            logger.info("%s", resolution_text(measured(result), measured(result)))
        write_table(folder)
    return write_table(folder)


def announce(args: ExperimentsArgs, runs: Sequence[Run], pairs: Pairs) -> None:
    """Says which differences the held-out pairs can tell, and how large the work is, before it begins."""
    counts = {name: len(own) for name, own in pairs.items()}
    num_pairs = sum(counts.values())
    logger.info(
        "%d held-out pairs (%s) tell differences of %.1f points of pair accuracy from none; the steering gap's are "
        "said when the base is measured",
        num_pairs,
        ", ".join(f"{name} {count}" for name, count in counts.items()),
        accuracy_resolution(num_pairs),
    )
    logger.info("%d runs of %d tokens each: %s", len(runs), args.tokens, " ".join(run.name for run in runs))


def write_table(folder: Path) -> str:
    """Writes `table.md` over all results of the folder; its text."""
    text = page(read_results(folder)) + "\n"
    partial = folder / f"{TABLE}.{time.monotonic_ns()}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / TABLE)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """The command: checks all options, then runs what is missing."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given and not given[0].startswith("-"):
        given = ["--experiment", *given]
    description = (__doc__ or "").split("\n")[0]
    (args,) = parse([ExperimentsArgs], given, prog="python -m coh.experiments", description=description)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # trainers print their losses, and a log is read while it grows
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    try:
        print(carry_out(args))
    except Stopped:
        logger.warning("stopped: the same command begins this run again, and none that is done")
        raise
    except (ValueError, ModelError, FloatingPointError) as error:
        raise SystemExit(f"coh.experiments: {error}") from error
