"""What is measured while a model is trained, and how the run tells where it came from."""

import json
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_coh_train import options
from toys import training_folder, write_rows

from coh import coh_train, evaluate
from coh.data.sources import Part, load_groups, parse_sources
from coh.evaluate_args import EvaluateArgs, held_out_groups, preferred_groups
from coh.held_out import _groups
from coh.provenance import command, commit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("held_out"))


MEASURED = {"eval_pairs": 5, "eval_prompts": 2, "write_report": "true", "eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture(scope="module")
def measured(folder):
    output = folder / "measured"
    coh_train.main(options(folder, output, max_steps=4, seed=3, **MEASURED))
    return output


def history(output):
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def numbers(groups):
    return [int(group.prompt[-1].content.split()[-1]) for group in groups]


@pytest.fixture(scope="module")
def ordered(tmp_path_factory):
    """Feedback sorted by its prompts, each of which ends in its place: every fifth row is a tie."""
    folder = tmp_path_factory.mktemp("ordered")
    rows = [
        {"prompt": f"Number {n}", "responses": ["Yes.", "No."], "scores": [1.0, float(n % 5 == 0)]} for n in range(400)
    ]
    return folder, write_rows(folder / "rows.jsonl", rows)


def chosen(ordered, most, model="any"):
    folder, path = ordered
    given = EvaluateArgs(model, [f"mine={path}"], split="all", max_pairs=most, cache_dir=str(folder / "cache"))
    return held_out_groups(given)["mine"]


def test_a_sorted_file_is_measured_all_over_and_in_its_order(ordered):
    everything, found = numbers(chosen(ordered, None)), numbers(chosen(ordered, 60))
    assert len(everything) == 320 and not any(n % 5 == 0 for n in everything)
    assert len(found) == len(set(found)) == 60
    places = [everything.index(n) for n in found]
    assert places == sorted(places)
    quarters = np.bincount(np.array(places) // 80, minlength=4)
    assert min(quarters) > 6, quarters  # the first rows alone would be all in one
    assert numbers(chosen(ordered, 320)) == numbers(chosen(ordered, 5000)) == everything


def test_every_process_and_every_model_has_the_same_sample(ordered):
    found = numbers(chosen(ordered, 25))
    assert found == numbers(chosen(ordered, 25, "another"))
    folder, path = ordered
    code = (
        "from coh.evaluate_args import *\n"
        f"args = EvaluateArgs('any', ['mine={path}'], split='all', max_pairs=25, cache_dir={str(folder / 'cache')!r})\n"
        "print([int(group.prompt[-1].content.split()[-1]) for group in held_out_groups(args)['mine']])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == found


def test_training_measures_a_sample_too(ordered):
    folder, path = ordered
    (spec,) = parse_sources([f"mine={path}"])
    (store,) = load_groups(spec, cache_dir=str(folder / "cache")).values()
    part = Part(store, np.arange(100, 400))
    found = numbers(_groups(SimpleNamespace(chains=SimpleNamespace(sources=[part])), 40)["mine"])
    assert found == sorted(found) and len(found) == 40 and found[0] >= 100 and found[-1] > 300
    nothing = Part(store, np.arange(0, 400, 5))
    assert not _groups(SimpleNamespace(chains=SimpleNamespace(sources=[nothing])), 40)


def test_a_sample_of_many_groups_reads_few(ordered):
    (folder, path), read = ordered, []
    (spec,) = parse_sources([f"mine={path}"])
    (store,) = load_groups(spec, cache_dir=str(folder / "cache")).values()
    many = SimpleNamespace(group=lambda index: read.append(index) or store.group(index % 400))
    parts = [SimpleNamespace(store=many, indices=np.arange(start, start + 50_000)) for start in (0, 50_000)]
    assert len(preferred_groups(parts, 100)) == 100 and len(read) < 200
    assert 20 < sum(index < 50_000 for index in read) < len(read) - 20


@pytest.mark.slow
def test_the_figures_are_those_of_coh_evaluate(folder, measured, tmp_path):
    """After training they can be measured again, from the saved folder, by the other program."""
    kept = json.loads((measured / "evaluation.json").read_text())
    assert list(kept) == ["base", "model"]
    for name, model in (("base", folder / "model"), ("model", measured)):
        evaluate.main(
            [
                *("--model", str(model), "--feedback_data", f"mine={folder / 'pairs.jsonl'}", "--max_pairs", "5"),
                *("--max_length", "256", "--webgpt_dataset_test_size", "0.3", "--templates", "marker"),
                *("--device", "cpu", "--json", str(tmp_path / "again.json")),
            ]
        )
        again = json.loads((tmp_path / "again.json").read_text())["model"]["sources"]["mine"]
        found = kept[name]["sources"]["mine"]
        assert found["pair_accuracy"]["n"] == 5
        for figure in ("loss_p", "steering_gap", "pair_accuracy_by_words"):
            assert found[figure]["value"] == pytest.approx(again[figure]["value"], rel=1e-4, abs=1e-4)
    assert kept["base"]["sources"]["mine"]["loss_p"]["value"] > kept["model"]["sources"]["mine"]["loss_p"]["value"]
    assert kept["base"]["text_loss"]["value"] != kept["model"]["text_loss"]["value"]
    drift = kept["model"]["text_loss_above_base"]
    assert drift["value"] == pytest.approx(kept["model"]["text_loss"]["value"] - kept["base"]["text_loss"]["value"])
    assert kept["base"]["text_loss_above_base"] is None and drift["low"] <= drift["value"] <= drift["high"]
    outputs = kept["model"]["written"]["mine"]["outputs"]
    assert len(outputs) == 2 and set(outputs[0]) == {"prompt", "people", "good", "bad"}


@pytest.mark.slow
def test_evaluations_log_a_few_figures_beside_the_losses(measured):
    logs = [log for log in history(measured) if "eval_loss" in log]
    assert [log["step"] for log in logs] == [2, 4]
    for log in logs:
        assert 0 <= log["eval_mine_pair_accuracy_by_words"] <= 1 and "eval_mine_steering_gap" in log
    assert logs[0]["eval_mine_steering_gap"] != logs[1]["eval_mine_steering_gap"]


@pytest.mark.slow
def test_measuring_changes_nothing_that_is_learned(folder, measured, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 2}
    coh_train.main(options(folder, tmp_path / "out", max_steps=4, seed=3, **changes))
    assert not (tmp_path / "out" / "evaluation.json").exists() and not (tmp_path / "out" / "report.html").exists()
    one, other = (load_file(output / "model.safetensors") for output in (measured, tmp_path / "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for logs in zip(history(measured), history(tmp_path / "out"), strict=True):
        assert len({log.get("loss_feedback") for log in logs}) == 1


@pytest.mark.slow
def test_the_report_has_all_of_it(measured):
    page, words = (measured / "report.html").read_text(), (measured / "report.md").read_text()
    for text in (re.sub("</?span>", "", page), words):
        assert "steering gap" in text and "python -m coh.coh_train --model_name" in text
    missing = next((line for line in words.splitlines() if "Not recorded" in line), "")
    assert "losses" not in missing and "before" not in missing


@pytest.mark.slow
def test_speed_is_of_training_alone(measured):
    logs = [log for log in history(measured) if "loss_feedback" in log]
    seconds = next(log["train_runtime"] for log in history(measured) if "train_runtime" in log)
    tokens = logs[-1]["num_tokens_seen"]
    assert all(log["tokens_per_second"] > tokens / seconds for log in logs)


def test_a_report_that_cannot_be_written_does_not_fail_the_run(folder, tmp_path, caplog):
    output = tmp_path / "out"
    (output / "report.html").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "coh"):
        coh_train.main(options(folder, output, max_steps=1, write_report="true"))
    assert "report.html cannot be written" in caplog.text and (output / "model.safetensors").exists()


def test_figures_of_another_run_do_not_stay(folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "evaluation.json").write_text("{}")
    coh_train.main(options(folder, output, max_steps=1))
    assert not (output / "evaluation.json").exists()


@pytest.mark.slow
def test_how_the_run_was_started_is_kept(folder, measured):
    run = json.loads((measured / "coh.json").read_text())["run"]
    assert run["command"].startswith("python -m coh.coh_train --model_name") and run["device"] == "cpu"
    assert run["processes"] == 1 and run["started"].endswith("UTC")


def test_tokens_are_kept_out_of_the_command():
    for words in (["--hub_token", "secret"], ["--hub_token=secret"], ["--push_to_hub_token", "secret", "--seed", "1"]):
        assert "secret" not in command(words, {})


def test_the_commit_says_whether_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commit() == ""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    (tmp_path / "file").write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    first = commit()
    assert len(first) == 12 and int(first, 16)
    (tmp_path / "file").write_text("two")
    assert commit() == f"{first}-dirty"


@pytest.mark.slow
def test_each_source_is_measured_in_its_own_words(folder, tmp_path):
    rows = folder / "pairs.jsonl"
    given = {"feedback_data": [f"one={rows}", f"two={rows}"], "templates": ["marker", "prose"], "max_steps": 1}
    coh_train.main(options(folder, tmp_path / "out", **given, **MEASURED))
    sources = json.loads((tmp_path / "out" / "evaluation.json").read_text())["model"]["sources"]
    assert {name: found["templates"] for name, found in sources.items()} == {"one": "marker", "two": "prose"}
    assert sources["one"]["loss_p"]["value"] != sources["two"]["loss_p"]["value"]
    assert "question_accuracy" in sources["two"] and "question_accuracy" not in sources["one"]


@pytest.mark.slow
def test_a_prompt_without_room_for_an_output_ends_no_run(folder, tmp_path, caplog):
    """Training shortens such prompts; measuring passes them over where it writes, and counts the outputs left out."""
    long = [{"prompt": "word " * 400 + str(n), "chosen": "Yes, it is.", "rejected": "No."} for n in range(20)]
    path = write_rows(tmp_path / "long.jsonl", long)
    output = tmp_path / "out"
    coh_train.main(options(folder, output, feedback_data=f"mine={path}", max_steps=1, **MEASURED))
    found = json.loads((output / "evaluation.json").read_text())["model"]
    assert found["sources"]["mine"]["pair_accuracy"]["n"] > 0 and found["written"]["mine"]["outputs"] == []
    assert (output / "report.html").exists()
