"""The command from end to end on a tiny model: it learns, reports, and leaves a folder that steers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys import training_folder

from coh.arguments import ConfigError
from coh.coh_train import ExperimentArgs, fit_length, main
from coh.data.coh_data import CoHDataArgs
from coh.saved import load_words
from coh.trainer import CoHTrainArgs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("train"))


def options(folder, output, **changes):
    values = {
        "model_name": folder / "model",
        "feedback_data": f"mine={folder / 'pairs.jsonl'}",
        "pretrain_data": folder / "text.jsonl",
        "templates": "marker",
        "seq_length": 256,
        "output_dir": output,
        "per_device_train_batch_size": 2,
        "learning_rate": "3e-3",
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": "true",
        "webgpt_dataset_test_size": 0.3,
        "cache_dir": folder / "cache",
        "eval_pairs": 0,
        "write_report": "false",
    } | changes
    lists = {name: value if isinstance(value, list) else [value] for name, value in values.items() if value is not None}
    return [word for name, words in lists.items() for word in (f"--{name}", *map(str, words))]


@pytest.fixture(scope="module")
def trained(folder):
    output = folder / "out"
    main(options(folder, output, num_train_epochs=8, eval_strategy="steps", eval_steps=0.5))
    return output


def test_the_loss_falls_and_everything_is_logged(trained):
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    losses = [log for log in history if "loss_feedback" in log]
    assert losses[-1]["loss_feedback"] < losses[0]["loss_feedback"] - 0.5
    assert losses[-1]["loss_pretrain"] < losses[0]["loss_pretrain"] - 0.5
    assert all({"loss", "target_share", "num_tokens_seen", "learning_rate", "grad_norm"} <= set(log) for log in losses)
    evaluations = [log for log in history if "eval_loss" in log]
    assert len(evaluations) == 2 and evaluations[1]["eval_mine_loss"] < evaluations[0]["eval_mine_loss"]
    assert {"eval_mine_accuracy", "eval_mine_tokens", "eval_pretrain_loss", "eval_loss", "eval_tokens"} <= set(
        evaluations[0]
    )


def test_the_folder_is_a_plain_model_with_its_words(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    assert type(model.get_output_embeddings()).__name__ == "Linear" and tokenizer.eos_token == "</s>"
    assert model.config.use_cache, "a saved model generates as fast as others"
    assert load_words(trained).family.name == "marker" and load_words(trained).tasks == ("general",)
    content = json.loads((trained / "coh.json").read_text())
    assert content["data"]["sources"]["mine"]["documents"] > 40 and content["arguments"]["seq_length"] == 256
    metrics = json.loads((trained / "test_results.json").read_text())
    assert metrics["test_mine_tokens"] > 0 and metrics["test_loss"] == pytest.approx(metrics["test_mine_loss"])


def test_the_trained_folder_generates_and_is_measured(trained, folder, capsys):
    from coh import evaluate, generate

    generate.main(["--model", str(trained), "--prompt", "Question 5: what is 5 plus 5?", "--max_new_tokens", "5"])
    assert capsys.readouterr().out
    data = ["--feedback_data", f"mine={folder / 'pairs.jsonl'}", "--cache_dir", str(folder / "cache")]
    evaluate.main(["--model", str(trained), *data, "--webgpt_dataset_test_size", "0.3"])
    assert "steering gap" in capsys.readouterr().out


def test_a_run_is_one_pass_of_whole_steps(folder, tmp_path):
    class Rows:
        num_rows = 0

        def rows_in_epochs(self, epochs):
            return int(25 * epochs)

    args = CoHTrainArgs(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    rows = Rows()
    args.num_train_epochs = 2.0
    fit_length(rows, args)
    assert args.max_steps == 7 and rows.num_rows == 56  # 50 rows in steps of 8
    args.max_steps = 3
    fit_length(rows, args)
    assert args.max_steps == 3 and rows.num_rows == 24


def test_two_runs_are_the_same_and_a_seed_is_another(folder, tmp_path):
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(options(folder, tmp_path / name, max_steps=4, logging_steps=1, seed=seed))
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        results.append([(log["loss"], log["grad_norm"]) for log in history if "loss" in log])
    assert results[0] == results[1] != results[2] and len(results[0]) == 4


def test_forgetting_and_bos_are_really_on(folder, tmp_path):
    losses = {}
    for name, changes in (("off", {}), ("fcm", {"fcm_max_ratio": 0.5}), ("bos", {"prepend_bos": "true"})):
        main(options(folder, tmp_path / name, max_steps=1, logging_steps=1, **changes))
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        losses[name] = history[0]["loss"]
    assert len(set(losses.values())) == 3
    assert load_words(tmp_path / "bos").prepend_bos and not load_words(tmp_path / "off").prepend_bos


def test_a_recipe_holds_any_option_and_the_command_line_wins(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1e-4\nmax_steps: 2\nchains: [p, n]\nlogging_steps: 1\nlr_scheduler_type: constant\n"
    )
    main(
        [
            "--config",
            str(recipe),
            *options(folder, tmp_path / "out", learning_rate=None, logging_steps=None),
            "--max_steps",
            "1",
        ]
    )
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [log["learning_rate"] for log in history if "loss" in log] == [1e-4]
    templates = json.loads((tmp_path / "out" / "coh.json").read_text())["data"]["templates"]
    assert {name.split(".")[1] for name in templates} == {"p", "n"}


def test_all_problems_are_said_at_once_before_weights_load(folder, capsys):
    wrong = options(folder, folder / "no", seq_length=8, dtype="int3", fcm_min_ratio=0.2, pretrain_docs=-1)
    with pytest.raises(SystemExit) as stop:
        main([*wrong, "--chains", "pp", "--no_such_option", "1", "--learning_rate", "fast"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    for name in (
        "--seq_length",
        "--dtype",
        "--fcm_min_ratio",
        "--pretrain_docs",
        "--chains",
        "--no_such_option",
        "--learning_rate",
    ):
        assert said.count(name + " ") >= 1, (name, said)
    with pytest.raises(SystemExit):
        main(options(folder, folder / "no", seq_length=4096))
    assert "--seq_length 4096 is more than the model's 512 positions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(options(folder, folder / "no", model_name=folder / "gone"))
    assert "no such file or folder" in capsys.readouterr().err


def test_empty_names_and_unknown_formats_are_all_said():
    with pytest.raises(ConfigError) as error:
        ExperimentArgs(model_name=" ", dtype="int3")
    assert [problem.split()[0] for problem in error.value.problems] == ["--model_name", "--dtype"]


def test_a_tokenizer_without_bos_cannot_prepend_it(folder, tmp_path, capsys):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder / "model", bos_token=None).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(SystemExit):
        main(options(folder, tmp_path, tokenizer_name=tmp_path / "tokenizer", prepend_bos="true"))
    assert "--prepend_bos: the tokenizer has no bos_token; leave the option out." in capsys.readouterr().err


def test_a_model_that_cannot_keep_documents_apart_ends_with_a_sentence(folder, tmp_path):
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    sizes = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    }
    OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)).save_pretrained(
        tmp_path / "opt"
    )
    tokenizer.save_pretrained(tmp_path / "opt")
    with pytest.raises(SystemExit, match=r"coh.coh_train: OPTForCausalLM .*pass --isolate_documents false"):
        main(options(folder, tmp_path / "out", model_name=tmp_path / "opt", max_steps=1))
    main(options(folder, tmp_path / "out", model_name=tmp_path / "opt", max_steps=1, isolate_documents="false"))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_slow_arithmetic_and_names_of_the_run(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setattr("coh.coh_train.has_fast_bf16", lambda *_: False)
    names = {"wandb_project_name": "hindsight", "wandb_run_name": "first"}
    with caplog.at_level("WARNING", "coh"):
        main(options(folder, tmp_path / "out", max_steps=1, bf16="true", **names))
    assert "--bf16: this device has no bfloat16 arithmetic" in caplog.text
    assert os.environ.pop("WANDB_PROJECT") == "hindsight"
    assert json.loads((tmp_path / "out" / "coh.json").read_text())["arguments"]["run_name"] == "first"


def test_bad_rows_end_the_run_with_file_and_line(folder, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": \n')
    with pytest.raises(SystemExit, match=r"bad\.jsonl, line 2"):
        main(options(folder, tmp_path / "out", feedback_data=path))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_evaluation_without_anything_held_out_is_refused_with_the_remedies(folder, tmp_path):
    wrong = options(folder, tmp_path / "out", eval_strategy="steps", eval_steps=1, webgpt_dataset_test_size=0)
    with pytest.raises(
        SystemExit, match=r"--eval_strategy steps: no feedback is held out .*--webgpt_dataset_test_size"
    ):
        main(wrong)


def test_help_lists_ours_first_by_dataclass():
    found = subprocess.run(
        [sys.executable, "-m", "coh.coh_train", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert found.returncode == 0, found.stderr
    places = [
        found.stdout.index(words) for words in ("ExperimentArgs", "CoHDataArgs", "CoHTrainArgs", "TrainingArguments:")
    ]
    assert places == sorted(places)
    for name in (*CoHDataArgs.__dataclass_fields__, "pt_loss_weight", "prepend_bos", "fcm_max_ratio", "model_name"):
        assert f"--{name}" in found.stdout[: places[3]], name
    assert "--learning_rate" in found.stdout[places[3] :]
