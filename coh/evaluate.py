"""Measure what a model learned from feedback, on rows it was not trained on, beside the model that it came from.

    python -m coh.evaluate --model DIR --feedback_data hh_rlhf
    python -m coh.evaluate --model DIR --base gpt2 --feedback_data hh_rlhf --pretrain_data c4 --num_prompts 50

In: a model and any feedback. Out, as a table and as JSON: for each source what `coh.measuring` says (losses by kind of
chain, pair accuracy, rankings, questions, steering gap, chain gain, calibration); the loss on plain text; what
`coh.written` says of outputs under good and bad words, with a judge of one's choice; and the harness `lm-eval`.

What could refuse (a judge's server, the harness's tasks, a model's name) is asked before anything is measured, and the
JSON is written after each part, so that a part that fails loses none of those before it. A file that is there already,
such as a run's evaluation.json, keeps what it says of a model ("base", "model") until there are new figures of it.

Under torchrun the processes share the work, with the same figures and outputs; the harness runs in the first alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.arguments import parse
from coh.data.pretrain import Texts, load_texts
from coh.data.records import Document, FeedbackError, FeedbackGroup
from coh.evaluate_args import EvaluateArgs, held_out_groups
from coh.harness import COUNT, Harness
from coh.judging import Judge, load_judge
from coh.likelihood import score_documents
from coh.measures import Estimate, paired_difference, ratio
from coh.measuring import SourceFigures, figure_table, longest_document, measure, table, told, without_nan
from coh.modeling import load_config, load_tokenizer
from coh.processes import join, rank_and_size
from coh.saved import Words, load_words
from coh.steered import SteeredModel, load
from coh.steering import Steering
from coh.written import LABELS, WIN_LABELS, Reader, Written, judged, write

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one model; `text` is its loss on plain text, `benchmarks` what lm-eval found.

    `texts` has the summed loss and the tokens of every plain text, (texts, 2). `drift` is how much higher the loss on
    them is than that of the model beside it; None where there is no such model, or one that has other tokens.
    """

    sources: dict[str, SourceFigures]
    text: Estimate | None = None
    written: dict[str, Written] = field(default_factory=dict)
    benchmarks: dict[str, Any] = field(default_factory=dict)
    texts: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    drift: Estimate | None = None

    def with_texts(self, texts: Floats, base: Evaluation | None) -> Evaluation:
        """The same with the loss on plain texts, beside that of another model."""
        return replace(self, text=ratio(*texts.T), texts=texts, drift=drift(texts, base.texts) if base else None)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            "sources": {name: figures.as_json() for name, figures in self.sources.items()},
            "text_loss": asdict(self.text) if self.text else None,
            "text_loss_above_base": asdict(self.drift) if self.drift else None,
            "written": {name: written.as_json() for name, written in self.written.items()},
            "benchmarks": self.benchmarks,
        }


def text_documents(held_out: Texts, max_length: int) -> Iterator[Document]:
    """Plain texts as documents, each cut after `max_length` tokens."""
    for window in (held_out.window(0, number) for number in range(held_out.num_windows)):
        for number in range(len(window.lengths)):
            ids, targets, _ = window.tokens(number)
            yield Document(tuple(ids[:max_length].tolist()), tuple(targets[:max_length].tolist()), "text")


def text_scores(
    model: Any, steering: Steering, held_out: Texts, max_length: int, progress: str = "", most: int | None = None
) -> Floats:
    """(texts, 2): the summed loss in nats and the tokens of plain texts, the first `most`, cut after `max_length`."""
    longest = longest_document(model, max_length) or max_length
    documents = list(islice(text_documents(held_out, longest), most))
    scores = score_documents(model, documents, steering.end_of_output, progress=progress)
    return np.stack([-scores.log_p, scores.num_tokens.astype(float)], axis=1)


def drift(texts: Floats, base: Floats) -> Estimate | None:
    """How much higher one model's loss per token is than another's, text by text; None where their tokens differ.

    >>> drift(np.array([[6.0, 2], [9.0, 3]]), np.array([[5.0, 2], [7.5, 3]])).value
    0.5
    """
    if not np.array_equal(texts[:, 1], base[:, 1]):
        return None
    return paired_difference((texts[:, 0], texts[:, 1]), (base[:, 0], base[:, 1]))


