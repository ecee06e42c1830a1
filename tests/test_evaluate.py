"""Measures: what an oracle, its opposite and chance get, ties, and the command from files to figures."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_judging import address  # noqa: F401  a fixture
from toys import pairs, tiny_model_folder, write_rows

from coh.arguments import ConfigError
from coh.data.templates import load_family
from coh.evaluate import Evaluation, drift, keep, main, report
from coh.evaluate_args import EvaluateArgs
from coh.measures import Estimate
from coh.measuring import told
from coh.saved import Words, save_words
from coh.written import Written


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def test_the_command(model, tmp_path, capsys):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(40, length=3))
    arguments = ["--model", model, "--templates", "marker", "--cache_dir", str(tmp_path / "cache")]
    arguments += ["--feedback_data", f"mine={path}", "--json", str(tmp_path / "out.json")]
    main([*arguments, "--split", "all", "--max_pairs", "12"])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    figures = found["model"]["sources"]["mine"]
    assert figures["steering_gap"]["n"] == 12 and "groups: mine 12" in printed
    for name in ("steering_gap", "loss_p", "pair_accuracy", "chain_gain"):
        assert told(Estimate(**figures[name])) in printed
    assert 0 < figures["loss_p"]["value"] < 10 and len(figures["scores"]) == 12
    assert found.keys() == {"model"} and found["model"]["text_loss"] is None


def test_a_base_text_and_outputs_beside_it(model, tmp_path, capsys):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(40, length=3))
    trained = tmp_path / "trained"
    tiny_model_folder(trained, initializer_range=0.3)
    save_words(trained, Words(load_family("marker")))
    arguments = ["--model", str(trained), "--base", model, "--cache_dir", str(tmp_path / "cache")]
    arguments += ["--feedback_data", f"mine={path}", "--json", str(tmp_path / "out.json"), "--split", "all"]
    arguments += ["--max_pairs", "6", "--num_prompts", "3", "--max_new_tokens", "4", "--judge", str(trained)]
    main([*arguments, "--pretrain_data", "sample", "--pretrain_docs", "40"])
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert found.keys() == {"base", "model"}
    assert found["base"]["text_loss"]["n"] == 2 and "loss on plain text (nats per token), 2 texts: base " in printed
    drifted = found["model"]["text_loss_above_base"]
    assert drifted["n"] == 2 and drifted["low"] <= drifted["value"] <= drifted["high"]
    losses = [found[name]["text_loss"]["value"] for name in ("base", "model")]
    assert drifted["value"] == pytest.approx(losses[1] - losses[0]) and drifted["value"] != 0
    assert f"model less base, text by text: {told(Estimate(**drifted))}" in printed
    assert found["base"]["text_loss_above_base"] is None
    written = found["model"]["written"]["mine"]
    assert len(written["outputs"]) == 3 and written["outputs"][0].keys() == {"prompt", "people", "good", "bad"}
    assert written["wins"].keys() == {"good_over_bad", "good_over_people", "good_over_base"}
    assert found["base"]["written"]["mine"]["wins"].keys() == {"good_over_bad", "good_over_people"}
    assert f"won (%), judged by {trained}" in printed and "base, good" in printed


def test_drift_is_that_of_texts_with_the_same_tokens():
    base = np.array([[5.0, 2], [70.0, 30], [8.0, 4]])
    found = drift(base + np.array([[0.2, 0], [3.0, 0], [0.4, 0]]), base)
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.1, 0.1, 0.1, 3))  # all the same per token
    assert drift(base, base + np.array([0, 1])) is None and drift(base, base[:2]) is None


def test_prompts_that_are_too_long_end_nothing(model, tmp_path, capsys):
    rows = pairs(4, length=3)
    rows[0]["prompt"] = "Long. " * 300
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    arguments = ["--model", model, "--templates", "marker", "--cache_dir", str(tmp_path / "cache"), "--split", "all"]
    arguments += ["--feedback_data", f"mine={path}", "--json", str(tmp_path / "out.json"), "--device", "cpu"]
    main([*arguments, "--num_prompts", "3", "--max_new_tokens", "4"])
    written = json.loads((tmp_path / "out.json").read_text())["model"]["written"]["mine"]
    assert len(written["outputs"]) == 3 and written["num_too_long"] in (0, 1)  # where it stands in the split
    assert not any(row["prompt"].startswith("Long.") for row in written["outputs"])
    main([*arguments, "--num_prompts", "3", "--max_new_tokens", "512"])
    written = json.loads((tmp_path / "out.json").read_text())["model"]["written"]["mine"]
    assert written["outputs"] == [] and written["num_too_long"] == 4
    assert "written for 0 prompts of mine (4 too long for that passed over)" in capsys.readouterr().out


class TestFailures:
    def arguments(self, model, folder):
        path = write_rows(folder / "pairs.jsonl", pairs(6, length=3))
        words = ["--model", model, "--templates", "marker", "--cache_dir", str(folder / "cache"), "--split", "all"]
        words += ["--feedback_data", f"mine={path}", "--num_prompts", "2", "--max_new_tokens", "4", "--device", "cpu"]
        return [*words, "--json", str(folder / "out.json")]

    def test_a_judge_that_is_not_there_is_found_before_anything_is_scored(self, model, tmp_path, capsys):
        pytest.importorskip("openai", reason="openai is not installed: pip install openai")
        judge = ["--judge", "http://127.0.0.1:9/v1", "--judge_model", "any"]
        with pytest.raises(SystemExit, match=r"coh.evaluate: --judge http://127.0.0.1:9/v1: no answer"):
            main([*self.arguments(model, tmp_path), *judge])
        assert not (tmp_path / "out.json").exists() and "Scoring" not in capsys.readouterr().err

    def test_what_was_measured_before_a_judge_failed_is_kept(self, model, tmp_path, capsys, address):  # noqa: F811
        with pytest.raises(SystemExit, match=r"OPENAI_API_KEY\nWhat was measured before is in .*out.json"):
            main([*self.arguments(model, tmp_path), "--judge", address, "--judge_model", "tiring"])
        found = json.loads((tmp_path / "out.json").read_text())["model"]
        assert found["sources"]["mine"]["loss_p"]["n"] == 6
        written = found["written"]["mine"]
        assert len(written["outputs"]) == 2 and written["wins"] == {} and written["judge"] is None
        assert told(Estimate(**found["sources"]["mine"]["loss_p"])) in capsys.readouterr().out

    def test_a_run_s_own_figures_stay_until_there_are_new_ones(self, model, tmp_path, capsys):
        path, old = tmp_path / "out.json", {"base": {"sources": {"mine": 1}}, "model": {"sources": {"mine": 2}}}
        path.write_text(json.dumps(old))
        main(self.arguments(model, tmp_path))
        found = json.loads(path.read_text())
        assert found["base"] == old["base"] and found["model"]["sources"]["mine"]["loss_p"]["n"] == 6
        assert f"{path} keeps the figures of the base that it had before." in capsys.readouterr().out
        path.write_text(json.dumps(old))
        weights = tiny_model_folder(tmp_path / "broken")
        (tmp_path / "broken" / "model.safetensors").write_bytes(b"none")
        with pytest.raises(SystemExit, match=r"coh\.evaluate: "):
            main([*self.arguments(model, tmp_path), "--base", model, "--model", weights])
        found = json.loads(path.read_text())
        assert found["model"] == old["model"] and found["base"]["sources"]["mine"]["loss_p"]["n"] == 6
        assert {file.name for file in tmp_path.glob("out*")} == {"out.json"}

    @pytest.mark.parametrize("text", ["[1]", '{"rows": 3}', "{", "null"])
    def test_a_file_of_another_kind_is_left_alone(self, model, tmp_path, text, capsys):
        (tmp_path / "out.json").write_text(text)
        with pytest.raises(SystemExit, match=r"--json .*out.json is there and .*: choose another name"):
            main(self.arguments(model, tmp_path))
        assert (tmp_path / "out.json").read_text() == text and "Scoring" not in capsys.readouterr().err

    def test_a_folder_for_the_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match=r"--json .*: there is no such folder"):
            EvaluateArgs("m", ["webgpt"], json=str(tmp_path / "no" / "out.json"))

    @pytest.mark.parametrize("limit", [-3, 0])
    def test_a_limit_of_the_harness_below_one(self, limit):
        with pytest.raises(ConfigError, match=f"--lm_eval_limit {limit}: give 1 or more"):
            EvaluateArgs("m", ["webgpt"], lm_eval=["piqa"], lm_eval_limit=limit)


def test_nothing_to_measure_and_no_words(model, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(3))
    arguments = ["--model", model, "--feedback_data", path, "--cache_dir", str(tmp_path / "cache")]
    with pytest.raises(SystemExit, match="has no coh"):
        main(arguments)
    with pytest.raises(SystemExit, match=r"no pairs or verdicts in the test split of .*: try --split all"):
        main([*arguments, "--templates", "marker", "--webgpt_dataset_test_size", "0"])


def test_what_the_judge_did_not_judge_is_said_beside_the_win_rates(tmp_path):
    wins = {"good_over_bad": Estimate(60.0, 40.0, 80.0, 5), "good_over_people": Estimate(50.0, 30.0, 70.0, 5)}
    counts = {"good_over_bad": 2, "good_over_people": 0}
    written = Written(((),) * 5, ("",) * 5, {}, {}, wins, "the judge", num_not_judged=counts)
    printed = report({"model": Evaluation({}, written={"mine": written})})
    assert "model, good words against bad ones: 2 of 5 not judged, which count as ties" in printed
    assert printed.count("not judged") == 1
    keep({"model": Evaluation({}, written={"mine": replace(written, prompts=())})}, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["model"]["written"]["mine"]["num_not_judged"] == counts


def test_single_outputs_are_measured_by_their_verdicts(model, tmp_path, capsys):
    rows = [{"prompt": f"Is {n} odd?", "completion": f"It is {n}.", "label": bool(n % 2)} for n in range(30)]
    path = write_rows(tmp_path / "thumbs.jsonl", rows)
    arguments = ["--model", model, "--templates", "marker", "--cache_dir", str(tmp_path / "cache"), "--split", "all"]
    main([*arguments, "--feedback_data", path, "--json", str(tmp_path / "out.json")])
    assert "verdicts told by the words (%)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())["model"]["sources"]["thumbs"]
    assert (found["verdict_accuracy"]["n"], found["loss_p"]["n"], found["loss_n"]["n"]) == (30, 15, 15)


def test_ties_alone_give_nothing_to_measure_in_any_split(model, tmp_path):
    rows = [{"prompt": f"Is {n} odd?", "responses": ["Yes.", "No."], "ranks": [1, 1]} for n in range(30)]
    path = write_rows(tmp_path / "ties.jsonl", rows)
    arguments = ["--model", model, "--templates", "marker", "--cache_dir", str(tmp_path / "cache")]
    for split in ("held_out", "all"):
        with pytest.raises(SystemExit, match="in no split of it is an output preferred to another") as error:
            main([*arguments, "--feedback_data", path, "--split", split])
        assert "--split all" not in str(error.value)


def test_bad_options_are_all_said():
    with pytest.raises(ConfigError) as error:
        EvaluateArgs(
            "m", ["webgtp"], max_pairs=0, max_length=1, dtype="int8", judge="j", temperature=-1, lm_eval_limit=3
        )
    assert [problem.split()[0] for problem in error.value.problems] == [
        "--feedback_data:",
        "--max_pairs",
        "--max_length",
        "--temperature",
        "--dtype",
        "--judge",
        "--lm_eval_tasks",
    ]
