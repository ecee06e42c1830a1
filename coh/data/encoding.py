"""Segments -> token ids and target mask: the only file that knows about BOS, EOS, the borders of pieces and shortening.

Pieces are encoded once, apart from their neighbours, and joined as ids. That equals encoding the joined text as long
as a piece starts with white space and its left neighbour ends without any (the law of pieces). A SentencePiece
tokenizer puts a dummy space in front of whatever it is given; so every piece that continues a text is encoded behind
a colon, whose ids are cut off again. Where a tokenizer breaks the law all the same, `Encoder.whole` encodes complete
texts and cuts by offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.records import ChatText, Document, FeedbackError, Segment
from coh.data.words import cuts_of
from coh.modeling import special_tokens

Ids = NDArray[np.int32]
MOST_LETTERS = 2**20  # of the texts that are encoded together, and of the words that are remembered
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
        ids, ends = self._ids_up_to(text, [len(segment.text) for segment in segments], split_special_tokens=not chat)
        return [ids[start:end] for start, end in pairwise([0, *ends])]

    def words(self, words: Sequence[str], mark: str) -> list[bytes]:
        """The ids of words without a space inside that each continue a text behind a space, as the bytes of 32-bit
        numbers; `mark` is what a token has for a space.
        """
        (found,) = self._ids([" ".join([_CONTEXT, *words])])
        ids = np.array(found[len(self._context) :], np.int32)
        kinds, kind = np.unique(ids, return_inverse=True)
        has_space = [token.startswith(mark) for token in self.tokenizer.convert_ids_to_tokens(kinds.tolist())]
        starts = np.flatnonzero(np.array(has_space, bool)[kind])
        assert len(starts) == len(words), "words are not apart"
        joined, borders = ids.tobytes(), (np.append(starts, len(ids)) * ids.itemsize).tolist()
        return [joined[start:end] for start, end in pairwise(borders)]

    def bulk(self) -> BulkEncoder:
        """What encodes many texts faster."""
        return BulkEncoder(self)

    def document(
        self,
        segments: Sequence[Segment],
        source: str,
        ends: Sequence[bool],
        is_whole: bool = False,
        prompt: int | None = None,
    ) -> Document:
        """One document from its segments; `ends` says after which of them the end-of-text token stands, `is_whole`
        whether the text is encoded in one go, `prompt` which of them is the prompt.
        """
        ids, mask = [self.bos], [np.zeros(len(self.bos), bool)]
        pieces = self.whole(segments) if is_whole else self.encode([segment.text for segment in segments])
        for piece, segment, end in zip(pieces, segments, ends, strict=True):
            piece = np.concatenate([piece, self.eos]) if end else piece
            ids.append(piece)
            mask.append(np.full(len(piece), segment.is_target))
        start = sum(map(len, ids[: prompt + 1])) if prompt is not None else 0
        span = (start, start + len(ids[prompt + 1])) if prompt is not None else (0, 0)
        return Document(tuple(np.concatenate(ids).tolist()), tuple(np.concatenate(mask).tolist()), source, span)

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

    @cached_property
    def fingerprint(self) -> str:
        """What the ids of a text depend on, for the keys of caches."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend is not None else repr(self.tokenizer)
        return blake2b(state.encode(), digest_size=16).hexdigest()

    def _ids_up_to(self, text: str, lengths: Sequence[int], **options: Any) -> tuple[Ids, list[int]]:
        """The ids of a text, and how many of them stand in front of the end of each of its parts."""
        encoded = self._call([text], return_offsets_mapping=True, **options)
        starts = np.array([start for start, _ in encoded["offset_mapping"][0]], np.int64)
        owner = np.maximum.accumulate(np.searchsorted(np.cumsum(lengths), starts, side="right"))
        ends = np.searchsorted(owner, np.arange(len(lengths)), side="right").tolist()
        return np.array(encoded["input_ids"][0], np.int32), ends

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

    def is_plain(self, text: str) -> bool:
        """Whether no special token stands in a text, nor in front of it."""
        return not isinstance(text, ChatText) and (not self._border or text[:1].isspace())

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


class BulkEncoder:
    """Many texts to the ids that `Encoder.encode` gives, each different word once where words may be encoded apart.

    The words are forgotten once they have many letters, so that memory does not grow with the texts.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._cuts = cuts_of(encoder.tokenizer)
        self._first: dict[str, bytes] = {}  # words that begin a text, white space in front of them included
        self._others: dict[str, bytes] = {}
        self._num_letters = 0

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, as the bytes of 32-bit numbers."""
        cuts = self._cuts
        sections = [cuts.sections(text) if cuts and self._encoder.is_plain(text) else [] for text in texts]
        by_words = self._by_words([section for parts in sections for section in parts])
        whole = iter(self._encode([text for text, parts in zip(texts, sections) if not parts]))
        return [b"".join(islice(by_words, len(parts))) if parts else next(whole) for parts in sections]

    def _by_words(self, texts: Sequence[str]) -> Iterator[bytes]:
        """The ids of texts, put together from those of their words; so many texts at a time as have some letters."""
        start = num_letters = 0
        for end, text in enumerate(texts, start=1):
            num_letters += len(text)
            if num_letters > MOST_LETTERS or end == len(texts):
                yield from self._joined(texts[start:end])
                start, num_letters = end, 0

    def _encode(self, texts: Sequence[str]) -> list[bytes]:
        return [ids.tobytes() for ids in self._encoder.encode(texts)]

    def _joined(self, texts: Sequence[str]) -> list[bytes]:
        assert self._cuts is not None
        if self._num_letters > MOST_LETTERS:
            self._first, self._others, self._num_letters = {}, {}, 0
        split = list(map(self._cuts.words, texts))
        first = list({words[0] for words in split} - self._first.keys())
        others = set[str]().union(*(words[1:] for words in split)) - self._others.keys()
        simple = list(filter(self._cuts.is_simple, others))
        others -= set(simple)
        self._learn(self._first, first, self._encode(first))
        self._learn(self._others, simple, self._encoder.words(simple, self._cuts.mark))
        self._learn(self._others, list(others), self._encode([f" {word}" for word in others]))
        return [b"".join([self._first[words[0]], *map(self._others.__getitem__, words[1:])]) for words in split]

    def _learn(self, known: dict[str, bytes], words: Sequence[str], found: Sequence[bytes]) -> None:
        known.update(zip(words, found, strict=True))
        self._num_letters += sum(map(len, words))


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
    long = np.flatnonzero(lengths.sum(axis=1) > capacity)
    whole_prompts = np.where(prompt[long] >= 0, kept[long, np.maximum(prompt[long], 0)], 0)
    tails = np.minimum(whole_prompts, capacity // 8)
    rooms = capacity - (kept[long].sum(axis=1) - whole_prompts)
    is_done = (rooms >= tails) & (prompt[long] >= 0)  # most: some of the prompt goes and no more
    kept[long[is_done], prompt[long[is_done]]] = rooms[is_done]
    for document, whole_prompt, tail in zip(long[~is_done], whole_prompts[~is_done].tolist(), tails[~is_done].tolist()):
        row, cell = kept[document], int(prompt[document])
        for stop in (0, *drop_stops[document][drop_stops[document] > 0]):
            row[int(first[document]) : stop] = 0
            room = capacity - (int(row.sum()) - (int(row[cell]) if cell >= 0 else 0))
            if cell >= 0:
                row[cell] = min(whole_prompt, max(room, 0))
            if room >= tail:
                break
    return kept, kept.sum(axis=1) > capacity
