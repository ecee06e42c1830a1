"""Steer: outputs for prompts, under good words, bad words or any others.

    python -m coh.generate --model DIR --prompt "Why is the sky blue?" --feedback good
    python -m coh.generate --model DIR --input prompts.jsonl --output answers.jsonl
    python -m coh.generate --model DIR --interactive

The prompt is built by the code that builds training rows, so its ids are the beginning of such a row. A file of prompts
is answered batch by batch; a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coh.arguments import parse
from coh.chatting import Chat, talk
from coh.data.draws import key
from coh.data.records import FeedbackError, visible
from coh.generate_args import GenerateArgs
from coh.generation import check_room, generate_outputs
from coh.modeling import load_config, load_tokenizer
from coh.rows import PromptRow, as_line, as_prompt, read_prompts
from coh.saved import load_words
from coh.steered import Request, SteeredModel, load
from coh.steering import Steering

__all__ = ["GenerateArgs", "generate_outputs", "main"]


@dataclass(frozen=True)
class Job:
    """One row of the file of prompts, and the words that one answer to it is under."""

    row: PromptRow
    feedback: str


def answers(model: SteeredModel, jobs: Sequence[Job], args: GenerateArgs) -> list[dict[str, Any]]:
    """What is written beside each job's row."""
    requests = [Request(job.row.prompt, job.feedback) for job in jobs]
    if args.best_of > 1:
        ranked = model.ranked(requests, guidance=args.guidance, **args.call)
        return [
            {"output": own[0][0], "outputs": [text for text, _ in own], "scores": [score for _, score in own]}
            for own in ranked
        ]
    found = model.answer(requests, guidance=args.guidance, **args.call)
    if args.num_outputs > 1:
        return [{"outputs": outputs} for outputs in found]
    versions = [outputs[:1] for outputs in found]
    for _ in range(args.revise):
        requests = [Request(job.row.prompt, job.feedback, tuple(own)) for job, own in zip(jobs, versions)]
        for own, outputs in zip(versions, model.answer(requests, guidance=args.guidance, **args.call)):
            own.append(outputs[0])
    return [{"output": own[-1], **({"versions": own} if args.revise else {})} for own in versions]


def answered(model: SteeredModel, jobs: Sequence[Job], args: GenerateArgs, start: int = 0) -> Iterator[dict[str, Any]]:
    """The lines of all jobs from one on. The draws of a batch depend on the seed and its place alone."""
    from tqdm import tqdm
    from transformers import set_seed

    bar = tqdm(total=len(jobs), initial=start, desc="Answering", disable=None if args.input else True, leave=False)
    for place in range(start, len(jobs), args.batch_size):
        set_seed(key(args.seed, "generate", place) % 2**32)
        batch = jobs[place : place + args.batch_size]
        for job, found in zip(batch, answers(model, batch, args)):
            yield {**job.row.row, "feedback": job.feedback, **found}
        bar.update(len(batch))
    bar.close()


def added_fields(args: GenerateArgs) -> list[str]:
    """The fields that a row gets, in order.

    >>> added_fields(GenerateArgs(model="m", prompt="Why?", revise=2))
    ['feedback', 'output', 'versions']
    """
    if args.best_of > 1:
        return ["feedback", "output", "outputs", "scores"]
    if args.num_outputs > 1:
        return ["feedback", "outputs"]
    return ["feedback", "output", *(["versions"] if args.revise else [])]


def num_done(path: Path, jobs: Sequence[Job], args: GenerateArgs) -> int:
    """How many jobs a file holds already; it is cut behind the last whole batch.

    Raises:
        FeedbackError: it holds something else.
    """
    if args.overwrite or not path.exists():
        path.write_bytes(b"")
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    lines = [line for line in lines if line.endswith(b"\n")]  # the last one may be half a line
    for number, line in enumerate(lines, start=1):
        job = jobs[number - 1] if number <= len(jobs) else None
        if job is None or not _is_of(line, job, added_fields(args)):
            raise FeedbackError(
                f"{path}, line {number}: not an answer to what is asked now, so there is nothing to go on with: choose "
                "another --output, or --overwrite"
            )
    done = len(lines) if len(lines) == len(jobs) else len(lines) - len(lines) % args.batch_size
    with path.open("r+b") as file:
        file.truncate(sum(map(len, lines[:done])))
    return done


