"""Segments -> token ids and target mask: the only file that knows about BOS, EOS, the borders of pieces and shortening.

Pieces are encoded once, apart from their neighbours, and joined as ids. That equals encoding the joined text as long
as a piece starts with white space and its left neighbour ends without any (the law of pieces). A SentencePiece
tokenizer puts a dummy space in front of whatever it is given; so every piece that continues a text is encoded behind
a colon, whose ids are cut off again. Where a tokenizer breaks the law all the same, `Encoder.whole` encodes complete
texts and cuts by offsets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.records import ChatText, Document, FeedbackError, Segment
from coh.modeling import special_tokens

Ids = NDArray[np.int32]
_CONTEXT = ":"  # what the words of a template usually end in


class Encoder:
    """A tokenizer with the special tokens that chains need.

    Args:
        tokenizer: any Hugging Face tokenizer with an end-of-text token.
        prepend_bos: whether every document starts with the beginning-of-text token.
        end_of_output: the token that ends an output, where it is not the end-of-text token.
        border: the special token behind which pieces without white space in front stand (the end of a chat prompt).

    Raises:
        FeedbackError: the tokenizer lacks a special token that is needed.
    """

    def __init__(
        self,
        tokenizer: Any,
        prepend_bos: bool = False,
        end_of_output: int | None = None,
        border: str = "",
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise FeedbackError("the tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json")
        if prepend_bos and tokenizer.bos_token_id is None:
            raise FeedbackError("--prepend_bos, but the tokenizer has no bos_token: leave the option out")
        self.tokenizer = tokenizer
        self.eos = np.array([tokenizer.eos_token_id if end_of_output is None else end_of_output], np.int32)
        self.bos = np.array([tokenizer.bos_token_id] if prepend_bos else [], np.int32)
        self._context = self._ids([_CONTEXT])[0]
        self._border = border

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each piece: one that starts with white space continues a text, any other begins one. No
        special tokens but those of chat templates.
        """
        continues = [text[:1].isspace() and not isinstance(text, ChatText) for text in texts]
        behind = [
            bool(self._border and text) and not joined and not isinstance(text, ChatText)
            for text, joined in zip(texts, continues)
        ]
        found = self._ids(
            [
                _CONTEXT + text if joined else ChatText(self._border + text) if after else text
                for text, joined, after in zip(texts, continues, behind)
            ]
        )
        skip = len(self._context)
        alone = [n for n, ids in enumerate(found) if continues[n] and ids[:skip] != self._context]
        for n, ids in zip(alone, self._ids([texts[n] for n in alone])):
            found[n] = [*self._context, *ids]
        cuts = [skip if joined else int(after) for joined, after in zip(continues, behind)]
        return [np.array(ids[cut:], np.int32) for ids, cut in zip(found, cuts)]

    def whole(self, segments: Sequence[Segment]) -> list[Ids]:
        """The ids of a text encoded in one go, cut into segments: a token belongs where its first character stands."""
        text = "".join(segment.text for segment in segments)
        if self._has_literals(segments):  # offsets cannot tell them from the real ones
            return self.encode([segment.text for segment in segments])
        chat = isinstance(segments[0].text, ChatText)
        encoded = self._call([text], return_offsets_mapping=True, split_special_tokens=not chat)
        borders = np.cumsum([0, *(len(segment.text) for segment in segments)])
        starts = np.array([start for start, _ in encoded["offset_mapping"][0]], np.int64)
        owner = np.maximum.accumulate(np.searchsorted(borders, starts, side="right")) if len(starts) else starts
        ids = np.array(encoded["input_ids"][0], np.int32)
        return [ids[owner == number + 1] for number in range(len(segments))]

    def document(
        self, segments: Sequence[Segment], source: str, ends: Sequence[bool], is_whole: bool = False
    ) -> Document:
        """One document from its segments; `ends` says after which of them the end-of-text token stands, `is_whole`
        whether the text is encoded in one go.
        """
        ids, mask = [self.bos], [np.zeros(len(self.bos), bool)]
        pieces = self.whole(segments) if is_whole else self.encode([segment.text for segment in segments])
        for piece, segment, end in zip(pieces, segments, ends, strict=True):
            piece = np.concatenate([piece, self.eos]) if end else piece
            ids.append(piece)
            mask.append(np.full(len(piece), segment.is_target))
        return Document(tuple(np.concatenate(ids).tolist()), tuple(np.concatenate(mask).tolist()), source)

    def holds_law(self, chains: Sequence[Sequence[Segment]]) -> bool:
        """Whether joined pieces equal the joined text's ids for all of these chains."""
        chains = [segments for segments in chains if not self._has_literals(segments)]
        texts = ["".join(segment.text for segment in segments) for segments in chains]
        wholes = self._ids(
            [ChatText(text) if isinstance(chain[0].text, ChatText) else text for text, chain in zip(texts, chains)]
        )
        return all(
            np.concatenate(self.encode([segment.text for segment in chain])).tolist() == ids
            for chain, ids in zip(chains, wholes)
        )

    @property
    def fingerprint(self) -> str:
        """What the ids of a text depend on, for the keys of caches."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend is not None else repr(self.tokenizer)
        return blake2b(state.encode(), digest_size=16).hexdigest()

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        chats = [n for n, text in enumerate(texts) if isinstance(text, ChatText)]
        if not chats:
            return self._call(texts)["input_ids"] if texts else []
        found: list[list[int]] = [[]] * len(texts)
        others = [n for n in range(len(texts)) if not isinstance(texts[n], ChatText)]
        for n, ids in zip(others, self._ids([str(texts[n]) for n in others])):
            found[n] = ids
        for n, ids in zip(chats, self._call([texts[n] for n in chats], split_special_tokens=False)["input_ids"]):
            found[n] = self._chat_ids(texts[n]) if ChatText.LITERAL in texts[n] else ids
        return found

    def _chat_ids(self, text: str) -> list[int]:
        """A chat prompt in which some special tokens are real and others are letters of a message."""
        ids: list[int] = []
        for number, stretch in enumerate(self._special.split(text)):
            if number % 2:
                ids.append(self.tokenizer.convert_tokens_to_ids(stretch))
            elif stretch:
                ids += self._ids([stretch.replace(ChatText.LITERAL, "")])[0]
        return ids

    def _has_literals(self, segments: Sequence[Segment]) -> bool:
        """Whether letters of a special token stand in a chain whose special tokens are real."""
        if not segments or not isinstance(segments[0].text, ChatText):
            return False
        return ChatText.LITERAL in segments[0].text or any(
            self._special.search(segment.text) for segment in segments[1:]
        )

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(map(re.escape, special_tokens(self.tokenizer))) + ")")

    def _call(self, texts: Sequence[str], *, split_special_tokens: bool = True, **options: Any) -> Any:
        # split_special_tokens: the letters of a special token inside a text stay letters.
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            verbose=False,
            **options,
        )


def shorten(
    lengths: NDArray[np.int32],
    capacity: int,
    prompt: NDArray[np.int64],
    first: NDArray[np.int64],
    drop_stops: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """New lengths of every document's cells, so that it fits a row; and which documents cannot.

    The prompt gives way first, from its left end and down to an eighth of a row (a chain without any prompt teaches
    little); then the oldest outputs, whole and with all that is said of them; then the rest of the prompt. The last
    feedback and output are never touched: where they alone are longer than a row the document is dropped.

    Args:
        lengths: (documents, cells) tokens of each cell.
        capacity: the tokens of a row.
        prompt: (documents,) the prompt's cell, -1 where there is none.
        first: (documents,) the cell of the words in front of the first output.
        drop_stops: (documents, outputs) the cell behind each output that may go, in order; 0 where there is none.

    Returns:
        The new lengths, and a mask of the documents that do not fit.
    """
    kept = lengths.copy()
    for document in np.flatnonzero(lengths.sum(axis=1) > capacity):
        row, cell = kept[document], int(prompt[document])
        whole_prompt = int(row[cell]) if cell >= 0 else 0
        tail = min(whole_prompt, capacity // 8)
        for stop in (0, *drop_stops[document][drop_stops[document] > 0]):
            row[int(first[document]) : stop] = 0
            room = capacity - (int(row.sum()) - (int(row[cell]) if cell >= 0 else 0))
            if cell >= 0:
                row[cell] = min(whole_prompt, max(room, 0))
            if room >= tail:
                break
    return kept, kept.sum(axis=1) > capacity
