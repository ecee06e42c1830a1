"""Laws of training and evaluation: one loss however a step is cut, true figures, and a stop where there are none."""

import dataclasses
import inspect
import json
import time
from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer

from coh.arguments import ConfigError, parse_or_raise
from coh.checkpoints import MARKER
from coh.trainer import CoHTrainArgs, CoHTrainer, FilledRows, _Arriving

SOURCES = ["hh_rlhf", "webgpt", "pretrain", "never_seen"]
LENGTH = 12
VOCABULARY = 61


def make_rows(count, seed=0, pretrain_every=4):
    """Rows as the data floor gives them: some documents each, targets here and there, padding at the end."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        is_pretrain = number % pretrain_every == 1
        num_padding = int(random.integers(0, 4))
        first = int(random.integers(3, 6))
        lengths = [first, LENGTH - num_padding - first, num_padding]
        input_ids = random.integers(1, VOCABULARY - 1, LENGTH)
        is_target = np.full(LENGTH, True) if is_pretrain else random.random(LENGTH) < 0.4
        is_target[[0, first]] = False
        source_id = np.repeat([2, 2, -1] if is_pretrain else [number % 2, (number // 2) % 2, -1], lengths)
        is_target[source_id < 0] = False
        rows.append(
            {
                "input_ids": input_ids,
                "labels": np.where(is_target, input_ids, -100),
                "position_ids": np.concatenate([np.arange(length) for length in lengths]),
                "is_pretrain": np.bool_(is_pretrain),
                "source_id": source_id,
                "row": np.int64(number),
            }
        )
    return rows


def collate(rows):
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


class Recorder(CoHTrainer):
    """Keeps the rows of each micro-batch."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), inputs["row"].tolist()]
        return super().compute_loss(model, inputs, *args, **kwargs)


def make_trainer(model, folder, rows=None, eval_rows=None, **options):
    """Plain gradient descent at rate 1, so that a step moves each parameter by its gradient."""
    settings = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    settings |= {"logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "max_steps": 1}
    args = CoHTrainArgs(output_dir=str(folder), **settings | options)
    model = model() if inspect.isfunction(model) else model
    return Recorder(
        model, args, train_dataset=rows, eval_dataset=eval_rows, source_names=SOURCES, data_collator=collate
    )


def cut(batch_size, steps):
    return {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(VOCABULARY)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def naive_streams(model, rows):
    """The reference: mean -log p of each stream over the rows of a step, every document alone in a batch of its own."""
    sums, counts = [0.0, 0.0], [0, 0]
    for row in rows:
        starts = [*np.flatnonzero(row["position_ids"] == 0), LENGTH]
        for start, end in pairwise(starts):
            ids, labels = (torch.from_numpy(row[name][None, start:end]) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids).logits[0, :-1]
            stream, is_target = int(row["is_pretrain"]), labels[0, 1:] != -100
            sums[stream] = sums[stream] + F.cross_entropy(logits, labels[0, 1:], reduction="sum")
            counts[stream] += int(is_target.sum())
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)], counts


