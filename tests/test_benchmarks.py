"""The benchmarks: how they measure, what they draw and write into the docs, the plan's formulas, and that they run."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import growth
import harness
import plan
import table
from harness import Figure

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8"))
needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")


@pytest.mark.parametrize("name", ["harness", "table", "plan", "growth", "pictures"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert (result.failed, result.attempted > 0) == (0, True)


def figure(name="step/a", value=0.5, **more):
    return Figure(name, "what", value, value - 0.1, value + 0.1, 5, **more)


class Clock:
    """A clock that the sides themselves move on."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def side(self, name, seconds):
        def work():
            self.calls.append(name)
            self.now += seconds

        return work

    def __call__(self):
        return self.now


class TestHarness:
    def test_sides_take_turns_and_each_is_charged_its_own_time(self):
        clock = Clock()
        sides = {"a": clock.side("a", 1), "b": clock.side("b", 2), "c": clock.side("c", 4)}
        seconds = harness.in_turn(sides, rounds=4, warm_up=1, tick=clock)
        assert seconds == {"a": [1] * 4, "b": [2] * 4, "c": [4] * 4}
        rounds = ["".join(clock.calls[start : start + 3]) for start in range(0, 15, 3)]
        assert rounds == ["abc", "cba", "abc", "cba", "abc"]

    def test_the_ratio_is_of_rounds_not_of_medians(self):
        assert harness.ratio_of([1, 10, 100], [2, 5, 100]) == (1, 0.5, 2)

    def test_process_time_counts_work_and_not_sleep(self):
        import time

        start = harness.clock()
        time.sleep(0.3)
        assert harness.clock() - start < 0.2

    @pytest.mark.parametrize(
        ("value", "earlier", "is_best_low", "target", "is_worse"),
        [
            (0.5, 0.48, True, None, False),  # within the slack
            (0.6, 0.48, True, None, True),
            (0.2, 0.48, True, None, False),
            (2.0, 3.0, False, None, True),
            (4.0, 3.0, False, None, False),
            (0.5, 0.5, True, 0.42, True),  # not worse, but the target is missed
            (0.5, None, True, None, False),  # new
        ],
    )
    def test_what_counts_as_worse(self, value, earlier, is_best_low, target, is_worse):
        found = figure(value=value, is_best_low=is_best_low, target=target)
        told = harness.regression(found, None if earlier is None else {"value": earlier})
        assert (told is not None) == is_worse
        assert told is None or told.startswith("step/a: ")

    def test_figures_add_up_in_a_file_and_a_worse_one_fails_the_check(self, tmp_path, capsys, monkeypatch):
        path = tmp_path / "deep" / "cpu.json"
        monkeypatch.setattr(sys, "argv", [str(FOLDER / "step.py"), "--rounds", "3", "--output", str(path)])
        parse = harness.parser("What is it?\n\nMore.").parse_args
        assert harness.finish([figure("a"), figure("b")], parse(["--output", str(path)])) == 0
        assert harness.finish([figure("b", 0.7)], parse(["--output", str(path)])) == 0
        figures = json.loads(path.read_text())["figures"]
        assert {name: found["value"] for name, found in figures.items()} == {"a": 0.5, "b": 0.7}
        assert figures["b"]["command"] == "python benchmarks/step.py --rounds 3"
        assert figures["b"]["machine"]["torch"] == torch.__version__
        assert harness.finish([figure("a", 0.5), figure("b", 0.9)], parse(["--check", str(path)])) == 1
        assert capsys.readouterr().err == "b: 0.9, was 0.7\n"

    @pytest.mark.parametrize(
        ("value", "told"), [(0.2, "moonshot (<= 0.42)"), (0.4, "target (<= 0.42)"), (0.5, "MISSED (<= 0.42)")]
    )
    def test_what_is_told(self, value, told, capsys):
        harness.tell(figure(value=value, target=0.42, moonshot=0.3))
        assert told in capsys.readouterr().out


def results(folder, **files):
    for name, figures in files.items():
        machine = {"device": "cpu" if name == "cpu" else name.upper(), "python": "3.11.1", "torch": "2.13"}
        known = {of.name: vars(of) | {"machine": machine, "command": "python benchmarks/step.py"} for of in figures}
        (folder / f"{name}.json").write_text(json.dumps({"figures": known}))
    return folder


