"""What does it save to read the prompt of several outputs once, where a model judges them?

    python benchmarks/scoring.py

log p of outputs under good and under bad words, as coh.score and coh.evaluate compute it, by SmolLM2-135M on random
tokens: each prompt once with everything that follows it, and, on the other side, every output with a prompt of its own.
Log-probabilities are compared before they are timed.

- `scoring/pair`: two outputs of 64 tokens for a prompt of 128, both under both words;
- `scoring/best-of-8`: eight outputs of 64 tokens for a prompt of 256;
- `scoring/short-prompt`: two outputs of 64 tokens for a prompt of 24, too short to be shared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from harness import Figure, finish, in_turn, parser, ratio_figure, tell
from sides import DEVICE, SMOLLM2, coh_model, random_llama, smollm2

from coh import likelihood
from coh.beginnings import SharedRow, share_beginnings
from coh.data.records import Document

WORDS = ((11, 12, 13, 14), (11, 15, 16, 14))  # good ones and bad ones begin and end alike


@dataclass(frozen=True)
class Work:
    """Prompts with some outputs each, in tokens."""

    num_prompts: int
    num_outputs: int
    prompt: int
    output: int = 64

    def documents(self, seed: int = 0) -> list[Document]:
        """Every output under good and under bad words."""
        rng, found = np.random.default_rng(seed), []
        for _ in range(self.num_prompts):
            prompt = rng.integers(20, 4000, self.prompt).tolist()
            outputs = [rng.integers(20, 4000, self.output).tolist() for _ in range(self.num_outputs)]
            for words in WORDS:
                begins = [*prompt, *words]
                mask = (False,) * len(begins) + (True,) * self.output
                found += [Document((*begins, *output), mask, "") for output in outputs]
        return found

    def __str__(self) -> str:
        return f"prompts of {self.prompt} tokens, {self.num_outputs} outputs of {self.output} under both words"


WORKS = {
    "scoring/pair": Work(4, 2, 128),
    "scoring/best-of-8": Work(1, 8, 256),
    "scoring/short-prompt": Work(8, 2, 24),
}


def apart(documents: Sequence[tuple[Any, Any]], longest: int) -> list[SharedRow]:
    """The other side: a row for each document."""
    return [SharedRow((number,), (len(ids),)) for number, (ids, _) in enumerate(documents)]


def scored(rows_of: Any, model: Any, documents: Sequence[Document]) -> Any:
    """Log-probabilities with rows made by this function."""
    likelihood.share_beginnings = rows_of
    return likelihood.score_documents(model, documents, pad_id=0).log_p


def figures(works: dict[str, Work], model: Any, rounds: int, is_smoke: bool) -> list[Figure]:
    found = []
    for name, work in works.items():
        documents = work.documents()
        sides = {
            "together": partial(scored, share_beginnings, model, documents),
            "apart": partial(scored, apart, model, documents),
        }
        np.testing.assert_allclose(sides["together"](), sides["apart"](), rtol=1e-4)
        seconds = in_turn(sides, rounds, warm_up=0)
        limits = {} if is_smoke else {"target": 1.05 if "short" in name else 0.75}
        what = f"beginnings read once / in every document: {work}"
        found.append(ratio_figure(name, what, seconds["together"], seconds["apart"], **limits))
        tell(found[-1])
    return found


def main() -> int:
    args = parser(__doc__).parse_args()
    works = {name: work for name, work in WORKS.items() if args.only in name}
    if args.smoke:
        works = {name: Work(1, 2, work.prompt // 8, work.output // 8) for name, work in works.items()}
    if not args.smoke and not SMOLLM2.is_dir():
        print("nothing is measured, since it needs SmolLM2: make demo prepares it", flush=True)
        return finish([], args)
    model = random_llama(4096, 64, 2) if args.smoke else smollm2()
    model = coh_model(model.to(DEVICE)).eval()
    return finish(figures(works, model, args.rounds, args.smoke), args)


if __name__ == "__main__":
    sys.exit(main())