def naive_gradients(model, rows, weight):
    (feedback, pretrain), _ = naive_streams(model, rows)
    loss = feedback + weight * pretrain
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def step_of(model, folder, rows, **options):
    """The logs of one step, and the gradients that it took."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = make_trainer(model, folder, rows, **options)
    trainer.train()
    moved = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    return trainer, moved


def assert_equal_gradients(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)


# One loss


@pytest.mark.parametrize("weight", [1.0, 0.0, 1.5])
@pytest.mark.parametrize(("batch_size", "steps"), [(8, 1), (1, 8), (2, 4)])
def test_a_step_is_the_two_global_means_however_it_is_cut(tiny_llama, tmp_path, weight, batch_size, steps):
    rows = make_rows(8)
    loss, gradients = naive_gradients(tiny_llama(VOCABULARY), rows, weight)
    trainer, moved = step_of(tiny_llama(VOCABULARY), tmp_path, rows, pt_loss_weight=weight, **cut(batch_size, steps))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert_equal_gradients(moved, gradients)
    assert len(trainer.seen) == steps


def test_the_reference_tells_means_of_means_from_global_means(model):
    """Guards the test above: the rows are uneven enough that averaging per micro-batch would show."""
    rows = make_rows(8)
    right, _ = naive_gradients(model, rows, 1.0)
    per_batch = np.mean([naive_gradients(model, rows[i : i + 2], 1.0)[0] for i in range(0, 8, 2)])
    assert abs(per_batch - right) > 0.01


def test_lambda_zero_is_feedback_only(tiny_llama, tmp_path):
    rows = make_rows(8)
    _, moved = step_of(tiny_llama(VOCABULARY), tmp_path, rows, pt_loss_weight=0.0, **cut(8, 1))
    feedback_only = [row for row in rows if not row["is_pretrain"]]
    _, alone = step_of(tiny_llama(VOCABULARY), tmp_path, feedback_only, **cut(6, 1))
    assert_equal_gradients(moved, alone)


def test_the_gradient_is_that_of_feedback_plus_lambda_times_that_of_pretraining(tiny_llama, tmp_path):
    rows = make_rows(8)
    both, feedback, pretrain = (
        step_of(tiny_llama(VOCABULARY), tmp_path, part, pt_loss_weight=weight, **cut(8, 1))[1]
        for part, weight in (
            (rows, 0.7),
            ([row for row in rows if not row["is_pretrain"]], 1.0),
            ([row for row in rows if row["is_pretrain"]], 1.0),
        )
    )
    assert_equal_gradients(both, [f + 0.7 * p for f, p in zip(feedback, pretrain, strict=True)])


def test_a_step_without_targets_changes_nothing(model, tmp_path):
    rows = [row | {"labels": np.full(LENGTH, -100)} for row in make_rows(4)]
    trainer, moved = step_of(model, tmp_path, rows, **cut(2, 2))
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(change.abs().max() == 0 for change in moved)
    assert "loss_feedback" not in trainer.state.log_history[0]


def test_a_stream_missing_from_a_micro_batch_is_no_harm(tiny_llama, tmp_path):
    rows = make_rows(4, pretrain_every=2)  # feedback, pretraining, feedback, pretraining
    _, gradients = naive_gradients(tiny_llama(VOCABULARY), rows, 1.0)
    _, moved = step_of(tiny_llama(VOCABULARY), tmp_path, rows, **cut(1, 4))
    assert_equal_gradients(moved, gradients)


def test_bf16_autocast_stays_near(tiny_llama, tmp_path):
    rows = make_rows(4)
    loss, _ = naive_gradients(tiny_llama(VOCABULARY), rows, 1.0)
    trainer, _ = step_of(tiny_llama(VOCABULARY), tmp_path, rows, bf16=True, **cut(4, 1))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=5e-3)


# Order and filling


def test_rows_are_seen_once_each_in_their_order(model, tmp_path):
    trainer = make_trainer(model, tmp_path, make_rows(10), max_steps=-1, num_train_epochs=1, **cut(2, 2))
    trainer.train()
    assert list(chain(*trainer.seen)) == list(range(10))


def test_an_incomplete_last_batch_is_filled_with_padding(tiny_llama, tmp_path):
    rows = make_rows(3)
    loss, gradients = naive_gradients(tiny_llama(VOCABULARY), rows, 1.0)
    trainer, moved = step_of(tiny_llama(VOCABULARY), tmp_path, rows, **cut(4, 1))
    assert trainer.seen == [[0, 1, 2, -1]]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert_equal_gradients(moved, gradients)


def test_filled_rows():
    rows = make_rows(5)
    filled = FilledRows(rows, 4)
    assert len(filled) == 8 and len(FilledRows(rows, 5)) == 5
    assert all(filled[number] is rows[number] for number in range(5))
    filler = filled[7]
    assert filler.keys() == rows[0].keys()
    assert filler["row"] == -1 and not filler["is_pretrain"]
    assert (filler["labels"] == -100).all() and (filler["source_id"] == -1).all()
    assert rows[0]["row"] == 0 and (rows[0]["labels"] != -100).any()
    with pytest.raises(ValueError, match="a dataset has no rows: check --feedback_data"):
        FilledRows([], 4)


def test_dropping_the_last_batch_still_drops_it(model, tmp_path):
    trainer = make_trainer(
        model, tmp_path, make_rows(5), max_steps=-1, num_train_epochs=1, dataloader_drop_last=True, **cut(2, 1)
    )
    trainer.train()
    assert trainer.seen == [[0, 1], [2, 3]]


# Logs


def test_logs_are_means_over_the_interval(tiny_llama, tmp_path):
    rows = make_rows(12)
    trainer = make_trainer(
        tiny_llama(VOCABULARY), tmp_path, rows, max_steps=3, logging_steps=3, learning_rate=0.0, **cut(2, 2)
    )
    trainer.train()
    log = trainer.state.log_history[0]
    (feedback, pretrain), counts = naive_streams(tiny_llama(VOCABULARY), rows)
    num_tokens = sum(int((row["source_id"] >= 0).sum()) for row in rows)
    assert log["loss_feedback"] == pytest.approx(feedback.item(), rel=1e-5)
    assert log["loss_pretrain"] == pytest.approx(pretrain.item(), rel=1e-5)
    assert log["target_share"] == pytest.approx(sum(counts) / num_tokens)
    assert log["num_tokens_seen"] == num_tokens < 12 * LENGTH
    per_step = [naive_gradients(tiny_llama(VOCABULARY), rows[at : at + 4], 1.0)[0] for at in (0, 4, 8)]
    assert log["loss"] == pytest.approx(np.mean(per_step), rel=1e-5)


def test_each_interval_stands_alone(tiny_llama, tmp_path):
    rows = make_rows(12)
    trainer = make_trainer(
        tiny_llama(VOCABULARY), tmp_path, rows, max_steps=3, logging_steps=1, learning_rate=0.0, **cut(4, 1)
    )
    trainer.train()
    seen = 0
    for log, at in zip(trainer.state.log_history, (0, 4, 8), strict=False):
        (feedback, _), _ = naive_streams(tiny_llama(VOCABULARY), rows[at : at + 4])
        seen += sum(int((row["source_id"] >= 0).sum()) for row in rows[at : at + 4])
        assert log["loss_feedback"] == pytest.approx(feedback.item(), rel=1e-5)
        assert log["loss"] == pytest.approx(log["loss_feedback"] + log["loss_pretrain"], rel=1e-5)
        assert log["num_tokens_seen"] == seen


def test_tokens_seen_survive_a_checkpoint_between_two_logs(tiny_llama, tmp_path):
    rows = make_rows(16)
    options = {"max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3, **cut(4, 1)}
    whole = make_trainer(tiny_llama(VOCABULARY), tmp_path, rows, **options)
    whole.train()
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["num_input_tokens_seen"] == sum(int((row["source_id"] >= 0).sum()) for row in rows[:12])
    resumed = make_trainer(tiny_llama(VOCABULARY), tmp_path, rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.log_history[0]["num_tokens_seen"] == whole.state.log_history[0]["num_tokens_seen"]


# Going on


class EndlessRows:
    """Rows without end, each a function of its number, and the numbers that were asked for."""

    def __init__(self):
        self.rows, self.asked = make_rows(8), []

    def __len__(self):
        return 4 * (10**9 + 2)

    def __getitem__(self, number):
        self.asked.append(number)
        return self.rows[number % 8] | {"row": np.int64(number)}


def test_going_on_costs_the_same_anywhere(tiny_llama, tmp_path):
    """Behind a thousand million steps: no row before the first that is needed is read, none is counted through."""
    options = {"save_strategy": "steps", "save_steps": 1, **cut(2, 2)}
    make_trainer(tiny_llama(VOCABULARY), tmp_path, make_rows(4), **options).train()
    for name, change in (("trainer_state.json", {"global_step": 10**9}), (MARKER, {"step": 10**9, "row": 4 * 10**9})):
        about = json.loads((tmp_path / "checkpoint-1" / name).read_text()) | change
        if name == MARKER:
            about["files"].pop("trainer_state.json")
        (tmp_path / "checkpoint-1" / name).write_text(json.dumps(about))
    rows = EndlessRows()
    options |= {"save_strategy": "no", "max_steps": 10**9 + 2}
    trainer = make_trainer(tiny_llama(VOCABULARY), tmp_path / "later", rows, **options)
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert time.monotonic() - began < 20
    assert trainer.seen == [[4 * 10**9 + n, 4 * 10**9 + n + 1] for n in (0, 2, 4, 6)]
    assert min(rows.asked) == 4 * 10**9
    assert trainer.state.global_step == 10**9 + 2 and trainer.state.epoch == 1.0


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_several_epochs_and_an_incomplete_last_step_go_on(tiny_llama, tmp_path, stop):
    """Ten rows in steps of four: three steps a pass, the last of them of one batch; without dropout, on plain data."""
    options = {"max_steps": 7, "save_strategy": "steps", "save_steps": stop, "learning_rate": 0.1, **cut(2, 2)}
    whole = make_trainer(tiny_llama(VOCABULARY), tmp_path, make_rows(10), **options)
    whole.train()
    part = make_trainer(tiny_llama(VOCABULARY), tmp_path, make_rows(10), **options)
    part.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    rows = [list(chain(*whole.seen[at : at + 2])) for at in range(0, len(whole.seen), 2)]
    assert len(rows) == 6 and part.seen == whole.seen[-len(part.seen) :]

    def figures(trainer):
        names = ("loss", "grad_norm", "learning_rate", "epoch", "num_tokens_seen", "loss_feedback")
        return [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]

    assert figures(part) == figures(whole) and len(figures(whole)) == 7
    for one, other in zip(part.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_evaluating_and_reading_move_nothing_that_dropout_draws_from(tiny_llama, tmp_path):
    losses = []
    for name, more in (("with", {"eval_strategy": "steps", "eval_steps": 1}), ("without", {})):
        model = tiny_llama(VOCABULARY, attention_dropout=0.5, initializer_range=0.5).train()
        torch.manual_seed(3)
        trainer = make_trainer(model, tmp_path / name, make_rows(8), make_rows(3), max_steps=3, **more, **cut(2, 1))
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == losses[1]


def test_old_checkpoints_do_not_push_out_new_ones(tiny_llama, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, **cut(2, 1)}
    (tmp_path / "checkpoint-99").mkdir()
    make_trainer(tiny_llama(VOCABULARY), tmp_path, make_rows(8), max_steps=4, **options).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-99", "checkpoint-3", "checkpoint-4"}


def test_weights_that_are_no_numbers_are_never_saved(model, tmp_path):
    """A step may break them while its loss and its gradients are sound."""
    trainer = make_trainer(
        model, tmp_path, make_rows(8), max_steps=2, learning_rate=float("inf"), save_strategy="steps", save_steps=1,
        **cut(2, 1),
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"after step 1 the weight .* is not finite, so nothing is saved"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


# A loss that is no number


def poison(model):
    """Makes every row that holds the last token of the vocabulary give NaN."""
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY - 1] = float("nan")


@pytest.mark.parametrize("lag", [0, 3])
def test_nan_stops_the_run_and_names_step_and_rows(model, tmp_path, lag):
    poison(model)
    rows = make_rows(12)
    rows[6]["input_ids"][:] = VOCABULARY - 1
    trainer = make_trainer(model, tmp_path, rows, max_steps=3, learning_rate=0.0, logging_steps=50, **cut(2, 2))
    trainer._lag = lag
    with pytest.raises(
        FloatingPointError, match=r"the loss of step 2, .* is not finite: \[nan, .*\] over rows \[6, 7\]"
    ):
        trainer.train()
    assert len(trainer.seen) == (4 if lag == 0 else 5)  # nobody waits for a log


@pytest.mark.parametrize("lag", [0, 3])
def test_nan_in_the_last_step_is_found_before_anything_is_saved(model, tmp_path, lag):
    poison(model)
    rows = make_rows(4)
    rows[3]["input_ids"][:] = VOCABULARY - 1
    trainer = make_trainer(
        model,
        tmp_path,
        rows,
        max_steps=2,
        learning_rate=0.0,
        logging_steps=50,
        save_strategy="steps",
        save_steps=2,
        **cut(2, 1),
    )
    trainer._lag = lag
    with pytest.raises(FloatingPointError, match=r"step 2, .* rows \[2, 3\]"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_infinity_is_no_number_either(number):
    with pytest.raises(
        FloatingPointError, match=r"the loss of step 1 is not finite: \[2.0, .*\] over rows \[5, 6\] of .* lower"
    ):
        _Arriving(torch.tensor([2.0, number]), "the loss of step 1", [torch.tensor([5]), torch.tensor([6])]).read()


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_no_number_is_laid_to_the_step_that_made_it(model, tmp_path, max_grad_norm):
    """The loss is still finite then; that of the next step would not be, and blame other rows, were there one."""
    calls = iter(range(100))  # one for each backward, two for each step
    spoil = [float("nan") if call >= 2 else 1.0 for call in range(100)]
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * spoil[next(calls)])
    trainer = make_trainer(model, tmp_path, make_rows(8), max_steps=2, max_grad_norm=max_grad_norm, **cut(2, 2))
    with pytest.raises(
        FloatingPointError, match=r"the gradient norm of step 2 is not finite: nan over rows \[4, 5, 6, 7\]"
    ):
        trainer.train()


# Evaluation


def naive_evaluation(model, rows):
    """The reference: [nll, correct, count] of each source, a document at a time."""
    sums = np.zeros((len(SOURCES), 3))
    for row in rows:
        starts = [*np.flatnonzero(row["position_ids"] == 0), LENGTH]
        for start, end in pairwise(starts):
            ids = torch.from_numpy(row["input_ids"][None, start:end])
            with torch.no_grad():
                log_p = model(input_ids=ids).logits[0].log_softmax(-1).double()
            for t in range(start + 1, end):
                if row["labels"][t] != -100:
                    guess = log_p[t - start - 1]
                    sums[row["source_id"][t]] += -guess[row["labels"][t]], guess.argmax() == row["labels"][t], 1
    return sums


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 16])
def test_evaluation_is_that_of_all_targets_for_any_batch_size(model, tmp_path, batch_size):
    rows = make_rows(11)
    expected = naive_evaluation(model, rows)
    trainer = make_trainer(model, tmp_path, eval_rows=rows, per_device_eval_batch_size=batch_size)
    metrics = trainer.evaluate()
    parts = {"": expected[:2].sum(0), "hh_rlhf_": expected[0], "webgpt_": expected[1], "pretrain_": expected[2]}
    for name, (nll, num_correct, count) in parts.items():
        assert count > 5
        assert metrics[f"eval_{name}tokens"] == count
        assert metrics[f"eval_{name}loss"] == pytest.approx(nll / count, rel=1e-5)
        assert metrics[f"eval_{name}accuracy"] == pytest.approx(num_correct / count)
    assert not any("never_seen" in name for name in metrics)


def test_accuracy_counts_targets_only(model, tmp_path):
    """Labels that are the model's own choice: all are correct, whatever stands at the other positions."""
    rows = make_rows(5)
    for row in rows:
        ids, positions = (torch.from_numpy(row[name][None]) for name in ("input_ids", "position_ids"))
        choice = model(input_ids=ids, position_ids=positions, use_cache=False).logits.argmax(-1)[0].numpy()
        row["labels"][1:] = np.where(row["labels"][1:] == -100, -100, choice[:-1])
    metrics = make_trainer(model, tmp_path, eval_rows=rows).evaluate()
    assert metrics["eval_accuracy"] == metrics["eval_pretrain_accuracy"] == 1


