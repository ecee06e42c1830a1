import numpy as np
import pytest

from coh.measures import distinct, mean, paired_difference, rank_agreement, ratio, reliability, rouge, wins


class TestIntervals:
    @pytest.mark.slow
    def test_they_hold_the_truth_as_often_as_they_say(self):
        rng = np.random.default_rng(0)
        held = [(found := mean(rng.normal(3, 2, size=100), seed=n)).low <= 3 <= found.high for n in range(200)]
        assert 0.88 <= np.mean(held) <= 0.99

    def test_they_shrink_with_the_root_of_n(self):
        rng = np.random.default_rng(0)
        few, many = (mean(rng.normal(size=n)) for n in (100, 10_000))
        assert 6 < (few.high - few.low) / (many.high - many.low) < 15

    def test_a_ratio_counts_what_is_below(self):
        # One long row outweighs many short ones: a mean of ratios would be 1.9.
        assert ratio([10.0] + [2.0] * 9, [100] + [1] * 9).value == pytest.approx(28 / 109)

    def test_what_two_ratios_share_drops_out_of_their_difference(self):
        rng = np.random.default_rng(0)
        below = rng.integers(1, 50, size=60)
        shared = below * rng.normal(3, 2, size=60)
        found = paired_difference((shared + 0.1 * below, below), (shared, below))
        assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
        assert ratio(shared, below).high - ratio(shared, below).low > 0.5
        with pytest.raises(ValueError, match="same rows"):
            paired_difference(([1.0], [1]), ([1.0, 2.0], [1, 1]))

    def test_one_row_has_a_value_and_no_interval(self):
        found = mean([4.0])
        assert (found.value, found.n) == (4.0, 1) and np.isnan(found.low) and np.isnan(found.high)
        assert np.isnan(mean([]).value) and mean([]).n == 0

    def test_the_seed_is_all_that_chance_has(self):
        values = np.random.default_rng(0).normal(size=50)
        assert mean(values, seed=1) == mean(values, seed=1) != mean(values, seed=2)


class TestAgreement:
    def test_an_oracle_its_opposite_and_a_coin(self):
        rng = np.random.default_rng(0)
        worse = rng.normal(size=4000)
        assert wins(worse + 1, worse).mean() == 1 and wins(worse - 1, worse).mean() == 0
        assert abs(wins(rng.normal(size=4000), worse).mean() - 0.5) < 0.04

    def test_ties_in_ranks_are_neither_right_nor_wrong(self):
        assert rank_agreement([5.0, 4.0, 1.0], [1, 1, 2]) == pytest.approx(rank_agreement([4.0, 5.0, 1.0], [1, 1, 2]))
        assert np.isnan(rank_agreement([1.0, 1.0], [1, 2]))


class TestReliability:
    def test_honest_scores_are_calibrated_and_boasting_ones_are_not(self):
        rng = np.random.default_rng(0)
        size = rng.exponential(1.5, size=20_000)
        right = rng.random(size=20_000) < 1 / (1 + np.exp(-size))
        honest = np.where(right, size, -size)
        assert reliability(honest).error < 0.015
        assert reliability(honest * 5).error > 0.1

    def test_every_difference_falls_in_a_bin(self):
        found = reliability([0.0, 1e-9, 500.0, -500.0])
        assert sum(found.counts) == 4 and found.counts[-1] == 2 and found.observed[-1] == 0.5


class TestTexts:
    def test_distinct(self):
        assert distinct(["one two", "one two"], 1) == 0.5
        assert np.isnan(distinct(["one"], 2))

    def test_rouge(self):
        pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install rouge-score")
        found = rouge(["The cat sat on the mat", "nothing alike"], ["The cats sat on a mat", "other words"])
        assert found["rouge1"][0] == pytest.approx(100 * 5 / 6)
        assert found["rougeL"][1] == found["rouge2"][1] == 0
