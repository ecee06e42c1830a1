"""Arrays that lie in files and not in the memory of the process, so that it does not grow with the data.

The system reads what is looked at and forgets it when it needs the room; forked workers share it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

BLOCK = 2**12  # entries that are held in memory at a time while an array is made


def mapped(blocks: Iterable[NDArray[Any]], dtype: Any, folder: Path | None = None) -> NDArray[Any]:
    """These blocks one behind the other, read-only; their file has no name and goes when the array goes.

    >>> mapped([np.arange(2), np.arange(3)], np.int8)
    array([0, 1, 0, 1, 2], dtype=int8)
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
        return opened(file, dtype)


def opened(file: IO[bytes], dtype: Any) -> NDArray[Any]:
    """What stands in an open file, as a read-only array."""
    file.flush()
    if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
        return np.zeros(0, dtype)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def starts(sizes: Iterable[NDArray[Any]]) -> Iterator[Ints]:
    """Where each thing begins, of things of these sizes that stand one behind the other.

    >>> [found.tolist() for found in starts([np.array([2, 3]), np.array([1])])]
    [[0, 2], [5]]
    """
    total = 0
    for block in sizes:
        ends = total + np.cumsum(block, dtype=np.int64)
        yield ends - block
        total = int(ends[-1]) if len(ends) else total


def blocks(dataset: Any, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Some columns of a `datasets.Dataset`, as Arrow arrays of some thousand rows at a time; nothing is copied."""
    for batch in dataset.data.table.select(list(columns)).to_batches(max_chunksize=BLOCK):
        yield tuple(batch.columns)


def list_sizes(lists: Any) -> Ints:
    """How long each list of an Arrow array is."""
    import pyarrow.compute as pc

    return pc.list_value_length(lists).to_numpy().astype(np.int64)


def folder_of(dataset: Any) -> Path | None:
    """Where the files of a `datasets.Dataset` lie; None for one in memory."""
    return Path(dataset.cache_files[0]["filename"]).parent if dataset.cache_files else None
