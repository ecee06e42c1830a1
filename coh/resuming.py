"""A `Trainer` that can be stopped at any moment and goes on as if it never had been.

Checkpoints are complete or absent (`coh.checkpoints`). Training goes on at its row without reading those before it: the
dataset gives any row by its number, in its final order, so the sampler starts there. SIGTERM makes a checkpoint and
ends the run with status 143. Who hangs, dies or is out of space is named. Nothing here knows what is learned.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, set_seed

from coh import checkpoints
from coh.checkpoints import Checkpoint, checkpoint_bytes, size
from coh.guards import Norms, Stopped, StopSignal, Watchdog, heed_parent_only
from coh.hub import HubTrainer
from coh.identity import installed_versions
from coh.world import RunError

logger = logging.getLogger("coh")


class RowsFrom(Sampler[int]):
    """The numbers of all rows in their order; the next pass begins at `first_row`, at no cost."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.first_row = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first_row, len(self.rows)))


class _Guards(TrainerCallback):
    """What the trainer's loop has no method for."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._take_up()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._count_epoch()


def _leave_to_parent(init: Callable[[int], None] | None, worker: int) -> None:
    """A worker heeds SIGTERM from its parent alone: a job's every process may get it, and the checkpoint needs rows."""
    heed_parent_only()
    if init is not None:
        init(worker)


