"""Log-probabilities of the targets of documents under a model: what judging and measuring are made of.

In: a model and whole training documents. Out: for each of them, or for each output in them, log p in nats, end of text
included, the same for any size of batch and any number of processes. Batches go by length, and documents that begin
alike are read together (`coh.beginnings`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.beginnings import Ids, SharedRow, Targets, share_beginnings
from coh.data.records import Document
from coh.generation import num_positions
from coh.processes import rank_and_size

IGNORED = -100
TOKENS_PER_BATCH = 4096


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

    Documents that begin alike are read in one row, where the model allows it. Processes of one group share the batches
    between them, and all of them get all scores.
    """
    import torch
    from torch import distributed
    from tqdm import tqdm

    from coh.masking import attending_by_document

    cut = [_cut(document, max_length) for document in documents]
    starts = [np.flatnonzero(np.diff(targets, prepend=False) & targets) for _, targets in cut]
    first = np.cumsum([0, *(len(places) for places in starts)])
    found = np.zeros((int(first[-1]), 3))
    rank, num_ranks = rank_and_size()
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(documents), desc=progress, disable=not progress or rank > 0, leave=False)
    with attending_by_document(model):
        rows = _rows(model, cut, tokens_per_batch)
        batches = [[rows[n] for n in batch] for batch in _by_length([len(row) for row in rows], tokens_per_batch)]
        # Engines that keep weights apart compute together: every process runs as many batches, the last once more.
        for place in range(rank, -(-len(batches) // num_ranks) * num_ranks, num_ranks):
            batch = batches[min(place, len(batches) - 1)]
            scores = _scores(model, batch, cut, pad_id)
            for row, of_row in zip(batch, scores if place < len(batches) else ()):
                for n, own in row.places():
                    if len(starts[n]):
                        found[first[n] : first[n + 1]] = np.add.reduceat(of_row[own], starts[n] - row.num_shared)
            bar.update(num_ranks * sum(len(row.numbers) for row in batch))
    bar.close()
    model.train(was_training)
    if num_ranks > 1:
        shared = torch.from_numpy(found).to(model.device)
        distributed.all_reduce(shared)
        found = shared.cpu().numpy()
    owner = np.repeat(np.arange(len(documents)), np.diff(first))
    return RunScores(owner, found[:, 0], found[:, 1].astype(np.int64), found[:, 2].astype(np.int64))


def _rows(model: Any, documents: Sequence[tuple[Ids, Targets]], longest: int) -> list[SharedRow]:
    """Documents together where they begin alike and the model can read them so, else alone."""
    from coh.masking import shares_beginnings

    config = getattr(model, "module", model).config  # DeepSpeed's engine has a `config` of its own
    rows = share_beginnings(documents, min(longest, num_positions(config) or longest))
    shared = [len(row) for row in rows if row.num_shared]
    if not shared or shares_beginnings(model, max(shared)):
        return rows
    return [SharedRow((number,), (len(ids),)) for number, (ids, _) in enumerate(documents)]


def _scores(
    model: Any, rows: Sequence[SharedRow], documents: Sequence[tuple[Ids, Targets]], pad_id: int
) -> NDArray[np.float64]:
    """(rows, tokens, 3): of each token its log p in nats, whether it is a target, and whether it was the likeliest.

    Padding stands behind a row, where causal attention ends.
    """
    import torch

    from coh.loss import target_scores
    from coh.masking import branching_mask

    shape = len(rows), max(map(len, rows))
    input_ids, labels, position_ids = np.full(shape, pad_id), np.full(shape, IGNORED), np.zeros(shape, np.int64)
    owners = np.full(shape, -1)
    for row, (ids, label, position, owner) in zip(rows, zip(input_ids, labels, position_ids, owners)):
        position[: len(row)], owner[: len(row)] = row.positions(), row.owners()
        ids[: row.num_shared] = documents[row.numbers[0]][0][: row.num_shared]
        for number, own in row.places():
            tokens, targets = (part[row.num_shared :] for part in documents[number])
            ids[own], label[own] = tokens, np.where(targets, tokens, IGNORED)
    given = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
    if any(row.num_shared for row in rows):
        given["position_ids"] = torch.from_numpy(position_ids)
        given["attention_mask"] = branching_mask(model, torch.from_numpy(owners))
    on_device = {name: tensor.to(model.device) for name, tensor in given.items()}
    nll, is_correct = (score.double().cpu().numpy() for score in target_scores(model, **on_device))
    return np.stack([-nll, labels != IGNORED, is_correct], axis=-1)


def _cut(document: Document, max_length: int | None) -> tuple[Ids, Targets]:
    """Ids and targets, shortened as in training: the prompt loses its beginning, and what stands before it stays.

    Where a document has too little prompt, its own beginning goes. Nothing predicts a first token.
    """
    ids, targets = np.array(document.input_ids, np.int64), np.array(document.target_mask, bool)
    if max_length and len(ids) > max_length:
        start, stop = document.prompt
        gone = slice(start, min(start + len(ids) - max_length, stop))
        ids, targets = (np.delete(part, gone)[-max_length:] for part in (ids, targets))
    targets[:1] = False
    return ids, targets


def _by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterable[list[int]]:
    """Batches of neighbours in length, each of at most so many tokens (or one row), of which a quarter may be padding.

    >>> list(_by_length([3, 8, 3, 4], tokens_per_batch=100))
    [[0, 2, 3], [1]]
    """
    batch: list[int] = []
    num_tokens = 0
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        area, num_tokens = (len(batch) + 1) * lengths[number], num_tokens + lengths[number]
        if batch and (area > tokens_per_batch or 4 * num_tokens < 3 * area):
            yield batch
            batch, num_tokens = [], lengths[number]
        batch.append(number)
    if batch:
        yield batch
