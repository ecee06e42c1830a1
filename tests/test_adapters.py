"""Adapters: which layers get them, what is trained, and that they are saved, resumed and used like any model."""

import json
import shutil
import sys
import types

import pytest
import torch
from test_coh_train import options
from toys import tiny_model_folder, training_folder
from transformers import AutoConfig, AutoModelForCausalLM

from coh import coh_train, evaluate, generate, score
from coh.adapters import Lora, add_lora, config_problems, default_targets, linear_layers, missing_packages
from coh.loss import IGNORED, target_head, target_sums
from coh.modeling import ModelError, Quantization, adapter_base, load_config, load_model, load_tokenizer

# Sizes by whatever name an architecture has for them.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_key_value_heads"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "rotary_dim"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "vocab_size"), 64),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "opt", "bloom", "falcon", "phi", "qwen2", "gptj", "gemma2", "mistral"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("lora"))


def train(folder, output, **changes):
    given = {"use_lora": "true", "lora_r": 4, "max_steps": 4, "logging_steps": 1, **changes}
    coh_train.main(options(folder, output, **given))
    return output


def logged(output, *names):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [tuple(log[name] for name in names) for log in history if "loss" in log]


def adapter_weights(output):
    from safetensors.torch import load_file

    return load_file(output / "adapter_model.safetensors")


def refused(folder, capsys, **changes):
    """What is said of options before anything is loaded."""
    with pytest.raises(SystemExit) as stop:
        coh_train.main(options(folder, folder / "refused", **changes))
    assert stop.value.code == 2 and not (folder / "refused").exists()
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(folder):
    return train(folder, folder / "trained", max_steps=6, save_strategy="steps", save_steps=3)


class TestTargets:
    @pytest.mark.parametrize("kind", ARCHITECTURES)
    def test_all_linear_layers_but_the_head_get_an_adapter_and_nothing_else(self, kind):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))
        head = model.get_output_embeddings()
        kinds = {"Linear", "Conv1D", "FalconLinear"}
        expected = {name for name, one in model.named_modules() if type(one).__name__ in kinds and one is not head}
        assert len(expected) >= 2 * 4, "four in each layer at least"
        adapted = add_lora(model, Lora(rank=2), kind)
        layers = {name for name, one in adapted.named_modules() if hasattr(one, "lora_A")}
        found = {name.removeprefix("base_model.model.") for name in layers}
        assert found == expected
        assert adapted.get_output_embeddings() is head

    def test_a_name_that_would_name_more_is_written_in_full(self):
        """Layers in a list have numbers for names, and so have the blocks of a model."""
        linear, block = torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.ReLU()])
        model = torch.nn.ModuleDict({"up": linear, "layers": torch.nn.ModuleList([block, torch.nn.ReLU()])})
        model.get_output_embeddings = types.MethodType(lambda self: None, model)
        assert default_targets(model) == ["layers.0.0", "up"] and set(linear_layers(model)) == {"layers.0.0", "up"}

    def test_named_layers_get_adapters_and_no_others(self, tiny_llama):
        adapted = add_lora(tiny_llama(), Lora(targets=("q_proj", "layers.1.mlp.up_proj")), "tiny")
        found = {name.split("model.layers.")[1] for name, one in adapted.named_modules() if hasattr(one, "lora_A")}
        assert found == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}

    @pytest.mark.parametrize("target", ["q_prj", "mlp", "embed_tokens", "", "lm_head", "proj"])
    def test_names_of_anything_else_are_refused_with_those_there_are(self, tiny_llama, target):
        model = tiny_llama()
        there = "choose of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."
        reason = "the model has no linear layer of that name"
        if target == "lm_head":
            reason = "the head is computed at the targets only, as it stands"
        expected = f"--lora_target_modules {target}: {reason}: {there}"
        assert config_problems(model.config, ["q_proj", target]) == [expected]
        with pytest.raises(ModelError, match=reason):
            add_lora(model, Lora(targets=(target,)), "tiny")


