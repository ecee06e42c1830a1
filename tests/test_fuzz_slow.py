"""The fuzzing of tests/test_fuzz.py with more cases, and with what is read into tables on disk."""

import pytest
from nasty import TARGETS, attack

pytestmark = pytest.mark.slow

FAST_CASES, SLOW_CASES = 150, 60


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_only_own_errors_come_out_of_many_cases(target):
    num_cases = SLOW_CASES if target.is_slow else FAST_CASES
    assert attack(target, num_cases) >= num_cases / 2
