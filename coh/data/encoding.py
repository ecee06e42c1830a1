"""Segments -> token ids and target mask: the only file that knows about BOS, EOS, the borders of pieces and shortening.

Pieces are encoded once, apart from their neighbours, and joined as ids. That equals encoding the joined text as long
as a piece starts with white space and its left neighbour ends without any (the law of pieces). A SentencePiece
tokenizer puts a dummy space in front of whatever it is given; so every piece that continues a text is encoded behind
a colon, whose ids are cut off again. Where a tokenizer breaks the law all the same, `Encoder.whole` encodes complete
texts and cuts by offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.records import Document, FeedbackError, Segment

Ids = NDArray[np.int32]
_CONTEXT = ":"  # what the words of a template usually end in


class Encoder:
    """A tokenizer with the special tokens that chains need.

    Args:
        tokenizer: any Hugging Face tokenizer with an end-of-text token.
        prepend_bos: whether every document starts with the beginning-of-text token.

    Raises:
        FeedbackError: the tokenizer lacks a special token that is needed.
    """

    def __init__(self, tokenizer: Any, prepend_bos: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise FeedbackError("the tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json")
        if prepend_bos and tokenizer.bos_token_id is None:
            raise FeedbackError("--prepend_bos, but the tokenizer has no bos_token: leave the option out")
        self.tokenizer = tokenizer
        self.eos = np.array([tokenizer.eos_token_id], np.int32)
        self.bos = np.array([tokenizer.bos_token_id] if prepend_bos else [], np.int32)
        self._context = self._ids([_CONTEXT])[0]

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each piece: one that starts with white space continues a text, any other begins one. No
        special tokens.
        """
        continues = [text[:1].isspace() for text in texts]
        found = self._ids([_CONTEXT + text if joined else text for text, joined in zip(texts, continues)])
        skip = len(self._context)
        alone = [n for n, ids in enumerate(found) if continues[n] and ids[:skip] != self._context]
        for n, ids in zip(alone, self._ids([texts[n] for n in alone]) if alone else []):
            found[n] = [*self._context, *ids]
        return [np.array(ids[skip:] if joined else ids, np.int32) for ids, joined in zip(found, continues)]

    def whole(self, segments: Sequence[Segment]) -> list[Ids]:
        """The ids of a text encoded in one go, cut into segments: a token belongs where its first character stands."""
        text = "".join(segment.text for segment in segments)
        encoded = self._call([text], return_offsets_mapping=True)
        borders = np.cumsum([0, *(len(segment.text) for segment in segments)])
        starts = np.array([start for start, _ in encoded["offset_mapping"][0]], np.int64)
        owner = np.maximum.accumulate(np.searchsorted(borders, starts, side="right")) if len(starts) else starts
        ids = np.array(encoded["input_ids"][0], np.int32)
        return [ids[owner == number + 1] for number in range(len(segments))]

    def document(self, segments: Sequence[Segment], source: str, ends: Sequence[bool]) -> Document:
        """One document from its segments; `ends` says after which of them the end-of-text token stands."""
        ids, mask = [self.bos], [np.zeros(len(self.bos), bool)]
        for piece, segment, end in zip(
            self.encode([segment.text for segment in segments]), segments, ends, strict=True
        ):
            piece = np.concatenate([piece, self.eos]) if end else piece
            ids.append(piece)
            mask.append(np.full(len(piece), segment.is_target))
        return Document(tuple(np.concatenate(ids).tolist()), tuple(np.concatenate(mask).tolist()), source)

    def holds_law(self, chains: Sequence[Sequence[Segment]]) -> bool:
        """Whether joined pieces equal the joined text's ids for all of these chains."""
        texts = self._ids(["".join(segment.text for segment in chain) for chain in chains])
        return all(
            np.concatenate(self.encode([segment.text for segment in chain])).tolist() == ids
            for chain, ids in zip(chains, texts)
        )

    @property
    def fingerprint(self) -> str:
        """What the ids of a text depend on, for the keys of caches."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend is not None else repr(self.tokenizer)
        return blake2b(state.encode(), digest_size=16).hexdigest()

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._call(texts)["input_ids"]

    def _call(self, texts: Sequence[str], **options: Any) -> Any:
        # split_special_tokens: the letters of a special token inside a text stay letters.
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
            **options,
        )


def shorten(
    lengths: NDArray[np.int32],
    capacity: int,
    prompt: NDArray[np.int64],
    first: NDArray[np.int64],
    num_droppable: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """New lengths of every document's cells, so that it fits a row; and which documents cannot.

    The prompt gives way first, from its left end and down to an eighth of a row (a chain without any prompt teaches
    little); then the oldest outputs, whole and with their feedback; then the rest of the prompt. The last feedback and
    output are never touched: where they alone are longer than a row the document is dropped.

    Args:
        lengths: (documents, cells) tokens of each cell.
        capacity: the tokens of a row.
        prompt: (documents,) the prompt's cell, -1 where there is none.
        first: (documents,) the cell of the words in front of the first output.
        num_droppable: (documents,) outputs that may go; words and output stand in two neighbouring cells.

    Returns:
        The new lengths, and a mask of the documents that do not fit.
    """
    kept = lengths.copy()
    for document in np.flatnonzero(lengths.sum(axis=1) > capacity):
        row, cell = kept[document], int(prompt[document])
        whole_prompt = int(row[cell]) if cell >= 0 else 0
        tail = min(whole_prompt, capacity // 8)
        for dropped in range(int(num_droppable[document]) + 1):
            if dropped:
                start = int(first[document]) + 2 * (dropped - 1)
                row[start : start + 2] = 0
            room = capacity - (int(row.sum()) - (int(row[cell]) if cell >= 0 else 0))
            if cell >= 0:
                row[cell] = min(whole_prompt, max(room, 0))
            if room >= tail:
                break
    return kept, kept.sum(axis=1) > capacity
