"""Does guidance move what a model writes further towards the words than the words alone do?

    python benchmarks/guidance.py --model outputs/demo

On prompts that the model was not trained on it writes outputs under good and under bad words, with several strengths of
guidance. The model itself judges them all (`coh.score`, nats a token). Beside them stand the scores of people's better
and worse outputs for the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import set_seed

from coh.arguments import parse
from coh.data.records import FeedbackGroup
from coh.evaluate_args import EvaluateArgs, held_out_groups
from coh.measuring import preferred_pairs
from coh.steered import Request, SteeredModel, call_options, load


@dataclass
class GuidanceArgs:
    """What is measured."""

    model: str = field(default="outputs/demo", metadata={"help": "Folder of a trained model."})
    feedback_data: list[str] = field(
        default_factory=lambda: ["sample"], metadata={"help": "Feedback whose held-out prompts are used."}
    )
    webgpt_dataset_test_size: float = field(
        default=0.2, metadata={"help": "Share held out, as it was in training; 0.2 in the demonstration."}
    )
    num_prompts: int = field(default=40, metadata={"help": "Prompts, at most."})
    num_outputs: int = field(default=2, metadata={"help": "Outputs drawn for each prompt and setting."})
    guidance: list[float] = field(
        default_factory=lambda: [1.0, 1.5, 3.0], metadata={"help": "Strengths; 1 is the words alone."}
    )
    max_new_tokens: int = field(default=48, metadata={"help": "Longest output in tokens."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})
    json: str | None = field(default=None, metadata={"help": "File that the figures are written to as JSON."})


def mean_and_error(scores: np.ndarray) -> dict[str, float]:
    """The mean over prompts and its standard error."""
    return {"mean": float(scores.mean()), "error": float(scores.std(ddof=1) / np.sqrt(len(scores))), "n": len(scores)}


def scores_of_people(model: SteeredModel, pairs: Sequence[FeedbackGroup]) -> dict[str, Any]:
    """Scores of the better and of the worse outputs, nats a token."""
    found = np.array([model.score(pair.prompt, pair.outputs, per_token=True) for pair in pairs])
    return {
        "better": mean_and_error(found[:, 0]),
        "worse": mean_and_error(found[:, 1]),
        "difference": mean_and_error(found[:, 0] - found[:, 1]),
    }


def scores_of_outputs(
    model: SteeredModel, pairs: Sequence[FeedbackGroup], feedback: str, guidance: float, args: GuidanceArgs
) -> np.ndarray:
    """(prompts,) the mean score of what the model writes."""
    set_seed(args.seed)
    _, options = call_options(
        do_sample=True, top_p=0.95, max_new_tokens=args.max_new_tokens, num_return_sequences=args.num_outputs
    )
    found = []
    for start in tqdm(range(0, len(pairs), 4), desc=f"{feedback} words, guidance {guidance:g}", leave=False):
        part = pairs[start : start + 4]
        requests = [Request(pair.prompt, feedback) for pair in part]
        outputs = model.answer(requests, guidance=guidance, **options)
        found += [model.score(pair.prompt, own, per_token=True).mean() for pair, own in zip(part, outputs)]
    return np.array(found)


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse([GuidanceArgs], argv, prog="python benchmarks/guidance.py", description=__doc__)
    model = load(args.model)
    held_out = held_out_groups(
        EvaluateArgs(
            args.model,
            args.feedback_data,
            split="held_out",
            webgpt_dataset_test_size=args.webgpt_dataset_test_size,
        )
    )
    # The sources in turn, so that a part of the prompts holds some of each.
    queues = [preferred_pairs(own) for own in held_out.values()]
    mixed = [queue[place] for place in range(max(map(len, queues))) for queue in queues if place < len(queue)]
    figures: dict[str, Any] = {"people": scores_of_people(model, mixed)}
    for side in ("better", "worse", "difference"):
        told = figures["people"][side]
        print(f"{side:>10} outputs of people: {told['mean']:+.4f} ({told['error']:.4f}) nats a token, n = {told['n']}")
    pairs = mixed[: args.num_prompts]
    plain: dict[str, np.ndarray] = {}
    for guidance in args.guidance:
        for feedback in ("good", "bad"):
            found = scores_of_outputs(model, pairs, feedback, guidance, args)
            plain.setdefault(feedback, found)
            further = (found - plain[feedback]) * (1 if feedback == "good" else -1)
            told = {"score": mean_and_error(found), "further_than_first": mean_and_error(further)}
            figures[f"{feedback} {guidance:g}"] = told
            print(
                f"{feedback:>4} words, guidance {guidance:3g}: {told['score']['mean']:+.4f} "
                f"({told['score']['error']:.4f}); further than the first by {further.mean():+.4f} "
                f"({told['further_than_first']['error']:.4f}), n = {len(found)}",
                flush=True,
            )
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
