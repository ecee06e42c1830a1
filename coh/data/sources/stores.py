"""Groups on disk: every source is read once, its groups are kept as a memory-mapped Arrow table and found again.

The table's folder is named by a fingerprint of where the rows came from and when they last changed, of the format, and
of the version of this code; a source that changed is read anew. What was dropped, and why, lies beside the table.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coh.data.records import FeedbackError, FeedbackGroup, Message, UnusableRow
from coh.data.sources.formats import FORMATS, Format, check_columns, check_format, detect_format
from coh.data.sources.reading import RowSource, columns_of, open_source
from coh.data.sources.specs import SourceSpec
from coh.data.sources.splitting import prompt_hash

if TYPE_CHECKING:
    from datasets import Dataset, Features

log = logging.getLogger("coh")

CODE_VERSION = 1  # to be raised with every change of what a row becomes, so that older tables are not found
NUM_FIRST_ROWS = 20  # rows that are looked at to find a format

_ABOUT = "about.json"  # beside each table: where it is from, and what was dropped


@dataclass(frozen=True, eq=False)
class GroupStore:
    """The groups of one split of a source, in the order of their rows.

    `dataset` has the columns task, prompt, outputs, ranks, critiques, revision, row (the row's number in its file, from
    1) and prompt_hash. `dropped` counts the rows that gave no group, by reason.
    """

    name: str
    format: str
    location: str
    dropped: dict[str, int]
    dataset: Dataset

    @property
    def num_rows(self) -> int:
        return self.dataset.num_rows

    def __len__(self) -> int:
        return self.num_rows

    @cached_property
    def prompt_hashes(self) -> np.ndarray:
        """What decides each group's split, as int64."""
        return self.dataset.data.column("prompt_hash").to_numpy()

    def group(self, index: int) -> FeedbackGroup:
        row = self.dataset[int(index)]
        return FeedbackGroup(
            source=self.name,
            prompt=tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"]),
            outputs=tuple(row["outputs"]),
            ranks=tuple(row["ranks"]),
            critiques=tuple(row["critiques"]),
            revision=row["revision"],
            task=row["task"],
        )


def load_groups(
    spec: SourceSpec, *, feedback_format: str = "auto", cache_dir: str | os.PathLike | None = None
) -> dict[str, GroupStore]:
    """The groups of a source by split; a file has one split, "train".

    `feedback_format` decides where the source's own name does not (the built-in names have their formats); "auto"
    finds it from the columns. Says aloud what was found, with an example. Raises `FeedbackError` where a row has to be
    mended, or where no row gives a group.
    """
    if feedback_format != "auto":
        check_format(feedback_format)
    if spec.format == "auto":
        spec = replace(spec, format=feedback_format)
    root = _cache_root(cache_dir)
    try:
        sources = open_source(spec, cache_dir)
    except FeedbackError as error:
        folders = _read_earlier(spec, root)
        if spec.kind != "hub" or not folders:
            raise
        log.warning("%s; the groups that were read from it earlier are used", error)
    else:
        folders = {split: _built(spec, split, source, root) for split, source in sources.items()}
    return {split: _open_store(spec, folder) for split, folder in folders.items()}


def _cache_root(cache_dir: str | os.PathLike | None) -> Path:
    import datasets

    root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "coh_groups"
    root.mkdir(parents=True, exist_ok=True)
    return root


def _built(spec: SourceSpec, split: str, source: RowSource, root: Path) -> Path:
    """The folder of a split's table, which is made if it is not there."""
    from filelock import FileLock

    made_of = json.dumps([CODE_VERSION, source.identity, spec.format, spec.limit])
    folder = root / f"{spec.name}-{blake2b(made_of.encode(), digest_size=8).hexdigest()}"
    with FileLock(f"{folder}.lock"):  # several processes of one run: the first reads, the others find
        if not folder.exists():
            _build(spec, split, source, folder)
    return folder


def _read_earlier(spec: SourceSpec, root: Path) -> dict[str, Path]:
    """The latest tables of the very same source: what is left where the hub is out of reach.

    `datasets` itself finds in its cache only what was loaded without a folder or a branch, so not webgpt or summarize.
    """
    found = sorted(root.glob(f"{spec.name}-*/{_ABOUT}"), key=lambda file: file.stat().st_mtime)
    abouts = [(file.parent, json.loads(file.read_text(encoding="utf-8"))) for file in found]
    return {about["split"]: folder for folder, about in abouts if about["made_by"] == [CODE_VERSION, asdict(spec)]}