def test_evaluation_keeps_nothing_of_its_batches(model, tmp_path):
    trainer = make_trainer(model, tmp_path, eval_rows=make_rows(7), per_device_eval_batch_size=2)
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions is None and output.label_ids is None
    assert output.metrics["test_tokens"] > 0
    loop = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    assert loop.num_samples == 7


def test_evaluating_twice_and_under_another_name_gives_the_same(model, tmp_path):
    trainer = make_trainer(model, tmp_path, eval_rows=make_rows(5))
    first, second = trainer.evaluate(), trainer.evaluate(make_rows(5), metric_key_prefix="test")
    assert first["eval_loss"] == second["test_loss"]


def test_evaluation_without_feedback_reports_what_there_is(model, tmp_path):
    rows = [row for row in make_rows(8) if row["is_pretrain"]]
    metrics = make_trainer(model, tmp_path, eval_rows=rows).evaluate()
    assert metrics["eval_tokens"] == 0 and "eval_loss" not in metrics and metrics["eval_pretrain_loss"] > 0


def test_the_best_model_is_the_one_with_the_least_eval_loss(model, tmp_path):
    trainer = make_trainer(
        model, tmp_path, make_rows(8), make_rows(8, seed=1), max_steps=8, learning_rate=3.0, eval_strategy="steps",
        eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True, **cut(8, 1),
    )  # fmt: skip
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 8 and losses[-1] > min(losses)
    assert trainer.state.best_metric == min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


