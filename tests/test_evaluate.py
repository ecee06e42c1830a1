"""Measures: what an oracle, its opposite and chance get, ties, and the command from files to figures."""

import json

import pytest
from toys import pairs, tiny_model_folder, write_rows

from coh.arguments import ConfigError
from coh.data.templates import load_family
from coh.evaluate import main
from coh.evaluate_args import EvaluateArgs
from coh.measures import Estimate
from coh.measuring import told
from coh.saved import Words, save_words


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
    written = found["model"]["written"]["mine"]
    assert len(written["outputs"]) == 3 and written["outputs"][0].keys() == {"prompt", "people", "good", "bad"}
    assert written["wins"].keys() == {"good_over_bad", "good_over_people", "good_over_base"}
    assert found["base"]["written"]["mine"]["wins"].keys() == {"good_over_bad", "good_over_people"}
    assert f"won (%), judged by {trained}" in printed and "base, good" in printed


def test_nothing_to_measure_and_no_words(model, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(3))
    arguments = ["--model", model, "--feedback_data", path, "--cache_dir", str(tmp_path / "cache")]
    with pytest.raises(SystemExit, match="has no coh"):
        main(arguments)
    with pytest.raises(SystemExit, match=r"no pairs in the test split of .*: try --split all"):
        main([*arguments, "--templates", "marker", "--webgpt_dataset_test_size", "0"])


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