class ResumableTrainer(HubTrainer):
    """Trains on a map-style dataset in its order, and goes on where a checkpoint stands; `run_facts` are kept in it."""

    def __init__(self, *args: Any, run_facts: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run_facts = dict(run_facts or {})
        self.row_offset = 0  # rows before a step, beyond those that steps of today's size would have taken
        self.stop = StopSignal()
        self.norms = Norms(getattr(self.args, "grad_norm_limit", 0.0))
        self._watchdog: Watchdog | None = None
        self._resumed: Checkpoint | None = None
        self._is_saving = False
        self._saved_step = -1
        self.add_callback(_Guards(self))

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over micro-batches and ranks."""
        return self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    # Running

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains to the end, or raises: Stopped on SIGTERM, RunError where a checkpoint cannot be written or read."""
        self._resumed = None
        if resume_from_checkpoint:
            self._resumed = self._open(resume_from_checkpoint)
            self.row_offset = self._resumed.about.get("row", 0) - self._resumed.step * self.rows_per_step
        if self.args.should_save:
            checkpoints.clean(self._folder)
        self.accelerator.wait_for_everyone()
        self._watchdog = Watchdog(self.args.ddp_timeout, self.args.process_index, self.args.world_size)
        try:
            path = str(self._resumed.path) if self._resumed else None
            result = super().train(path, trial, ignore_keys_for_eval)
            self._stop_if(self._is_anyone_asked())
            return result
        except Exception as error:
            if self.args.world_size > 1:
                rank = f"rank {self.args.process_index} of {self.args.world_size} (on {socket.gethostname()})"
                step = self.state.global_step + 1
                logger.error("%s failed in step %d: %s: %s", rank, step, type(error).__name__, error)
            raise
        finally:
            self.stop.end()
            self._watchdog.end()

    def _open(self, resume: str | bool) -> Checkpoint:
        checkpoint, _ = checkpoints.choose(self._folder, resume)
        if checkpoint is None:
            raise RunError(f"{self._folder} has no complete checkpoint to resume from")
        return checkpoint

    def beat(self, doing: str) -> None:
        """Tells the watchdog that something is done."""
        if self._watchdog is not None:
            self._watchdog.beat(doing)

    def _is_anyone_asked(self) -> bool:
        asked = torch.tensor(int(self.stop.is_asked), device=self.args.device)
        return bool(self.accelerator.reduce(asked, reduction="sum"))

    def _stop_if(self, is_asked: bool) -> None:
        """Between two steps: makes a checkpoint and ends the run, if all processes know that it was asked for."""
        if is_asked:
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(self.model, None)
                self.callback_handler.on_save(self.args, self.state, self.control)
            logger.warning("SIGTERM: stopped behind step %d. %s", self.state.global_step, self.last_checkpoint())
            self.accelerator.wait_for_everyone()
            raise Stopped

    def last_checkpoint(self) -> str:
        """A sentence that names the last complete checkpoint."""
        found, _ = checkpoints.checkpoints_in(self._folder)
        if not found:
            return "No checkpoint was complete yet."
        return f"The last complete checkpoint is {found[-1].path}: --resume_from_checkpoint {found[-1].path}"

    # Rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        self._rows_from = RowsFrom(self.train_dataset if train_dataset is None else train_dataset)
        return self._rows_from

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """A loader with a generator of its own, so that reading data never moves what dropout draws from."""
        loader = super()._get_dataloader(*args, **kwargs)
        base = getattr(loader, "base_dataloader", loader)
        base.generator = torch.Generator()
        base.worker_init_fn = partial(_leave_to_parent, base.worker_init_fn)
        return loader

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found = super()._init_training_state(max_steps, *args, **kwargs)
        if self._resumed is not None:
            self.state.compute_steps(self.args, max_steps)  # how often to log, evaluate and save is today's wish
        return found

    def _run_epoch(self, **kwargs: Any) -> None:
        """One pass, or what is left of it: the loop gets a shorter pass and a loader that begins at the first row."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        accumulation = self.args.gradient_accumulation_steps
        is_first = self._resumed is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        done = kwargs["steps_trained_in_current_epoch"] // accumulation if is_first else 0
        self._pass = kwargs["epoch"], kwargs["steps_in_epoch"], self.state.global_step - done
        self._rows_from.first_row = done * self.rows_per_step + self.row_offset if done else 0
        kwargs["steps_in_epoch"] -= done * accumulation
        kwargs["num_update_steps_per_epoch"] -= done
        kwargs["steps_trained_in_current_epoch"] = 0
        super()._run_epoch(**kwargs)

    def _count_epoch(self) -> None:
        epoch, num_batches, first_step = self._pass
        done = (self.state.global_step - first_step) * self.args.gradient_accumulation_steps
        self.state.epoch = epoch + min(done, num_batches) / num_batches

    # Saving

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, checkpoints.UNFINISHED)) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint beside its place, and gives it its name when all processes are done."""
        self._check_weights()
        name = f"checkpoint-{self.state.global_step}"
        made, final = self._folder / checkpoints.UNFINISHED / name, self._folder / name
        about = self._about()
        self.beat(f"saving {name}")
        with self.writing(name):
            if self.args.should_save:
                shutil.rmtree(made, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self._is_saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_saving = False
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(made):
                self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(made / "trainer_state.json"))
                checkpoints.complete(made, final, about)
                checkpoints.rotate(self._folder, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        self.beat(f"what follows {name}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:  # what is not complete is not shown to anybody
            super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Makes failures of writing a sentence, and removes what was written of a checkpoint."""
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            checkpoints.clean(self._folder)
            left, needed = shutil.disk_usage(self._folder).free, checkpoint_bytes(self.model, self.args.optim)
            reason = str(error).strip().split("\n")[0]
            if left < needed:  # torch's own words for that are about positions in a file
                reason = f"the disk is full: {size(left)} are left, about {size(needed)} are needed"
            raise RunError(
                f"{what} cannot be written to {self._folder} ({reason}). {self.last_checkpoint()}"
            ) from error

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            values = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            if not torch.isfinite(values.detach()).all():
                raise FloatingPointError(
                    f"after step {self.state.global_step} the weight {name} is not finite, so nothing is saved: lower "
                    f"--learning_rate. {self.last_checkpoint()}"
                )

    def _about(self) -> dict[str, Any]:
        """What the marker tells: where the run stands, and whose it is."""
        return {
            "step": self.state.global_step,
            "row": self.state.global_step * self.rows_per_step + self.row_offset,
            "rows_per_step": self.rows_per_step,
            "world_size": self.args.world_size,
            "is_model_only": self.args.save_only_model,
            "run": self.run_facts,
            "versions": installed_versions(),
            "last_logged_step": self._globalstep_last_logged,
            "norms": list(self.norms.recent),
            "ranks": gather_object([{"loss": self._tr_loss.item(), **self._interval_state()}]),
        }

    # Going on

    @contextmanager
    def _reading(self, checkpoint: str | None) -> Iterator[None]:
        """Makes failures of reading a sentence: a file that is no such thing, or holds code instead of numbers."""
        from safetensors import SafetensorError

        try:
            yield
        except (UnpicklingError, SafetensorError, RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise RunError(f"{checkpoint} cannot be read ({reason}): take an earlier checkpoint") from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self._reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with self._reading(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        then = self._resumed.about.get("world_size") if self._resumed else None
        if then in (None, self.args.world_size):
            with self._reading(checkpoint):
                super()._load_rng_state(checkpoint)
            return
        # The states are those of other processes. What dropout draws is new, but the same each time.
        logger.warning(
            "the checkpoint was written by %s processes, and there are %d: rows go on in their order, dropout is drawn "
            "anew", then, self.args.world_size,
        )  # fmt: skip
        key = f"{self.args.seed}/{self.state.global_step}/{self.args.process_index}"
        set_seed(int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "little"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also sets today's learning rate, which is another where the run is forced to go on with other settings."""
        with self._reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if checkpoint is None or not hasattr(scheduler, "lr_lambdas"):
            return
        scheduler.base_lrs = [self.args.learning_rate for _ in scheduler.base_lrs]
        scheduler._last_lr = [self.args.learning_rate * share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
        for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr):
            group |= {"lr": rate, "initial_lr": self.args.learning_rate}

    def _take_up(self) -> None:
        """When the loop is about to begin: takes up the sums since the last log, and starts the guards."""
        assert self._watchdog is not None
        if self._resumed is not None and (ranks := self._resumed.about.get("ranks")):
            self._globalstep_last_logged = self._resumed.about["last_logged_step"]
            self.norms.recent.extend(self._resumed.about["norms"])
            is_same_world = len(ranks) == self.args.world_size
            mean = sum(one["loss"] for one in ranks) / len(ranks)
            own = ranks[self.args.process_index]["loss"] if is_same_world else mean
            self._tr_loss += own
            self._total_loss_scalar -= mean  # the loss told at the end is that of the steps of this session
            self._take_up_interval(ranks, is_same_world)
            self._saved_step = self._resumed.step if self._resumed.path.parent == self._folder else -1
        self.stop.begin()
        self._watchdog.begin()

    def _interval_state(self) -> dict[str, Any]:
        """What this process has added up since the last log."""
        return {}

    def _take_up_interval(self, ranks: list[dict[str, Any]], is_same_world: bool) -> None:
        """Takes back what `_interval_state` gave in each process."""
