"""What the words after `--feedback_data` name: built-in sources, local files and folders, and data sets on the hub.

In: texts such as `hh_rlhf`, `sample`, `mine.jsonl@5000`, `chat=org/name:config`. Out: one `SourceSpec` per source.
Nothing is read here but whether files exist, so that all mistakes can be said before anything is loaded.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from coh.data.records import FeedbackError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

# name: (hub id, configuration, format)
BUILT_IN = {
    "webgpt": ("openai/webgpt_comparisons", None, "webgpt"),
    "webgpt_quotes": ("openai/webgpt_comparisons", None, "webgpt_quotes"),
    "hh_rlhf": ("Anthropic/hh-rlhf", None, "hh_rlhf"),
    "summarize": ("openai/summarize_from_feedback", "comparisons", "summarize"),
}

SAMPLE_FOLDER = Path(__file__).parents[1] / "sample"
# Four sources and not one, so that evaluation shows what was learned of each kind of feedback.
SAMPLES = {"webgpt": "webgpt", "hh_rlhf": "hh_rlhf", "summarize": "summarize", "pairs": "preference"}

RESERVED_NAMES = ("pretrain",)  # evaluation reports pretraining text under this name

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_NAME = re.compile(r"[A-Za-z0-9_]+")


class SourceErrors(FeedbackError):
    """Everything that is wrong with a list of sources; `problems` holds one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class SourceSpec:
    """One source of feedback: where it lies, under which name it is reported, and how much of it is read.

    `kind` is "file", "folder" or "hub". `format` is "auto" where the columns decide. `limit` caps the groups of each of
    the source's splits (the first ones are kept). `columns` are (a format's column, the one that is read as it).
    """

    name: str
    kind: str
    location: str
    config: str | None = None
    format: str = "auto"
    limit: int | None = None
    columns: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.location + (f":{self.config}" if self.config else "")


def parse_sources(texts: Sequence[str]) -> tuple[SourceSpec, ...]:
    """The sources of a whole list; `sample` stands for the four bundled ones. All problems are raised together.

    >>> [spec.name for spec in parse_sources(["hh_rlhf", "sample@40"])]
    ['hh_rlhf', 'sample_webgpt', 'sample_hh_rlhf', 'sample_summarize', 'sample_pairs']
    """
    specs, problems = [], []
    for text in texts:
        for part in _expand_sample(text.strip()):
            try:
                specs.append(parse_source(part))
            except FeedbackError as error:
                problems.append(str(error))
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            problems.append(
                f"{count} sources are named {name!r}: give each a name of its own, as in {name}_1=PATH {name}_2=PATH"
            )
    if problems:
        raise SourceErrors(problems)
    return tuple(specs)


def parse_source(text: str) -> SourceSpec:
    """One source from its words: `[NAME=]WHAT[@N]`, where WHAT is a built-in name, a file, a folder or a hub id.

    >>> parse_source("summarize@500")
    SourceSpec(name='summarize', kind='hub', location='openai/summarize_from_feedback', config='comparisons', format='summarize', limit=500, columns=())
    >>> parse_source("chat=some-org/preferences:clean")
    SourceSpec(name='chat', kind='hub', location='some-org/preferences', config='clean', format='auto', limit=None, columns=())
    >>> parse_source("webgtp")
    Traceback (most recent call last):
    coh.data.records.FeedbackError: unknown source 'webgtp': did you mean 'webgpt'? ...
    """  # noqa: E501
    what, limit = _split_limit(text.strip())
    name, what = _split_name(what)
    if name and not _NAME.fullmatch(name):
        raise FeedbackError(f"source {text!r}: the name {name!r} may hold letters, digits and _ only")
    spec = replace(_find(what, text), limit=limit)
    if name:
        spec = replace(spec, name=name, format=BUILT_IN[name][2] if name in BUILT_IN else spec.format)
    if spec.name in RESERVED_NAMES:
        raise FeedbackError(
            f"source {text!r}: the name {spec.name!r} is kept for pretraining text; "
            f"write another, as in my_{spec.name}={what}"
        )
    return spec


def _expand_sample(text: str) -> list[str]:
    what, at, limit = text.partition("@")
    return [f"sample_{name}{at}{limit}" for name in SAMPLES] if what == "sample" else [text]


