"""How much of the rows is padding, and how many chains are cut that would have fitted a row, beside trl's packings.

    python benchmarks/padding.py
    python benchmarks/padding.py --feedback hh_rlhf.jsonl --tokenizer gpt2

One epoch of chains, of one output or two with the words of `marker`, in rows of 512, 1024 and 2048 tokens. coh shortens
what is longer than a row, so that every chain fits one; the rows are counted as `CoHDataset` plans them. trl gets
documents of the same lengths in the same order and packs them by each of its strategies as its SFTTrainer does, a
thousand at a time: `bfd` and `bfd_split` keep documents whole that fit; `wrapped` fills rows by cutting them, so that
it cannot be compared. Padding is the share of the rows that holds no token; trl can leave it out of the batch where
attention takes rows of any length. All of it is counting: there is nothing to repeat.

Without `--feedback` pairs are made of the bundled sample's sentences, as in benchmarks/data.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from data import coh_dataset, quiet, tokenizer_of, write_pairs
from harness import Figure, finish, parser, tell

LENGTHS = (512, 1024, 2048)
STRATEGIES = ("bfd", "bfd_split", "wrapped")


@dataclass(frozen=True)
class Packed:
    """Rows, their tokens, and the documents that are cut though they would fit a row."""

    num_rows: int
    num_tokens: int
    num_cut: int

    def padding(self, length: int) -> float:
        """In percent of the rows."""
        return 100 * (1 - self.num_tokens / (self.num_rows * length))


def coh_rows(dataset: Any) -> tuple[np.ndarray, Packed]:
    """The lengths of an epoch's documents in the order in which they are packed, and its rows."""
    lengths, num_rows, num_cut = [], 0, 0
    for window in range(dataset.chains.num_windows):
        documents, layout, _ = dataset.feedback_rows.plan(window)
        own = documents.lengths
        parts = np.bincount(layout.document, minlength=len(own))
        num_cut += int(((parts > 1) & (own <= dataset.args.seq_length)).sum())
        num_rows += layout.num_rows
        lengths.append(own)
    joined = np.concatenate(lengths)
    return joined, Packed(num_rows, int(joined.sum()), num_cut)


def trl_rows(lengths: np.ndarray, length: int, strategy: str) -> Packed:
    """What trl makes of documents of these lengths; each token holds the number of its document."""
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    documents = [np.full(size, number) for number, size in enumerate(lengths.tolist())]
    dataset = Dataset.from_dict({"input_ids": documents, "labels": documents})
    rows = pack_dataset(dataset, length, strategy)["input_ids"]
    # In how many rows each document stands.
    found = np.concatenate([np.unique(row) for row in rows])
    num_cut = int((np.bincount(found, minlength=len(lengths)) > 1)[lengths <= length].sum())
    return Packed(len(rows), sum(map(len, rows)), num_cut)


def figures(feedback: Path, tokenizer: Any, lengths: Sequence[int]) -> Iterator[Figure]:
    for length in lengths:
        with tempfile.TemporaryDirectory() as cache:
            documents, ours = coh_rows(coh_dataset(feedback, tokenizer, cache, seq_length=length))
        value = ours.padding(length)
        what = f"percent of rows that is padding, {len(documents):,} chains"
        yield exact(f"{length}", what, value, unit="percent", target=0.5, moonshot=0.3)
        yield exact(f"{length}-cut", "chains cut that would fit a row", ours.num_cut, unit="chains", target=0.0)
        if not find_spec("trl"):
            print(f"padding/{length}-trl is not measured: it needs trl (pip install trl)", flush=True)
            continue
        theirs = {strategy: trl_rows(documents, length, strategy) for strategy in STRATEGIES}
        for strategy, packed in theirs.items():
            told = f"{packed.padding(length):.3f} percent padding, {packed.num_cut:,} chains cut that would fit"
            print(f"  trl {strategy}: {told}", flush=True)
        best = min(packed.padding(length) for packed in theirs.values() if not packed.num_cut)
        details = {strategy: vars(packed) | {"padding": packed.padding(length)} for strategy, packed in theirs.items()}
        what = f"coh's padding / {best:.3f} percent, trl's where it cuts nothing"
        yield exact(f"{length}-trl", what, value / best, target=1.0, details=details)


def exact(name: str, what: str, value: float, **more: Any) -> Figure:
    return Figure(f"padding/{name}", what, value, value, value, rounds=1, **more)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--feedback", type=Path, help="file of feedback; without one, pairs of the sample's sentences")
    options.add_argument("--tokenizer", help="name or folder of a tokenizer; SmolLM2's where it is installed")
    args = options.parse_args(argv)
    if not find_spec("datasets"):
        print("nothing is measured, since it needs datasets: pip install datasets", flush=True)
        return finish([], args)
    quiet()
    lengths = [length for length in LENGTHS if args.only in f"padding/{length}" or f"padding/{length}" in args.only]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        feedback = args.feedback or write_pairs(Path(folder) / "pairs.jsonl", 100 if args.smoke else 20_000)
        for figure in figures(feedback, tokenizer_of(args.tokenizer), lengths[:1] if args.smoke else lengths):
            if args.only in figure.name:
                found.append(figure)
                tell(figure)
    return finish(found, args)


if __name__ == "__main__":
    sys.exit(main())