# Forgetting


def trained(tiny_llama, folder, rows, **options):
    return step_of(tiny_llama(VOCABULARY), folder, rows, **options)[1]


def test_forgetting_at_ratio_zero_is_off_to_the_last_bit(tiny_llama, tmp_path):
    rows = make_rows(8)
    off = trained(tiny_llama, tmp_path, rows, **cut(8, 1))
    zero = trained(tiny_llama, tmp_path, rows, fcm_min_ratio=0.0, fcm_max_ratio=0.0, **cut(8, 1))
    assert all(torch.equal(one, other) for one, other in zip(off, zero, strict=True))


@pytest.mark.slow
def test_forgetting_trains_otherwise_but_the_same_every_time_and_however_a_step_is_cut(tiny_llama, tmp_path):
    rows = make_rows(8)
    forget = {"fcm_min_ratio": 0.3, "fcm_max_ratio": 0.6}
    off = trained(tiny_llama, tmp_path, rows, **cut(8, 1))
    first = trained(tiny_llama, tmp_path, rows, **forget, **cut(8, 1))
    again = trained(tiny_llama, tmp_path, rows, **forget, **cut(8, 1))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert max((one - other).abs().max() for one, other in zip(first, off, strict=True)) > 1e-4
    assert_equal_gradients(trained(tiny_llama, tmp_path, rows, **forget, **cut(2, 4)), first)
    other_seed = trained(tiny_llama, tmp_path, rows, **forget, seed=1, **cut(8, 1))
    assert max((one - other).abs().max() for one, other in zip(first, other_seed, strict=True)) > 1e-4