def _open_store(spec: SourceSpec, folder: Path) -> GroupStore:
    import datasets

    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    tables = [datasets.Dataset.from_file(str(file)) for file in sorted(folder.glob("[0-9]*.arrow"))]
    dataset = datasets.concatenate_datasets(tables)
    store = GroupStore(spec.name, about["format"], about["location"], about["dropped"], dataset)
    _announce(store, about)
    return store


def _build(spec: SourceSpec, split: str, source: RowSource, folder: Path) -> None:
    """Read the rows into a table under another name; only what is whole gets `folder`'s name."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    first_rows = [row for _, row in islice(source.read(None), NUM_FIRST_ROWS)]
    columns = columns_of(first_rows)
    try:
        name = detect_format(columns, first_rows) if spec.format == "auto" else spec.format
        check_columns(name, columns)
    except FeedbackError as error:
        raise FeedbackError(f"{source.location}: {error}") from None
    dropped: Counter[str] = Counter()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was stopped
    try:
        table = Dataset.from_generator(
            lambda: _records(source, FORMATS[name], spec.limit, dropped),
            features=_features(),
            cache_dir=str(partial / "scratch"),
            fingerprint=folder.name,  # otherwise everything the function refers to would be pickled and hashed
        )
    except DatasetGenerationError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise error.__cause__ or error from None
    for number, file in enumerate(table.cache_files):
        os.rename(file["filename"], partial / f"{number:05d}.arrow")
    shutil.rmtree(partial / "scratch")  # the empty folders and locks of `datasets`
    about = {
        "location": source.location,
        "split": split,
        "made_by": [CODE_VERSION, asdict(spec)],
        "format": name,
        "is_found": spec.format == "auto",
        "columns": columns,
        "dropped": dict(dropped),
    }
    (partial / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    os.replace(partial, folder)


def _records(source: RowSource, form: Format, limit: int | None, dropped: Counter[str]) -> Iterator[dict]:
    """What is stored of each row that gives a group; the others are counted in `dropped`."""
    num_groups = 0
    for number, row in source.read([*form.columns, *form.optional_columns]):
        try:
            group = form.read(row)
            split_prompt = form.split_prompt(row) if form.split_prompt else group.prompt
        except UnusableRow as reason:
            dropped[str(reason)] += 1
            continue
        except FeedbackError as error:
            raise FeedbackError(f"{source.location}, {source.unit} {number}: {error}") from None
        yield {
            "task": group.task,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in group.prompt],
            "outputs": group.outputs,
            "ranks": group.ranks,
            "critiques": group.critiques,
            "revision": group.revision,
            "row": number,
            "prompt_hash": prompt_hash(split_prompt),
        }
        num_groups += 1
        if num_groups == limit:
            return
    if not num_groups:
        raise FeedbackError(f"{source.location}: none of its rows gives a group ({_counts(dropped)})")


def _features() -> Features:
    from datasets import Features, Value

    return Features(
        {
            "task": Value("string"),
            "prompt": [{"role": Value("string"), "content": Value("string")}],
            "outputs": [Value("string")],
            "ranks": [Value("int32")],
            "critiques": [Value("string")],
            "revision": Value("string"),
            "row": Value("int64"),
            "prompt_hash": Value("int64"),
        }
    )


def _announce(store: GroupStore, about: dict) -> None:
    """Say which format was found and what a row became of it, so that a wrong guess is seen before training."""
    how = f"found from the columns {', '.join(about['columns'])}" if about["is_found"] else "as named"
    log.info("%s: format %s, %s; %d groups from %s", store.name, store.format, how, store.num_rows, store.location)
    if store.dropped:
        log.info("%s: %d rows give no group (%s)", store.name, sum(store.dropped.values()), _counts(store.dropped))
    group = store.group(0)
    lines = [f"  {turn.role}: {_shortened(turn.content)}" for turn in group.prompt]
    lines += [
        f"  output, rank {rank}: {_shortened(output)}" for rank, output in zip(group.ranks, group.outputs, strict=True)
    ]
    log.info("%s: row %d is read as\n%s", store.name, store.dataset[0]["row"], "\n".join(lines))


def _counts(dropped: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items(), key=lambda item: -item[1]))


def _shortened(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
