"""Several processes that do one job: who is who, who does what, and everybody's results brought together.

A program that is not launched as several processes is one process of one, and nothing here costs it anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def join() -> None:
    """Join the processes that a launcher such as torchrun started beside this one, if it did."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def rank_and_size() -> tuple[int, int]:
    """This process's number, and how many there are.

    >>> rank_and_size()
    (0, 1)
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share: every so many-th.

    >>> mine("abc")
    'abc'
    """
    rank, size = rank_and_size()
    return items[rank::size]


def gathered(results: Sequence[Item]) -> list[Item]:
    """The results of all processes for their shares, in the order of the items, in every process.

    >>> gathered(["a", "b"])
    ['a', 'b']
    """
    from torch import distributed

    _, size = rank_and_size()
    if size == 1:
        return list(results)
    shares: list[Any] = [None] * size
    distributed.all_gather_object(shares, list(results))
    found: list[Any] = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        found[rank::size] = share
    return found