class TestArithmetic:
    @pytest.fixture
    def batch(self):
        ids = torch.arange(24).reshape(2, 12) % 61 + 1
        labels = torch.where(torch.arange(12) % 3 > 0, ids, IGNORED)
        return {"input_ids": ids, "labels": labels, "is_pretrain": torch.tensor([False, True])}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_at_first_nothing_is_changed_and_the_matrices_alone_learn_in_float32(self, tiny_llama, dtype):
        model = tiny_llama().to(dtype)
        ids = torch.arange(8)[None]
        before = model(ids).logits
        adapted = add_lora(model, Lora(), "tiny")
        assert torch.equal(adapted.eval()(ids).logits, before)
        trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        assert trainable and all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
        assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {dtype}

    def test_the_head_runs_at_the_targets_only_with_the_gradients_of_whole_logits(self, tiny_llama, batch):
        adapted = add_lora(tiny_llama().double(), Lora(rank=2), "tiny")
        with torch.no_grad():  # so that gradients reach both matrices
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        adapted.eval()

        def gradients():
            found = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
            adapted.zero_grad()
            return found

        logits = adapted(batch["input_ids"]).logits.flatten(0, 1)
        targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
        expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        expected.backward()
        expected_gradients = gradients()
        head, shapes = target_head(adapted), []
        assert head is not None
        hook = head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
        found = target_sums(adapted, **batch).sum()
        hook.remove()
        found.backward()
        assert shapes == [(2,)], "two sums, no logits"
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
        own = gradients()
        assert own.keys() == expected_gradients.keys() and all("lora_" in name for name in own)
        for name, gradient in own.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("use_lora", ["true", "false"])
    def test_computing_activations_again_changes_nothing(self, folder, tmp_path, use_lora):
        found = {}
        for name in ("off", "default", "reentrant"):
            again = {} if name == "off" else {"gradient_checkpointing": "true"}
            if name == "reentrant":
                again["gradient_checkpointing_kwargs"] = '{"use_reentrant": true}'
            lora = {"use_lora": "true", "lora_r": 4} if use_lora == "true" else {"use_lora": None, "lora_r": None}
            output = train(folder, tmp_path / name, max_steps=2, **(lora | again))
            found[name] = logged(output, "loss", "grad_norm")
        assert found["off"][0][1] > 0.1, "matrices do get gradients"
        assert found["off"] == found["default"] == found["reentrant"]


class TestRun:
    def test_it_learns_and_nothing_else_is_saved(self, trained, folder):
        losses = [loss for (loss,) in logged(trained, "loss_feedback")]
        assert losses[-1] < losses[0] - 0.05
        weights = adapter_weights(trained)
        assert len(weights) == 2 * 2 * 7 and {str(one.dtype) for one in weights.values()} == {"torch.float32"}
        assert not list(trained.glob("model*.safetensors")) and not (trained / "config.json").exists()
        assert (trained / "coh.json").exists() and (trained / "chat_template.jinja").exists()
        assert adapter_base(str(trained)) == str((folder / "model").resolve())
        moments = torch.load(trained / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
        assert len(moments) == len(weights), "no moments of frozen weights"

    def test_stopped_and_resumed_is_never_stopped(self, trained, folder, tmp_path):
        shutil.copytree(trained / "checkpoint-3", tmp_path / "out" / "checkpoint-3")
        again = {"save_strategy": "steps", "save_steps": 3, "resume_from_checkpoint": tmp_path / "out" / "checkpoint-3"}
        output = train(folder, tmp_path / "out", max_steps=6, **again)
        weights, expected = adapter_weights(output), adapter_weights(trained)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert logged(output, "loss", "grad_norm") == logged(trained, "loss", "grad_norm")

    def test_the_folder_is_used_like_any_model(self, trained, folder, tmp_path, capsys):
        asked = ["--prompt", "Question 5?", "--max_new_tokens", "5", "--guidance", "1.5"]
        generate.main(["--model", str(trained), *asked])
        pairs = str(folder / "pairs.jsonl")
        score.main(["--model", str(trained), "--input", pairs, "--output", str(tmp_path / "scores.jsonl")])
        data = ["--feedback_data", f"mine={pairs}", "--webgpt_dataset_test_size", "0.3"]
        evaluate.main(["--model", str(trained), *data, "--json", str(tmp_path / "found.json")])
        assert "steering gap" in capsys.readouterr().out
        assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 80

    def test_it_computes_what_peft_alone_does_and_not_what_its_base_does(self, trained, folder):
        from peft import AutoPeftModelForCausalLM

        ids = torch.arange(4, 20)[None]
        own, base = load_model(str(trained)), load_model(str(folder / "model"))
        plain = AutoPeftModelForCausalLM.from_pretrained(trained)
        assert type(own) is type(base) and not own.training
        assert torch.equal(own(ids).logits, plain(ids).logits)
        assert not torch.allclose(own(ids).logits, base(ids).logits, atol=1e-3)
        ends = own.generation_config.eos_token_id
        assert load_tokenizer(str(trained)).eos_token_id in (ends if isinstance(ends, list) else [ends])
        assert load_config(str(trained)).model_type == "llama"

    def test_gpt2_whose_layers_are_transposed(self, folder, tmp_path):
        from transformers import GPT2Config, GPT2LMHeadModel

        tokenizer = load_tokenizer(str(folder / "model"))
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4)).save_pretrained(
            tmp_path / "gpt2"
        )
        tokenizer.save_pretrained(tmp_path / "gpt2")
        output = train(folder, tmp_path / "out", model_name=tmp_path / "gpt2")
        assert json.loads((output / "adapter_config.json").read_text())["fan_in_fan_out"] is True
        assert logged(output, "loss_feedback")[-1] < logged(output, "loss_feedback")[0]


