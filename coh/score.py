"""Judge outputs with a trained model: how much likelier each one is under good words than under bad ones.

    python -m coh.score --model DIR --input FILE --output scores.jsonl

score(y | x) = log p(y | x, good words) - log p(y | x, bad words), in nats, over the whole output or per token. In:
feedback in any form that training takes, or rows with a prompt and outputs that nobody has ranked. Out: a line of JSON
for each row, with a score and a rank (1 for the best) for each of its outputs; and, where people had ranked them, how
often the model agrees with them.

The documents are built by the code that builds training rows, from the same templates; batches go by length.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.arguments import ConfigError, parse
from coh.data.records import Document, FeedbackError
from coh.data.sources import parse_columns
from coh.generation import num_positions, place_model
from coh.modeling import DTYPES, load_model, load_tokenizer
from coh.processes import rank_and_size
from coh.rows import JudgedRow, as_line, check_judged_format, read_judged
from coh.saved import load_words
from coh.steering import Steering

IGNORED = -100
TOKENS_PER_BATCH = 4096
ROWS_AT_ONCE = 512  # enough for batches of one length, and little enough to see results come
NAMES = ("scores", "ranks", "human_ranks")  # the fields that are added to a row


@dataclass(frozen=True)
class OutputScores:
    """Per output: log p(output | prompt, words) in nats, end of text included, and the number of its tokens."""

    log_p: NDArray[np.float64]
    num_tokens: NDArray[np.int64]


@dataclass(frozen=True)
class RunScores:
    """Of every run of targets: its document, log p in nats, tokens, and how many of those were the likeliest.

    A run is one output, with its end-of-text token; a chain has several, in the order of its text.
    """

    document: NDArray[np.int64]
    log_p: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    num_correct: NDArray[np.int64]


def score_documents(
    model: Any,
    documents: Sequence[Document],
    pad_id: int,
    max_length: int | None = None,
    progress: str = "",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> OutputScores:
    """Log-probability of the targets of each document, in the order given; `max_length` cuts from the left."""
    runs = score_runs(model, documents, pad_id, max_length, progress, tokens_per_batch)
    log_p = np.bincount(runs.document, runs.log_p, len(documents)).astype(np.float64)
    num_tokens = np.bincount(runs.document, runs.num_tokens, len(documents)).astype(np.int64)
    return OutputScores(log_p, num_tokens)


def score_runs(
    model: Any,
    documents: Sequence[Document],
    pad_id: int,
    max_length: int | None = None,
    progress: str = "",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> RunScores:
    """Scores of every run of targets, in the order of the documents.

    Processes of one group share the batches between them, and all of them get all scores.
    """
    import torch
    from torch import distributed
    from tqdm import tqdm

    from coh.loss import target_scores

    cut = [_cut(document, max_length) for document in documents]
    starts = [np.flatnonzero(np.diff(targets, prepend=False) & targets) for _, targets in cut]
    first = np.cumsum([0, *(len(places) for places in starts)])
    found = np.zeros((int(first[-1]), 3))
    batches = list(_by_length([len(ids) for ids, _ in cut], tokens_per_batch))
    rank, num_ranks = rank_and_size()
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(documents), desc=progress, disable=not progress or rank > 0, leave=False)
    # Engines that keep weights apart compute together: every process runs as many batches, the last ones once more.
    for place in range(rank, -(-len(batches) // num_ranks) * num_ranks, num_ranks):
        batch = batches[min(place, len(batches) - 1)]
        shape = len(batch), max(len(cut[n][0]) for n in batch)
        input_ids, labels = np.full(shape, pad_id), np.full(shape, IGNORED)
        for row, n in enumerate(batch):
            ids, targets = cut[n]
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids)] = np.where(targets, ids, IGNORED)
        # Padding stands behind the document, where causal attention cannot see it.
        scores = target_scores(
            model, torch.from_numpy(input_ids).to(model.device), torch.from_numpy(labels).to(model.device)
        )
        nll, is_correct = (score.double().cpu().numpy() for score in scores)
        if place < len(batches):
            values = np.stack([-nll, labels != IGNORED, is_correct], axis=-1)
            for row, n in enumerate(batch):
                if len(starts[n]):
                    found[first[n] : first[n + 1]] = np.add.reduceat(values[row], starts[n])
        bar.update(len(batch) * num_ranks)
    bar.close()
    model.train(was_training)
    if num_ranks > 1:
        shared = torch.from_numpy(found).to(model.device)
        distributed.all_reduce(shared)
        found = shared.cpu().numpy()
    owner = np.repeat(np.arange(len(documents)), np.diff(first))
    return RunScores(owner, found[:, 0], found[:, 1].astype(np.int64), found[:, 2].astype(np.int64))


def _cut(document: Document, max_length: int | None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids and targets without what is too long at the left; nothing predicts a first token."""
    ids, targets = np.array(document.input_ids, np.int64), np.array(document.target_mask, bool)
    if max_length:
        ids, targets = ids[-max_length:], targets[-max_length:].copy()
    targets[:1] = False
    return ids, targets