def _is_of(line: bytes, job: Job, added: Sequence[str]) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    wanted = json.loads(as_line({**job.row.row, "feedback": job.feedback}))
    return isinstance(found, dict) and found | wanted == found and set(found) == {*wanted, *added}


def show(found: dict[str, Any], has_several: bool) -> str:
    """An answer in the terminal: its words where there are several, every version, or the outputs."""
    head = f"[{found['feedback']}]\n" if has_several else ""
    if "versions" in found:
        return head + "\n\n".join(f"version {n}: {text}" for n, text in enumerate(found["versions"], start=1))
    return head + (found["output"] if "output" in found else "\n\n".join(found["outputs"]))


def prepare(args: GenerateArgs) -> list[Job]:
    """All that is asked for; every prompt is tried before the weights load.

    Raises:
        FeedbackError: rows or words that a person has to mend.
        ModelError: a prompt is longer than the model reads.
    """
    rows = read_prompts(args.input) if args.input else []
    if args.prompt:
        rows = [PromptRow("--prompt", as_prompt(args.prompt), {"prompt": args.prompt})]
    trust = args.trust_remote_code
    tokenizer = load_tokenizer(args.model, args.cache_dir, trust_remote_code=trust)
    steering = Steering.of(load_words(args.model, args.templates, args.cache_dir), tokenizer)
    config = load_config(args.model, args.cache_dir, trust_remote_code=trust)
    for row in rows:
        taken = [name for name in added_fields(args) if name in row.row]
        if taken:
            raise FeedbackError(f"{row.place}: a field is named {taken[0]!r}, as a new one is to be: rename it")
    jobs = [Job(row, words) for row in rows for words in args.words]
    for job in jobs:
        ids = steering.prompt_ids(job.row.prompt, job.feedback, args.task)
        check_room(len(ids), config, args.call, f"{job.row.place}: " if args.input else "")
    for words in args.words:
        steering.prompt_ids("Hello", words, args.task)
    return jobs


def run(args: GenerateArgs) -> None:
    """Answer what is asked for, or talk."""
    jobs = prepare(args)
    done = num_done(Path(args.output), jobs, args) if args.output else 0
    if jobs and done == len(jobs):
        print(f"{args.output} holds all {done} answers already", file=sys.stderr)
        return
    model = load(
        args.model,
        templates=args.templates,
        task=args.task,
        dtype=args.dtype,
        device=args.device,
        cache_dir=args.cache_dir,
        trust_remote_code=args.trust_remote_code,
    )
    if args.interactive:
        from transformers import set_seed

        set_seed(args.seed)
        talk(Chat(model, args.call, args.guidance, args.words[0]))
        return
    with open(args.output, "a", encoding="utf-8") if args.output else nullcontext(sys.stdout) as file:
        for number, found in enumerate(answered(model, jobs, args, done)):
            if args.output or args.input:
                print(as_line(found), file=file, flush=True)
            else:
                shown = show(found, len(args.words) > 1)
                # A terminal would obey control characters; a file takes what was written.
                print(("\n" if number else "") + (visible(shown) if sys.stdout.isatty() else shown), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    description = (
        "Steer: outputs for prompts, under good words, bad words or any others. Every option of transformers' "
        "GenerationConfig works."
    )
    (args,) = parse([GenerateArgs], argv, prog="python -m coh.generate", description=description)
    logging.getLogger("transformers.generation").setLevel(logging.ERROR)
    try:
        run(args)
    except ValueError as error:
        raise SystemExit(f"coh.generate: {error}") from error


if __name__ == "__main__":
    main()
