"""Model cards: the hub can read them, what they say is true of the run, and nothing of the machine is in them."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from toys import pairs, tiny_model_folder, write_rows

from coh.card import last_part, public, public_command, write_card
from coh.chat_template import save_for_others
from coh.data.records import FeedbackError
from coh.data.templates import load_family
from coh.modeling import load_model, load_tokenizer
from coh.report import tables
from coh.report.record import ReportError, read_run
from coh.saved import Words, save_words

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
HOME = "/home/somebody"


def figure(value, n=40):
    return {"value": value, "low": value - 5, "high": value + 5, "n": n}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder as a run saves it, before anything is told of the run."""
    folder = tmp_path_factory.mktemp("cards") / "sums"
    tiny_model_folder(folder, initializer_range=0.5)
    words = Words(load_family("marker"), tasks=("general", "conversation"))
    save_words(folder, words)
    save_for_others(folder, words, load_tokenizer(str(folder)), load_model(str(folder)).generation_config)
    return folder


@pytest.fixture
def run(plain):
    """Tells how the folder came about; gives the folder."""

    def tell(command="", evaluated=True, tested=True, **arguments):
        about = json.loads((plain / "coh.json").read_text())
        about["arguments"] = {
            "model_name": "EleutherAI/pythia-1b",
            "feedback_data": ["hh_rlhf@500", f"mine={HOME}/secret/pairs.jsonl", "chat=some-org/preferences:clean"],
            "pretrain_data": "c4",
            "templates": [f"{HOME}/words.yaml"],
            "learning_rate": 5e-5,
            "chains": ["p", "n"],
            "hub_token": TOKEN,
            "output_dir": f"{HOME}/outputs/sums",
            **arguments,
        }
        about["data"] = {
            "sources": {
                name: {"documents": 1200, "share": 0.5, "tokens": 90_000, "targets": 30_000}
                for name in ("hh_rlhf", "mine")
            },
            "dropped": {"mine": {"empty output": 2}},
            "chains": {"prompt shortened": 3},
            "templates": {"general.p.1": 700},
            "text_documents": 57,
        }
        about["run"] = {"command": command, "commit": "abc123", "device": "cpu"}
        (plain / "coh.json").write_text(json.dumps(about))
        log = [{"step": 10, "loss": 3.5, "num_tokens_seen": 12_345}, {"step": 20, "train_runtime": 3.0}]
        (plain / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        for name, is_wanted, content in (
            ("test_results.json", tested, {"test_hh_rlhf_loss": 2.34567, "test_hh_rlhf_accuracy": 0.5}),
            ("evaluation.json", evaluated, {"model": {"sources": {"mine": {"steering_gap": figure(2.5)}}}}),
            ("adapter_config.json", False, {}),
            ("README.md", False, {}),
        ):
            (plain / name).write_text(json.dumps(content)) if is_wanted else (plain / name).unlink(missing_ok=True)
        return plain

    return tell


def test_the_hub_reads_what_it_can_link(run):
    data = ModelCard.load(write_card(run())).data
    assert data.base_model == "EleutherAI/pythia-1b" and data.base_model_relation == "finetune"
    assert data.datasets == ["Anthropic/hh-rlhf", "some-org/preferences", "allenai/c4"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["chain-of-hindsight", "human-feedback"]
    assert data.license is None and data.language is None


def test_figures_stand_in_the_index_under_the_data_they_are_of(run):
    data = ModelCard.load(write_card(run(), "someone/sums")).data
    found = {(one.dataset_type, one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    assert found == {
        ("Anthropic/hh-rlhf", "hh_rlhf", "loss"): 2.3457,
        ("Anthropic/hh-rlhf", "hh_rlhf", "accuracy"): 0.5,
        ("custom", "mine", "steering_gap"): 2.5,
    }
    assert data.model_name == "sums"
    assert "40 pairs" in next(one.metric_name for one in data.eval_results if one.metric_type == "steering_gap")
    without = ModelCard.load(write_card(run(evaluated=False, tested=False)))
    assert without.data.eval_results is None and "## Results" not in without.text


def test_figures_of_two_local_sources_stay_under_their_names(run):
    folder = run()
    about = json.loads((folder / "coh.json").read_text())
    about["data"]["sources"]["ours"] = about["data"]["sources"]["mine"]
    (folder / "coh.json").write_text(json.dumps(about))
    sources = {name: {"steering_gap": figure(value)} for name, value in (("mine", 1.5), ("ours", -0.0001))}
    (folder / "evaluation.json").write_text(json.dumps({"model": {"sources": sources}}))
    data = ModelCard.load(write_card(folder, "someone/sums")).data
    found = {one.dataset_name: one.metric_value for one in data.eval_results if one.metric_type == "steering_gap"}
    assert found == {"mine": 1.5, "ours": 0.0}
    index = data.to_dict()["model-index"][0]["results"]
    assert [entry["dataset"]["name"] for entry in index] == ["hh_rlhf", "mine", "ours"]


def test_benchmarks_stand_in_table_and_index(run):
    folder = run()
    asked = {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 25}
    told = {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": None, "word_perplexity,none": None}
    moments = {name: {"sources": {}, "benchmarks": {"piqa": asked, "gsm8k": told}} for name in ("base", "model")}
    (folder / "evaluation.json").write_text(json.dumps(moments))
    card = ModelCard.load(write_card(folder, "someone/sums"))
    assert (
        "**Benchmarks of lm-eval, ± standard error**" in card.text
        and "sample" not in card.text.partition("**Benchmarks")[2]
    )
    row = "| piqa | acc | 25 | 0.500 ± 0.100 | 0.500 ± 0.100 |"
    assert row in card.text and "| gsm8k | exact\\_match (strict-match) | - | 0.250 | 0.250 |" in card.text
    found = [one for one in card.data.eval_results if "lm-eval" in one.metric_name]
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in found] == [
        ("piqa", "acc", 0.5),
        ("gsm8k", "exact_match", 0.25),
    ]
    assert found[0].metric_name == "acc, 25 examples (lm-eval)" and found[0].dataset_type == "custom"


@pytest.mark.parametrize("content", ["{", "null", "[1]", "\xff"])
def test_a_damaged_file_of_the_test_is_named_and_left_out(run, caplog, content):
    folder = run()
    (folder / "test_results.json").write_text(content, encoding="latin-1")
    card = ModelCard.load(write_card(folder))
    assert "test_results.json cannot be read" in caplog.text and len(caplog.records) == 1
    assert "**Test**" not in card.text and "**Measured on mine" in card.text
    assert {one.metric_type for one in card.data.eval_results} == {"steering_gap"}


def test_what_lies_on_this_machine_is_named_by_its_last_part_and_not_linked(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for base in ("models/base", f"{tmp_path}/models/base", "./models/base", "../other/base", f"{HOME}/base.gguf"):
        rows = write_rows(tmp_path / "here" / "rows.jsonl", pairs(2))
        card = ModelCard.load(
            write_card(run(model_name=base, feedback_data=[rows, "here/rows.jsonl"], pretrain_data=f"{HOME}/text.txt"))
        )
        assert card.data.base_model is None and card.data.datasets is None, base
        assert f"`{last_part(base)}`" in card.text and "`rows.jsonl`" in card.text and "`text.txt`" in card.text
        for private in (str(tmp_path), HOME, "models/base", "here/", "../", TOKEN):
            assert private not in str(card), (base, private)


def test_the_command_is_all_there_but_for_paths_and_tokens(run):
    command = (
        f"torchrun --nproc_per_node 2 -m coh.coh_train --model_name gpt2 --feedback_data a={HOME}/a.jsonl@50 hh_rlhf "
        f"--output_dir={HOME}/out --hub_token {TOKEN} --fsdp_config '{{\"cpu_offload\": true}}' --run_name 'a b'"
    )
    card = write_card(run(command)).read_text()
    assert (
        "torchrun --nproc_per_node 2 -m coh.coh_train --model_name gpt2 --feedback_data a=a.jsonl@50 hh_rlhf "
        "--output_dir=out --hub_token ... --fsdp_config '{\"cpu_offload\": true}' --run_name 'a b'"
    ) in card
    assert HOME not in card and TOKEN not in card and "words.yaml" in card
    assert public_command("an 'open quote") == ""


@given(st.text("abAB./~=@{}\"' _-:\\", max_size=12), st.sampled_from([" ", "=", '"', "'", ","]))
def test_no_word_keeps_a_path_from_the_root(before, sign):
    assert "somebody" not in public(f"{before}{sign}{HOME}/secret/file@5")


def test_the_words_are_those_that_the_chat_template_writes(run):
    text = ModelCard.load(write_card(run())).text
    assert "```\nUser: {prompt} A helpful answer:\n```" in text
    assert "```\nUser: {prompt} An unhelpful answer:\n```" in text
    assert "tasks learned: general, conversation" in text


def test_every_table_of_a_report_is_in_the_card_once(run):
    folder = run()
    text = ModelCard.load(write_card(folder)).text
    found = tables.tables([read_run(folder)])
    assert len(found) >= 4
    for table in found:
        assert text.count(f"**{table.title}**") == 1
    data, results = text.index("## Data"), text.index("## Results")
    assert data < text.index("**Data of an epoch**") < text.index("**Templates**") < results
    assert results < text.index("**Measured on mine, 40 held-out pairs**")
    for words in ("dropped: empty output", "prompt shortened", "| learning\\_rate | 5e-05 |", "12,345", "57 plain"):
        assert words in text, words


def test_the_examples_of_a_card_run(run, monkeypatch, capsys):
    folder = run()
    text = ModelCard.load(write_card(folder)).text.replace("max_new_tokens=100", "max_new_tokens=3")
    monkeypatch.chdir(folder.parent)
    examples = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_an_adapter_says_so(run):
    folder = run()
    (folder / "adapter_config.json").write_text("{}")
    card = ModelCard.load(write_card(folder))
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    assert card.data.base_model_relation == "adapter" and "AutoPeftModelForCausalLM" in card.text


def test_license_and_language_are_the_base_s_where_it_tells_them(run, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\ntags: [other]\n---\n# Base\n")
    data = ModelCard.load(write_card(run(model_name=str(base)))).data
    assert (data.license, data.language) == ("mit", ["en", "de"]) and "other" not in data.tags
    (base / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert ModelCard.load(write_card(run(model_name=str(base)))).data.license is None


def test_names_of_strangers_do_not_break_out(run):
    folder = run()
    about = json.loads((folder / "coh.json").read_text())
    about["data"]["templates"] = {"a|b `c` <script>\n---\nlicense: x": 3}
    (folder / "coh.json").write_text(json.dumps(about))
    card = ModelCard.load(write_card(folder, "someone/a: b # c"))
    assert card.data.license is None and card.data.model_name == "a: b # c"
    assert "<script>" not in card.text and re.search(r"^\| a\\\|b .*\| 3 \|$", card.text, re.M)


def test_a_card_is_written_anew_over_any_other(run):
    folder = run()
    first = write_card(folder).read_text()
    (folder / "README.md").write_text(
        "---\nbase_model: /home/somebody/base\nlibrary_name: peft\n---\nOf another program"
    )
    assert write_card(folder).read_text() == first


def test_what_is_no_trained_folder_is_refused(run, tmp_path):
    with pytest.raises(FeedbackError, match=r"has no coh\.json"):
        write_card(tmp_path)
    (tmp_path / "coh.json").write_text("{}")
    with pytest.raises(ReportError, match=r"has no trainer_state\.json"):
        write_card(tmp_path)
    assert not Path(tmp_path, "README.md").exists()
