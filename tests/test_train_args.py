"""What options become where nobody says: the number format, Liger without its losses, checkpointing; and compiling."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from toys import training_folder

from coh.arguments import ConfigError, parse_or_raise
from coh.coh_train import main
from coh.train_args import CoHTrainArgs, liger_config, stated_bf16


@pytest.fixture
def fast(monkeypatch):
    """Says that this machine, which has no GPU, computes fast in bfloat16, or that it does not."""

    def say(is_fast: bool = True) -> None:
        monkeypatch.setattr("coh.train_args.has_fast_bf16", lambda use_cpu: is_fast)

    for name in ("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    say()
    return say


def made(tmp_path, **options) -> CoHTrainArgs:
    return CoHTrainArgs(str(tmp_path), **options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"auto_find_batch_size": True}, "--auto_find_batch_size True: the steps of a run are counted with the batch"),
        ({"num_train_epochs": -2.0}, "--num_train_epochs -2.0: give a number above 0"),
        ({"num_train_epochs": float("nan")}, "--num_train_epochs nan: give a number above 0"),
    ],
)
def test_what_would_end_a_run_early_or_never_is_refused(tmp_path, options, problem):
    with pytest.raises(ConfigError, match=problem):
        made(tmp_path, use_cpu=True, **options)
    assert made(tmp_path, use_cpu=True, max_steps=3, num_train_epochs=-1.0).max_steps == 3


class TestBfloat16:
    def test_it_follows_the_device_where_nobody_says(self, fast, tmp_path):
        assert made(tmp_path, use_cpu=True).bf16 is True
        assert made(tmp_path).to_dict()["bf16"] is True  # as it is recorded
        fast(False)
        assert made(tmp_path, use_cpu=True).bf16 is False
        assert made(tmp_path).to_dict()["bf16"] is False
        assert made(tmp_path).use_cpu is False

    def test_who_says_is_obeyed(self, fast, tmp_path):
        assert made(tmp_path, bf16=False).bf16 is False
        half = made(tmp_path, fp16=True)
        assert (half.bf16, half.fp16, half.mixed_precision) == (False, True, "fp16")
        fast(False)
        assert made(tmp_path, bf16=True, use_cpu=True).bf16 is True

    @pytest.mark.parametrize(
        ("words", "expected"),
        [([], True), (["--bf16"], True), (["--bf16", "false"], False), (["--fp16"], False), (["--bf16", "no"], False)],
    )
    def test_on_the_command_line(self, fast, tmp_path, words, expected):
        (args,) = parse_or_raise([CoHTrainArgs], ["--output_dir", str(tmp_path), "--use_cpu", *words])
        assert args.bf16 is expected

    def test_in_a_recipe(self, fast, tmp_path):
        for text, expected in (("false", False), ("null", True)):
            (tmp_path / "recipe.yaml").write_text(f"bf16: {text}\nuse_cpu: true\n")
            (args,) = parse_or_raise([CoHTrainArgs], ["--config", str(tmp_path / "recipe.yaml")])
            assert args.bf16 is expected

    def test_a_launcher_that_was_told_a_format_is_obeyed(self, fast, tmp_path, monkeypatch):
        for word, expected in (("fp16", False), ("bf16", True), ("no", True)):
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", word)
            assert made(tmp_path, use_cpu=True).bf16 is expected

    def test_processes_without_gpu_are_refused_as_before(self, fast, tmp_path, monkeypatch):
        """They have to say --use_cpu: it is not filled in for them."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="2 processes were launched, but each would train a model of its own"):
            made(tmp_path)

    def test_what_deepspeed_is_told_is_followed(self, tmp_path):
        path = tmp_path / "zero.json"
        for content, expected in (
            ({"bf16": {"enabled": True}}, True),
            ({"bf16": {"enabled": False}}, False),
            ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": True}}, False),
            ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}, None),
            ({"fp16": {"enabled": False}}, None),
            ({}, None),
        ):
            path.write_text(json.dumps(content))
            assert [stated_bf16(given) for given in (str(path), json.dumps(content), content)] == [expected] * 3
        for broken in ("{", "[]", '{"bf16": 1}'):
            path.write_text(broken)
            assert stated_bf16(str(path)) is None
        assert stated_bf16(str(tmp_path / "absent.json")) is None

    @pytest.mark.parametrize("is_fast", [False, True])
    def test_deepspeed_gets_what_was_chosen(self, is_fast, fast, tmp_path):
        fast(is_fast)
        path = tmp_path / "zero.json"
        for enabled, expected in (("auto", is_fast), (False, False)):
            path.write_text(json.dumps({"bf16": {"enabled": enabled}, "zero_optimization": {"stage": 2}}))
            args = CoHTrainArgs.__new__(CoHTrainArgs)
            vars(args).update(deepspeed=str(path), bf16=None, fp16=False, use_cpu=True)
            args._choose_bf16()
            assert (args.bf16, args.is_bf16_chosen) == (expected, enabled == "auto")

    def test_it_is_said(self, fast, tmp_path):
        assert made(tmp_path).arithmetic == (
            "Computing in bfloat16, which this device is fast at (--bf16 false: in float32)"
        )
        assert made(tmp_path, bf16=False).arithmetic == "Computing in float32, as was asked for"
        assert made(tmp_path, fp16=True).arithmetic == "Computing in float16, as was asked for"
        fast(False)
        assert made(tmp_path).arithmetic.startswith("Computing in float32 (--bf16 true: ")