class TestTable:
    def test_a_row_says_value_spread_limits_and_which_are_kept(self):
        cells = table.row("step/a", vars(figure(value=0.3123, target=0.42, moonshot=0.3))).split(" | ")
        assert cells[2:] == ["**0.312** (0.212 to 0.412)", "≤ 0.42", "≤ 0.3", "target |"]

    @pytest.mark.parametrize(
        ("value", "limits", "verdict"),
        [
            (0.3, {"target": 0.4, "moonshot": 0.3}, "moonshot"),
            (0.41, {"target": 0.4, "moonshot": 0.3}, "missed"),
            (9.0, {"target": 8.0, "moonshot": 20.0, "is_best_low": False}, "target"),
            (7.0, {"target": 8.0, "is_best_low": False}, "missed"),
            (7.0, {}, ""),
        ],
    )
    def test_verdicts(self, value, limits, verdict):
        assert table.reached(vars(figure(value=value, **limits))) == verdict

    def test_devices_have_tables_of_their_own_and_growth_has_none(self, tmp_path):
        folder = results(tmp_path, h100=[figure("b")], cpu=[figure("a"), figure("c")])
        (folder / "growth.json").write_text('{"points": {}}')
        (folder / "growth-h100.json").write_text('{"points": {}}')
        text = table.figures_text(folder)
        assert re.findall(r"^### (.*)$", text, re.M) == ["CPU", "H100"]
        assert re.findall(r"^\| `(\w+)`", text, re.M) == ["a", "c", "b"]
        assert text.count("\npython benchmarks/step.py\n") == 2
        assert "one thread of a CPU, python 3.11.1, torch 2.13; 5 rounds" in text

    def test_nothing_measured_yet(self, tmp_path):
        assert table.figures_text(tmp_path) == table.EMPTY

    def test_the_page_is_filled_between_its_marks_and_checked(self, tmp_path, capsys):
        page = tmp_path / "page.md"
        page.write_text("# A\n<!-- figures -->\n<!-- /figures -->\nB\n<!-- plan -->x<!-- /plan -->\nC\n")
        options = ["--page", str(page), "--results", str(results(tmp_path, cpu=[figure()]))]
        assert table.main([*options, "--check"]) == 1
        assert "run benchmarks/table.py" in capsys.readouterr().err
        assert table.main(options) == 0
        assert table.main([*options, "--check"]) == 0
        written = page.read_text()
        assert "**0.5**" in written
        assert [line for line in written.splitlines() if line in "ABC" and line] == ["B", "C"]
        results(tmp_path, cpu=[figure(value=0.6)])
        assert table.main([*options, "--check"]) == 1

    @pytest.mark.parametrize("page", ["", "<!-- a -->", "<!-- /a --><!-- a -->", "<!-- a --><!-- /a --><!-- a -->"])
    def test_a_page_without_its_marks_is_refused(self, page):
        with pytest.raises(ValueError, match="the page needs <!-- a --> and behind it <!-- /a -->"):
            table.filled(page, "a", "text")

    def test_docs_performance_is_what_the_results_give(self):
        assert table.main(["--check"]) == 0, "run `python benchmarks/table.py`"


PUBLISHED = {  # numbers of parameters
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-7b": 6_738_415_616,
    "llama-8b": 8_030_261_248,
    "llama-13b": 13_015_864_320,
    "llama-70b": 70_553_706_496,
    "gpt-j-6b": 6_050_882_784,
}


def build(model, device="meta", **more):
    """The real model of these sizes, on the meta device, where it costs nothing."""
    from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        if model.kind == "gptj":
            sizes = {"n_embd": model.hidden, "n_layer": model.num_layers, "n_head": model.num_heads}
            config = GPTJConfig(
                vocab_size=model.vocabulary, n_inner=model.intermediate, **sizes, bos_token_id=0, eos_token_id=0
            )
            return GPTJForCausalLM(config)
        config = LlamaConfig(
            vocab_size=model.vocabulary,
            hidden_size=model.hidden,
            intermediate_size=model.intermediate,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            head_dim=model.d,
            tie_word_embeddings=model.is_tied,
            **more,
        )
        return LlamaForCausalLM(config)


