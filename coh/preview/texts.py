"""What stands in the texts of the groups: duplicates, special tokens written out, prompts on both sides of a split.

All of it works on whole Arrow columns, a chunk at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.data.chains import Source

_ODD = np.uint64(0x9E3779B97F4A7C15)


def num_duplicates(sources: Sequence[Source]) -> dict[str, int]:
    """For each source, its groups whose prompt and outputs, in whatever order, an earlier group has already."""
    keys = [_group_keys(source) for source in sources]
    _, first = np.unique(np.concatenate(keys), return_index=True)
    is_first = np.zeros(sum(map(len, keys)), bool)
    is_first[first] = True
    ends = np.cumsum([len(own) for own in keys])
    return {source.name: int((~is_first[end - len(own) : end]).sum()) for source, own, end in zip(sources, keys, ends)}


def _group_keys(source: Source) -> NDArray[np.uint64]:
    """A number for each group in use, the same for the same prompt and outputs."""
    found = []
    for chunk in source.store.dataset.data.column("outputs").chunks:
        texts = chunk.flatten().to_pylist()
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts)).astype(np.uint64) * _ODD
        found.append(_sums(chunk, hashes ^ (hashes >> np.uint64(29))))
    prompts = source.store.prompt_hashes.astype(np.uint64) * _ODD
    return (np.concatenate([np.zeros(0, np.uint64), *found]) + (prompts ^ (prompts >> np.uint64(31))))[source.indices]


def num_with_literals(source: Source, literals: Sequence[str]) -> dict[str, int]:
    """How many of a source's groups have one of these texts in their prompt, and how many in an output."""
    import pyarrow.compute as pc

    pattern = "|".join(map(re.escape, literals))

    def count(column: str, field: str | None) -> int:
        found = [np.zeros(0, bool)]
        for chunk in source.store.dataset.data.column(column).chunks:
            texts = pc.struct_field(chunk.flatten(), field) if field else chunk.flatten()
            matches = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
            found.append(_sums(chunk, matches.astype(np.uint64)) > 0)
        return int(np.concatenate(found)[source.indices].sum())

    return {"prompt": count("prompt", "content"), "output": count("outputs", None)}


def num_shared_prompts(datasets: Mapping[str, Any]) -> int:
    """Prompts that are trained on and evaluated on."""
    hashes = {
        split: np.concatenate([source.store.prompt_hashes[source.indices] for source in dataset.chains.sources])
        for split, dataset in datasets.items()
    }
    held_out = [own for split, own in hashes.items() if split != "train"]
    return len(np.intersect1d(hashes["train"], np.concatenate(held_out))) if held_out else 0


def _sums(lists: Any, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The sum of the values in each list of an Arrow array, modulo 2^64; `values` has one for each item."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(lists).to_numpy()
    ends = np.cumsum(lengths)
    before = np.append(np.uint64(0), np.cumsum(values, dtype=np.uint64))
    return before[ends] - before[ends - lengths]
