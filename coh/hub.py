"""Pushing to the hub (`--push_to_hub`): what is shown there is whole, and a hub that fails costs no training.

In: a run's folder, and its checkpoints. Out: commits. A hub that refuses does so before the first step; what fails
later is said, and training goes on. At the end everything is on the disk before anything is sent.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress, hf_api

from coh.world import RunError

logger = logging.getLogger("coh")

STAGES = "_pushing"
LARGE = (".safetensors", ".bin", ".pt")
OF_THE_RUN = ("_*", "checkpoint-*", "unfinished/*", "training_args.bin", "complete.json")
OF_A_CHECKPOINT = ("optimizer*", "*.pt", "*.pth", "*.py", "pytorch_model_fsdp*", "training_args.bin", "complete.json")


class HubTrainer(Trainer):
    """Pushes folders as they are.

    `describe(trainer, folder)` completes a folder that holds weights and a log: words, tokenizer, card. It is asked for
    each checkpoint that is shown, so that it steers too.
    """

    push_in_progress: PushInProgress | None

    def __init__(self, *args: Any, describe: Callable[[Any, Path], Any] | None = None, **kwargs: Any) -> None:
        self.describe = describe
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, or finds it; raises RunError where the hub does not let it, before training."""
        try:
            super().init_hf_repo(token, private)
        except Exception as error:  # the hub, the network and the token's file raise their own kinds
            raise RunError(
                f"--push_to_hub: {self.args.hub_model_id or 'a repository'} cannot be made on the hub "
                f"({_reason(error)}): log in by `hf auth login` or set HF_TOKEN, check --hub_model_id, or leave "
                "--push_to_hub out and upload the model later. Nothing was trained."
            ) from error

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of `describe`; Trainer's own knows neither words nor data."""
        if self.is_world_process_zero() and self.describe:
            self.describe(self, Path(self.args.output_dir))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Uploads the output folder as it is: Trainer's own method would save tokenizer and model over it first.

        Raises:
            RunError: that failed; the folder is as it was.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = self.args.output_dir
        shutil.rmtree(Path(folder, STAGES), ignore_errors=True)
        try:
            return self._upload(folder, commit_message, list(OF_THE_RUN), blocking, token=token, revision=revision)
        except Exception as error:  # as above
            exclude = " ".join(f"--exclude '{pattern}'" for pattern in OF_THE_RUN)
            raise RunError(
                f"{self.hub_model_id} was not pushed ({_reason(error)}). The model is saved in {folder}: push it by\n"
                f"hf upload {self.hub_model_id} {folder} . {exclude}"
            ) from error

    def _upload(self, folder: str | Path, message: str | None, ignored: list[str], blocking: bool, **more: Any) -> Any:
        more["token"] = more.get("token") or self.args.hub_token
        more["revision"] = more.get("revision") or self.args.hub_revision
        return hf_api().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=str(folder),
            commit_message=message,
            ignore_patterns=ignored,
            run_as_future=not blocking,
            **more,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads a checkpoint's model while training goes on, from links of its own: rotation may remove the rest."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        under_way = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if under_way and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, message = Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}"
        stage = Path(self.args.output_dir, STAGES, checkpoint.name)
        jobs = []
        try:
            shutil.rmtree(stage, ignore_errors=True)
            shown = _linked(checkpoint, stage / "model", OF_A_CHECKPOINT)
            if self.describe:
                self.describe(self, shown)
            jobs.append(self._upload(shown, message, [], blocking=False))
            if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                whole = _linked(checkpoint, stage / "whole", ())
                name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
                jobs.append(self._upload(whole, f"{message}, checkpoint", [], blocking=False, path_in_repo=name))
        except Exception as error:  # a full disk, for one: the model that is trained loses nothing by it
            logger.warning("%s was not pushed (%s): training goes on", checkpoint.name, _reason(error))
        for job in jobs:
            job.add_done_callback(partial(_tell, checkpoint.name))
        if under_way and self.push_in_progress is not None:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)


def _linked(folder: Path, target: Path, ignored: tuple[str, ...]) -> Path:
    """A second folder of the same files, whose large ones cost no room: they are links, where the disk knows them.

    The small ones are copies: `describe` writes over some, and a checkpoint has to stay as its marker says.
    """

    def link(source: str, second: str) -> str:
        if source.endswith(LARGE):
            with suppress(OSError):
                os.link(source, second)
                return second
        return str(shutil.copy2(source, second))

    def ignore(where: str, names: list[str]) -> set[str]:
        folders = {name for name in names if Path(where, name).is_dir()} if ignored else set()  # an engine's parts
        return folders | set(shutil.ignore_patterns(*ignored)(where, names))

    return Path(shutil.copytree(folder, target, ignore=ignore, copy_function=link))


def _tell(checkpoint: str, job: Future[Any]) -> None:
    if job.cancelled() or job.exception() is not None:
        reason = _reason(job.exception()) if not job.cancelled() else "cancelled"
        logger.warning("%s was not pushed (%s): training goes on, and the end is pushed again", checkpoint, reason)


def _reason(error: BaseException | None) -> str:
    """The first line of an error's message, and of what caused it, without addresses: some hold a right to write.

    >>> _reason(OSError("Client error '401 Unauthorized' for url 'https://hub/blob?key=1'"))
    "Client error '401 Unauthorized'"
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = re.sub(r" for url:? \S+", "", line)
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    return f"{reason}: {_reason(cause)}" if cause else reason
