"""Every piece of text encoded once: prompts, outputs and critiques as ids in an Arrow table that stays on disk.

A group has one piece per way its prompt is joined to the words in front of it, then one per output and way, one per
critique and way, and one per segment of a chain that brings its own words. Reading a piece is a slice of the memory
map; lengths are known for all pieces at once, from Arrow's offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coh.data.records import Message, joined

Ints = NDArray[np.int64]

VERSION = 2  # part of the cache's key: raise it when the same input gives other pieces


class IdTable:
    """Lists of ids in the memory-mapped column `ids` of a `datasets.Dataset`, as zero-copy slices."""

    def __init__(self, dataset: Any) -> None:
        chunks = [chunk for chunk in dataset.data.column("ids").chunks if len(chunk)]
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._first = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets] or [np.zeros(0)]).astype(np.int32)

    def __getitem__(self, number: int) -> NDArray[np.int32]:
        chunk = int(np.searchsorted(self._first, number, side="right")) - 1
        start = number - int(self._first[chunk])
        offsets = self._offsets[chunk]
        return self._values[chunk][offsets[start] : offsets[start + 1]]


def encode_column(dataset: Any, texts: Any, encoder: Any, cache_key: Sequence[Any], description: str) -> IdTable:
    """Encodes what `texts(batch)` finds in each batch of a dataset; cached under the tokenizer and `cache_key`."""
    from datasets import Features, List, Value
    from datasets.fingerprint import Hasher

    key = [VERSION, dataset._fingerprint, encoder.fingerprint, *cache_key]

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"ids": encoder.encode(texts(batch))}

    return IdTable(
        dataset.map(
            encode,
            batched=True,
            batch_size=256,
            writer_batch_size=16384,
            remove_columns=dataset.column_names,
            features=Features({"ids": List(Value("int32"))}),
            new_fingerprint=Hasher.hash(key),
            desc=description,
        )
    )


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
        columns = ("prompt", "task", "outputs", "critiques", "verbatim")

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

        self.table = encode_column(dataset, texts, encoder, ["groups", *joints, form.key], "Encoding feedback")
        import pyarrow.compute as pc

        self._num_outputs, num_verbatim = (
            pc.list_value_length(dataset.data.column(column)).to_numpy().astype(np.int64)
            for column in ("outputs", "verbatim")
        )
        per_output = len(joints.output) + len(joints.critique)
        sizes = len(joints.prompt) + per_output * self._num_outputs + num_verbatim
        self._first = np.cumsum(sizes) - sizes

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
