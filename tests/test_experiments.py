"""The ablation: every arm starts, what is done stays done, a killed run leaves nothing, and tables follow from JSON."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from toys import byte_tokenizer, pairs, training_folder, write_rows

from coh.data.records import FeedbackError, FeedbackGroup, as_messages
from coh.data.templates import load_family
from coh.experiments import command, preference, training
from coh.experiments.arms import ARMS, BASE, REFERENCE, Run, wanted_runs
from coh.experiments.command import ExperimentsArgs, main, options
from coh.experiments.comparing import (
    Measured,
    Rows,
    accuracy_resolution,
    compared,
    mean_resolution,
    paired_difference,
    rows_of,
    verdict,
)
from coh.experiments.records import RESULT, SETTINGS, check_settings, claim, measured, read_results
from coh.experiments.scoring import choose_pairs
from coh.experiments.tables import ORDERINGS, differences_table, drift, figures_table, orderings_table, page
from coh.measures import Estimate
from coh.saved import Words
from coh.steering import Steering

ROOT = Path(__file__).parents[1]
HAS_TRL = find_spec("trl") is not None
TOKENS = 1500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("experiments"))


def arguments(folder, output, *more):
    return [
        *("ablation", "--model_name", str(folder / "model"), "--feedback_data", f"mine={folder / 'pairs.jsonl'}"),
        *("--pretrain_data", str(folder / "text.jsonl"), "--tokens", str(TOKENS), "--seq_length", "256"),
        *("--rows_per_step", "1", "--max_pairs", "12", "--seeds", "0", "--use_cpu", "--learning_rate", "1e-3"),
        *("--cache_dir", str(folder / "cache"), "--output_dir", str(output), *more),
    ]


TRAINED = [name for name, arm in ARMS.items() if arm.trainer == "coh"]


@pytest.fixture(scope="module")
def finished(folder):
    """A folder with every arm but dpo, and one of them with two seeds."""
    output = folder / "out"
    main(arguments(folder, output, "--arms", BASE, *TRAINED))
    main(arguments(folder, output, "--arms", REFERENCE, "--seeds", "0,1"))
    return output


# What there is to run


def test_an_arm_differs_from_the_reference_in_one_option():
    reference = ARMS[REFERENCE].settings
    for name, arm in ARMS.items():
        changed = {key for key in {*reference, *arm.settings} if reference.get(key) != arm.settings.get(key)}
        assert len(changed) == (name in TRAINED and name != REFERENCE), name


def test_the_most_telling_runs_come_first_and_none_twice():
    runs = wanted_runs(list(ARMS), [0, 1, 2], [0])
    assert [run.arm for run in runs[:5]] == ["base", "coh", "sft", "p_n", "dpo"]
    assert all(run.seed == 0 for run in runs[: len(ARMS)])
    assert len(runs) == len(set(runs)) == len(ARMS) + 2 * 4


def test_every_ordering_is_about_arms_that_there_are():
    assert {name for first, second, _ in ORDERINGS for name in (first, second)} <= set(ARMS)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--arms", "coh", "sfd"], "--arms sfd: choose among base, coh"),
        (["--tokens", "0"], "--tokens 0: give 1 or more"),
        (["--held_out", "1"], "--held_out 1.0: give a share"),
        (["--seeds=-1"], "--seeds -1: give numbers of 0 or more"),
        (["--threads", "0"], "--threads 0: give 1 or more"),
        (["--experiment", "sweep"], "'sweep' is not one of ablation"),
    ],
)
def test_wrong_options_are_said_before_any_work(folder, tmp_path, capsys, more, said):
    with pytest.raises(SystemExit) as stopped:
        main(arguments(folder, tmp_path / "out", *more))
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_training_are_tried_before_any_work(folder, tmp_path):
    """What one arm alone would stumble over hours later stops the command at once."""
    with pytest.raises(SystemExit, match="positions"):
        main(arguments(folder, tmp_path / "out", "--seq_length", "4096", "--arms", "base", "coh"))
    assert not list(tmp_path.glob(f"out/*/{RESULT}"))


@pytest.mark.slow
def test_without_trl_the_other_arms_go_on(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(command, "is_installed", lambda: False)
    with caplog.at_level("WARNING", "coh"):
        main(arguments(folder, tmp_path / "out", "--arms", "base", "dpo"))
    assert "pip install 'trl" in caplog.text
    assert set(read_results(tmp_path / "out")) == {Run("base", 0)}


# Running


@pytest.mark.slow
def test_every_arm_leaves_a_result_and_nothing_else(finished):
    results = read_results(finished)
    assert set(results) == {Run(arm, 0) for arm in (BASE, *TRAINED)} | {Run(REFERENCE, 1)}
    for run in results:
        assert sorted(path.name for path in (finished / run.name).iterdir()) == ["lock", RESULT]


@pytest.mark.slow
def test_budgets_are_equal_and_true(finished):
    """Every arm reads as many tokens as asked for, and at most a step more."""
    for run, result in read_results(finished).items():
        if run.arm != BASE:
            spent = result["training"]
            assert TOKENS <= spent["tokens"] < TOKENS + 256, run
            assert spent["compute"] == spent["tokens"] and spent["text_tokens"] > 0
            assert 0 < spent["targets"] < spent["tokens"]


@pytest.mark.slow
def test_every_run_is_measured_on_the_same_pairs_which_it_did_not_train_on(folder, finished):
    results = read_results(finished)
    prompts = [[pair["prompt"] for pair in result["pairs"]] for result in results.values()]
    assert len(prompts[0]) == 12 and all(own == prompts[0] for own in prompts)
    args = ExperimentsArgs(str(folder / "model"), [f"mine={folder / 'pairs.jsonl'}"], cache_dir=str(folder / "cache"))
    parsed = training.parsed(options(args, Run(REFERENCE, 0), folder / "any"))
    (source,) = training.training_set(*parsed).chains.sources
    trained = {f"{source.store.prompt_hashes[index]:016x}" for index in source.indices}
    assert trained and not trained & set(prompts[0])


@pytest.mark.slow
def test_what_is_done_is_not_done_again(folder, finished, monkeypatch):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.glob(f"*/{RESULT}")}
    monkeypatch.setattr(command, "do", lambda *_: pytest.fail("a run that is done was begun"))
    main(arguments(folder, finished, "--arms", BASE, *TRAINED))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.glob(f"*/{RESULT}")} == before


@pytest.mark.slow
def test_an_arm_is_the_same_in_any_company(folder, finished, tmp_path):
    """What ran before it in the process changes nothing: no random number, no weight is left over."""
    main(arguments(folder, tmp_path / "out", "--arms", "fcm_15"))
    (alone,) = read_results(tmp_path / "out").values()
    assert alone["pairs"] == read_results(finished)[Run("fcm_15", 0)]["pairs"]


@pytest.mark.slow
def test_other_settings_are_refused(folder, finished):
    with pytest.raises(SystemExit, match=r"max_pairs was 12, now 11.*choose another --output_dir"):
        main(arguments(folder, finished, "--max_pairs", "11"))


@pytest.mark.slow
def test_a_failed_arm_leaves_no_result_and_is_begun_again(folder, tmp_path, monkeypatch):
    output, scored = tmp_path / "out", command.pair_scores

    def fail(*_):
        raise FeedbackError("no more")

    monkeypatch.setattr(command, "pair_scores", fail)
    with pytest.raises(SystemExit, match="no more"):
        main(arguments(folder, output, "--arms", "coh"))
    assert [path.name for path in (output / "coh-0").iterdir()] == ["lock"]
    monkeypatch.setattr(command, "pair_scores", scored)
    main(arguments(folder, output, "--arms", "coh"))
    assert set(read_results(output)) == {Run("coh", 0)}


@pytest.mark.slow
def test_a_killed_arm_leaves_no_result_and_is_begun_again(folder, tmp_path):
    output = tmp_path / "out"
    words = arguments(folder, output, "--arms", "coh", "--tokens", "10000000")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-m", "coh.experiments", *words], env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (output / "coh-0" / "work").exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert (output / "coh-0" / "work").exists() and not (output / "coh-0" / RESULT).exists()
    (output / SETTINGS).unlink()  # of the endless budget
    main(arguments(folder, output, "--arms", "coh"))
    assert sorted(path.name for path in (output / "coh-0").iterdir()) == ["lock", RESULT]


def test_two_processes_do_not_do_the_same(tmp_path):
    run = Run("coh", 0)
    (tmp_path / run.name).mkdir()
    with (tmp_path / run.name / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with claim(tmp_path, run) as place:
            assert place is None
    with claim(tmp_path, run) as place:
        assert place is not None and place.is_dir()
        with claim(tmp_path, run) as again:
            assert again is None
    assert not place.exists()
    (tmp_path / run.name / RESULT).write_text("{}")
    with claim(tmp_path, run) as place:
        assert place is None


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "coh-0").mkdir()
    (tmp_path / "coh-0" / RESULT).write_text("{")
    with pytest.raises(FeedbackError, match=r"coh-0/result.json cannot be read .*: delete it, and run again"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "other", [[("s", "one"), ("s", "new")], [("s", "two"), ("s", "one")], [("s", "one"), ("t", "two")], [("s", "one")]]
)
def test_results_of_other_pairs_are_refused(tmp_path, other):
    """As many pairs are not the same ones: the feedback may have changed between two runs."""
    for arm, own in (("base", [("s", "one"), ("s", "two")]), ("coh", [("s", "one"), ("s", "two")]), ("sft", other)):
        (tmp_path / f"{arm}-0").mkdir()
        result = {"arm": arm, "seed": 0, "pairs": [{"source": source, "prompt": prompt} for source, prompt in own]}
        (tmp_path / f"{arm}-0" / RESULT).write_text(json.dumps(result))
    with pytest.raises(FeedbackError, match=r"/base-0 and .*/sft-0 were not measured on the same pairs.*Delete"):
        read_results(tmp_path)
    (tmp_path / "sft-0" / RESULT).unlink()
    assert set(read_results(tmp_path)) == {Run("base", 0), Run("coh", 0)}


def test_settings_hold_for_a_folder(tmp_path):
    check_settings(tmp_path / "out", {"tokens": 5, "seeds": [1]})
    check_settings(tmp_path / "out", {"tokens": 5, "seeds": [1]})
    with pytest.raises(FeedbackError, match="tokens was 5, now 6"):
        check_settings(tmp_path / "out", {"tokens": 6, "seeds": [1]})


# DPO


def test_a_preference_row_has_the_ids_that_all_arms_are_measured_on():
    steering = Steering.of(Words(load_family("marker")), byte_tokenizer())
    group = FeedbackGroup("s", as_messages("What is it?"), ("It is so.", "No idea, sorry."), (1, 2))
    row = preference.preference_row(steering, group, 200)
    for document, name in zip(steering.documents(group, "good"), ("chosen", "rejected")):
        ids = steering.encoder.tokenizer(row["prompt"] + row[name])["input_ids"]
        assert [*ids, steering.end_of_output] == list(document.input_ids)
    longest = max(sum(document.target_mask) for document in steering.documents(group, "good"))
    short = preference.preference_row(steering, group, longest + 8)
    assert row["prompt"].endswith(short["prompt"]) and 0 < len(short["prompt"]) < len(row["prompt"])
    assert short["chosen"] == row["chosen"]
    assert preference.preference_row(steering, group, longest) is None


def test_dpo_reads_three_quarters_as_many_tokens():
    steering = Steering.of(Words(load_family("marker")), byte_tokenizer())
    group = FeedbackGroup("s", as_messages("What is it?"), ("It is so.", "No idea, sorry."), (1, 2))
    each = sum(len(document.input_ids) for document in steering.documents(group, "good"))
    rows = preference.preference_rows(steering, [group] * 1000, 3000, 200)
    assert 3000 <= len(rows) * each * 4 / 3 < 3000 + each * 4 / 3


def test_pairs_are_drawn_by_weight_and_each_once_a_pass(folder, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", pairs(20, length=3, start=500))
    args = ExperimentsArgs(
        str(folder / "model"),
        [f"mine={folder / 'pairs.jsonl'}", f"other={other}"],
        feedback_weights=[1.0, 3.0],
        cache_dir=str(folder / "cache"),
    )
    parsed = training.parsed(options(args, Run("dpo", 0), tmp_path / "any"))
    dataset = training.training_set(*parsed)
    drawn = training.drawn_pairs(dataset, [1.0, 3.0], seed=0)
    some = [next(drawn) for _ in range(400)]
    share = np.mean([pair.source == "other" for pair in some])
    assert abs(share - 0.75) < 3 * np.sqrt(0.75 * 0.25 / 400)
    of_other = [pair.prompt for pair in some if pair.source == "other"]
    number = len(dataset.chains.sources[1].indices)
    assert len(set(of_other[:number])) == number == len(set(of_other[number : 2 * number]))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRL, reason="trl is not installed: pip install trl")
def test_dpo_learns_to_prefer_and_its_cost_is_counted(folder, tmp_path):
    output = tmp_path / "out"
    main(arguments(folder, output, "--arms", "base", "dpo", "--tokens", "12000", "--dpo_learning_rate", "3e-3"))
    results = read_results(output)
    spent = results[Run("dpo", 0)]["training"]
    assert spent["reference_tokens"] == spent["tokens"] and spent["compute"] == pytest.approx(spent["tokens"] * 4 / 3)
    assert 0.97 * 12000 <= spent["compute"] < 12000 + 4 / 3 * 600
    margin = {
        run.arm: np.diff(measured(result).log_p[..., 0], axis=1).mean() for run, result in results.items()
    }  # worse less better, under good words
    assert margin["dpo"] < margin["base"] - 1


# Figures


def some(gap=0.0, number=40, seed=0, texts=((10.0, 5), (20.0, 8))):
    rng = np.random.default_rng(seed)
    log_p = rng.normal(size=(number, 2, 2))
    log_p[:, 0, 0] += gap
    return Measured(log_p, np.full((number, 2), 5.0), ("s",) * number, np.array(texts))


def test_a_paired_interval_is_that_of_the_differences_mean():
    """What is common to both drops out; what is left has the standard error of a mean."""
    rng = np.random.default_rng(1)
    common, own = rng.normal(0, 100, 400), rng.normal(0, 1, 400)
    ones = np.ones(400)
    found = paired_difference(Rows(common + own + 0.5, ones), Rows(common, ones))
    error = own.std(ddof=1) / np.sqrt(400)
    assert found.value == pytest.approx(own.mean() + 0.5)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)
    alone = Rows(common + own + 0.5, ones).estimate()
    assert alone.high - alone.low > 50 * (found.high - found.low)


def test_intervals_hold_nothing_when_there_is_nothing_95_times_of_100():
    rng = np.random.default_rng(2)
    ones, verdicts = np.ones(60), []
    for _ in range(300):
        verdicts.append(verdict(paired_difference(Rows(rng.normal(size=60), ones), Rows(rng.normal(size=60), ones))))
    assert 0.90 < verdicts.count("not told apart") / 300 < 0.985


def test_a_paired_difference_of_ratios_draws_both_together():
    first, second = Rows(np.array([2.0, 12.0]), np.array([1.0, 4.0])), Rows(np.array([1.0, 4.0]), np.array([1.0, 4.0]))
    assert paired_difference(first, second).value == 14 / 5 - 5 / 5
    with pytest.raises(ValueError, match="same rows"):
        paired_difference(first, Rows(np.ones(3), np.ones(3)))


def test_the_difference_turns_round_with_its_arms():
    ones = np.ones(30)
    rng = np.random.default_rng(3)
    first, second = Rows(rng.normal(size=30), ones), Rows(rng.normal(size=30), ones)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


def test_figures_by_hand():
    log_p = np.array([[[-1.0, -3.0], [-2.0, -2.5]], [[-4.0, -3.0], [-2.0, -1.0]]])
    run = Measured(log_p, np.array([[1.0, 4.0], [4.0, 2.0]]), ("a", "b"), np.array([[6.0, 2.0]]))
    expected = {
        "pair_accuracy": [100, 0],  # -1 against -2, -4 against -2
        "pair_accuracy_per_token": [0, 50],  # -1 against -0.5, -1 against -1
        "pair_accuracy_by_words": [100, 50],  # 2 against 0.5, -1 against -1
        "steering_gap": [1.5, 0],
        "loss_p": [1, 4],
        "text_loss": [6],
    }
    assert {name: rows_of([run], name).above.tolist() for name in expected} == expected
    assert rows_of([run], "loss_p").estimate().value == 1
    assert run.part("b").log_p.tolist() == log_p[1:].tolist()


def won_by(number, total=100):
    """Two runs of which the first has so many pairs right that the second has wrong, and all others are alike."""
    better = np.array([0.0] * number + [1.0] * (total - number))
    first, second = np.zeros((total, 2, 2)), np.zeros((total, 2, 2))
    first[:, 0, 0], second[:, 0, 0] = 1.0, 2 * better - 1
    prompts = tuple(map(str, range(total)))
    sizes, texts = np.ones((total, 2)), np.zeros((0, 2))
    return [Measured(log_p, sizes, ("s",) * total, texts, prompts) for log_p in (first, second)]


@pytest.mark.parametrize(("number", "is_told"), [(0, False), (4, False), (5, False), (6, True), (20, True)])
def test_few_pairs_on_one_side_tell_no_accuracies_apart(number, is_told):
    """Four of four is a coin's luck once in eight, though 0 is outside the bootstrap's interval."""
    first, second = won_by(number)
    found, says = compared(*(rows_of([run], "pair_accuracy") for run in (first, second)))
    assert found.value == pytest.approx(number) and (found.low > 0) == (number >= 4)
    assert says == ("yes" if is_told else "not told apart")
    arms = {"coh": [second], "sft": [first]}
    column = "pair accuracy, sum (%)"
    assert cell(differences_table(arms), "`sft` less `coh`", column).startswith("**+") == is_told
    assert cell(orderings_table(arms), "`coh` above `sft`", column).startswith("no: ") == is_told
    # What is no accuracy has its interval alone.
    gap, says = compared(*(rows_of([run], "steering_gap") for run in (first, second)))
    assert (says == "yes") == (gap.low > 0) == (number >= 4)


def test_pairs_of_one_prompt_are_drawn_together():
    once, other = some(seed=1, number=30), some(seed=2, number=30)
    once, other = (replace(run, prompts=tuple(map(str, range(30)))) for run in (once, other))

    def again(run):
        thrice = np.tile(np.arange(30), 3)
        prompts = tuple(run.prompts[n] for n in thrice)
        return Measured(run.log_p[thrice], run.num_tokens[thrice], ("s",) * 90, run.texts, prompts)

    for metric in ("pair_accuracy", "steering_gap", "loss_p"):
        few, many = (
            compared(rows_of([a], metric), rows_of([b], metric))
            for a, b in ((once, other), (again(once), again(other)))
        )
        assert (many[0].low, many[0].high) == pytest.approx((few[0].low, few[0].high)) and many[1] == few[1]
        few, many = (rows_of([run], metric).estimate() for run in (once, again(once)))
        assert (many.low, many.high, many.n) == pytest.approx((few.low, few.high, 90))
    assert again(once).part("s").prompts == again(once).prompts and not again(once).part("t").prompts


def test_an_accuracy_of_few_pairs_is_as_uncertain_as_it_is():
    run, _ = won_by(0, 3)
    assert "| 100.0 (44, 100) |" in figures_table({"coh": [run]})


def test_seeds_are_averaged_pair_by_pair():
    first, second = some(seed=1), some(seed=2)
    both = rows_of([first, second], "steering_gap").above
    assert both == pytest.approx((rows_of([first], "steering_gap").above + rows_of([second], "steering_gap").above) / 2)


def test_resolution_of_accuracies_is_what_simulated_models_show():
    """Models that truly differ by it are told apart in half of all draws of pairs, equal ones almost never."""
    rng, n, least = np.random.default_rng(4), 300, accuracy_resolution(300) / 100
    told = 0
    for _ in range(2000):
        kind = rng.choice(3, size=n, p=[0.125 + least / 2, 0.125 - least / 2, 0.75])  # first right, second right, alike
        difference = np.where(kind == 0, 1.0, np.where(kind == 1, -1.0, 0.0))
        told += difference.mean() > 1.96 * difference.std(ddof=1) / np.sqrt(n)
    assert 0.45 < told / 2000 < 0.56
    assert accuracy_resolution(300) == pytest.approx(5.66, abs=0.01)
    assert accuracy_resolution(1200) == pytest.approx(accuracy_resolution(300) / 2)


def test_resolution_of_a_mean_is_what_simulated_models_show():
    rng, n = np.random.default_rng(5), 200
    hard = rng.normal(size=n)
    least, told = mean_resolution(hard + rng.normal(size=n)), 0
    for _ in range(2000):
        difference = rng.normal(size=n) - rng.normal(size=n) + least  # what is hard for both drops out
        told += difference.mean() > 1.96 * difference.std(ddof=1) / np.sqrt(n)
    assert 0.35 < told / 2000 < 0.65
    assert np.isnan(mean_resolution(np.ones(1)))


@pytest.mark.parametrize("low, high, said", [(0.1, 1, "yes"), (-1, -0.1, "no"), (-1, 1, "not told apart")])
def test_verdicts(low, high, said):
    assert verdict(Estimate(0.0, low, high, 9)) == said
    nothing = float("nan")
    assert verdict(Estimate(5.0, nothing, nothing, 1)) == "not told apart"


def test_pairs_are_shuffled_alike_and_small_sources_count():
    groups = [FeedbackGroup("s", as_messages(f"{n}?"), ("a", "b"), (1, 2)) for n in range(50)]
    found = choose_pairs({"large": groups[4:], "small": groups[:4]}, 20)
    assert {name: len(own) for name, own in found.items()} == {"large": 16, "small": 4}
    assert found["large"] != groups[4:20] and set(found["large"]) < set(groups[4:])
    assert choose_pairs({"large": groups[4:], "small": groups[:4]}, 20) == found
    assert choose_pairs({"one": groups}, 500)["one"] != groups


# Tables


def cell(table, line, column):
    lines = [[part.strip() for part in row.strip("|").split(" | ")] for row in table.splitlines()]
    (found,) = (row for row in lines[2:] if row[0] == line)
    return found[lines[0].index(column)]


@pytest.mark.slow
def test_the_table_s_numbers_follow_from_the_json(finished):
    results = read_results(finished)
    text = (finished / "table.md").read_text()
    log_p = np.array([pair["log_p"] for pair in results[Run("last", 0)]["pairs"]])
    moved = log_p[..., 0] - log_p[..., 1]
    gap = (moved[:, 0] - moved[:, 1]).mean()
    arms_part, cost_part = text.split("\n\n## ")[1], text.split("\n\n## ")[-1]
    table = "\n".join(line for line in arms_part.splitlines() if line.startswith("|"))
    assert cell(table, "`last`", "steering gap (nats)").startswith(f"{gap:.3f} (")
    right = 100 * (log_p[:, 0, 0] > log_p[:, 1, 0]).mean()
    assert cell(table, "`last`", "pair accuracy, sum (%)").startswith(f"{right:.1f} (")
    assert cell(table, "`coh`", "seeds") == "2" and "±" in cell(table, "`coh`", "steering gap (nats)")
    losses = {run.arm: np.array(result["texts"]).sum(axis=0) for run, result in results.items()}
    less = losses["last"][0] / losses["last"][1] - losses["base"][0] / losses["base"][1]
    assert cell(table, "`last`", "drift of text (nats)").startswith(f"{less:.3f} (")
    for run, result in results.items():
        if result["training"]:
            assert f"{result['training']['tokens']:,}" in cost_part, run
    assert "12 held-out pairs tell differences of 28.3 points" in text


def test_an_ordering_is_said_as_its_interval_says():
    arms = {"coh": [some(gap=3.0)], "sft": [some()], "p_n": [some(gap=6.0)], "base": [some()]}
    table = orderings_table(arms)
    column = "steering gap (nats)"
    assert cell(table, "`coh` above `sft`", column).startswith("yes: +3.00 (")
    assert cell(table, "`coh` above `p_n`", column).startswith("no: -3.00 (")
    assert cell(table, "`sft` above `base`", column).startswith("not told apart: +0.00 (")
    assert cell(table, "`coh` above `lambda_0`", column) == "not measured"
    assert "**+3.00" in cell(differences_table(arms), "`p_n` less `coh`", column)


def test_the_page_says_what_told_means_and_how_often_chance_tells():
    pair = {"source": "s", "prompt": "one", "log_p": [[-1.0, -2.0], [-2.0, -2.0]], "num_tokens": [3, 4]}
    text = page({Run(arm, 0): {"pairs": [pair] * 2, "texts": []} for arm in ("base", "coh")})
    for part in ("## Differences", "## The paper's orderings"):
        (found,) = (own for own in text.split("\n\n## ") if own.startswith(part[3:]))
        assert "a sign test over the pairs" in found and "one in twenty is told by chance" in found


def test_drift_is_the_loss_less_the_base_s():
    base, worse = some(), some(texts=((15.0, 5), (28.0, 8)))
    assert drift([worse], [base]).value == pytest.approx(43 / 13 - 30 / 13)
    table = orderings_table({"coh": [worse], "base": [base]})
    (line,) = (line for line in table.splitlines() if "general skill" in line)
    assert "no: +1.000" in line
    assert "drift" not in figures_table({"coh": [some()]})


@pytest.mark.slow
def test_results_are_strict_json(finished):
    for path in finished.glob(f"*/{RESULT}"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