def test_a_row_forgets_something_else_in_each_epoch(model, tmp_path):
    trainer = make_trainer(
        model, tmp_path, make_rows(2), max_steps=2, learning_rate=0.0, fcm_min_ratio=0.5, fcm_max_ratio=0.5, **cut(2, 1)
    )
    trainer.train()
    first, second = (log["loss"] for log in trainer.state.log_history[:2])
    assert trainer.seen == [[0, 1], [0, 1]] and first != second


def test_evaluation_never_forgets(tiny_llama, tmp_path):
    rows = make_rows(6)
    off, on = (
        make_trainer(tiny_llama(VOCABULARY), tmp_path, rows, rows, fcm_max_ratio=ratio).evaluate()["eval_loss"]
        for ratio in (0.0, 0.9)
    )
    assert off == on


def test_forgetting_is_refused_where_the_model_cannot(model, tmp_path):
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="--attn_implementation sdpa"):
        make_trainer(model, tmp_path, make_rows(2), fcm_max_ratio=0.1)


# Optimizer


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weight_decay_spares_biases_and_norms(tiny_llama, tmp_path, kind):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = tiny_llama(VOCABULARY, attention_bias=True) if kind == "llama" else GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    )  # fmt: skip
    trainer = make_trainer(model, tmp_path, make_rows(2), weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    names = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    spared = {name for name, parameter in model.named_parameters() if parameter.ndim == 1}
    assert any("bias" in name for name in spared) and any("norm" in name or "ln_" in name for name in spared)
    assert {name for name, value in names.items() if value == 0} == spared
    assert all(names[name] == 0.1 for name in names.keys() - spared)


# What is relied upon in Trainer


@pytest.mark.parametrize(
    "name",
    [
        "_get_num_items_in_batch",
        "_get_grad_norm",
        "_get_dataloader",
        "_save_checkpoint",
        "train",
        "_get_train_sampler",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
        "_load_scaler",
        "_get_output_dir",
        "_push_from_checkpoint",
        "compute_loss",
        "evaluation_loop",
        "prediction_step",
        "log",
    ],
)
def test_overridden_methods_take_what_trainer_gives(name):
    theirs = list(inspect.signature(getattr(Trainer, name)).parameters)
    ours = list(inspect.signature(getattr(CoHTrainer, name)).parameters)
    assert ours == theirs or (ours[-1] == "more" and ours[:-1] == theirs[: len(ours) - 1])


def test_trainer_still_has_what_is_relied_upon():
    source = inspect.getsource(Trainer)
    assert "num_items_in_batch = self._get_num_items_in_batch(batch_samples, device)" in source
    assert "self.loss_is_scaled_for_ga is not None" in source and hasattr(Trainer, "loss_is_scaled_for_ga")
    assert "self._globalstep_last_logged = self.state.global_step" in source
    # Of going on: what is overridden with other parameters, how it is called, and what is taken up when it begins.
    for call in (
        "self._run_epoch(\n                model=model,\n                epoch=epoch,",
        "self._init_training_state(\n            max_steps,",
        "self.control = self.callback_handler.on_train_begin(",
        "self._tr_loss = torch.tensor(0.0",
        "elif steps_trained_in_current_epoch == 0:\n                self._load_rng_state(resume_from_checkpoint)",
    ):
        assert call in source, call
    assert {
        "epoch",
        "epochs_trained",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "steps_trained_in_current_epoch",
    } <= {*inspect.signature(Trainer._run_epoch).parameters}


# Arguments


def test_options_from_the_command_line(tmp_path):
    options = "--use_cpu --pt_loss_weight 1.5 --prepend_bos --fcm_max_ratio 0.05 --fcm_min_ratio 0.01"
    (args,) = parse_or_raise([CoHTrainArgs], ["--output_dir", str(tmp_path), *options.split()])
    assert (args.pt_loss_weight, args.prepend_bos, args.fcm_min_ratio, args.fcm_max_ratio) == (1.5, True, 0.01, 0.05)


def test_defaults(tmp_path):
    args = CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True)
    assert (args.pt_loss_weight, args.prepend_bos, args.fcm_min_ratio, args.fcm_max_ratio) == (1.0, False, 0.0, 0.0)
    assert args.remove_unused_columns is False and args.label_names == ["labels"] and args.use_cache is False


