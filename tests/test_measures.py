import numpy as np
import pytest

from coh.measures import (
    distinct,
    mean,
    paired_difference,
    rank_agreement,
    ratio,
    reliability,
    rouge,
    share,
    sign_test,
    wins,
)


def holds(found, truth):
    return found.low <= truth <= found.high


class TestIntervals:
    @pytest.mark.parametrize(("n", "true_share"), [(3, 0.9), (10, 0.5), (10, 0.9), (40, 0.5), (40, 0.9)])
    def test_shares_hold_the_truth_of_few_and_of_one_sided_pairs(self, n, true_share):
        rng = np.random.default_rng(0)
        draws = [rng.random(n) < true_share for _ in range(500)]
        assert 0.91 <= np.mean([holds(share(won), true_share) for won in draws]) <= 0.995

    def test_pairs_of_one_prompt_are_not_taken_for_independent_ones(self):
        """Prompts differ in how hard they are, and each has four pairs; what ignores that is sure too early."""
        rng, prompts, zeros = np.random.default_rng(0), np.repeat(np.arange(30), 4), np.zeros(120)
        found = {"share": [], "share, pairs alone": [], "mean": [], "mean, pairs alone": []}
        for _ in range(200):
            won = rng.random(120) < np.repeat(rng.beta(0.7, 0.3, size=30), 4)
            values = np.repeat(rng.normal(2, 1, size=30), 4) + rng.normal(size=120)
            sides = (values, zeros + 1), (zeros, zeros + 1)
            for name, keys in (("", prompts), (", pairs alone", None)):
                found[f"share{name}"].append(holds(share(won, keys), 0.7))
                found[f"mean{name}"].append(holds(paired_difference(*sides, prompts=keys), 2))
        held = {name: np.mean(hits) for name, hits in found.items()}
        assert 0.9 <= held["share"] <= 0.99 and 0.9 <= held["mean"] <= 0.99, held
        assert held["share, pairs alone"] < 0.85 and held["mean, pairs alone"] < 0.85, held

    def test_pairs_that_stand_there_three_times_say_no_more_than_once(self):
        rng = np.random.default_rng(1)
        prompts, values, sizes = np.arange(30), rng.normal(size=30), rng.integers(1, 9, size=30)
        won = np.where(values > 0.3, 1.0, 0.0)
        thrice = lambda rows: np.repeat(rows, 3)  # noqa: E731
        for once, again in (
            (mean(values), mean(thrice(values), prompts=thrice(prompts))),
            (ratio(values, sizes), ratio(thrice(values), thrice(sizes), prompts=thrice(prompts))),
            (share(won), share(thrice(won), thrice(prompts))),
            (share(won > -1), share(thrice(won > -1), thrice(prompts))),  # all won
            (
                paired_difference((values, sizes), (won, sizes)),
                paired_difference(
                    (thrice(values), thrice(sizes)), (thrice(won), thrice(sizes)), prompts=thrice(prompts)
                ),
            ),
        ):
            assert (again.value, again.low, again.high, again.n) == pytest.approx((once.value, once.low, once.high, 90))
        assert sign_test(thrice(values), thrice(prompts)) == sign_test(values)

    def test_prompts_that_all_differ_change_nothing(self):
        rng = np.random.default_rng(2)
        values, sizes, keys = rng.normal(size=50), rng.integers(1, 9, size=50), [f"prompt {n}" for n in range(50)][::-1]
        assert mean(values, prompts=keys) == mean(values)
        assert ratio(values, sizes, prompts=keys) == ratio(values, sizes)
        sides = (values, sizes), (sizes, sizes)
        assert paired_difference(*sides, prompts=keys) == paired_difference(*sides)
        assert share(values > 0, keys) == share(values > 0)

    def test_one_prompt_has_no_interval_however_many_pairs(self):
        for found in (mean([1.0, 2.0], prompts="aa"), share([1, 0], "aa"), share([1]), share([])):
            assert np.isnan(found.low) and np.isnan(found.high)
        assert mean([1.0, 2.0], prompts="aa").value == 1.5 and share([1, 0.5], "ab").value == 0.75

    def test_shares_stay_between_none_and_all(self):
        for won in ([1, 1, 1], [0, 0, 0], [1] * 99 + [0], [0.5] * 4):
            found = share(won)
            assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
        assert share([1, 1, 1]).high == 1 and share([0, 0, 0]).low == 0

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

    def test_chance_puts_a_few_pairs_on_one_side(self):
        assert sign_test([-2.0, -1.0, -1.0, -5.0, 0.0, 0.0]) == 2 / 2**4
        assert sign_test([3.0] * 9 + [-1.0]) == pytest.approx(2 * (1 + 10) / 2**10)
        assert sign_test([0.0, 0.0]) == sign_test([]) == 1


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
