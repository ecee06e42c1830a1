"""Every piece of text encoded once: prompts, outputs and critiques as ids in a file that is mapped into memory.

A group has one piece per way its prompt is joined to the words in front of it, then one per output and way, one per
critique and way, and one per segment of a chain that brings its own words. Reading a piece is a slice of the memory
map, and so is its length.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from coh.data.mapped import Ints, blocks, folder_of, list_sizes, mapped, opened, starts
from coh.data.records import Message, joined

VERSION = 3  # part of the cache's key: raise it when the same input gives other pieces
BATCH = 1024  # groups or texts that are encoded at a time


class IdTable:
    """Lists of ids, one behind the other: list n has the `values` from `starts[n]` to `starts[n + 1]`."""

    def __init__(self, folder: Path) -> None:
        with (folder / "values").open("rb") as values, (folder / "starts").open("rb") as borders:
            self.values: NDArray[np.int32] = opened(values, np.int32)
            self.starts: Ints = opened(borders, np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> NDArray[np.int32]:
        return self.values[self.starts[number] : self.starts[number + 1]]

    def lengths(self, numbers: Ints) -> Ints:
        """How many ids each of these lists has."""
        return self.starts[numbers + 1] - self.starts[numbers]


def encode_column(dataset: Any, texts: Any, encoder: Any, cache_key: Sequence[Any], description: str) -> IdTable:
    """Encodes what `texts(batch)` finds in each batch of a dataset; kept beside it under the tokenizer and `cache_key`.

    A dataset in memory has no place for them; then they go with the table.
    """
    from filelock import FileLock

    key = repr([VERSION, dataset._fingerprint, encoder.fingerprint, *cache_key])
    name = f"coh-ids-{blake2b(key.encode(), digest_size=8).hexdigest()}"
    kept_in = folder_of(dataset)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (kept_in or Path(scratch)) / name
        with FileLock(f"{folder}.lock"):  # several processes of one run: the first encodes, the others find
            if not folder.exists():
                partial = folder.with_name(f"{name}.partial")
                shutil.rmtree(partial, ignore_errors=True)  # left by a run that was stopped
                partial.mkdir()
                _encode(dataset, texts, encoder, partial, description)
                os.replace(partial, folder)
        return IdTable(folder)


def _encode(dataset: Any, texts: Any, encoder: Any, folder: Path, description: str) -> None:
    """Writes the files of an `IdTable`."""
    bulk, table, total = encoder.bulk(), dataset.with_format("arrow"), 0
    with (folder / "values").open("wb") as values, (folder / "starts").open("wb") as borders:
        borders.write(np.int64(0).tobytes())
        for begin in tqdm(range(0, len(dataset), BATCH), desc=description, disable=None, leave=False):
            ids = bulk.encode(texts(table[begin : begin + BATCH].to_pydict()))
            values.write(b"".join(ids))
            ends = total + np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids))) // np.int32().itemsize
            borders.write(ends.tobytes())
            total = int(ends[-1]) if len(ends) else total


class Joints(NamedTuple):
    """The kinds of white space that templates put in front of prompts, outputs and critiques."""

    prompt: tuple[str, ...]
    output: tuple[str, ...]
    critique: tuple[str, ...]


class GroupPieces:
    """The pieces of a source's groups.

    Args:
        dataset: the group store (columns `prompt`, `outputs`, `task` and others).
        form: how prompts are written.
        joints: what the templates need.
    """

    def __init__(self, dataset: Any, encoder: Any, form: Any, joints: Joints) -> None:
        self.joints = joints
        columns = ["prompt", "task", "outputs", "critiques", "verbatim"]

        def texts(batch: dict[str, list[Any]]) -> list[str]:
            found: list[str] = []
            for messages, task, outputs, critiques, verbatim in zip(*(batch[column] for column in columns)):
                prompt = form.write([Message(**turn) for turn in messages], task) if joints.prompt else ""
                found += [joined(joint, prompt) if prompt else "" for joint in joints.prompt]
                found += [joined(joint, output) for joint in joints.output for output in outputs]
                said = critiques or [""] * len(outputs)
                found += [joint + words if words else "" for joint in joints.critique for words in said]
                found += [joined(" " if place else "", part["text"]) for place, part in enumerate(verbatim)]
            return found

        self.table = encode_column(
            dataset.select_columns(columns), texts, encoder, ["groups", *joints, form.key], "Encoding feedback"
        )
        per_output = len(joints.output) + len(joints.critique)
        sizes = (
            len(joints.prompt) + per_output * list_sizes(outputs) + list_sizes(own_words)
            for outputs, own_words in blocks(dataset, "outputs", "verbatim")
        )
        num_outputs = (list_sizes(outputs) for (outputs,) in blocks(dataset, "outputs"))
        self._num_outputs = mapped(num_outputs, np.int64, folder_of(dataset))
        self._first = mapped(starts(sizes), np.int64, folder_of(dataset))

    def prompt(self, group: Ints, joint: Ints) -> Ints:
        """The piece numbers of these groups' prompts."""
        return self._first[group] + joint

    def output(self, group: Ints, output: Ints, joint: Ints | int) -> Ints:
        """The piece numbers of one output of each of these groups."""
        return self._first[group] + len(self.joints.prompt) + joint * self._num_outputs[group] + output

    def critique(self, group: Ints, output: Ints, joint: Ints) -> Ints:
        """The piece numbers of what was said of one output of each of these groups."""
        return self.output(group, output, len(self.joints.output) + joint)

    def verbatim(self, group: Ints, segment: Ints) -> Ints:
        """The piece numbers of one segment of each of these groups' own chains."""
        return self.output(group, segment, len(self.joints.output) + len(self.joints.critique))