def test_every_own_field_has_one_sentence_of_help():
    own = inspect.get_annotations(CoHTrainArgs)
    assert {"pt_loss_weight", "prepend_bos", "fcm_min_ratio", "fcm_max_ratio"} <= own.keys()
    for field in dataclasses.fields(CoHTrainArgs):
        if field.name in own:
            text = field.metadata["help"]
            assert text.endswith(".") and ". " not in text and len(text) > 40
            assert text % () == text.replace("%%", "%")


def test_all_problems_are_said_at_once_with_those_of_transformers(tmp_path):
    with pytest.raises(ConfigError) as caught:
        CoHTrainArgs(
            output_dir=str(tmp_path), use_cpu=True, pt_loss_weight=-1.0, fcm_min_ratio=1.0, fcm_max_ratio=0.5,
            label_smoothing_factor=0.1, remove_unused_columns=True, use_cache=True, fp16=True, bf16=True,
            train_sampling_strategy="random", include_num_input_tokens_seen="all",
        )  # fmt: skip
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 9
    for words in (
        "--pt_loss_weight -1.0: give 0 or a positive number",
        "--fcm_min_ratio 1.0: give a share from 0 to below 1",
        "--fcm_min_ratio 1.0 exceeds --fcm_max_ratio 0.5",
        "--label_smoothing_factor 0.1: the loss has no smoothing, so leave it at 0",
        "--remove_unused_columns True",
        "--use_cache True",
        "--train_sampling_strategy random",
        "--include_num_input_tokens_seen all",
        "At most one of fp16 and bf16 can be True",
    ):
        assert words in problems


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_lambda_is_a_number(tmp_path, value):
    with pytest.raises(ConfigError, match="--pt_loss_weight"):
        CoHTrainArgs(output_dir=str(tmp_path), use_cpu=True, pt_loss_weight=value)


def test_processes_that_would_train_alone_are_refused(monkeypatch, tmp_path):
    """torchrun on a machine without GPUs, and no --use_cpu: every rank believes that it is the only one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(CoHTrainArgs, "world_size", 1)
    with pytest.raises(
        ConfigError, match="2 processes were launched, but each would train a model of its own: pass --use_cpu"
    ):
        CoHTrainArgs(output_dir=str(tmp_path))


def test_several_gpus_in_one_process_are_refused(monkeypatch, model, tmp_path):
    monkeypatch.setattr(CoHTrainArgs, "n_gpu", 2)
    with pytest.raises(ValueError, match="one process sees 2 GPUs: start a process for each"):
        make_trainer(model, tmp_path, make_rows(2))


def test_what_comes_from_a_gpu_is_waited_for_before_it_is_read():
    """The part that runs with CUDA only, on a stand-in for the event."""
    arriving = _Arriving(torch.tensor([1.0, 2.0]), "the loss", [torch.tensor([5])])
    assert arriving.copied is None
    waits = []
    arriving.copied = SimpleNamespace(synchronize=lambda: waits.append(arriving.numbers))
    assert arriving.read().tolist() == [1.0, 2.0] and len(waits) == 1