@dataclass(frozen=True)
class Work:
    """What is to be measured of every model, and with what; `readers` has the models' words, by name."""

    args: EvaluateArgs
    words: Words
    groups: dict[str, list[FeedbackGroup]]
    readers: dict[str, Reader]
    harness: Harness | None
    judge: Judge | None

    @classmethod
    def of(cls, args: EvaluateArgs) -> Work:
        """Everything that can be found wrong before a model is measured is found here.

        Raises:
            FeedbackError: there is nothing to measure, or a judge or a task that cannot be had.
            ModelError: a model cannot be opened.
        """
        words = load_words(args.model, args.templates, args.cache_dir)
        groups = held_out_groups(args)
        if not groups:
            raise FeedbackError(_nothing_to_compare(args))
        if args.json:
            known(Path(args.json))
        harness, judge = None, None
        if args.lm_eval:
            harness = Harness.of(args.lm_eval, args.lm_eval_tasks, args.lm_eval_limit)
        trust, readers = args.trust_remote_code, {}
        for name in filter(None, (args.base, args.model)):
            tokenizer = load_tokenizer(name, args.cache_dir, trust_remote_code=trust)
            config = load_config(name, args.cache_dir, trust_remote_code=trust)
            readers[name] = Reader(Steering.of(words, tokenizer), config)
        if args.judge:
            judge = load_judge(args.judge, model=args.judge_model, device=args.device, cache_dir=args.cache_dir)
        return cls(args, words, groups, readers, harness, judge)

    def load(self, name: str) -> SteeredModel:
        """The model of that name, with its weights."""
        args = self.args
        return load(
            name,
            words=self.words,
            dtype=args.dtype,
            device=args.device,
            cache_dir=args.cache_dir,
            trust_remote_code=args.trust_remote_code,
        )

    def write(self, model: SteeredModel, source: str) -> Written:
        """What the model writes for the prompts of a source, of those for which every model has room."""
        args = self.args
        sampling: dict[str, Any] = {"do_sample": True, "temperature": args.temperature} if args.temperature else {}
        return write(
            model,
            self.groups[source],
            num_prompts=args.num_prompts,
            others=list(self.readers.values()),
            seed=args.seed,
            progress=f"Writing for {source}",
            max_new_tokens=args.max_new_tokens,
            **sampling,
        )


def _nothing_to_compare(args: EvaluateArgs) -> str:
    """Why there are no groups to measure, and what to do about it."""
    sources = ", ".join(args.feedback_data)
    if args.split != "all" and held_out_groups(replace(args, split="all", max_pairs=1)):
        return f"no pairs or verdicts in the {args.split} split of {sources}: try --split all"
    return (
        f"{sources}: in no split of it is an output preferred to another, or judged by itself (all are ties, or have "
        "words of their own): give pairs, rankings, or single outputs with a verdict"
    )


def evaluate(name: str, work: Work, base: Evaluation | None = None) -> Iterator[Evaluation]:
    """Everything that is asked for of the model with this name, given anew after each part, so far as it is known."""
    args, model = work.args, work.load(name)
    found = Evaluation({})
    for source, groups in work.groups.items():
        figures = measure(model.model, model.steering, groups, args.max_length, f"Scoring {source}")
        found = replace(found, sources={**found.sources, source: figures})
        yield found
    if args.pretrain_data != "none":
        texts = load_texts(args.pretrain_data, args.pretrain_docs, args.cache_dir)
        held_out = Texts(texts, model.steering.encoder, held_out=True, source=0, seed=0)
        rows = text_scores(model.model, model.steering, held_out, args.max_length, "Scoring text")
        found = found.with_texts(rows, base)
        yield found
    for source in work.groups if args.num_prompts else ():
        written = work.write(model, source)
        found = replace(found, written={**found.written, source: written})
        yield found
        if work.judge is not None:
            written = judged(written, work.judge, base.written[source] if base else None)
            found = replace(found, written={**found.written, source: written})
            yield found
    if work.harness is not None:
        yield replace(found, benchmarks=work.harness.run(model))


