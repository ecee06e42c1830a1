"""Every piece of text encoded once: prompts and outputs as ids in an Arrow table that stays on disk.

A group has one piece per way its prompt is joined to the words in front of it, then one per output and way. Reading a
piece is a slice of the memory map; lengths are known for all pieces at once, from Arrow's offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.records import Message

VERSION = 1  # part of the cache's key: raise it when the same input gives other pieces


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


class GroupPieces:
    """The pieces of a source's groups.

    Args:
        dataset: the group store (columns `prompt`, `outputs`, `task` and others).
        prompt_of: gives the prompt's text for (messages, task).
        prompt_joints, output_joints: the kinds of white space that templates put in front of prompts and outputs.
    """

    def __init__(
        self,
        dataset: Any,
        encoder: Any,
        prompt_of: Any,
        prompt_joints: Sequence[str],
        output_joints: Sequence[str],
        roles: Any,
    ) -> None:
        self.prompt_joints, self.output_joints = tuple(prompt_joints), tuple(output_joints)

        def texts(batch: dict[str, list[Any]]) -> list[str]:
            found: list[str] = []
            for messages, task, outputs in zip(batch["prompt"], batch["task"], batch["outputs"]):
                prompt = prompt_of([Message(**turn) for turn in messages], task)
                found += [joint + prompt if prompt else "" for joint in self.prompt_joints]
                found += [joint + output for joint in self.output_joints for output in outputs]
            return found

        cache_key = ["groups", self.prompt_joints, self.output_joints, sorted(dict(roles).items())]
        self.table = encode_column(dataset, texts, encoder, cache_key, "Encoding feedback")
        import pyarrow.compute as pc

        self.num_outputs = counts = pc.list_value_length(dataset.data.column("outputs")).to_numpy().astype(np.int64)
        sizes = len(self.prompt_joints) + len(self.output_joints) * counts
        self._first = np.cumsum(sizes) - sizes

    def prompt(self, group: NDArray[np.int64], joint: int) -> NDArray[np.int64]:
        """The piece numbers of these groups' prompts."""
        return self._first[group] + joint

    def output(self, group: NDArray[np.int64], output: NDArray[np.int64], joint: int) -> NDArray[np.int64]:
        """The piece numbers of one output of each of these groups."""
        return self._first[group] + len(self.prompt_joints) + joint * self.num_outputs[group] + output
