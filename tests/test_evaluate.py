"""Measures: what an oracle, its opposite and chance get, ties, and the command from files to figures."""

import json

import numpy as np
import pytest
from toys import pairs, tiny_model_folder, write_rows

from coh.arguments import ConfigError
from coh.data.records import FeedbackGroup, as_messages
from coh.evaluate import EvaluateArgs, PairScores, accuracy, main, preferred_pairs, table


def test_oracle_opposite_and_chance():
    rng = np.random.default_rng(0)
    worse = rng.normal(size=2000)
    assert accuracy(np.stack([worse + 1, worse], 1)) == 100
    assert accuracy(np.stack([worse - 1, worse], 1)) == 0
    assert abs(accuracy(rng.normal(size=(2000, 2))) - 50) < 4 * 50 / np.sqrt(2000)
    assert accuracy(np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])) == 50


def test_measures_by_hand():
    scores = PairScores(
        good=np.array([[-4.0, -6.0], [-9.0, -8.0]]),
        bad=np.array([[-7.0, -5.0], [-9.0, -8.5]]),
        num_tokens=np.array([[2, 3], [4, 2]]),
    )
    measures = scores.measures()
    assert measures["loss_good"] == pytest.approx(13 / 6)
    assert measures["pair_accuracy"] == 50
    assert measures["pair_accuracy_per_token"] == 75  # -2 = -2, -2.25 > -4
    assert measures["pair_accuracy_by_words"] == 50  # 3 > -1, 0 < 0.5
    assert measures["steering_gap"] == pytest.approx(((3 - -1) + (0 - 0.5)) / 2)
    assert measures["num_pairs"] == 2 and measures["steering_gap_error"] == pytest.approx(2.25)


def test_pairs_are_the_ends_of_what_is_no_tie():
    prompt = as_messages("?")
    groups = [
        FeedbackGroup("s", prompt, ("a", "b", "c"), (1, 2, 3), task="answer"),
        FeedbackGroup("s", prompt, ("a", "b"), (1, 1)),
        FeedbackGroup("s", prompt, ("a",), (1,)),
    ]
    assert [(pair.outputs, pair.ranks, pair.task) for pair in preferred_pairs(groups)] == [
        (("a", "c"), (1, 2), "answer")
    ]


def test_the_table_has_what_all_columns_have():
    text = table({"before": {"loss_good": 2.0, "steering_gap": 1.0}, "after": {"loss_good": 1.0}})
    assert "2.000     1.000" in text and "steering" not in text


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def test_the_command(model, tmp_path, capsys):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(40, length=3))
    arguments = ["--model", model, "--templates", "marker", "--cache_dir", str(tmp_path / "cache")]
    arguments += ["--feedback_data", f"mine={path}", "--json", str(tmp_path / "out.json")]
    main([*arguments, "--split", "all", "--max_pairs", "12"])
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())["mine"]
    assert figures["num_pairs"] == 12 and "pairs: mine 12" in printed
    assert f"{figures['steering_gap']:.3f}" in printed and f"{figures['loss_good']:.3f}" in printed
    assert 0 < figures["loss_good"] < 10


def test_nothing_to_measure_and_no_words(model, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(3))
    arguments = ["--model", model, "--feedback_data", path, "--cache_dir", str(tmp_path / "cache")]
    with pytest.raises(SystemExit, match="has no coh"):
        main(arguments)
    with pytest.raises(SystemExit, match=r"no pairs in the test split of .*: try --split all"):
        main([*arguments, "--templates", "marker", "--webgpt_dataset_test_size", "0"])


def test_bad_options_are_all_said():
    with pytest.raises(ConfigError) as error:
        EvaluateArgs("m", ["webgtp"], max_pairs=0, max_length=1, dtype="int8")
    assert [problem.split()[0] for problem in error.value.problems] == [
        "--feedback_data:",
        "--max_pairs",
        "--max_length",
        "--dtype",
    ]
