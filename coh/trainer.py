"""Training and its measure: a `transformers.Trainer` whose loss is Chain of Hindsight's.

Batches come in with the keys input_ids, labels, position_ids, is_pretrain, source_id and row, all rows of one length.
One forward serves both streams:

    loss = sum over feedback targets / N_feedback + lambda * sum over pretraining targets / N_pretrain

where N counts the targets of the whole optimizer step, over micro-batches and ranks, so that the way a step is cut into
batches changes nothing. Evaluation adds up [nll, correct, count] per source and divides once, at the end. What makes a
run outlive its interruptions is `coh.resuming`.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput

from coh.loss import IGNORED, target_head, target_loss, target_scores
from coh.masking import check_forgetting, forgetful_mask
from coh.resuming import ResumableTrainer
from coh.train_args import CoHTrainArgs
from coh.world import EngineGuard, RunError, saved_once

__all__ = ["CoHTrainArgs", "CoHTrainer", "RunError"]

STREAMS = ("feedback", "pretrain")
PRETRAIN = "pretrain"  # the source whose targets stay out of eval_loss
STOPPED_ROWS = "stopped_rows.jsonl"


class FilledRows(Dataset):
    """A map-style dataset with rows of mere padding at its end, up to a multiple of `multiple` rows.

    So every rank has equally many batches, all full, and no row is repeated to make them so.
    """

    def __init__(self, rows: Any, multiple: int) -> None:
        if not len(rows):
            raise RunError("a dataset has no rows: check --feedback_data, and the sizes of its splits")
        self.rows = rows
        self.multiple = multiple

    def __len__(self) -> int:
        return -(-len(self.rows) // self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.rows):
            return self.rows[index]
        blank = {"labels": IGNORED, "source_id": -1, "row": -1, "is_pretrain": False}
        # Of the same rank one step earlier, so that no rank opens another's rows.
        row = self.rows[max(index - self.multiple, 0)]
        return row | {name: np.full_like(row[name], value) for name, value in blank.items()}


class _Arriving:
    """Numbers on their way to the host, of `what` over some rows of data: read them late, and a GPU need not wait.

    `then` is what is done with them when they are read.
    """

    def __init__(
        self, numbers: Tensor, what: str, rows: Sequence[Tensor], then: Callable[[np.ndarray], None] | None = None
    ) -> None:
        self.numbers = numbers.detach().to("cpu", non_blocking=numbers.is_cuda)
        self.copied = torch.cuda.current_stream(numbers.device).record_event() if numbers.is_cuda else None
        self.what = what
        self.rows = rows
        self.then = then

    def read(self) -> np.ndarray:
        """The numbers; raises FloatingPointError unless they are finite."""
        if self.copied is not None:
            self.copied.synchronize()
        numbers = self.numbers.double().numpy()
        if not np.isfinite(numbers).all():
            raise FloatingPointError(
                f"{self.what} is not finite: {numbers.tolist()} over rows {torch.cat(list(self.rows)).tolist()} of the "
                "training data. If these rows look sound, lower --learning_rate or --max_grad_norm, or train with "
                "--bf16 instead of --fp16."
            )
        return numbers


class CoHTrainer(ResumableTrainer):
    """Trains on rows of feedback and pretraining text; `source_names[i]` is the source with number i in `source_id`.

    `held_out.metrics(model)` gives further figures for each evaluation, by name.

    Datasets are map-style, in their final order, and give dicts of numpy values with the keys of a batch.
    """

    # `compute_loss` divides by the counts of the whole step, so Trainer must not divide by the number of micro-batches.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any = None,
        args: CoHTrainArgs | None = None,
        *,
        source_names: Sequence[str],
        held_out: Any = None,
        **kwargs: Any,
    ) -> None:
        uses_cache = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(model, args or CoHTrainArgs(), **kwargs)
        if uses_cache is not None:
            # Trainer switches it off, in the saved model too. Here every forward says use_cache=False by itself.
            self.model.config.use_cache = uses_cache
        if self.args.n_gpu > 1:
            raise RunError(
                f"one process sees {self.args.n_gpu} GPUs: start a process for each (`sh train.sh 0,1` or torchrun), "
                "or show it one with CUDA_VISIBLE_DEVICES=0"
            )
        self.add_callback(EngineGuard(self))
        self.held_out = held_out
        self.source_names = list(source_names)
        head = target_head(self.model)  # found now, before an engine takes the model over
        if self.args.torch_compile and head is not None:
            # It is asked something else each time, over another number of targets: nothing to compile once and for all.
            head.forward = torch.compiler.disable(head.forward)  # type: ignore[method-assign]
        if self.args.fcm_max_ratio > 0 and self.train_dataset is not None:
            check_forgetting(self.model, seq_length=len(self.train_dataset[0]["input_ids"]))
        # A GPU is read three numbers late, about a step, when they have long arrived.
        self._lag = 3 if self.args.device.type == "cuda" else 0
        self._unread: deque[_Arriving] = deque()
        self._is_stop_agreed = False
        self._begin_interval()

    # Data

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        **more: Any,
    ) -> DataLoader:
        if not (is_training and self.args.dataloader_drop_last):
            dataset = FilledRows(dataset, batch_size * self.args.world_size)
        # Under its key, persistent workers would be kept for the next evaluation, of whatever dataset.
        more.pop("dataloader_key", None)
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, **more)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """[feedback targets, pretraining targets, tokens] of an optimizer step, over micro-batches and ranks."""
        counts_4 = torch.zeros(4, dtype=torch.long, device=device)
        counts_4[3] = int(self.stop.is_asked)  # travels with the counts, so that all ranks stop at one step
        for batch in batch_samples:
            targets_B = (batch["labels"][:, 1:] != IGNORED).sum(1)
            of_pretrain = (targets_B * batch["is_pretrain"]).sum()
            num_tokens = (batch["source_id"] >= 0).sum()
            counts_4[:3] += torch.stack([targets_B.sum() - of_pretrain, of_pretrain, num_tokens]).to(device)
        self.beat(f"step {self.state.global_step + 1}")
        *_, asked = counts_4 = self.accelerator.reduce(counts_4, reduction="sum")
        self._expect(_Arriving(asked, "the number of ranks that are asked to stop", [], self._heed))
        self._stop_if(self._is_stop_agreed)
        counts_3 = counts_4[:3]
        self._rows: list[Tensor] = []  # of the step that begins now
        if self.state.global_step == self._globalstep_last_logged:
            self._begin_interval()
        self._counts_3 += counts_3
        return counts_3

    # Loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A micro-batch's part of the step's loss, times the number of ranks, since engines average their gradients."""
        assert num_items_in_batch is not None, "the targets of a step are counted before its forwards"
        self.beat(f"a forward of step {self.state.global_step + 1}")
        scale_2 = self.accelerator.num_processes / num_items_in_batch[:2].clamp(min=1)
        scale_2[1] *= self.args.pt_loss_weight
        loss, sums_2 = target_loss(
            model,
            inputs["input_ids"],
            inputs["labels"],
            inputs["is_pretrain"],
            scale_2,
            position_ids=inputs["position_ids"],
            attention_mask=self._forgetful_mask(inputs),
        )
        self._rows.append(inputs["row"])
        what = f"the loss of step {self.state.global_step + 1}, summed over feedback and pretraining targets,"
        self._expect(_Arriving(sums_2, what, self._rows[-1:], self._add_up))
        return (loss, sums_2) if return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is not None and not self.args.fp16:  # there, an infinite one is expected, and its step skipped
            what = f"the gradient norm of step {self.state.global_step + 1}"
            whole = (
                grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else torch.as_tensor(grad_norm)
            )  # FSDP2
            self._expect(_Arriving(whole, what, self._rows, self._hold_against_others))
        return grad_norm

    def _forgetful_mask(self, inputs: dict[str, Tensor]) -> Tensor | None:
        if self.args.fcm_max_ratio == 0:
            return None  # without one the model isolates documents by itself, and faster
        # By row, so that what a row forgets does not hang on how a step is cut into batches and ranks.
        seeds = [(self.args.seed, int(self.state.epoch or 0), row + 1) for row in inputs["row"].tolist()]
        ratios = self.args.fcm_min_ratio, self.args.fcm_max_ratio
        return forgetful_mask(inputs["position_ids"], *ratios, seeds, self.model.dtype)

    # Logs

    def _begin_interval(self) -> None:
        self._sums_2 = np.zeros(2)  # of this rank
        self._counts_3: Tensor = torch.zeros(3, dtype=torch.long, device=self.args.device)  # of all ranks
        self._num_tokens_told = 0
        self._num_tokens_taken_up = 0  # from before an interruption
        self._began = time.perf_counter()  # less what was not training: moved on by evaluations and checkpoints

    def _expect(self, arriving: _Arriving) -> None:
        self._unread.append(arriving)
        self._read(all_but=self._lag)

    def _read(self, all_but: int = 0) -> None:
        while len(self._unread) > all_but:
            arriving = self._unread.popleft()
            try:
                numbers = arriving.read()
                if arriving.then is not None:
                    arriving.then(numbers)
            except FloatingPointError as error:
                kept = self._keep_rows(arriving.rows)
                raise FloatingPointError(f"{error} The rows are in {kept}. {self.last_checkpoint()}") from error

    def _add_up(self, sums_2: np.ndarray) -> None:
        self._sums_2 += sums_2

    def _heed(self, asked: np.ndarray) -> None:
        self._is_stop_agreed = bool(asked)

    def _hold_against_others(self, norm: np.ndarray) -> None:
        usual = self.norms.exceeds(float(norm))
        if usual is not None:
            raise FloatingPointError(
                f"the gradients explode: their norm is {float(norm):.4g}, over {self.norms.limit:g} times {usual:.4g}, "
                "the median of the steps before. If the rows look sound, lower --learning_rate, or raise "
                "--grad_norm_limit (0 switches it off)."
            )

    def _keep_rows(self, rows: Sequence[Tensor]) -> Path:
        """Writes rows into the output folder, where a person can look at them; each process into a file of its own."""
        rank = f"rank{self.args.process_index}_" if self.args.world_size > 1 else ""
        path = Path(self.args.output_dir, f"{rank}{STOPPED_ROWS}")
        with path.open("w", encoding="utf-8") as file:
            for number in (number for batch in rows for number in batch.tolist() if number >= 0):
                row = {name: value.tolist() for name, value in self.train_dataset[number].items()}
                if self.processing_class is not None:
                    row = {"text": self.processing_class.decode(row["input_ids"]), **row}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return path

    def _settle(self) -> None:
        """Bring to the host what a log or a checkpoint will tell."""
        self._read()
        num_tokens = int(self._counts_3[2])
        # A field that Trainer writes into checkpoints, and counts by itself only on demand.
        self.state.num_input_tokens_seen += num_tokens - self._num_tokens_told
        self._num_tokens_told = num_tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._settle()
        if "loss" in logs:  # of training: all ranks come here together
            *counts, num_tokens = self._counts_3.tolist()
            sums = self._over_ranks(torch.from_numpy(self._sums_2)).tolist()
            logs |= {f"loss_{name}": total / n for name, total, n in zip(STREAMS, sums, counts, strict=True) if n}
            logs["target_share"] = sum(counts) / max(num_tokens, 1)
            logs["num_tokens_seen"] = self.state.num_input_tokens_seen
            seconds = max(time.perf_counter() - self._began, 1e-9)
            logs["tokens_per_second"] = round((num_tokens - self._num_tokens_taken_up) / seconds, 1)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._settle()
        began = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self._began += time.perf_counter() - began

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict and saved_once(self.model, state_dict))

    def _interval_state(self) -> dict[str, Any]:
        return {"sums": self._sums_2.tolist(), "counts": self._counts_3.tolist()}

    def _take_up_interval(self, ranks: list[dict[str, Any]], is_same_world: bool) -> None:
        sums_R2 = np.array([rank["sums"] for rank in ranks])
        if is_same_world:
            self._sums_2 = sums_R2[self.args.process_index]
        elif self.args.process_index == 0:
            self._sums_2 = sums_R2.sum(axis=0)
        self._counts_3 = torch.tensor(ranks[0]["counts"], device=self.args.device)
        self._num_tokens_told = self._num_tokens_taken_up = ranks[0]["counts"][2]

    def _over_ranks(self, sums: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return sums  # stays on the host, since some devices know no fp64
        return self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss, accuracy and number of targets: of all feedback, and of each source that has any."""
        began = time.perf_counter()
        self._evaluated_3 = torch.zeros(len(self.source_names), 3, dtype=torch.float64)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        sums = self._over_ranks(self._evaluated_3)
        named = list(zip(self.source_names, sums, strict=True))
        total = sum((part for name, part in named if name != PRETRAIN), torch.zeros(3, dtype=torch.float64))
        for name, part in [("", total), *((f"{name}_", part) for name, part in named if part[2])]:
            nll, num_correct, num_targets = part.tolist()
            output.metrics[f"{metric_key_prefix}_{name}tokens"] = int(num_targets)
            if num_targets:
                output.metrics[f"{metric_key_prefix}_{name}loss"] = nll / num_targets
                output.metrics[f"{metric_key_prefix}_{name}accuracy"] = num_correct / num_targets
        if self.held_out and metric_key_prefix == "eval":
            self.beat("measuring pairs")
            found = self.held_out.metrics(self.as_it_computes()[0])
            output.metrics.update({f"eval_{name}": value for name, value in found.items()})
        self._began += time.perf_counter() - began
        return output._replace(num_samples=len(dataloader.dataset.rows))

    def as_it_computes(self) -> tuple[Any, bool]:
        """The model to compute with outside of training's own loop, and whether every process has all its weights."""
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if self.is_fsdp_enabled or (self.is_deepspeed_enabled and plugin and plugin.zero_stage == 3):
            return self.model_wrapped, False
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False), True

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, None, None]:
        """Add a batch to the sums of its sources; nothing else is kept, so memory holds one batch at a time."""
        self.beat("evaluation")
        inputs = self._prepare_inputs(inputs)
        labels_BS = inputs["labels"]
        nll_BS, is_correct_BS = target_scores(
            model, inputs["input_ids"], labels_BS, position_ids=inputs["position_ids"]
        )
        is_target = labels_BS[:, 1:] != IGNORED
        values = nll_BS, is_correct_BS, torch.ones_like(nll_BS)
        values_N3 = torch.stack([value[:, 1:][is_target].float() for value in values], dim=1)
        self._evaluated_3.index_add_(0, inputs["source_id"][:, 1:][is_target].cpu(), values_N3.cpu().double())
        return None, None, None
