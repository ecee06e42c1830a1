"""Measure what a model learned from feedback, on rows it was not trained on, beside the model that it came from.

    python -m coh.evaluate --model DIR --feedback_data hh_rlhf
    python -m coh.evaluate --model DIR --base gpt2 --feedback_data hh_rlhf --pretrain_data c4 --num_prompts 50

In: a model and any feedback. Out, as a table and as JSON: for each source what `coh.measuring` says (losses by kind of
chain, pair accuracy, rankings, questions, steering gap, chain gain, calibration); the loss on plain text; what
`coh.written` says of outputs under good and bad words, with a judge of one's choice; and the harness `lm-eval`.

Under torchrun the processes share the work, with the same figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from coh.arguments import parse
from coh.data.pretrain import Texts, load_texts
from coh.data.records import Document, FeedbackError, FeedbackGroup
from coh.evaluate_args import EvaluateArgs, held_out_groups
from coh.judging import Judge, load_judge
from coh.measures import Estimate, ratio
from coh.measuring import SourceFigures, figure_table, measure, table, told, without_nan
from coh.modeling import adapter_base
from coh.processes import join, rank_and_size
from coh.saved import Words, load_words
from coh.score import score_documents
from coh.steered import load
from coh.steering import Steering
from coh.written import LABELS, WIN_LABELS, Written, write


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one model; `text` is its loss on plain text, `benchmarks` what lm-eval found."""

    sources: dict[str, SourceFigures]
    text: Estimate | None = None
    written: dict[str, Written] = field(default_factory=dict)
    benchmarks: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            "sources": {name: figures.as_json() for name, figures in self.sources.items()},
            "text_loss": asdict(self.text) if self.text else None,
            "written": {name: written.as_json() for name, written in self.written.items()},
            "benchmarks": self.benchmarks,
        }


def text_documents(held_out: Texts, max_length: int) -> Iterator[Document]:
    """Plain texts as documents, each cut after `max_length` tokens."""
    for window in (held_out.window(0, number) for number in range(held_out.num_windows)):
        for number in range(len(window.lengths)):
            ids, targets, _ = window.tokens(number)
            yield Document(tuple(ids[:max_length].tolist()), tuple(targets[:max_length].tolist()), "text")


def text_loss(
    model: Any, steering: Steering, held_out: Texts, max_length: int, progress: str = "", most: int | None = None
) -> Estimate:
    """Mean loss per token of plain texts, the first `most` of them, each cut after `max_length` tokens."""
    documents = list(islice(text_documents(held_out, max_length), most))
    scores = score_documents(model, documents, steering.end_of_output, progress=progress)
    return ratio(-scores.log_p, scores.num_tokens)


def evaluate(
    name: str,
    args: EvaluateArgs,
    groups: dict[str, list[FeedbackGroup]],
    words: Words,
    judge: Judge | None,
    base: Evaluation | None = None,
) -> Evaluation:
    """Everything that `args` asks of the model with this name."""
    from transformers import set_seed

    model = load(
        name,
        words=words,
        dtype=args.dtype,
        device=args.device,
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )
    sources = {
        source: measure(model.model, model.steering, own, args.max_length, f"Scoring {source}")
        for source, own in groups.items()
    }
    text = None
    if args.pretrain_data != "none":
        texts = load_texts(args.pretrain_data, args.pretrain_docs, args.cache_dir)
        held_out = Texts(texts, model.steering.encoder, held_out=True, source=0, seed=0)
        text = text_loss(model.model, model.steering, held_out, args.max_length, "Scoring text")
    set_seed(args.seed)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": args.temperature} if args.temperature else {}
    written = {
        source: write(
            model,
            own[: args.num_prompts],
            judge=judge,
            base=base.written[source] if base else None,
            progress=f"Writing for {source}",
            max_new_tokens=args.max_new_tokens,
            **sampling,
        )
        for source, own in (groups.items() if args.num_prompts else ())
    }
    benchmarks = run_harness(name, args) if args.lm_eval and rank_and_size()[0] == 0 else {}
    return Evaluation(sources, text, written, benchmarks)


