"""How probable a model finds outputs under good and under bad words.

The documents are built by the code that builds training rows, from the same templates; batches go by length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.encoding import Encoder
from coh.data.hindsight import chain, group_prompt, steering_template
from coh.data.records import Document, FeedbackGroup
from coh.data.templates import Family

IGNORED = -100
TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class OutputScores:
    """Per output: log p(output | prompt, words) in nats, end of text included, and the number of its tokens."""

    log_p: NDArray[np.float64]
    num_tokens: NDArray[np.int64]


def scoring_documents(group: FeedbackGroup, quality: str, family: Family, encoder: Encoder) -> list[Document]:
    """One document per output: prompt, the words for `quality` ("good" or "bad"), the output, end of text."""
    template = steering_template(family, group.task, quality)
    prompt = group_prompt(group, family)
    documents = []
    for output in group.outputs:
        segments = chain(template, prompt, [output])
        ends = [segment.is_target for segment in segments]
        documents.append(encoder.document(segments, group.source, ends))
    return documents


def score_documents(
    model: Any, documents: Sequence[Document], pad_id: int, max_length: int | None = None, progress: str = ""
) -> OutputScores:
    """Log-probability of the targets of each document, in the order given; `max_length` cuts from the left."""
    import torch
    from tqdm import tqdm

    from coh.loss import target_scores

    was_training = model.training
    model.eval()
    log_p, num_tokens = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    bar = tqdm(total=len(documents), desc=progress, disable=not progress, leave=False)
    for batch in _by_length([len(document.input_ids) for document in documents]):
        cut = [
            (documents[n].input_ids[-(max_length or 0) :], documents[n].target_mask[-(max_length or 0) :])
            for n in batch
        ]
        shape = len(batch), max(len(ids) for ids, _ in cut)
        input_ids, labels = np.full(shape, pad_id), np.full(shape, IGNORED)
        for row, (ids, targets) in enumerate(cut):
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids)] = np.where(targets, ids, IGNORED)
        labels[:, 0] = IGNORED  # nothing predicts a first token
        # Padding stands behind the document, where causal attention cannot see it.
        nll, _ = target_scores(
            model, torch.from_numpy(input_ids).to(model.device), torch.from_numpy(labels).to(model.device)
        )
        log_p[batch] = -nll.double().sum(1).cpu().numpy()
        num_tokens[batch] = (labels != IGNORED).sum(1)
        bar.update(len(batch))
    bar.close()
    model.train(was_training)
    return OutputScores(log_p, num_tokens)


def _by_length(lengths: Sequence[int]) -> Iterable[list[int]]:
    """Batches of neighbours in length, each of at most TOKENS_PER_BATCH tokens with its padding (or one document)."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        if batch and (len(batch) + 1) * lengths[number] > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
