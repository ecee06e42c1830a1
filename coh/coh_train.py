"""Train a language model on human feedback with Chain of Hindsight (arXiv 2302.02676).

python -m coh.coh_train --model_name gpt2 --feedback_data hh_rlhf --output_dir out/gpt2-hh
"""

import gc
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from transformers import set_seed

from coh.adapters import add_lora
from coh.arguments import parse
from coh.card import write_card
from coh.chat_template import save_for_others
from coh.checkpoints import Checkpoint, finish
from coh.data.coh_data import CoHDataArgs, CoHDataset, load_datasets
from coh.data.collator import collate
from coh.data.records import FeedbackError
from coh.data.summary import summarize, table
from coh.data.templates import load_family
from coh.experiment import ExperimentArgs, cross_problems
from coh.held_out import FILE as EVALUATION
from coh.held_out import HeldOut, Measuring
from coh.identity import run_facts
from coh.masking import MaskingError, attend_by_document, check_isolation
from coh.modeling import ModelError, has_fast_bf16, load_model
from coh.provenance import provenance
from coh.report import ReportError, write_report
from coh.saved import Words, save_words
from coh.starting import check_room, check_same_run, check_shapes, find_start, is_finished
from coh.train_args import CoHTrainArgs
from coh.trainer import CoHTrainer, RunError
from coh.world import check_sharding, gather_when_saving

logger = logging.getLogger("coh")