def _split_limit(text: str) -> tuple[str, int | None]:
    what, at, limit = text.rpartition("@")
    if not at or "/" in limit or limit.lower().endswith(SUFFIXES):  # an @ inside a path is no cap
        return text, None
    if not re.fullmatch(r"[0-9]{1,18}", limit) or int(limit) < 1:
        raise FeedbackError(
            f"source {text!r}: {limit!r} after @ is no number of groups; write a whole number from 1, as in {what}@5000"
        )
    return what, int(limit)


def _split_name(text: str) -> tuple[str, str]:
    name, equals, what = text.partition("=")
    if not equals or "/" in name or _is("exists", Path(text)):  # a folder may be called run=3
        return "", text
    return name, what


def _find(what: str, text: str) -> SourceSpec:
    """Where `what` lies; the first of: built-in name, bundled sample, file, folder, hub id."""
    if what in BUILT_IN:
        hub_id, config, format_name = BUILT_IN[what]
        return SourceSpec(what, "hub", hub_id, config, format_name)
    if what.startswith("sample_") and what.removeprefix("sample_") in SAMPLES:
        rows = what.removeprefix("sample_")
        return SourceSpec(what, "file", str(SAMPLE_FOLDER / f"{rows}.jsonl"), format=SAMPLES[rows])
    if not what:
        raise FeedbackError(
            f"source {text!r}: there is nothing before the @ or after the =; write a name, file or hub id"
        )
    if what == "sample":
        parts = ", ".join(f"sample_{name}" for name in SAMPLES)
        raise FeedbackError(f"source {text!r}: sample stands for four sources, so name one of them: {parts}")
    folder, _, config = what.partition(":")
    if folder and _is("is_dir", _expanded(folder)):
        path = _expanded(folder)
        return SourceSpec(_name_of(path.resolve().name), "folder", str(path), config or None)
    path = _expanded(what)
    if path.suffix.lower() in SUFFIXES:
        if not _is("is_file", path):
            raise FeedbackError(f"source {text!r}: there is no file {what!r}{_nearest_file(path)}")
        return SourceSpec(_name_of(path.stem), "file", str(path))
    if _is("is_file", path):
        raise FeedbackError(f"source {text!r}: the name of a file of feedback ends in one of {', '.join(SUFFIXES)}")
    on_hub = _HUB_ID.fullmatch(what)
    if on_hub and not what.startswith(("./", "../")):
        return SourceSpec(_name_of(on_hub[1].split("/")[1]), "hub", on_hub[1], on_hub[2])
    if "/" in what:
        raise FeedbackError(f"source {text!r}: there is no file or folder {what!r}, and it is no hub id (org/name)")
    raise FeedbackError(f"unknown source {text!r}: {_nearest_name(what)}")


def _expanded(words: str) -> Path:
    try:
        return Path(words).expanduser()
    except (RuntimeError, ValueError):  # there is no such user, or no path has such letters
        return Path(words)


def _is(what: str, path: Path) -> bool:
    """`path.is_file()` and the like; words that can be no path, or one that may not be looked at, are nothing."""
    try:
        return bool(getattr(path, what)())
    except (OSError, ValueError):
        return False


def _nearest_name(what: str) -> str:
    known = [*BUILT_IN, "sample", *(f"sample_{name}" for name in SAMPLES)]
    near = get_close_matches(what, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    if "," in what:
        guess = "write several sources with spaces between them. "
    return (
        f"{guess}A source is one of {', '.join(known)}, a file ({', '.join(SUFFIXES)}), "
        "a folder, or a data set on the hub (org/name or org/name:config)"
    )


def _nearest_file(path: Path) -> str:
    if not _is("is_dir", path.parent) or not os.access(path.parent, os.R_OK):
        return f" (nor a folder {str(path.parent)!r}); check the path"
    near = get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else "; check the path"


def _name_of(words: str) -> str:
    """A name that can stand inside a metric's name: `hh_rlhf.test` and `hh-rlhf` both keep letters, digits and _."""
    return re.sub(r"[^A-Za-z0-9]+", "_", words).strip("_") or "data"