SMALL = plan.Model(256, 6, 8, 4, 704, 2048, is_tied=True)
WIDE = plan.Model(128, 2, 4, 2, 352, 32_000, is_tied=False)


NUM_ROWS = 8  # enough that what does not grow with them (GPT-J's table of angles) is below a hundredth


def peak_of_two_micro_batches(model, run):
    """Bytes that a step of two micro-batches takes at most, its model included: the plan's fullest moment."""
    growth.make_step("coh", growth.Size(length=32, vocabulary=512))()
    growth.return_what_is_freed()
    before = growth._peak_bytes()
    real = build(model, "cpu").train()
    if run.is_checkpointed:
        real.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(real.parameters())
    rows = growth.Size(run.seq_length, model.vocabulary, share=0.5, num_feedback=run.micro_batch // 2)
    batch = growth.batch_of(rows)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(2):
            growth.coh_loss(real, batch).backward()
        optimizer.step()
    return growth._peak_bytes() - before


class TestPlan:
    @pytest.mark.parametrize("name", plan.MODELS)
    def test_parameters_are_those_of_the_real_model(self, name):
        model = plan.MODELS[name]
        assert model.num_parameters == PUBLISHED[name]
        assert sum(parameter.numel() for parameter in build(model).parameters()) == PUBLISHED[name]

    @pytest.mark.parametrize("name", ["smollm2-135m", "gpt-j-6b"])
    def test_adapters_are_those_that_peft_makes(self, name):
        peft = pytest.importorskip("peft")
        model = plan.MODELS[name]
        targets = (
            "all-linear" if model.kind == "llama" else ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"]
        )
        adapted = peft.get_peft_model(build(model), peft.LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
        assert adapted.get_nb_trainable_parameters()[0] == model.lora_parameters(8)

    def test_weights_gradients_and_states_are_exact(self):
        model = build(SMALL, "cpu")
        optimizer = torch.optim.AdamW(model.parameters())
        growth.coh_loss(model, growth.batch_of(growth.Size(32, SMALL.vocabulary, num_feedback=1))).backward()
        optimizer.step()
        parts = plan.memory(SMALL, plan.Run(is_bf16=False))
        assert parts["weights"] == sum(p.nbytes for p in model.parameters())
        assert parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())
        states = [value for of in optimizer.state.values() for value in of.values() if value.dim()]
        assert parts["states"] == sum(value.nbytes for value in states)

    @pytest.mark.parametrize("is_autocast", [False, True], ids=["fp32", "autocast"])
    @pytest.mark.parametrize("model", [SMALL, plan.Model(128, 3, 2, 2, 512, 64, kind="gptj")], ids=["llama", "gptj"])
    def test_activations_of_a_layer_are_what_autograd_keeps(self, model, is_autocast):
        length, layers = 64, (1, 3)
        kept = [kept_bytes(build(shorter(model, num), "cpu").train(), length, is_autocast) for num in layers]
        per_layer = (kept[1] - kept[0]) / (layers[1] - layers[0])
        if is_autocast:  # the weights are cast for each product; the plan counts them as copies
            per_layer -= 2 * model.layer_matrices
        run = plan.Run(seq_length=length, is_bf16=is_autocast)
        assert per_layer == pytest.approx(NUM_ROWS * length * plan.layer_activations(model, run), rel=0.02)

    @pytest.mark.slow
    @pytest.mark.parametrize("model", [SMALL, WIDE], ids=["deep", "wide"])
    @pytest.mark.parametrize("is_checkpointed", [False, True])
    def test_a_step_takes_what_the_plan_says(self, model, is_checkpointed):
        run = plan.Run(seq_length=128, micro_batch=8, is_bf16=False, is_checkpointed=is_checkpointed)
        planned = sum(plan.memory(model, run).values()) - plan.RESERVE
        measured = growth.in_fresh_process(peak_of_two_micro_batches, model, run)
        assert 0.8 * measured <= planned <= 1.25 * measured

    @pytest.mark.parametrize("share", [0.2, 0.9])
    def test_work_is_what_torch_counts(self, share):
        from torch.utils.flop_counter import FlopCounterMode

        model = build(SMALL, "cpu", attn_implementation="eager")
        batch = growth.batch_of(growth.Size(256, SMALL.vocabulary, share=share, ratio=0))
        with FlopCounterMode(display=False) as counter:
            growth.coh_loss(model, batch).backward()
        found = (batch["labels"][:, 1:] != -100).sum().item() / batch["labels"].numel()
        run = plan.Run(seq_length=256, target_share=found)
        counted = counter.get_total_flops() / batch["labels"].numel()
        assert plan.work(SMALL, run) == pytest.approx(counted, rel=0.03)

    def test_chunks_are_those_of_the_head(self):
        from coh.loss import chunk_rows

        for vocabulary in (8_000, 32_000, 49_152, 128_256):
            assert plan.CHUNK_BYTES / 2 < 4 * vocabulary * chunk_rows(vocabulary) <= plan.CHUNK_BYTES

    def test_stages_divide_what_they_should(self):
        model = plan.MODELS["llama-8b"]
        per_parameter = {}
        for stage in (1, 2, 3):
            parts = plan.model_memory(model, plan.Run(num_gpus=8, stage=stage))
            per_parameter[stage] = [parts[name] / model.num_parameters for name in ("weights", "gradients", "states")]
        assert per_parameter == {1: [2, 2, 1.5], 2: [2, 0.25, 1.5], 3: [0.25, 0.25, 1.5]}

    def test_what_leaves_the_gpu_is_on_the_host(self):
        model = plan.MODELS["llama-8b"]
        for stage, share in ((1, 12), (2, 14), (3, 16)):
            run = plan.Run(num_gpus=8, stage=stage, is_offloaded=True)
            assert plan.host_memory(model, run) == share * model.num_parameters / 8
            assert plan.model_memory(model, run)["states"] == 0
        assert plan.host_memory(model, plan.Run(num_gpus=8, stage=2)) == 0

    @pytest.mark.parametrize("engine", [{"stage": 1}, {"stage": 2}, {"stage": 3}, {"is_fsdp": True}])
    def test_more_gpus_need_no_more_memory_each(self, engine):
        sizes = [
            plan.Plan(plan.MODELS["llama-8b"], plan.Run(num_gpus=n, **engine), plan.GPUS["h100"]).bytes
            for n in (2, 8, 64, 1024)
        ]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]

    def test_what_costs_what(self):
        model, base = plan.MODELS["llama-8b"], plan.Run(num_gpus=16, stage=3, micro_batch=4)
        change = lambda **options: plan.replace(base, **options)  # noqa: E731
        memory = lambda run: sum(plan.memory(model, run).values())  # noqa: E731
        assert memory(change(is_checkpointed=True)) < memory(base)
        assert plan.work(model, base) < plan.work(model, change(is_checkpointed=True)) < 4 / 3 * plan.work(model, base)
        assert memory(change(lora_rank=16)) < memory(base)
        assert plan.work(model, change(lora_rank=16)) < 0.75 * plan.work(model, base)
        assert plan.traffic(model, change(accumulation=4)) > plan.traffic(model, base)
        in_one_machine = plan.bandwidth(plan.GPUS["h100"], change(num_gpus=8))
        assert in_one_machine > plan.bandwidth(plan.GPUS["h100"], base)
        assert plan.traffic(model, change(num_gpus=1)) == 0
        assert plan.work(model, change(target_share=0.1)) < plan.work(model, base)

    def test_the_best_fits_and_nothing_that_fits_is_faster(self):
        for name in ("smollm2-135m", "llama-8b", "llama-70b"):
            for num_gpus in (1, 8, 64):
                plans = [plan.Plan(plan.MODELS[name], run, plan.GPUS["h100"]) for run in plan.ways(num_gpus, 2048)]
                chosen = plan.best(plan.MODELS[name], num_gpus, plan.GPUS["h100"], 2048)
                rates = [of.tokens_per_second for of in plans if of.fits]
                assert chosen.fits if chosen else not rates
                assert chosen is None or chosen.tokens_per_second >= 0.99 * max(rates)

    def test_the_table_has_every_size(self, capsys):
        assert plan.main(["--table"]) == 0
        printed = capsys.readouterr().out
        assert all(printed.count(f"| {name}, ") == 2 for name in plan.MODELS)
        assert printed.strip() == plan.table()

    def test_a_plan_is_told(self, capsys):
        words = [
            "--model",
            "llama-8b",
            "--gpus",
            "8",
            "--zero",
            "3",
            "--offload",
            "--lora_rank",
            "8",
            "--network",
            "50",
        ]
        assert plan.main(words) == 0
        printed = capsys.readouterr().out
        assert "8,030,261,248 parameters" in printed
        assert re.search(r"together +[\d.]+ +fits into 80", printed)
        assert "ZeRO-3 + offload, LoRA 8" in printed

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--gpus", "0"], "num_gpus 0: give 1 or more"),
            (["--gpus", "2000"], "num_gpus 2000: give 1024 or fewer"),
            (["--zero", "4"], "stage 4: ZeRO has the stages 0 (off), 1, 2 and 3"),
            (["--fsdp", "--zero", "2"], "FSDP2 and ZeRO stage 2: choose one engine"),
            (["--offload"], "offload needs ZeRO: choose stage 1, 2 or 3"),
            (["--fsdp", "--offload"], "offload is planned for ZeRO only"),
            (["--utilisation", "1.5"], "utilisation 1.5: give a share above 0, at most 1"),
            (["--lora_rank", "-1"], "lora_rank -1: give 0"),
            (["--micro_batch", "0", "--seq_length", "-1"], "seq_length -1: give 1 or more; micro_batch 0: give 1"),
            (["--link", "0"], "--link 0: give GB/s above 0"),
            (["--model", "llama-9b"], "invalid choice: 'llama-9b'"),
            (["--gpu", "h900"], "invalid choice: 'h900'"),
        ],
    )
    def test_bad_options_are_refused_by_name(self, words, told, capsys):
        with pytest.raises(SystemExit) as stopped:
            plan.main(words)
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err