class TestQuantized:
    @pytest.mark.parametrize(("bits", "kind"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
    def test_frozen_weights_are_quantised_and_the_matrices_learn(self, folder, tmp_path, bits, kind):
        pytest.importorskip("bitsandbytes")
        model = load_model(str(folder / "model"), quantization=Quantization(bits))
        kinds = {name: type(one).__name__ for name, one in linear_layers(model).items()}
        assert set(kinds.values()) == {kind} and type(model.get_output_embeddings()) is torch.nn.Linear
        adapted = add_lora(model, Lora(), "tiny")
        trainable = {p.dtype for p in adapted.parameters() if p.requires_grad}
        assert trainable == {torch.float32} and target_head(adapted) is not None
        output = train(folder, tmp_path / "out", **{f"load_in_{bits}bit": "true"})
        losses = [loss for (loss,) in logged(output, "loss_feedback")]
        assert losses[-1] < losses[0] - 0.02
        assert json.loads((output / "coh.json").read_text())["arguments"][f"load_in_{bits}bit"]

    def test_checkpointing_changes_nothing(self, folder, tmp_path):
        pytest.importorskip("bitsandbytes")
        found = []
        for name, again in (("off", {}), ("on", {"gradient_checkpointing": "true"})):
            output = train(folder, tmp_path / name, max_steps=2, load_in_4bit="true", **again)
            found.append(logged(output, "loss", "grad_norm"))
        assert found[0] == found[1]


class TestRefusals:
    def test_everything_is_said_at_once(self, folder, capsys):
        wrong = {"lora_r": 0, "lora_alpha": -1, "lora_dropout": 1, "load_in_4bit": "true", "load_in_8bit": "true"}
        said = refused(folder, capsys, **wrong)
        for name in ("--lora_r 0:", "--lora_alpha -1.0:", "--lora_dropout 1.0:", "--load_in_8bit and --load_in_4bit:"):
            assert name in said
        assert said.count("does nothing without --use_lora") == 3

    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantised_weights_are_not_trained_themselves(self, folder, capsys, bits):
        said = refused(folder, capsys, **{f"load_in_{bits}bit": "true"})
        assert f"--load_in_{bits}bit: weights of {bits} bits are too coarse to be trained themselves" in said

    def test_targets_that_are_not_there(self, folder, capsys):
        said = refused(folder, capsys, use_lora="true", lora_target_modules="c_attn,lm_head", seq_length=4096)
        assert "--seq_length 4096" in said and "lm_head: the head is" in said
        assert "--lora_target_modules c_attn: the model has no linear layer of that name: choose of down_proj," in said

    def test_a_gguf_file_and_a_stored_quantisation(self, folder, tmp_path, capsys):
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        said = refused(folder, capsys, model_name=tmp_path / "model.gguf", use_lora="true", load_in_4bit="true")
        assert "--load_in_4bit: a .gguf file is unpacked" in said
        shutil.copytree(folder / "model", tmp_path / "stored")
        config = json.loads((tmp_path / "stored" / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (tmp_path / "stored" / "config.json").write_text(json.dumps(config))
        assert "quantised weights are too coarse" in refused(folder, capsys, model_name=tmp_path / "stored")
        twice = {"model_name": tmp_path / "stored", "use_lora": "true", "load_in_4bit": "true"}
        assert "stored in quantised form already" in refused(folder, capsys, **twice)

    def test_engines_that_cut_weights_into_pieces(self, monkeypatch):
        from coh.experiment import ExperimentArgs, _shards_problems

        experiment = ExperimentArgs(use_lora=True, load_in_4bit=True)
        for stage, count in ((2, 0), (3, 1)):
            engine = types.SimpleNamespace(hf_ds_config=types.SimpleNamespace(is_zero3=lambda stage=stage: stage == 3))
            train_args = types.SimpleNamespace(deepspeed_plugin=engine, fsdp=[])
            said = list(_shards_problems(experiment, train_args))
            assert len(said) == count and all("--load_in_4bit: ZeRO-3" in one for one in said)
        alone = types.SimpleNamespace(deepspeed_plugin=None, fsdp=[])
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        assert "--load_in_4bit: FSDP" in next(_shards_problems(experiment, alone))

    def test_training_begins_with_a_whole_model(self, trained, folder, capsys):
        said = refused(folder, capsys, model_name=trained, use_lora="true")
        assert "it is an adapter of" in said and "python -m coh.merge" in said

    def test_packages_that_are_missing(self, trained, monkeypatch):
        monkeypatch.setattr("coh.adapters.find_spec", lambda name: None)
        assert missing_packages(uses_lora=False, is_quantized=False) == []
        assert missing_packages(uses_lora=True, is_quantized=True) == [
            "--use_lora: the package peft is not installed: pip install peft",
            "--load_in_8bit and --load_in_4bit: the package bitsandbytes is not installed: pip install bitsandbytes",
        ]
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ModelError, match=r"is an adapter, which needs the package peft: pip install peft"):
            load_model(str(trained))


class TestFolders:
    """Folders that say they hold an adapter, and are not as training writes them."""

    @pytest.fixture
    def copy(self, trained, tmp_path):
        return shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"peft_type": "IA3"}, "adapter of the kind IA3, which is not supported"),
            ({"base_model_name_or_path": None}, "names no base model: write it as base_model_name_or_path"),
            ({"base_model_name_or_path": "/no/such/model"}, "is an adapter, and its base is gone"),
            ("[]", "adapter_config.json cannot be read"),
            ("{", "adapter_config.json cannot be read"),
        ],
    )
    def test_what_is_wrong_is_said(self, copy, change, sentence):
        path = copy / "adapter_config.json"
        content = json.loads(path.read_text())
        path.write_text(change if isinstance(change, str) else json.dumps(content | change))
        for load in (load_config, load_model):
            with pytest.raises(ModelError, match=sentence):
                load(str(copy))

    def test_an_adapter_of_an_adapter_and_of_another_model(self, copy, trained, tmp_path):
        path = copy / "adapter_config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"base_model_name_or_path": str(trained)}))
        with pytest.raises(ModelError, match=r"an adapter again: merge that one first"):
            load_model(str(copy))
        wide = tiny_model_folder(tmp_path / "wide", hidden_size=64)
        path.write_text(json.dumps(content | {"base_model_name_or_path": wide}))
        with pytest.raises(ModelError, match=r"adapter .* cannot be loaded on .*wide"):
            load_model(str(copy))
