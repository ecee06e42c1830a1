"""Several processes that do one job: everybody has everything, in order, and nobody waits for one that failed."""

import multiprocessing
import random
import traceback

import pytest

from coh.processes import dealt, from_first, gathered, mine, rank_and_size, warn_once


def together(work, size=2):
    """What `work(rank)` gives in each of some processes that are one group."""
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), random.randint(20000, 60000)
    children = [context.Process(target=_child, args=(work, rank, size, port, answers)) for rank in range(size)]
    for child in children:
        child.start()
    try:
        found = dict(answers.get(timeout=120) for _ in children)
    finally:
        for child in children:
            child.join(10)
            child.kill()
    failed = [answer for answer in found.values() if isinstance(answer, str) and answer.startswith("Traceback")]
    assert not failed, failed[0]
    return [found[rank] for rank in range(size)]


def _child(work, rank, size, port, answers):
    import torch
    from torch import distributed

    torch.set_num_threads(1)  # threads of the parent are not there
    try:
        distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        answers.put((rank, work(rank)))
        distributed.destroy_process_group()
    except BaseException:
        answers.put((rank, traceback.format_exc()))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_everybody_has_all_results_in_order(size, number):
    expected = [item * item for item in range(number)]
    found = together(
        lambda rank: (rank_and_size(), list(mine(range(number))), dealt(range(number), lambda n: n * n)), size
    )
    assert [results for _, _, results in found] == [expected] * size
    assert sorted(item for _, own, _ in found for item in own) == list(range(number))
    assert [who for who, _, _ in found] == [(rank, size) for rank in range(size)]


def test_gathered_puts_shares_in_their_places():
    assert together(lambda rank: gathered([f"{rank}.{n}" for n in range(2 - rank)])) == [["0.0", "1.0", "0.1"]] * 2


def test_what_stops_one_process_stops_all():
    def work(rank):
        def fail(item):
            if item == 1:
                raise ValueError(f"item {item} is bad")
            return item

        with pytest.raises(ValueError, match="item 1 is bad"):
            dealt(range(6), fail)
        return dealt([1, 2, 3], str)  # and they still work together

    assert together(work) == [["1", "2", "3"]] * 2
    with pytest.raises(ValueError, match="item 1"):
        dealt([0], lambda item: (_ for _ in ()).throw(ValueError("item 1")))


def test_what_the_first_does_alone_all_have_and_its_error_too():
    def work(rank):
        def fail():
            raise ValueError("the first failed")

        with pytest.raises(ValueError, match="the first failed"):
            from_first(fail)
        return from_first(lambda: f"made by {rank}")

    assert together(work, 3) == ["made by 0"] * 3


def test_a_warning_is_given_once_and_by_the_first(caplog):
    warn_once.cache_clear()
    for _ in range(3):
        warn_once("mind this")
    assert [record.message for record in caplog.records] == ["mind this"]