def known(path: Path) -> dict[str, Any]:
    """What a file of evaluations says already; nothing where there is none.

    Raises:
        FeedbackError: it is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, OSError) as error:
        raise FeedbackError(
            f"--json {path} is there and cannot be read ({error}): choose another name, or remove it"
        ) from error
    if not isinstance(found, dict) or not found.keys() <= {"base", "model"}:
        raise FeedbackError(f"--json {path} is there and is no evaluation: choose another name")
    return found


def keep(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Writes evaluations as JSON: "model", and "base" where one stands beside it, as a report reads them.

    They take the place of what the file says of the same ones; the other stays. The file is the old or the new one.
    """
    new = without_nan({name: evaluation.as_json() for name, evaluation in evaluations.items()})
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps({**known(path), **new}, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def report(evaluations: dict[str, Evaluation]) -> str:
    """All figures as text: a table for each source, models side by side."""
    lines = []
    for source in next(iter(evaluations.values())).sources:
        columns = {name: found.sources[source] for name, found in evaluations.items() if source in found.sources}
        lines += ["", f"{source}", table(columns)]
    lines += _told_text(evaluations)
    for source in dict.fromkeys(source for found in evaluations.values() for source in found.written):
        lines += _told_written(
            source, {name: found.written[source] for name, found in evaluations.items() if source in found.written}
        )
    for name, found in evaluations.items():
        for task, values in found.benchmarks.items():
            measures = ", ".join(f"{key} {value:.4g}" for key, value in values.items() if key != COUNT)
            count = f", {values[COUNT]} examples" if COUNT in values else ""
            lines += ["", f"{task}{count}, {name}: {measures}"]
    return "\n".join(lines[1:])


def _told_text(evaluations: dict[str, Evaluation]) -> list[str]:
    """The loss on plain text of every model, and how far one is from the other."""
    losses = {name: found.text for name, found in evaluations.items() if found.text}
    if not losses:
        return []
    told_losses = "   ".join(f"{name} {told(loss)}" for name, loss in losses.items())
    num_texts = next(iter(losses.values())).n
    lines = ["", f"loss on plain text (nats per token), {num_texts} texts: {told_losses}"]
    if len(losses) > 1:
        drifted = evaluations["model"].drift
        lines.append(
            f"model less base, text by text: {told(drifted)}"
            if drifted
            else "model and base cut these texts into other tokens, so their losses cannot be compared"
        )
    return lines


def _told_written(source: str, models: dict[str, Written]) -> list[str]:
    """The figures of what models wrote for the prompts of a source."""
    first = next(iter(models.values()))
    too_long = f" ({first.num_too_long} too long for that passed over)" if first.num_too_long else ""
    lines = ["", f"written for {len(first.prompts)} prompts of {source}{too_long}"]
    if first.prompts:
        columns = {
            f"{name}, {words}": written.figures[words] for name, written in models.items() for words in written.outputs
        }
        lines.append(figure_table(LABELS, columns))
    wins = {name: written.wins for name, written in models.items() if written.wins}
    if first.judge and wins:
        lines += ["", f"won (%), judged by {first.judge}", figure_table(WIN_LABELS, wins)]
        lines += [
            f"{name}, {WIN_LABELS[label]}: {number} of {wins[name][label].n} not judged, which count as ties"
            for name, written in models.items()
            for label, number in written.num_not_judged.items()
            if number
        ]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse([EvaluateArgs], argv, prog="python -m coh.evaluate", description=(__doc__ or "").split("\n")[0])
    join()
    is_first = rank_and_size()[0] == 0
    evaluations: dict[str, Evaluation] = {}
    try:
        work = Work.of(args)
        for moment, name in (("base", args.base), ("model", args.model)):
            for found in evaluate(name, work, evaluations.get("base")) if name else ():
                evaluations[moment] = found
                if args.json and is_first:
                    keep(evaluations, Path(args.json))
    except ValueError as error:
        if evaluations and is_first:
            print(report(evaluations) + "\n", flush=True)
        kept = f"\nWhat was measured before is in {args.json}." if evaluations and args.json else ""
        raise SystemExit(f"coh.evaluate: {error}{kept}") from error
    if is_first:
        print(report(evaluations))
        counts = {name: len(own) for name, own in work.groups.items()}
        print("\ngroups: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
        others = sorted(known(Path(args.json)).keys() - evaluations) if args.json else []
        if others:
            print(f"{args.json} keeps the figures of the {' and '.join(others)} that it had before.")


if __name__ == "__main__":
    main()