def fit_length(dataset: CoHDataset, train: CoHTrainArgs, start: Checkpoint | None = None) -> None:
    """Makes a run one long pass of whole steps: `max_steps` from the epochs asked for, and the dataset as long as that.

    Rows are numbered across epochs, so a last step that an epoch does not fill takes rows of the next one. Where steps
    had another size until the checkpoint `start`, they go on at the row where it stopped.
    """
    rows_per_step = train.train_batch_size * train.world_size * train.gradient_accumulation_steps
    offset = start.about["row"] - start.step * rows_per_step if start else 0
    if train.max_steps <= 0:
        num_rows = dataset.rows_in_epochs(train.num_train_epochs) - offset
        train.max_steps = max(1, -(-num_rows // rows_per_step))
    dataset.num_rows = train.max_steps * rows_per_step + max(0, offset)


def build_model(experiment: ExperimentArgs, data: CoHDataArgs, train: CoHTrainArgs) -> Any:
    """The model that is trained: the whole one, or one with adapters around weights that stay as they are."""
    model = load_model(
        experiment.model_name,
        dtype=experiment.dtype,
        attn_implementation=experiment.attn_implementation,
        cache_dir=experiment.cache_dir,
        trust_remote_code=experiment.trust_remote_code,
        quantization=experiment.quantization(train),
    )
    if data.isolate_documents:
        if experiment.attn_implementation is None and train.device.type == "cpu":
            attend_by_document(model)
        check_isolation(model)
    if experiment.use_lora:
        set_seed(train.seed)  # however many numbers loading drew, the matrices begin alike
        is_checkpointing = bool(train.gradient_checkpointing)
        if is_checkpointing and train.ddp_find_unused_parameters is None:
            train.ddp_find_unused_parameters = False  # Trainer does so for whole models: activations come twice
        model = add_lora(model, experiment.lora, experiment.model_name, is_checkpointing=is_checkpointing)
    return model


def save_result(trainer: CoHTrainer) -> None:
    """The model, or its adapter, as a plain Hugging Face folder that steers wherever it is served, with `coh.json`."""
    gather_when_saving(trainer.accelerator)
    with trainer.writing("the final model"):
        trainer.save_model(_internal_call=True)  # or Trainer pushes what is not whole yet
        trainer.save_state()
    trainer.create_model_card()


def describe(
    trainer: CoHTrainer,
    folder: Path,
    *,
    experiment: ExperimentArgs,
    data: CoHDataArgs,
    words: Words,
    about: dict[str, Any],
) -> None:
    """Adds to weights and their log what makes them a model for others: `coh.json`, a chat template, a card."""
    arguments = {**asdict(experiment), **asdict(data), **trainer.args.to_dict()}
    save_words(folder, words, arguments=arguments, **about)
    model = trainer.accelerator.unwrap_model(trainer.model)
    save_for_others(folder, words, trainer.processing_class, model.generation_config)
    write_card(folder, trainer.hub_model_id)


def main(argv: Sequence[str] | None = None) -> None:
    """The command: checks all options, then runs."""
    if argv is None:
        gc.freeze()  # the million objects of imported libraries, which each collection would look through again
    experiment, data, train = parse(
        [ExperimentArgs, CoHDataArgs, CoHTrainArgs],
        argv,
        prog="python -m coh.coh_train",
        description="Train a language model on human feedback with Chain of Hindsight.",
        checks=cross_problems,
    )
    logging.basicConfig(format="%(message)s", level=logging.INFO if train.process_index == 0 else logging.ERROR)
    try:
        run(experiment, data, train, sys.argv[1:] if argv is None else argv)
    except (FeedbackError, ModelError, MaskingError, RunError, FloatingPointError) as error:
        raise SystemExit(f"coh.coh_train: {error}") from error
    except UnpicklingError as error:  # of a checkpoint; nothing of it was run
        remedy = "resume from a checkpoint of your own, or start anew"
        raise SystemExit(f"coh.coh_train: a checkpoint holds more than tensors and numbers: {remedy}") from error


def run(experiment: ExperimentArgs, data: CoHDataArgs, train: CoHTrainArgs, argv: Sequence[str] | None = None) -> None:
    """Load, build, train, save, evaluate, report; `argv` is the command line, where there was one."""
    started = provenance(train, argv)
    check_sharding(train)
    if experiment.wandb_project_name:
        os.environ.setdefault("WANDB_PROJECT", experiment.wandb_project_name)
    train.run_name = experiment.wandb_run_name or train.run_name
    logger.info("%s", train.arithmetic)
    if train.bf16 and not has_fast_bf16(train.use_cpu):
        logger.warning("--bf16: this device has no bfloat16 arithmetic, float32 would be faster")
    start = find_start(train)

    tokenizer = experiment.tokenizer
    seed = train.seed if train.data_seed is None else train.data_seed
    with train.main_process_first(desc="preparing data"):
        datasets = load_datasets(
            data, tokenizer, seed=seed, prepend_bos=train.prepend_bos, cache_dir=experiment.cache_dir
        )
    if train.eval_strategy != "no" and "validation" not in datasets:
        raise FeedbackError(
            f"--eval_strategy {train.eval_strategy.value}: no feedback is held out for validation: raise "
            "--webgpt_dataset_test_size, name --eval_feedback_data, or leave the option out"
        )
    summary = summarize(datasets["train"])
    logger.info("\n%s\n", table(summary))
    fit_length(datasets["train"], train, start)
    if is_finished(train, start):
        return
    facts = run_facts(experiment, data, train, datasets["train"])
    if start is not None:
        check_same_run(start, facts, train.force_resume)

    set_seed(train.seed)
    model = build_model(experiment, data, train)
    check_room(model, train)
    if start is not None:
        check_shapes(model, start.path)
    validation, test = datasets.get("validation"), datasets.get("test")
    words = Words(load_family(data.templates[0]), train.prepend_bos, tuple(summary["tasks"]), data.prompt_format)
    if start is None and train.process_index == 0:
        Path(train.output_dir, EVALUATION).unlink(missing_ok=True)  # of another run
    held_out = HeldOut.of(datasets, words, tokenizer, train.eval_pairs, train.eval_prompts)
    trainer = CoHTrainer(
        model=model,
        args=train,
        train_dataset=datasets["train"],
        eval_dataset=validation,
        source_names=(validation or test or datasets["train"]).source_names,
        data_collator=collate,
        processing_class=tokenizer,
        run_facts=facts,
        held_out=held_out,
        describe=partial(
            describe, experiment=experiment, data=data, words=words, about={"data": summary, "run": started}
        ),
    )
    measuring = Measuring(trainer, held_out) if held_out else None
    if measuring:
        trainer.add_callback(measuring)
    trainer.train(resume_from_checkpoint=str(start.path) if start else None)
    if trainer.state.global_step < train.max_steps:
        steps = f"{trainer.state.global_step} of {train.max_steps}"
        raise SystemExit(f"coh.coh_train: stopped at step {steps}: no final model is written")
    save_result(trainer)
    conclude(trainer, test, measuring)


def conclude(trainer: CoHTrainer, test: CoHDataset | None, measuring: Measuring | None) -> None:
    """Measure the trained model, report, and push."""
    folder = Path(trainer.args.output_dir)
    if test is not None:
        metrics = trainer.evaluate(test, metric_key_prefix="test")
        trainer.log_metrics("test", metrics)
        trainer.save_metrics("test", metrics)
    if measuring:
        measuring.keep("after")
    if trainer.is_world_process_zero():
        write_card(folder, trainer.hub_model_id)  # anew, with the figures
        finish(folder, trainer.args.max_steps)
        if trainer.args.write_report:
            try:
                logger.info("The report: %s", write_report([folder]))
            except ReportError as error:
                logger.warning("%s", error)  # the run is done all the same
    trainer.accelerator.wait_for_everyone()  # a process that leaves early may abort those that still talk to it
    trainer.accelerator.end_training()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()  # last, since other processes need not wait for it


if __name__ == "__main__":
    main()
