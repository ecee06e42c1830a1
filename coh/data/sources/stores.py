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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coh.data.mapped import folder_of, mapped
from coh.data.records import FeedbackError, FeedbackGroup, visible
from coh.data.sources.fields import MOST_NAMES, shortened
from coh.data.sources.formats import FORMATS, check_format
from coh.data.sources.naming import find_format, parse_columns, renamed
from coh.data.sources.reading import RowSource, columns_of, open_source
from coh.data.sources.scores import SCORING, Scoring, parse_attributes
from coh.data.sources.specs import SourceSpec
from coh.data.sources.tables import counts, group_of, shown, table_rows, write_table

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("coh")

CODE_VERSION = 5  # to be raised with every change of what a row becomes, so that older tables are not found
NUM_FIRST_ROWS = 20  # rows that are looked at to find a format

_ABOUT = "about.json"  # beside each table: where it is from, and what was dropped


@dataclass(frozen=True, eq=False)
class GroupStore:
    """The groups of one split of a source, in the order of their rows.

    `dataset` has the columns of `FeedbackGroup`, and besides row (the number of the group's first row in its file, from
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
        column = self.dataset.data.column("prompt_hash")
        return mapped((block.to_numpy() for block in column.chunks), np.int64, folder_of(self.dataset))

    def group(self, index: int) -> FeedbackGroup:
        return group_of(self.dataset[int(index)], self.name)


def load_groups(
    spec: SourceSpec,
    *,
    feedback_format: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    tie_margin: float = 0.0,
    attributes: str | Sequence[str] | None = None,
    columns: Sequence[str] = (),
) -> dict[str, GroupStore]:
    """The groups of a source by split; a file has one split, "train".

    `feedback_format` decides where the source's own name does not (the built-in names have their formats); "auto"
    finds it from the columns. Scores that differ by no more than `tie_margin` are a tie; `attributes`, such as
    "helpfulness=0.65,correctness=0.8", make up a score where outputs are rated by several. `columns`, such as
    "prompt=question", name the columns of a source that has no format by its name. Says aloud what was found, with an
    example. Raises `FeedbackError` where a row has to be mended, or where no row gives a group.
    """
    scoring = Scoring(tie_margin, parse_attributes(attributes) if attributes else SCORING.attributes)
    if feedback_format != "auto":
        check_format(feedback_format)
    if spec.format == "auto":
        spec = replace(spec, format=feedback_format, columns=tuple(sorted(parse_columns(columns).items())))
    root = _cache_root(cache_dir)
    try:
        sources = open_source(spec, cache_dir)
    except FeedbackError as error:
        folders = _read_earlier(spec, scoring, root)
        if spec.kind != "hub" or not folders:
            raise
        log.warning("%s; the groups that were read from it earlier are used", error)
    else:
        folders = {split: _built(spec, scoring, split, source, root) for split, source in sources.items()}
    return {split: _open_store(spec, folder) for split, folder in folders.items()}


def _cache_root(cache_dir: str | os.PathLike | None) -> Path:
    import datasets

    root = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "coh_groups"
    root.mkdir(parents=True, exist_ok=True)
    return root


def _built(spec: SourceSpec, scoring: Scoring, split: str, source: RowSource, root: Path) -> Path:
    """The folder of a split's table, which is made if it is not there."""
    from filelock import FileLock

    made_of = json.dumps([CODE_VERSION, source.identity, spec.format, spec.columns, spec.limit, asdict(scoring)])
    folder = root / f"{spec.name}-{blake2b(made_of.encode(), digest_size=8).hexdigest()}"
    with FileLock(f"{folder}.lock"):  # several processes of one run: the first reads, the others find
        if not folder.exists():
            _build(spec, scoring, split, source, folder)
    return folder


def _read_earlier(spec: SourceSpec, scoring: Scoring, root: Path) -> dict[str, Path]:
    """The latest tables of the very same source: what is left where the hub is out of reach.

    `datasets` itself finds in its cache only what was loaded without a folder or a branch, so not webgpt or summarize.
    """
    found = sorted(root.glob(f"{spec.name}-*/{_ABOUT}"), key=lambda file: file.stat().st_mtime)
    abouts = [(file.parent, json.loads(file.read_text(encoding="utf-8"))) for file in found]
    return {about["split"]: folder for folder, about in abouts if about["made_by"] == _made_by(spec, scoring)}


def _made_by(spec: SourceSpec, scoring: Scoring) -> list:
    """All that a table depends on besides the rows, in the form in which JSON gives it back."""
    return json.loads(json.dumps([CODE_VERSION, asdict(spec), asdict(scoring)]))


def _open_store(spec: SourceSpec, folder: Path) -> GroupStore:
    import datasets

    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    tables = [datasets.Dataset.from_file(str(file)) for file in sorted(folder.glob("[0-9]*.arrow"))]
    dataset = datasets.concatenate_datasets(tables)
    store = GroupStore(spec.name, about["format"], about["location"], about["dropped"], dataset)
    _announce(store, about)
    return store


def _build(spec: SourceSpec, scoring: Scoring, split: str, source: RowSource, folder: Path) -> None:
    """Read the rows into a table under another name; only what is whole gets `folder`'s name."""
    first_rows = [row for _, row in islice(source.read(None), NUM_FIRST_ROWS)]
    columns = columns_of(first_rows)
    try:
        name, mapped = find_format(columns, first_rows, spec.format, dict(spec.columns))
    except FeedbackError as error:
        raise FeedbackError(f"{source.location}: {error}") from None
    dropped: Counter[str] = Counter()
    places: dict[str, list[int]] = {}
    source = renamed(source, mapped)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was stopped
    partial.mkdir()
    try:
        rows = table_rows(source, FORMATS[name], scoring, spec.limit, dropped, places)
        write_table(rows, partial / "00000.arrow")
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    about = {
        "location": source.location,
        "split": split,
        "made_by": _made_by(spec, scoring),
        "format": name,
        "is_found": spec.format == "auto",
        "columns": columns,
        "read_as": {theirs: name for name, theirs in mapped.items()},
        "dropped": dict(dropped),
        "dropped_at": places,
        "unit": source.unit,
    }
    (partial / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    os.replace(partial, folder)


def _listed(columns: Sequence[str]) -> str:
    """The names of columns, as a terminal may show them."""
    more = f" and {len(columns) - MOST_NAMES} more" if len(columns) > MOST_NAMES else ""
    return visible(", ".join(map(shortened, columns[:MOST_NAMES]))).replace("\n", " ") + more


def _announce(store: GroupStore, about: dict) -> None:
    """Say which format was found and what a row became of it, so that a wrong guess is seen before training."""
    how = f"found from the columns {_listed(about['columns'])}" if about["is_found"] else "as named"
    log.info("%s: format %s, %s; %d groups from %s", store.name, store.format, how, store.num_rows, store.location)
    for theirs, ours in about["read_as"].items():
        log.info("%s: column %r is read as %s", store.name, shortened(theirs), ours)
    if store.dropped:
        why = counts(store.dropped, about["dropped_at"], about["unit"])
        log.info("%s: %d rows give no group (%s)", store.name, sum(store.dropped.values()), why)
    lines = "\n".join(f"  {line}" for line in shown(store.group(0)))
    log.info("%s: row %d is read as\n%s", store.name, store.dataset[0]["row"], lines)