class TestLiger:
    def test_its_layers_without_its_losses(self):
        off = {"fused_linear_cross_entropy": False, "cross_entropy": False}
        assert liger_config(None) == liger_config({}) == liger_config(off) == off
        assert liger_config({"rms_norm": False}) == off | {"rms_norm": False}

    @pytest.mark.parametrize("name", ["fused_linear_cross_entropy", "cross_entropy"])
    def test_its_losses_are_refused(self, name, tmp_path):
        for given in ({name: True}, {name: True, "rope": True}):
            with pytest.raises(ConfigError, match=f"--liger_kernel_config {name}: .* leave it out"):
                liger_config(given)
        with pytest.raises(ConfigError) as found:
            made(tmp_path, use_liger_kernel=True, liger_kernel_config={name: True})
        assert [problem.split(":")[0] for problem in found.value.problems] == [
            f"--liger_kernel_config {name}",
            "--use_liger_kernel",
        ]

    def test_without_the_option_nothing_is_filled_in(self, tmp_path):
        assert made(tmp_path).liger_kernel_config is None

    def test_a_cpu_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="--use_liger_kernel: its kernels are for GPUs"):
            made(tmp_path, use_liger_kernel=True)

    def test_where_there_is_a_gpu_the_package_is_asked_for(self, tmp_path, monkeypatch):
        args = made(tmp_path)
        args.use_liger_kernel = True
        monkeypatch.setattr(CoHTrainArgs, "device", torch.device("cuda"))
        monkeypatch.setattr("coh.train_args.is_liger_kernel_available", lambda: False)
        assert list(args._fill_kernel_options()) == [
            "--use_liger_kernel: the package liger-kernel is missing: pip install liger-kernel."
        ]
        monkeypatch.setattr("coh.train_args.is_liger_kernel_available", lambda: True)
        assert list(args._fill_kernel_options()) == []
        assert args.liger_kernel_config == liger_config(None)

    def test_transformers_hands_the_options_on_by_name(self, tiny_llama, monkeypatch):
        """Liger itself runs on GPUs only: this is how transformers calls it."""
        from transformers.integrations import liger

        given: dict[str, Any] = {}
        package = ModuleType("liger_kernel.transformers")
        package._apply_liger_kernel_to_instance = lambda model, **options: given.update(options)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
        monkeypatch.setattr(liger, "is_liger_kernel_available", lambda: True)
        liger.apply_liger_kernel(tiny_llama(), liger_config({"rope": False}))
        assert given == {"fused_linear_cross_entropy": False, "cross_entropy": False, "rope": False}


