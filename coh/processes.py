"""Several processes that do one job: who is who, who does what, and everybody's results brought together.

A program that is not launched as several processes is one process of one, and nothing here costs it anything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = timedelta(days=7)  # how long processes wait for what the first one does alone


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
    shares = _from_all(list(results))
    found: list[Any] = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        found[rank :: len(shares)] = share
    return found


def _from_all(value: Item) -> list[Item]:
    """Every process's value, in every process."""
    from torch import distributed

    _, size = rank_and_size()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    distributed.all_gather_object(values, value)
    return values


def dealt(items: Sequence[Item], work: Callable[[Item], Result], progress: str = "") -> list[Result]:
    """What the work makes of each item: every process does its share, and all of them get all results.

    `progress` is what a bar says, of the first process's share; none without it.

    >>> dealt([1, 2, 3], lambda number: number + 1)
    [2, 3, 4]

    Raises:
        ValueError: what stopped one process, in all of them, so that none waits for the others.
    """
    found, problem = [], None
    is_silent = not progress or rank_and_size()[0] > 0
    try:
        found = [work(item) for item in tqdm(mine(items), desc=progress, disable=is_silent, leave=False)]
    except ValueError as error:
        problem = error
    problems = [problem, *_from_all(problem)]  # its own first, which knows its cause
    for stopped in filter(None, problems):
        raise stopped
    return gathered(found)


def from_first(make: Callable[[], Result]) -> Result:
    """What the first process makes, in every process; the others wait for up to a week.

    >>> from_first(lambda: 3)
    3

    Raises:
        ValueError: what stopped the first process, in all of them.
    """
    from torch import distributed

    rank, size = rank_and_size()
    if size == 1:
        return make()
    # A group of its own: the one that all share gives up after minutes.
    waiting = distributed.new_group(backend="gloo", timeout=PATIENCE)
    found: list[Any] = [None, None]
    if rank == 0:
        try:
            found[0] = make()
        except ValueError as error:
            found[1] = error
    distributed.broadcast_object_list(found, src=0, group=waiting)
    distributed.destroy_process_group(waiting)
    if found[1] is not None:
        raise found[1]
    return found[0]


@cache
def warn_once(message: str) -> None:
    """A warning by the first process, the first time that it is asked to give it."""
    if rank_and_size()[0] == 0:
        logging.getLogger("coh").warning(message)