def _by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterable[list[int]]:
    """Batches of neighbours in length, each of at most so many tokens with its padding (or one document)."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        if batch and (len(batch) + 1) * lengths[number] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def judge(
    model: Any,
    steering: Steering,
    rows: Sequence[JudgedRow],
    *,
    per_token: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[NDArray[np.float64]]:
    """The score of every output of every row: log p under good words less log p under bad ones, in nats.

    Prompts that are too long for the model lose their beginning.

    Raises:
        FeedbackError: an output alone is longer than the model reads.
    """
    limit = num_positions(model.config)
    documents = []
    for words in ("good", "bad"):
        for row in rows:
            made = steering.output_documents(row.prompt, row.outputs, words, row.task)
            longest = max(sum(document.target_mask) for document in made)
            if limit and longest >= limit:
                raise FeedbackError(
                    f"{row.place}: an output has {longest} tokens, the model has {limit} positions: shorten it"
                )
            documents += made
    scores = score_documents(model, documents, steering.end_of_output, limit, tokens_per_batch=tokens_per_batch)
    log_p = (scores.log_p / scores.num_tokens if per_token else scores.log_p).reshape(2, -1)
    borders = np.cumsum([len(row.outputs) for row in rows])[:-1]
    return np.split(log_p[0] - log_p[1], borders)


def ranks_of(scores: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """The rank of each score, 1 for the highest; equal scores tie.

    >>> ranks_of([0.5, 2.0, 0.5, -1.0])
    [2, 1, 2, 3]
    """
    levels = sorted(set(map(float, scores)), reverse=True)
    return [levels.index(float(score)) + 1 for score in scores]


def agreement(human_ranks: Sequence[int], scores: Sequence[float] | NDArray[np.float64]) -> tuple[float, int]:
    """Of all pairs of outputs that people ranked differently, how many the scores order alike; equal ones count half.

    >>> agreement((1, 2, 2), [0.0, 0.0, -1.0])
    (1.5, 2)
    """
    pairs = [(one, other) for one, a in enumerate(human_ranks) for other, b in enumerate(human_ranks) if a < b]
    agreed = sum((scores[one] > scores[other]) + 0.5 * (scores[one] == scores[other]) for one, other in pairs)
    return float(agreed), len(pairs)


@dataclass
class ScoreArgs:
    """Which model judges which outputs."""

    model: str = field(
        metadata={"help": "Folder of a trained model, or a hub id; its coh.json tells the words it was taught."}
    )
    input: str = field(
        metadata={
            "help": "Rows to judge: feedback of any kind, named as for --feedback_data of coh.coh_train, or rows with "
            "`prompt` and `outputs` (or `output`, `responses`, `response`, `completion`, `versions`)."
        }
    )
    output: str | None = field(
        default=None, metadata={"help": "File for one line of JSON a row; by default they are printed."}
    )
    per_token: bool = field(
        default=False,
        metadata={"help": "Score per token instead of over the whole output, so that length counts for less."},
    )
    feedback_format: str = field(
        default="auto",
        metadata={
            "help": "Format of the rows; auto finds it from the columns. `outputs` reads prompt and outputs only, also "
            "from rows that hold feedback besides."
        },
    )
    feedback_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Your columns under the names of a format, as in training: prompt=question chosen=good."},
    )
    split: str | None = field(
        default=None,
        metadata={"help": "Split of a source that has several; by default test, else validation or train."},
    )
    templates: str | None = field(
        default=None,
        metadata={"help": "Other words than the model's own: prose, marker, marker_varied or a YAML file."},
    )
    tokens_per_batch: int = field(
        default=TOKENS_PER_BATCH,
        metadata={"help": "Tokens, with padding, that are read at once: a matter of memory, not of the scores."},
    )
    dtype: str = field(
        default="auto",
        metadata={"help": f"Number format of the weights, one of {', '.join(DTYPES)}; auto is how they were saved."},
    )
    device: str = field(default="auto", metadata={"help": "Where to compute: auto takes a GPU where there is one."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and prepared data are kept."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code that lies with the model, which some models need. Read it first."},
    )

    def __post_init__(self) -> None:
        problems = []
        try:
            check_judged_format(self.feedback_format)
        except FeedbackError as error:
            problems.append(f"--feedback_format: {error}")
        try:
            parse_columns(self.feedback_columns)
        except FeedbackError as error:
            problems.append(f"--feedback_columns: {error}")
        if self.tokens_per_batch < 1:
            problems.append(f"--tokens_per_batch {self.tokens_per_batch}: give 1 or more.")
        if self.dtype not in DTYPES:
            problems.append(f"--dtype {self.dtype}: give one of {', '.join(DTYPES)}.")
        if problems:
            raise ConfigError(problems)


def judged_lines(
    model: Any, steering: Steering, rows: Iterable[JudgedRow], args: ScoreArgs
) -> Iterator[tuple[dict[str, Any], JudgedRow]]:
    """Each row with its scores and ranks, and the row that they are of."""
    rows = iter(rows)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        found = judge(model, steering, some, per_token=args.per_token, tokens_per_batch=args.tokens_per_batch)
        for row, scores in zip(some, found):
            taken = [name for name in NAMES if name in row.row]
            if taken:
                raise FeedbackError(f"{row.place}: a field is named {taken[0]!r}, as a new one is to be: rename it")
            human = {"human_ranks": list(row.human_ranks)} if row.human_ranks else {}
            yield {**row.row, "scores": scores.tolist(), "ranks": ranks_of(scores), **human}, row


def write_scores(model: Any, steering: Steering, rows: Sequence[JudgedRow], args: ScoreArgs) -> tuple[float, int]:
    """Writes all lines; how many pairs the model and people agree on, and of how many."""
    from tqdm import tqdm

    agreed, num_pairs = 0.0, 0
    with open(args.output, "w", encoding="utf-8") if args.output else nullcontext(sys.stdout) as file:
        lines = judged_lines(model, steering, rows, args)
        for line, row in tqdm(lines, total=len(rows), desc="Judging", disable=None, leave=False):
            print(as_line(line), file=file, flush=True)
            more, number = agreement(row.human_ranks, line["scores"])
            agreed, num_pairs = agreed + more, num_pairs + number
    return agreed, num_pairs


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse([ScoreArgs], argv, prog="python -m coh.score", description=(__doc__ or "").split("\n")[0])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        if args.output and not Path(args.output).absolute().parent.is_dir():
            raise FeedbackError(f"--output {args.output}: there is no such folder: make it, or choose another")
        words = load_words(args.model, args.templates, args.cache_dir)
        source = read_judged(
            args.input,
            feedback_format=args.feedback_format,
            split=args.split,
            cache_dir=args.cache_dir,
            columns=args.feedback_columns,
        )
        rows = list(source)
        trust = args.trust_remote_code
        steering = Steering.of(words, load_tokenizer(args.model, args.cache_dir, trust_remote_code=trust))
        weights = load_model(args.model, dtype=args.dtype, cache_dir=args.cache_dir, trust_remote_code=trust)
        model = place_model(weights, args.device)
        agreed, num_pairs = write_scores(model, steering, rows, args)
    except ValueError as error:
        raise SystemExit(f"coh.score: {error}") from error
    print(f"rows: {len(rows)}", file=sys.stderr)
    if num_pairs:
        print(f"pair agreement with people: {100 * agreed / num_pairs:.1f} % of {num_pairs} pairs", file=sys.stderr)


if __name__ == "__main__":
    main()
