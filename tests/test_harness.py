"""The harness: tasks are looked up first, run with the loaded model, and by the first of several processes."""

import logging
from dataclasses import replace

import pytest
from test_processes import together
from toys import TASK, tiny_model_folder, write_rows

from coh.data.records import FeedbackError
from coh.data.templates import load_family
from coh.harness import COUNT, Harness
from coh.modeling import load_model
from coh.saved import Words, save_words
from coh.steered import load

pytestmark = pytest.mark.slow  # the harness reads thousands of files to know its tasks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.3)
    save_words(folder, Words(load_family("prose")))
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")
    folder = tmp_path_factory.mktemp("tasks")
    questions = [{"question": f"Is {n} odd?", "choices": ["no", "yes"], "answer": n % 2} for n in range(6)]
    path = write_rows(folder / "questions.jsonl", questions)
    (folder / "colours.yaml").write_text(TASK.format(name="coh_colours", path=path))
    (folder / "missing.yaml").write_text(TASK.format(name="coh_missing", path=folder / "no_such.jsonl"))
    return str(folder)


@pytest.fixture(scope="module")
def harness(tasks):
    return Harness.of(["coh_*"], tasks, 4)


def test_what_is_not_there_is_said_at_once(harness, tasks, tmp_path):
    with pytest.raises(FeedbackError, match="--lm_eval colors: the harness has no such task"):
        Harness.of(["coh_colours", "colors"], tasks)
    with pytest.raises(FeedbackError, match=r"--lm_eval_tasks .*nothing: there is no such folder"):
        Harness.of(["coh_colours"], str(tmp_path / "nothing"))
    assert harness.tasks == ("coh_colours", "coh_missing")


def test_a_task_runs_with_the_loaded_model_and_says_nothing_of_it(model, harness, caplog):
    with caplog.at_level(logging.WARNING, "lm_eval"):
        found = replace(harness, tasks=("coh_colours",)).run(model)
    assert found["coh_colours"][COUNT] == 4 and 0 <= found["coh_colours"]["acc,none"] <= 1
    assert "pretrained" not in caplog.text


def test_an_adapter_is_asked_with_its_layers_in_their_places(model, harness, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    colours = replace(harness, tasks=("coh_colours",), limit=None)
    base = tiny_model_folder(tmp_path / "base", initializer_range=0.3)
    adapted = peft.get_peft_model(load_model(base), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    model.tokenizer.save_pretrained(tmp_path / "adapter")
    steered = load(str(tmp_path / "adapter"), words=Words(load_family("prose")), device="cpu")
    before = {name: weight.clone() for name, weight in steered.model.state_dict().items()}
    assert 0 <= colours.run(steered)["coh_colours"]["acc,none"] <= 1
    after = steered.model.state_dict()
    assert any("lora" in name for name in after) and all(after[name].equal(before[name]) for name in before)


def test_a_task_that_fails_is_an_error_with_its_cause(model, harness):
    with pytest.raises(FeedbackError, match=r"--lm_eval coh_missing: the harness stopped \(\w+: .*\): try the task"):
        replace(harness, tasks=("coh_missing",)).run(model)


def test_of_several_processes_the_first_runs_it_and_all_have_it(model, harness):
    colours, missing = (replace(harness, tasks=(name,)) for name in harness.tasks)
    alone = colours.run(model)

    def work(rank):
        with pytest.raises(FeedbackError, match="the harness stopped"):
            missing.run(model)
        return colours.run(model)

    assert together(work) == [alone, alone]
