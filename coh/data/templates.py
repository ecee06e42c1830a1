"""Templates: the words around the outputs, read from YAML, checked, and nothing else.

In: `prose`, `marker`, `marker_varied` or the path of a YAML file. Out: a `Family` of `Template`s, sorted by task and
polarity.

A template's text alternates words and slots, and slots stand between white space:

    "{prompt} A good answer: {better} A worse one: {worse}"

`{prompt}` is the prompt; `{better}` and `{worse}` are two outputs; a tie says `{first}` and `{second}`; `{critique}` is
what people said of an output. Outputs are what the model learns to write, except in a question, where it learns the
`answer` alone. A ranking of any length is worded by its ends, `{best}` and `{worst}`, and by the words of `{next}`,
which are said again for every output between them; its `tie` words stand before an output as good as the one before.
docs/templates.md shows how to write a family.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from coh.data.records import ROLES, TASKS, FeedbackError

BUILT_IN = Path(__file__).parent / "templates"
# Which slots a polarity has besides the prompt, in the order in which they stand. A question may show its two outputs
# either way.
POLARITIES: dict[str, tuple[str, ...]] = {
    "p": ("better",),
    "n": ("worse",),
    "pn": ("better", "worse"),
    "np": ("worse", "better"),
    "tie": ("first", "second"),
    "question": ("better", "worse"),
    "critique": ("critique", "output"),  # an output behind what was said of it
    "refine": ("worse", "critique", "better"),
    "revision": ("worse", "critique", "better"),  # the better one was written from the worse one and its critique
    "best_first": ("best", "next", "worst"),  # pn for more than two outputs
    "worst_first": ("worst", "next", "best"),  # np for more than two outputs
}
RANKINGS = {"pn": "best_first", "np": "worst_first"}
SLOTS = ("prompt", *dict.fromkeys(slot for slots in POLARITIES.values() for slot in slots))
NOT_OUTPUTS = ("", "prompt", "critique")
STANDARD_TAG = "tag:yaml.org,2002:"
MOST_FAULTS = 50  # that are said at once
MOST_BYTES = 300_000  # which takes some seconds to read
MOST_ENTRIES = 100_000  # of a file of templates; the largest family of this package has some hundred
_SLOT = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Part:
    """Words of the template (`slot` is ""), or a slot with the white space in front of it as `text`."""

    text: str
    slot: str = ""

    def __str__(self) -> str:
        return self.text + ("{%s}" % self.slot if self.slot else "")


@dataclass(frozen=True)
class Template:
    """One sentence of feedback around its outputs; `name` is task.polarity.number."""

    name: str
    text: str
    answer: str = ""
    tie: str = ""

    @property
    def task(self) -> str:
        return self.name.split(".")[0]

    @property
    def polarity(self) -> str:
        return self.name.split(".")[1]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Words and slots in turn. Every part but the first starts with its white space and none ends with any.

        >>> Template("general.p.1", "{prompt} A good answer: {better}").parts
        (Part(text='', slot='prompt'), Part(text=' A good answer:', slot=''), Part(text=' ', slot='better'))
        """
        parts: list[Part] = []
        position = 0
        for match in [*_SLOT.finditer(self.text), None]:
            words = self.text[position : match.start() if match else None]
            bare = words.rstrip()
            if bare:
                parts.append(Part(bare))
            if match:
                parts.append(Part(words[len(bare) :], match[1]))
                position = match.end()
        return tuple(parts)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The output slots in the order of the text."""
        return tuple(part.slot for part in self.parts if part.slot not in NOT_OUTPUTS)

    @property
    def is_ranking(self) -> bool:
        """True where the words are for any number of outputs: `ranking` gives those for some."""
        return self.polarity in RANKINGS.values()

    def ranking(self, is_tied: Sequence[bool]) -> Template:
        """The template for a number of outputs: of each but the first, whether it is as good as the one before.

        Its output slots are `{1}`, `{2}` and so on. Where all outputs are equal there is nothing to rank.

        >>> words = "{prompt} Best: {best} Worse: {next} Worst: {worst}"
        >>> Template("general.best_first.1", words, tie="As good:").ranking([False, True, False]).text
        '{prompt} Best: {1} Worse: {2} As good: {3} Worst: {4}'
        """
        *parts, first_words, first, next_words, between, last_words, last = self.parts
        space = next_words.text[: len(next_words.text) - len(next_words.text.lstrip())]
        ties = [False, *is_tied]
        last_rank = max(place for place, tied in enumerate(ties) if not tied)
        if not last_rank:
            raise ValueError(f"{self.name}: a ranking needs two outputs that differ in rank")
        for place, tied in enumerate(ties):
            if tied:
                words, output = Part(space + self.tie), between
            elif place == 0:
                words, output = first_words, first
            elif place == last_rank:
                words, output = last_words, last
            else:
                words, output = next_words, between
            parts += [words, Part(output.text, str(place + 1))]
        return Template(self.name, "".join(map(str, parts)))

    def faults(self) -> list[str]:
        """What is wrong with the template, as sentences; empty where nothing is."""
        known = ", ".join("{%s}" % slot for slot in ("prompt", *POLARITIES[self.polarity]))
        unknown = [part.slot for part in self.parts if part.slot and part.slot not in SLOTS]
        if unknown:
            return [f"{{{slot[:40]}}} is no slot: use {known}" for slot in unknown]
        return [*self._space_faults(), *self._slot_faults(), *self._word_faults(), *self._key_faults()]

    def _space_faults(self) -> list[str]:
        """Braces and white space."""
        found = []
        if any(map(_has_half_character, (self.text, self.answer, self.tie))):
            found.append("half a character: write the character itself, not one half of its escape")
        if _has_brace(_SLOT.sub("", self.text)):
            found.append("a brace stands alone: braces are for slots only")
        if self.text != self.text.strip():
            found.append("white space at an end: take it away")
        for match in _SLOT.finditer(self.text):
            before, after = self.text[: match.start()], self.text[match.end() :]
            if (before and not before[-1].isspace()) or (after and not after[0].isspace()):
                found.append(
                    f"{match[0]} touches other text: put white space around it, so that tokens do not run together"
                )
        return found

    def _slot_faults(self) -> list[str]:
        """Which slots there are, and their order."""
        found = []
        slots = [part.slot for part in self.parts if part.slot]
        wanted = POLARITIES[self.polarity]
        others = tuple(slot for slot in slots if slot != "prompt")
        if others != wanted and not (self.polarity == "question" and sorted(others) == sorted(wanted)):
            order, this = (" then ".join("{%s}" % slot for slot in names) for names in (wanted, others))
            found.append(f"polarity {self.polarity} takes {order}, this has {this or 'none'}")
        if slots.count("prompt") > 1 or "prompt" in slots[1:]:
            found.append("{prompt} stands at most once, and before the outputs")
        return found

    def _word_faults(self) -> list[str]:
        """Slots without words in front of them, and words without a slot behind them."""
        found = []
        is_question = self.polarity == "question"
        for previous, part in zip((None, *self.parts), self.parts):
            if part.slot not in POLARITIES[self.polarity] or (previous and not previous.slot):
                continue
            if part.slot not in ("critique", "output"):
                found.append(
                    f"no words in front of {{{part.slot}}}: feedback stands before the output that it describes"
                )
            elif previous and previous.slot != "prompt":
                found.append(
                    f"no words in front of {{{part.slot}}}: say what it is, or it runs on from the text before"
                )
        if self.parts and is_question and self.parts[-1].slot:
            found.append("a question ends with its own words, not with an output")
        if self.parts and not is_question and not self.parts[-1].slot:
            found.append(
                "words after the last output would describe an output that stands before them: move them in front"
            )
        return found

    def _key_faults(self) -> list[str]:
        """The words beside the text: `answer` of a question, `tie` of a ranking."""
        found = []
        if self.polarity == "question":
            if not _is_plain(self.answer):
                found.append("a question needs an `answer`: plain words, without braces or white space around them")
        elif self.answer:
            found.append("`answer` belongs to questions only")
        if self.is_ranking:
            if not _is_plain(self.tie):
                found.append(
                    "a ranking needs `tie`: plain words for an output as good as the one before, without braces or "
                    "white space around them"
                )
        elif self.tie:
            found.append(f"`tie` belongs to {' and '.join(RANKINGS.values())} only")
        return found


def _has_brace(words: str) -> bool:
    return "{" in words or "}" in words


def _has_half_character(words: str) -> bool:
    """Whether no file and no tokenizer can hold these words, which an escape such as \\ud83d makes."""
    return not words.isascii() and any("\ud800" <= letter <= "\udfff" for letter in words)


def _is_plain(words: str) -> bool:
    return bool(words) and words == words.strip() and not _has_brace(words)


@dataclass(frozen=True)
class Family:
    """Templates that belong together, and the two things they share: role names, and where the end-of-text token
    stands.
    """

    name: str
    eos: str  # "each": after every output; "end": once, after the chain
    roles: dict[str, str]
    templates: tuple[Template, ...] = field(repr=False)

    @cached_property
    def _by_kind(self) -> dict[tuple[str, str], tuple[Template, ...]]:
        kinds: dict[tuple[str, str], tuple[Template, ...]] = {}
        for template in self.templates:
            kinds[template.task, template.polarity] = (*kinds.get((template.task, template.polarity), ()), template)
        return kinds

    def choices(self, task: str, polarity: str) -> tuple[Template, ...]:
        """The templates for a task; a task without any of this polarity takes those of `general`."""
        return self._by_kind.get((task, polarity)) or self._by_kind.get(("general", polarity), ())

    def as_dict(self) -> dict[str, Any]:
        """What the saved model keeps, in the form of the YAML file: `read_family` reads it back."""
        tasks: dict[str, Any] = {}
        for template in self.templates:
            more = {key: words for key, words in (("answer", template.answer), ("tie", template.tie)) if words}
            entry = {"text": template.text, **more} if more else template.text
            tasks.setdefault(template.task, {}).setdefault(template.polarity, []).append(entry)
        return {"eos": self.eos, "roles": self.roles, "tasks": tasks}


def load_family(name: str) -> Family:
    """The built-in family of this name, or the one in a YAML file.

    >>> load_family("marker").choices("summary", "p")[0].text
    'User: {prompt} A helpful answer: {better}'

    Raises:
        FeedbackError: every fault of the file, each with its line.
    """
    import yaml  # deferred: a saved model's templates are read without it

    names = sorted(path.stem for path in BUILT_IN.glob("*.yaml"))
    path = BUILT_IN / f"{name}.yaml" if name in names else Path(name)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FeedbackError(f"templates {path}: more than {MOST_BYTES:,} bytes: leave some out")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError:
        raise FeedbackError(f"templates {name!r}: neither {', '.join(names)} nor a file that is there") from None
    except FeedbackError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter for letters that there are not
        raise FeedbackError(f"templates {path}: not YAML: {error}") from error
    except RecursionError:
        raise FeedbackError(f"templates {path}: not YAML of templates: nested too deeply") from None
    lines: dict[tuple[Any, ...], int] = {}
    try:
        data = _plain(root, lines, ())
    except FeedbackError as error:
        raise FeedbackError(f"templates {path}: {error}") from None
    except RecursionError:
        raise FeedbackError(
            f"templates {path}: an alias (*name) stands inside its own anchor (&name): write it out"
        ) from None
    return read_family(path.stem, data, lines, where=str(path))


def read_family(name: str, data: Any, lines: dict[tuple[Any, ...], int] | None = None, where: str = "") -> Family:
    """Checks the mapping that a YAML file or a saved model holds, and gives its family."""
    faults: list[tuple[int, str]] = []

    def fault(path: tuple[Any, ...], sentence: str) -> None:
        line = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), 0) if lines else 0
        # Entries count from 1, as in a template's name.
        place = ".".join(str(step + 1) if isinstance(step, int) else str(step)[:40] for step in path)
        faults.append((line, (f"line {line}: " if line else "") + (f"{place}: " if place else "") + sentence))

    def mapping(path: tuple[Any, ...], value: Any, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            fault(path, f"must be a mapping with {', '.join(known)}")
            return {}
        for unknown in [entry for entry in value if entry not in known]:
            fault((*path, unknown), f"not one of {', '.join(known)}")
        return {entry: value[entry] for entry in value if entry in known}

    data = mapping((), data, ("eos", "roles", "tasks"))
    eos = data.get("eos", "end")
    if eos not in ("each", "end"):
        fault(("eos",), f"{str(eos)[:40]!r}: say each (after every output) or end (once, after the chain)")
    roles = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
    for role, words in mapping(("roles",), data.get("roles", {}), ROLES).items():
        if not isinstance(words, str) or not words.strip() or words != words.strip() or _has_half_character(words):
            fault(("roles", role), "must be words without white space around them")
        else:
            roles[role] = words
    templates: list[Template] = []
    for task, polarities in mapping(("tasks",), data.get("tasks"), TASKS).items():
        for polarity, entries in mapping(("tasks", task), polarities, tuple(POLARITIES)).items():
            here = ("tasks", task, polarity)
            if not isinstance(entries, list) or not entries:
                fault(here, "must be a list of templates")
                continue
            seen: dict[str, str] = {}  # texts; those that are true of two polarities may stand under both
            for number, entry in enumerate(entries):
                known = ("text", "answer", "tie")
                keys = mapping((*here, number), entry, known) if isinstance(entry, dict) else {"text": entry}
                words = [keys.get("text"), keys.get("answer", ""), keys.get("tie", "")]
                if not all(isinstance(word, str) for word in words):
                    fault((*here, number), "must be a text, or text with answer (questions) or tie (rankings)")
                    continue
                text = words[0]
                template = Template(f"{task}.{polarity}.{number + 1}", *words)
                for sentence in template.faults():
                    fault((*here, number), sentence)
                if text in seen:
                    fault((*here, number), f"the same text as {seen[text]}")
                seen.setdefault(text, template.name)
                templates.append(template)
    if not templates and not faults:
        fault(("tasks",), "no templates")
    if faults:
        in_order = [f"  {sentence}" for _, sentence in sorted(faults, key=lambda fault: fault[0])[:MOST_FAULTS]]
        if len(faults) > MOST_FAULTS:
            in_order.append(f"  and {len(faults) - MOST_FAULTS} more")
        raise FeedbackError("\n".join([f"templates {where or name}: {len(faults)} to mend", *in_order]))
    return Family(name, eos, roles, tuple(templates))


def _plain(node: Any, lines: dict[tuple[Any, ...], int], path: tuple[Any, ...]) -> Any:
    """The plain value of a YAML node, noting the line of each; numbers and dates stay the text they were written as."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    if not node.tag.startswith(STANDARD_TAG) or node.tag.startswith(f"{STANDARD_TAG}python/"):
        raise FeedbackError(f"line {line}: {node.tag} is no plain text, list or mapping: take the tag away")
    if len(lines) >= MOST_ENTRIES:  # aliases of lists of aliases grow without end
        raise FeedbackError(
            f"line {line}: more than {MOST_ENTRIES:,} entries, aliases (*name) written out: leave some out"
        )
    lines[path] = line
    if node.id == "mapping":
        plain: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.id != "scalar":
                raise FeedbackError(f"line {line}: a text that begins with a brace or bracket needs quotes around it")
            if key.value in plain:
                raise FeedbackError(f"line {line}: {key.value} stands here again: write its entries in one place")
            plain[key.value] = _plain(value, lines, (*path, key.value))
        return plain
    if node.id == "sequence":
        return [_plain(value, lines, (*path, number)) for number, value in enumerate(node.value)]
    return node.value