def shorter(model, num_layers):
    from dataclasses import replace

    return replace(model, num_layers=num_layers)


def kept_bytes(model, length, is_autocast):
    """Bytes of all that the forward through the layers keeps for the backward, the parameters themselves left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    token_ids = torch.zeros(NUM_ROWS, length, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
    ):
        model.base_model(input_ids=token_ids, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def point(sweep, at, **sides):
    return {"sweep": sweep, "at": at, "sides": sides, "machine": {"device": "cpu"}}


def side(seconds=1.0, tokens=100, memory=2**20):
    return {"tokens": tokens, "seconds": [seconds] * 3, "memory": memory}


ROW_SIDES = ("coh, building once", "coh, every epoch", "naive, every epoch")
POINTS = {
    f"{sweep}/{at}": point(sweep, at, **{name: side(1 + at * place) for place, name in enumerate(names)})
    for sweep, names in {**dict.fromkeys(growth.SWEEPS, ("coh", "naive")), "rows": ROW_SIDES}.items()
    for at in (100, 1000)
}


class TestGrowth:
    def test_both_sides_learn_the_same_loss(self):
        size = growth.Size(length=24, vocabulary=64, share=0.4, ratio=0.5, num_feedback=2)
        batch = growth.batch_of(size, document=24)  # one in each row, so that none can see another
        losses, gradients = [], []
        for loss in growth.LOSSES.values():
            model = growth.make_model(size)
            losses.append(loss(model, batch))
            gradients.append(torch.autograd.grad(losses[-1], list(model.parameters())))
        torch.testing.assert_close(*losses)
        for ours, theirs in zip(*gradients):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
        feedback_alone = growth.batch_of(growth.Size(length=24, vocabulary=64, ratio=0), document=24)
        torch.testing.assert_close(*(loss(growth.make_model(size), feedback_alone) for loss in growth.LOSSES.values()))

    @pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
    def test_a_batch_has_the_share_of_targets(self, share):
        batch = growth.batch_of(growth.Size(length=512, vocabulary=64, share=share, ratio=1, num_feedback=2))
        is_target = batch["labels"] != -100
        found = is_target[~batch["is_pretrain"]].float().mean().item()
        assert found == pytest.approx(share, abs=0.01)
        assert not is_target[batch["position_ids"] == 0].any()
        assert is_target[batch["is_pretrain"]].sum() == 2 * 510

    def test_steps_of_a_sweep_are_what_they_say(self):
        assert {size.num_tokens for size in growth.SWEEPS["length"].values()} == {8192}
        for sweep, sizes in growth.SWEEPS.items():
            assert len({(size.length, size.vocabulary, size.share, size.ratio) for size in sizes.values()}) == len(
                sizes
            )
            assert min(size.num_feedback for size in sizes.values()) >= 1, sweep

    def test_a_step_trains_and_its_peak_grows_with_the_vocabulary(self):
        small, large = growth.Size(64, 2_000, num_feedback=1), growth.Size(64, 20_000, num_feedback=1)
        peaks = [growth.in_fresh_process(growth.peak_of_steps, "naive", size) for size in (small, large)]
        held = 4 * 4 * 128 * (20_000 - 2_000)  # weights, gradients and two states of Adam
        assert peaks[1] - peaks[0] > held

    def test_anonymous_memory_sees_what_is_held_and_not_what_is_mapped(self, tmp_path):
        import mmap

        path = tmp_path / "file"
        path.write_bytes(bytes(64 * 2**20))
        with growth.AnonymousMemory() as memory:
            held = bytes(1) * (64 * 2**20)  # more than is ever taken from memory that was freed before
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                assert sum(mapped[::4096]) == 0
                import time

                time.sleep(0.2)
        assert 60 * 2**20 < memory.peak < 100 * 2**20 and len(held) == 64 * 2**20

    def test_rows_are_read_by_both_sides(self, tmp_path, tokenizers):
        path = tmp_path / "pairs.jsonl"
        growth.write_pairs(path, 30)
        assert len({json.loads(line)["prompt"] for line in path.read_text().splitlines()}) == 30
        folder = str(tokenizers.folder("smollm2"))
        found = {**growth.coh_rows(str(path), folder, 128), **growth.naive_rows(str(path), folder, 128)}
        assert tuple(found) == ROW_SIDES
        texts = [json.loads(line) for line in path.read_text().splitlines()]
        least = sum(len(" ".join(text.values()).split()) for text in texts)
        for name, side in found.items():
            assert least - 128 < side["tokens"] < 2 * least, name
            assert side["seconds"] > 0

    def test_what_is_measured(self, tmp_path):
        options = {"rows": None, "only": "", "smoke": True, "missing": False, "rounds": 5, "tokenizer": tmp_path}
        chosen = lambda known=(), **change: list(  # noqa: E731
            growth.sweeps(growth.argparse.Namespace(**(options | change)), dict.fromkeys(known))
        )
        assert set(chosen()) == {*growth.SWEEPS, "rows"}
        assert chosen(only="share") == ["share"]
        assert chosen(rows=[10]) == ["rows"]
        assert chosen(["share/25", "share/100"], only="share", missing=True) == []
        assert chosen(["share/25"], only="share", missing=True) == ["share"]
        assert chosen(["rows/10"], rows=[10], missing=True) == []

    def test_points_add_up_as_they_are_measured(self, tmp_path, monkeypatch, capsys):
        def stopped(sizes, rounds):
            yield 25, {"sides": {"coh": side(), "naive": side(2)}}
            raise KeyboardInterrupt

        path = tmp_path / "growth.json"
        path.write_text(json.dumps({"points": {"ratio/1": POINTS["ratio/100"]}}))
        monkeypatch.setattr(growth, "measure_steps", stopped)
        words = ["--smoke", "--only", "share", "--output", str(path), "--pictures", str(tmp_path)]
        with pytest.raises(KeyboardInterrupt):
            growth.main(words)
        assert set(json.loads(path.read_text())["points"]) == {"ratio/1", "share/25"}
        assert "coh: 2.00, 1 MB;  naive: 1.00, 1 MB" in capsys.readouterr().out

    def test_a_file_of_other_figures_is_refused(self, tmp_path, capsys):
        path = results(tmp_path, cpu=[figure()]) / "cpu.json"
        with pytest.raises(SystemExit):
            growth.main(["--plot", "--output", str(path)])
        assert "holds no points of growth" in capsys.readouterr().err
        assert "figures" in path.read_text()

    @needs_matplotlib
    def test_each_sweep_has_a_picture_that_says_what_it_was_drawn_from(self, tmp_path):
        import pictures

        path = tmp_path / "growth.json"
        path.write_text(json.dumps({"points": POINTS}))
        before = path.read_text()
        assert growth.main(["--plot", "--output", str(path), "--pictures", str(tmp_path)]) == 0
        assert path.read_text() == before
        for sweep in pictures.PICTURES:
            text = (tmp_path / f"growth-{sweep}.svg").read_text()
            assert pictures.digest(POINTS, sweep) in text
            assert "naive" in text and "coh" in text
        changed = {**POINTS, "share/100": point("share", 100, coh=side(9), naive=side(9))}
        assert pictures.digest(changed, "share") != pictures.digest(POINTS, "share")
        assert pictures.digest(changed, "ratio") == pictures.digest(POINTS, "ratio")

    @needs_matplotlib
    def test_the_same_points_make_the_same_picture(self, tmp_path):
        import pictures

        for folder in ("a", "b"):
            pictures.draw_all(POINTS, tmp_path / folder)
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()

    def test_headings_say_what_was_measured(self):
        import pictures

        sides = {"coh": side(2, memory=3 * 2**20), "naive": side(6, memory=12 * 2**20)}
        found = pictures.series(
            {"share/5": point("share", 5, **sides), "share/50": point("share", 50, **sides)}, "share"
        )
        assert pictures.of_share(found) == (
            "Few targets cost little: 3.0 times naive's speed where 5 % are targets, 3.0 times at 50 %"
        )
        assert "3.0 times naive's speed in 25 % of its memory" in pictures.of_vocabulary(found)

    def test_the_pictures_of_the_docs_are_of_the_points_that_are_kept(self):
        import pictures

        page = (ROOT / "docs" / "performance.md").read_text("utf-8")
        if not (FOLDER / "results" / "growth.json").is_file():
            pytest.skip("no points are kept: python benchmarks/growth.py measures them")
        points = json.loads((FOLDER / "results" / "growth.json").read_text())["points"]
        for sweep in pictures.PICTURES:
            assert f"(pictures/growth-{sweep}.svg)" in page
            drawn = (ROOT / "docs" / "pictures" / f"growth-{sweep}.svg").read_text("utf-8")
            assert pictures.digest(points, sweep) in drawn, "run `python benchmarks/growth.py --plot`"


class TestMake:
    def test_bench_runs_every_program_that_compares(self):
        makefile = (ROOT / "Makefile").read_text()
        assert "grep -lw" in makefile
        import_it = re.compile(r"^from harness import .*\bfinish\b", re.M)
        compare = {path.stem for path in FOLDER.glob("*.py") if import_it.search(path.read_text("utf-8"))}
        done = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True)
        (loop,) = re.findall(r"for program in (.*?);", done.stdout)
        assert {Path(name).stem for name in loop.split()} == compare
        assert done.stdout.index("growth.py") < done.stdout.rindex("benchmarks/table.py")


QUICK = ("fixed_run", "plan", "step", "table")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_still_runs(name):
    """Also where trl or matplotlib is not installed: what needs them is left out then, and said."""
    if name not in QUICK and not os.environ.get("COH_TEST_BENCHMARKS"):
        pytest.skip(f"{name}.py takes a minute or more: COH_TEST_BENCHMARKS=1 runs it too")
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    words = {"table": ["--check"], "plan": ["--table"]}.get(name, ["--smoke"])
    if words == ["--smoke"] and "harness import" not in text:
        pytest.skip(f"{name}.py has no --smoke: it is a tool for longer runs")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(FOLDER / f"{name}.py"), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_there_are_programs():
    assert {"growth", "plan", "table", "step"} <= set(PROGRAMS)