def keep(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Writes evaluations as JSON: "model", and "base" where one stands beside it, as a report reads them."""
    found = without_nan({name: evaluation.as_json() for name, evaluation in evaluations.items()})
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def run_harness(model: str, args: EvaluateArgs) -> dict[str, Any]:
    """The results of lm-eval's tasks, by task and measure."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise FeedbackError("--lm_eval needs the package lm-eval: pip install 'lm-eval[hf]'") from error
    manager = TaskManager(include_path=args.lm_eval_tasks)
    unknown = [task for task in args.lm_eval if not manager.match_tasks([task])]
    if unknown:
        raise FeedbackError(f"--lm_eval {' '.join(unknown)}: the harness has no such task: see lm_eval ls tasks")
    base = adapter_base(model, args.cache_dir)
    named = {"pretrained": base, "peft": model, "tokenizer": model} if base else {"pretrained": model}
    found = simple_evaluate(
        model="hf",
        model_args={**named, "dtype": args.dtype},
        tasks=args.lm_eval,
        task_manager=manager,
        limit=args.lm_eval_limit,
        device=None if args.device == "auto" else args.device,
    )
    return {
        task: {k: v for k, v in values.items() if isinstance(v, (int, float))}
        for task, values in found["results"].items()
    }


def report(evaluations: dict[str, Evaluation]) -> str:
    """All figures as text: a table for each source, models side by side."""
    lines = []
    first = next(iter(evaluations.values()))
    for source in first.sources:
        lines += ["", f"{source}", table({name: found.sources[source] for name, found in evaluations.items()})]
    if first.text:
        told_text = "   ".join(f"{name} {told(found.text)}" for name, found in evaluations.items() if found.text)
        lines += ["", f"loss on plain text (nats per token), {first.text.n} texts: {told_text}"]
    for source, written in first.written.items():
        lines += ["", f"written for {len(written.prompts)} prompts of {source}"]
        columns = {
            f"{name}, {words}": found.written[source].figures[words]
            for name, found in evaluations.items()
            for words in written.outputs
        }
        lines.append(figure_table(LABELS, columns))
        if written.judge:
            lines += ["", f"won (%), judged by {written.judge}"]
            wins = {name: found.written[source].wins for name, found in evaluations.items()}
            lines.append(figure_table(WIN_LABELS, wins))
    for name, found in evaluations.items():
        for task, values in found.benchmarks.items():
            lines += [
                "",
                f"{task}, {name}: " + ", ".join(f"{measure} {value:.4g}" for measure, value in values.items()),
            ]
    return "\n".join(lines[1:])


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse([EvaluateArgs], argv, prog="python -m coh.evaluate", description=(__doc__ or "").split("\n")[0])
    join()
    try:
        words = load_words(args.model, args.templates, args.cache_dir)
        groups = held_out_groups(args)
        if not groups:
            raise FeedbackError(
                f"no pairs in the {args.split} split of {', '.join(args.feedback_data)}: try --split all"
            )
        judge = None
        if args.judge:
            judge = load_judge(args.judge, model=args.judge_model, device=args.device, cache_dir=args.cache_dir)
        evaluations: dict[str, Evaluation] = {}
        if args.base:
            evaluations["base"] = evaluate(args.base, args, groups, words, judge)
        evaluations["model"] = evaluate(args.model, args, groups, words, judge, evaluations.get("base"))
    except ValueError as error:
        raise SystemExit(f"coh.evaluate: {error}") from error
    if rank_and_size()[0] > 0:
        return
    print(report(evaluations))
    counts = {name: len(own) for name, own in groups.items()}
    print("\ngroups: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    if args.json:
        keep(evaluations, Path(args.json))


if __name__ == "__main__":
    main()
