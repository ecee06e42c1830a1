"""The folder of a trained model: a plain Hugging Face folder with one file more, `coh.json`.

It keeps the words the model was taught, so that the same words steer and judge it, and how it came about: data,
arguments, versions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coh.data.records import TASKS, FeedbackError
from coh.data.templates import Family, load_family, read_family

FILE = "coh.json"
PACKAGES = ("coh", "torch", "transformers", "datasets", "accelerate", "deepspeed", "peft", "bitsandbytes", "numpy")


@dataclass(frozen=True)
class Words:
    """What a model is steered by.

    `tasks` are those it learned, the most frequent first: each has words of its own in some templates.
    `prompt_format` says how prompts were written, plain or chat.
    """

    family: Family
    prepend_bos: bool = False
    tasks: tuple[str, ...] = ("general",)
    prompt_format: str = "plain"


def save_words(folder: str | Path, words: Words, **about: Any) -> None:
    """Writes `coh.json`: the words, and whatever else (`data`, `arguments`, ...) tells how the model came about."""
    content = {
        "templates": {"name": words.family.name, **words.family.as_dict()},
        "prepend_bos": words.prepend_bos,
        "tasks": words.tasks,
        "prompt_format": words.prompt_format,
        **about,
        "versions": installed_versions(),
    }
    Path(folder, FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_words(model: str | Path, templates: str | None = None, cache_dir: str | None = None) -> Words:
    """The words of a trained model, in a folder or on the hub; `templates` names others, which any other model needs.

    Raises:
        FeedbackError: there is no `coh.json` and no templates are named.
    """
    from transformers.utils import cached_file

    silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = None if str(model).endswith(".gguf") else cached_file(str(model), FILE, cache_dir=cache_dir, **silent)
    saved = _checked(Path(path)) if path else {}
    if not saved and not templates:
        raise FeedbackError(
            f"{model} has no {FILE}, so its words are not known: name some with --templates, as in marker"
        )
    if templates:
        family = load_family(templates)
    else:
        content = dict(saved["templates"])
        family = read_family(content.pop("name"), content, where=str(path))
    return Words(
        family,
        saved.get("prepend_bos", False),
        tuple(saved.get("tasks", ("general",))),
        saved.get("prompt_format", "plain"),
    )


def _checked(path: Path) -> dict[str, Any]:
    """What a `coh.json` holds.

    Raises:
        FeedbackError: it is damaged, or not as `save_words` writes it.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise FeedbackError(f"{path} cannot be read ({type(error).__name__}: {error}): copy it anew") from None
    if not isinstance(saved, dict):
        raise FeedbackError(f"{path} holds no object: copy it anew")
    templates, tasks = saved.get("templates"), saved.get("tasks", ["general"])
    checks = {
        "templates": isinstance(templates, dict) and isinstance(templates.get("name"), str),
        "tasks": isinstance(tasks, list) and bool(tasks) and all(task in TASKS for task in tasks),
        "prepend_bos": isinstance(saved.get("prepend_bos", False), bool),
        "prompt_format": saved.get("prompt_format", "plain") in ("plain", "chat"),
    }
    wrong = [name for name, is_right in checks.items() if not is_right]
    if wrong:
        raise FeedbackError(f"{path}: {', '.join(wrong)} is not as training writes it: copy the file anew")
    return saved


def installed_versions() -> dict[str, str]:
    """The versions of what a result depends on, as far as it is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