def test_checkpointing_is_not_reentrant_unless_that_is_asked_for(tmp_path):
    name = "activation_checkpointing_kwargs"
    if not hasattr(CoHTrainArgs, name):
        name = "gradient_checkpointing_kwargs"
    for given, expected in (
        ({"preserve_rng_state": False}, {"use_reentrant": False, "preserve_rng_state": False}),
        ({"use_reentrant": True}, {"use_reentrant": True}),
        (None, None),  # transformers' own choice, which is the same
    ):
        assert getattr(made(tmp_path, **{name: given}), name) == expected


# Whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("run"))


def trained(folder, out, **options) -> list[dict[str, float]]:
    """The logs of a short run."""
    words = {
        "model_name": folder / "model",
        "feedback_data": folder / "pairs.jsonl",
        "pretrain_data": folder / "text.jsonl",
        "cache_dir": folder / "cache",
        "output_dir": out,
        "templates": "marker",
        "seq_length": 64,
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
        "eval_strategy": "no",
    } | options
    main([word for name, value in words.items() for word in (f"--{name}", str(value))])
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [log for log in history if "loss" in log]


def test_the_tokenizer_is_read_once_and_the_format_is_said_and_recorded(folder, tmp_path, monkeypatch, caplog):
    from coh import experiment

    names = []
    load = experiment.load_tokenizer
    monkeypatch.setattr(experiment, "load_tokenizer", lambda name, *a, **k: names.append(name) or load(name, *a, **k))
    with caplog.at_level("INFO", "coh"):
        trained(folder, tmp_path / "out", max_steps=1)
    assert names == [str(folder / "model")]
    assert caplog.text.count("Computing in float32") == 1
    assert json.loads((tmp_path / "out" / "coh.json").read_text())["arguments"]["bf16"] is False


def test_a_run_does_not_go_on_in_another_format(folder, tmp_path):
    """A machine that is fast at bfloat16 would choose it for what began in float32 elsewhere."""
    out = tmp_path / "out"
    trained(folder, out, max_steps=2, save_strategy="steps", save_steps=1)
    with pytest.raises(SystemExit, match="--bf16 was False and is True"):
        trained(folder, out, max_steps=4, resume_from_checkpoint="auto", bf16="true")


def test_checkpointing_changes_no_bit_of_a_loss(folder, tmp_path):
    plain, checkpointed = (
        trained(folder, tmp_path / name, gradient_checkpointing=name, max_steps=3) for name in ("false", "true")
    )
    assert [log["loss"] for log in plain] == [log["loss"] for log in checkpointed]
    assert [log["grad_norm"] for log in plain] == pytest.approx([log["grad_norm"] for log in checkpointed], rel=1e-6)


def compiled_like_plain(folder, tmp_path, backend: str, tolerance: float) -> None:
    """Steps have other numbers of targets each: nothing is compiled again, and losses stay as they are."""
    options = {"webgpt_dataset_test_size": 0}  # evaluation would be compiled too
    plain = trained(folder, tmp_path / "plain", **options)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    options |= {"torch_compile": "true", "torch_compile_backend": backend}
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = trained(folder, tmp_path / "compiled", **options)
    assert 0 < graphs["unique_graphs"] - before <= 4
    assert len({log["target_share"] for log in plain}) > 4
    for name in ("loss", "loss_feedback", "grad_norm"):
        ours, theirs = ([log[name] for log in logs] for logs in (compiled, plain))
        assert len(ours) == 8
        assert ours == pytest.approx(theirs, rel=tolerance), name


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(folder, tmp_path):
    compiled_like_plain(folder, tmp_path, "eager", tolerance=1e-5)


@pytest.mark.slow
def test_a_model_compiled_to_machine_code_learns_the_same(folder, tmp_path):
    from torch._inductor.exc import InductorError

    try:
        compiled_like_plain(folder, tmp_path, "inductor", tolerance=1e-4)
    except InductorError as error:
        if "compiler" not in str(error).lower():
            raise
        pytest.skip(f"no compiler works here: {error}")
