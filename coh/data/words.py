r"""Where a text may be cut into words whose ids, one behind the other, are the ids of the text.

Most words of a text have stood in another one before. Where each may be encoded by itself it has to be encoded once,
and a text of any length takes a time in proportion to it. A text may be cut in front of the first space behind a letter
where nothing can join what stands before and behind. Two things prove that, and either is enough:

- a pattern splits the text, and in none of its matches does a space follow anything but white space; the patterns known
  here leave the last of several spaces to the word behind them, so that there may be a cut in front of that too;
- nothing splits the text, but no token of the vocabulary has a space behind another letter (SentencePiece).

A tokenizer of which neither is known is left alone.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

SECTION = 2**16  # letters of a text whose words are held at once

# ▁ is what SentencePiece makes of a space.
_BEHIND_A_LETTER = re.compile(r" (?<=[^\s▁] )")
_BEHIND_OR_BEFORE = re.compile(r" (?<=[^\s▁] )| (?=\S)")
_JOINED_SPACE = re.compile(r"[^▁]▁")
_ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
_SPLITS = {
    rf"{_ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",  # GPT-2
    *(
        rf"(?i:{_ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
        for digits in ("", "{1,3}")  # Qwen 2, Llama 3
    ),
}
_NORMALIZERS = (
    {"type": "NFC"},  # composes no letter with a space
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
)


@dataclass(frozen=True)
class Cuts:
    """Where a tokenizer's texts may be cut.

    Args:
        mark: what the tokens have for a space.
        before_letters: whether a cut may stand in front of a space that only a letter follows, too.
    """

    mark: str
    before_letters: bool

    @property
    def _pattern(self) -> re.Pattern[str]:
        return _BEHIND_OR_BEFORE if self.before_letters else _BEHIND_A_LETTER

    def words(self, text: str) -> list[str]:
        r"""The words of a text, without the spaces at which it was cut.

        >>> Cuts("▁", before_letters=False).words("One two,  three\n four.")
        ['One', 'two,', ' three\n four.']
        """
        return self._pattern.split(text)

    def sections(self, text: str) -> list[str]:
        """A text in parts of some length, each of which may be cut on; most texts are one."""
        borders = [0]
        while len(text) - borders[-1] > SECTION:
            found = self._pattern.search(text, borders[-1] + SECTION)
            if found is None:
                break
            borders.append(found.start())
        return [text[start:end] for start, end in zip(borders, [*borders[1:], len(text)])]

    def is_simple(self, word: str) -> bool:
        """Whether a text of such words, with spaces between, would be cut into them again, and has no other spaces."""
        return (
            bool(word)
            and " " not in word
            and "▁" not in word
            and not word[0].isspace()
            and (self.before_letters or not word[-1].isspace())
        )


def cuts_of(tokenizer: Any) -> Cuts | None:
    """Where the texts of a Hugging Face tokenizer may be cut, if that is known of it."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    model: Any = getattr(backend, "model", None)
    if type(model).__name__ != "BPE" or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    # Letters of special tokens stay letters, and so are cut like any others.
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    if any(token.lstrip or token.rstrip or token.single_word or " " in token.content for token in added):
        return None
    if any(step not in _NORMALIZERS for step in _steps(backend.normalizer, "normalizers")):
        return None
    steps = _steps(backend.pre_tokenizer, "pretokenizers")
    kinds = {step["type"] for step in steps}
    if kinds <= {"Metaspace"}:
        vocabulary = backend.get_vocab(with_added_tokens=False)
        # Letters without an id would be left out, and let the spaces around them meet.
        needed = ["▁", *(f"<0x{byte:02X}>" for byte in range(256))]
        is_known = vocabulary.keys() >= {*needed} and not any(map(_JOINED_SPACE.search, vocabulary))
        return Cuts("▁", before_letters=False) if is_known else None
    is_known = all(map(_is_known, steps)) and any(map(_splits, steps)) and "ByteLevel" in kinds
    if not is_known or backend.token_to_id("Ġ") is None:
        return None
    # Digits are parted from the spaces in front of them before the pattern sees those.
    return Cuts("Ġ", before_letters="Digits" not in kinds)


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, one thing after the other."""
    state: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {"type": "Sequence", name: []}
    return state[name] if state["type"] == "Sequence" else [state]


def _is_known(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    return step["type"] == "Digits" or _splits(step)


def _splits(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return step["use_regex"]
    return (
        step["type"] == "Split"
        and step["pattern"].get("Regex") in _SPLITS
        and (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))
    )
