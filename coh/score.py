"""Judge outputs with a trained model: how much likelier each one is under good words than under bad ones.

    python -m coh.score --model DIR --input FILE --output scores.jsonl

score(y | x) = log p(y | x, good words) - log p(y | x, bad words), in nats, over the whole output or per token. In:
feedback in any form that training takes, or rows with a prompt and outputs that nobody has ranked. Out: a line of JSON
for each row, with a score and a rank (1 for the best) for each of its outputs; and, where people had ranked them, how
often the model agrees with them.

The documents are built by the code that builds training rows, from the same templates. What the outputs of a prompt
have in common is read once (`coh.likelihood`).
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
from coh.data.records import FeedbackError
from coh.data.sources import parse_columns
from coh.generation import num_positions, place_model
from coh.likelihood import TOKENS_PER_BATCH, score_documents
from coh.modeling import DTYPES, load_model, load_tokenizer
from coh.rows import JudgedRow, as_line, check_judged_format, read_judged
from coh.saved import load_words
from coh.steering import Steering

ROWS_AT_ONCE = 512  # enough for batches of one length, and little enough to see results come
NAMES = ("scores", "ranks", "human_ranks")  # the fields that are added to a row


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
