"""Real feedback of every kind is looked at, trained on and judged with no option but its path."""

import json

import pytest
from toys import TINY_LLAMA

from coh import coh_train, preview, score

FILES = (
    "critique_revision",
    "hh_rlhf.test",
    "hh_rlhf.train",
    "preference_chat",
    "ranked",
    "rated_critiqued",
    "thumbs",
)


@pytest.fixture(scope="module")
def model(tokenizers, tmp_path_factory):
    """A tiny model with a real tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers("smollm2")
    LlamaForCausalLM(
        LlamaConfig(**TINY_LLAMA | {"max_position_embeddings": 2048}, vocab_size=len(tokenizer))
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_trains_previews_and_scores_by_its_path(real_data, model, tmp_path, capsys, name):
    words = [
        *("--model_name", model, "--feedback_data", str(real_data / f"{name}.jsonl")),
        *("--pretrain_data", str(real_data / "pretrain_text.jsonl"), "--output_dir", str(tmp_path / "out")),
        *("--cache_dir", str(tmp_path / "cache")),
    ]
    try:
        preview.main([*words, "--html", str(tmp_path / "page.html")])
    except SystemExit as error:
        assert not error.code, capsys.readouterr().out
    assert "Sources" in capsys.readouterr().out and (tmp_path / "page.html").stat().st_size > 10_000
    short = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "16"]
    coh_train.main([*words, *short, "--save_strategy", "no", "--report_to", "none", "--use_cpu"])
    told = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert told["test_tokens"] > 100 and 0 < told["test_loss"] < 20
    source = f"{real_data / name}.jsonl@12"
    score.main(["--model", str(tmp_path / "out"), "--input", source, "--output", str(tmp_path / "scores.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert len(row["scores"]) == len(row["ranks"]) == len(row["outputs"])
        assert (row["ranks"][row["scores"].index(max(row["scores"]))]) == 1
