"""The tasks of the harness `lm-eval`, for what a model can do beside what it was trained for.

In: names of tasks, which are looked up before any weights load, and a loaded model. Out: the figures of each task.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coh.data.records import FeedbackError
from coh.processes import from_first
from coh.steered import SteeredModel

COUNT = "sample_len"  # how many examples of a task were asked: stands among its measures, and is none


@dataclass(frozen=True)
class Harness:
    """Some tasks of the harness; `limit` is the most examples of each that are asked."""

    tasks: tuple[str, ...]
    manager: Any
    limit: int | None = None

    @classmethod
    def of(cls, tasks: Sequence[str], folder: str | None = None, limit: int | None = None) -> Harness:
        """The tasks of these names, which may have `*` in them; `folder` holds further ones.

        Raises:
            FeedbackError: the harness is not installed, or has no such task.
        """
        if folder is not None and not Path(folder).is_dir():
            raise FeedbackError(f"--lm_eval_tasks {folder}: there is no such folder")
        try:
            from lm_eval.models.huggingface import HFLM  # noqa: F401  it needs more packages than the tasks do
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise FeedbackError(f"--lm_eval needs the package lm-eval: pip install 'lm-eval[hf]' ({error})") from error
        manager = TaskManager(include_path=folder)
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if unknown:
            raise FeedbackError(f"--lm_eval {' '.join(unknown)}: the harness has no such task: see lm_eval ls tasks")
        return cls(tuple(manager.match_tasks(list(tasks))), manager, limit)

    def run(self, model: SteeredModel) -> dict[str, dict[str, float]]:
        """What was found, by task and measure; under `COUNT` stands by how many examples.

        The first process runs it, as the harness cannot share a loaded model between several; the others wait.

        Raises:
            FeedbackError: the harness stopped, for example since the data of a task cannot be had.
        """
        return from_first(lambda: self._run(model))

    def _run(self, model: SteeredModel) -> dict[str, dict[str, float]]:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        # It warns of the loaded model, with which it takes itself for one process: that is what is wanted here.
        logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
        try:
            found = simple_evaluate(
                model=HFLM(pretrained=model.model, tokenizer=model.tokenizer),
                tasks=list(self.tasks),
                task_manager=self.manager,
                limit=self.limit,
            )
        except Exception as error:  # tasks are programs of many authors, with errors of any kind
            said = (str(error).splitlines() or [""])[0]
            raise FeedbackError(
                f"--lm_eval {' '.join(self.tasks)}: the harness stopped ({type(error).__name__}: {said}): try the task "
                "with lm_eval itself, or leave it out"
            ) from error
        return {
            task: {k: v for k, v in values.items() if isinstance(v, (int, float))}
            for task, values in found["results"].items()
        }
