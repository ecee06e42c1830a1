"""The evaluation in two processes, and the harness with a task of one's own."""

import json
import os
import subprocess
import sys

import pytest
from toys import TASK, pairs, tiny_model_folder, write_rows

from coh.data.templates import load_family
from coh.evaluate import main
from coh.saved import Words, save_words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.3)
    save_words(folder, Words(load_family("prose")))
    return str(folder)


def flat(found, name=""):
    if isinstance(found, dict):
        return {k: v for key, value in found.items() for k, v in flat(value, f"{name}.{key}").items()}
    if isinstance(found, list):
        return {k: v for n, value in enumerate(found) for k, v in flat(value, f"{name}.{n}").items()}
    return {name: found}


def test_two_processes_share_the_work_and_find_the_same(folder, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(40, length=3))
    arguments = ["--model", folder, "--feedback_data", f"mine={path}", "--split", "all", "--max_pairs", "7"]
    arguments += ["--num_prompts", "5", "--max_new_tokens", "4", "--pretrain_data", "sample", "--pretrain_docs", "60"]
    arguments += ["--judge", folder, "--device", "cpu", "--temperature", "1"]
    main([*arguments, "--json", str(tmp_path / "one.json"), "--cache_dir", str(tmp_path / "one")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29587"]
    command = [*launch, "-m", "coh.evaluate", *arguments]
    command += ["--json", str(tmp_path / "two.json"), "--cache_dir", str(tmp_path / "two")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("groups: mine 7") == 1
    one, two = (flat(json.loads((tmp_path / f"{name}.json").read_text())) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == (
            pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True) if isinstance(value, float) else value
        )


def test_the_harness_runs_a_task(folder, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")
    questions = [{"question": f"Is {n} odd?", "choices": ["no", "yes"], "answer": n % 2} for n in range(6)]
    task_file = tmp_path / "tasks" / "colours.yaml"
    task_file.parent.mkdir()
    task_file.write_text(TASK.format(name="coh_colours", path=write_rows(tmp_path / "questions.jsonl", questions)))
    path = write_rows(tmp_path / "pairs.jsonl", pairs(10))
    arguments = ["--model", folder, "--feedback_data", f"mine={path}", "--split", "all", "--device", "cpu"]
    arguments += ["--lm_eval_tasks", str(task_file.parent), "--json", str(tmp_path / "out.json")]
    arguments += ["--cache_dir", str(tmp_path / "cache")]
    main([*arguments, "--lm_eval", "coh_colours", "--lm_eval_limit", "4"])
    found = json.loads((tmp_path / "out.json").read_text())["model"]["benchmarks"]["coh_colours"]
    assert found["sample_len"] == 4 and 0 <= found["acc,none"] <= 1
    printed = capsys.readouterr().out
    assert "coh_colours, 4 examples, model: acc,none" in printed and "sample_len" not in printed
    (tmp_path / "out.json").unlink()
    with pytest.raises(SystemExit, match="--lm_eval colors: the harness has no such task"):
        main([*arguments, "--lm_eval", "colors"])
    assert not (tmp_path / "out.json").exists()  # found before anything is scored
