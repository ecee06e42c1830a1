"""A merged folder computes what adapter and base do together, and keeps everything that lay around the adapter."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from test_coh_train import options
from toys import training_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from coh import coh_train, generate, merge
from coh.arguments import ConfigError
from coh.merge import MergeArgs
from coh.modeling import load_model
from coh.saved import load_words

KEPT = ("coh.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("merge"))


@pytest.fixture(scope="module")
def adapter(folder):
    given = {"use_lora": "true", "max_steps": 4, "learning_rate": "1e-2"}
    coh_train.main(options(folder, folder / "adapter", **given))
    return folder / "adapter"


def logits(model):
    return model.eval()(torch.arange(4, 36)[None] % 250).logits


def merged(adapter, output, *more):
    merge.main(["--model", str(adapter), "--output_dir", str(output), *more])
    return output


def test_the_merged_model_computes_what_adapter_and_base_do_together(folder, adapter, tmp_path):
    output = merged(adapter, tmp_path / "new" / "whole")
    whole, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = logits(load_model(str(adapter)))
    torch.testing.assert_close(logits(whole), expected, rtol=1e-5, atol=1e-5)
    assert (expected - logits(load_model(str(folder / "model")))).abs().max() > 0.01, "the adapter does something"
    assert not any("adapter" in path.name for path in output.iterdir())
    assert list(output.parent.iterdir()) == [output], "nothing is left beside it"


def test_everything_around_it_is_kept(adapter, tmp_path):
    output = tmp_path / "empty"
    output.mkdir()
    merged(adapter, output)
    for name in KEPT:
        assert (output / name).read_bytes() == (adapter / name).read_bytes(), name
    assert load_words(output).family.name == "marker"
    assert "feedback" in AutoTokenizer.from_pretrained(output).chat_template


def test_its_card_tells_the_adapters_run(folder, adapter, tmp_path):
    (tmp_path / "pairs").mkdir()
    card = ModelCard.load(merged(adapter, tmp_path / "pairs" / "whole") / "README.md")
    assert card.data.library_name == "transformers" and "lora" not in card.data.tags
    assert "merged into the weights" in card.text and "lora\\_r" in card.text
    assert "AutoPeftModel" not in card.text and 'AutoModelForCausalLM.from_pretrained("whole")' in card.text
    mine, its = (text.partition("## Results")[2] for text in (card.text, (adapter / "README.md").read_text()))
    assert mine == its != ""


def test_an_adapter_without_a_record_of_its_run_gets_no_card(adapter, tmp_path):
    bare = shutil.copytree(adapter, tmp_path / "bare", ignore=shutil.ignore_patterns("trainer_state.json"))
    assert not (merged(bare, tmp_path / "whole") / "README.md").exists()


def test_the_words_steer_adapter_and_merged_model_alike(adapter, tmp_path, capsys):
    outputs = []
    for model in (adapter, merged(adapter, tmp_path / "whole")):
        generate.main(["--model", str(model), "--prompt", "Question 5?", "--max_new_tokens", "12"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_the_sum_is_made_in_float32_and_rounded_once(folder, adapter, tmp_path, dtype):
    base = load_model(str(folder / "model")).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    output = merged(adapter, tmp_path / "whole", "--dtype", dtype, "--base_model", str(tmp_path / "base"))
    found = AutoModelForCausalLM.from_pretrained(output)
    assert found.dtype == torch.bfloat16
    exact = merged(adapter, tmp_path / "exact", "--dtype", "float32", "--base_model", str(tmp_path / "base"))
    expected = AutoModelForCausalLM.from_pretrained(exact).state_dict()
    assert all(torch.equal(weight, expected[name].bfloat16()) for name, weight in found.state_dict().items())


def test_an_adapter_of_quantised_weights_is_added_to_the_plain_ones(folder, tmp_path, caplog):
    pytest.importorskip("bitsandbytes")
    given = {"use_lora": "true", "max_steps": 2, "load_in_4bit": "true"}
    coh_train.main(options(folder, tmp_path / "adapter", **given))
    with caplog.at_level("INFO", "coh"):
        output = merged(tmp_path / "adapter", tmp_path / "whole")
    assert "trained on 4-bit weights; it is merged into the unquantised ones" in caplog.text
    whole = AutoModelForCausalLM.from_pretrained(output)
    assert not hasattr(whole.config, "quantization_config")
    torch.testing.assert_close(logits(whole), logits(load_model(str(tmp_path / "adapter"))), rtol=1e-5, atol=1e-5)


class TestRefusals:
    def refused(self, capsys, *words):
        with pytest.raises(SystemExit) as stop:
            merge.main([*map(str, words)])
        return f"{stop.value} {capsys.readouterr().err}"

    def test_an_output_that_holds_something(self, adapter, tmp_path):
        (tmp_path / "note.txt").write_text("mine")
        for output in (tmp_path, tmp_path / "note.txt"):
            with pytest.raises(ConfigError) as error:
                MergeArgs(model=str(adapter), output_dir=str(output), dtype="int3")
            assert [problem.split()[0] for problem in error.value.problems] == ["--dtype", "--output_dir"]
        assert (tmp_path / "note.txt").read_text() == "mine"

    def test_what_is_no_adapter(self, folder, tmp_path, capsys):
        for name in (folder / "model", tmp_path / "gone"):
            said = self.refused(capsys, "--model", name, "--output_dir", tmp_path / "out")
            assert f"--model {name}: there is no adapter (adapter_config.json)" in said
        assert not (tmp_path / "out").exists()

    def test_bases_that_do_not_do(self, folder, adapter, tmp_path, capsys):
        stored = shutil.copytree(folder / "model", tmp_path / "stored")
        config = json.loads((stored / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (stored / "config.json").write_text(json.dumps(config))
        for base, sentence in ((stored, "is stored in quantised form"), (adapter, "is an adapter itself")):
            said = self.refused(capsys, "--model", adapter, "--output_dir", tmp_path / "out", "--base_model", base)
            assert sentence in said
        assert [path.name for path in tmp_path.iterdir()] == ["stored"], "nothing is left"
