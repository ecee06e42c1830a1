"""Draws are functions of (seed, purpose, counters) and the same on every machine."""

from coh.data import draws


def test_same_question_same_answer_and_every_part_counts():
    assert draws.key(1, "order", 2, 3) == draws.key(1, "order", 2, 3)
    others = {
        draws.key(2, "order", 2, 3),
        draws.key(1, "rows", 2, 3),
        draws.key(1, "order", 3, 2),
        draws.key(1, "order", 23),
    }
    assert draws.key(1, "order", 2, 3) not in others and len(others) == 4


def test_keys_are_fixed_for_ever():
    # A change here would change the rows of every seed: a run could not be repeated.
    assert draws.key(0, "order", 0) == 6942163024847554866
    assert 0 <= draws.key(10**12, "x") < 2**64
