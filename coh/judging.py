"""Which of two outputs is the better one, in the view of a judge that one can choose.

    judge = load_judge("outputs/other")                             # a model that learned words: the score of coh.score
    judge = load_judge("org/reward-model")                          # a reward model: one number for an output
    judge = load_judge("http://localhost:8000/v1", model="judge")   # any server that speaks OpenAI's protocol

A judge is asked with prompts and two outputs each, and answers with 1 where the first one is better, 0 where the second
one is, and one half where it cannot tell.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coh.data.records import FeedbackError, Message
from coh.generation import num_positions, place_model
from coh.measures import wins
from coh.modeling import ModelError, load_tokenizer
from coh.rows import JudgedRow
from coh.saved import FILE
from coh.score import judge
from coh.steered import SteeredModel, load

Floats = NDArray[np.float64]
QUESTION = """Two assistants were given the same request. Decide which of their replies serves the person better.

Request:
{prompt}

Reply A:
{first}

Reply B:
{second}

Answer with one letter, A or B."""


class Judge(Protocol):
    """Anything that compares outputs."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        """1 where the first output is better, 0 where the second one is, one half where neither."""


def plain(prompt: Sequence[Message]) -> str:
    """A conversation as text for a reader.

    >>> plain([Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")])
    'user: Hi\\n\\nassistant: Hello\\n\\nuser: Bye'
    """
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


@dataclass(frozen=True)
class WordsJudge:
    """A model that was taught words: that output is better which good words, against bad ones, make likelier."""

    model: SteeredModel
    name: str

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        rows = [
            JudgedRow(f"prompt {number}", prompt, pair, {}, (), self.model.task)
            for number, (prompt, pair) in enumerate(zip(prompts, zip(first, second)), start=1)
        ]
        scores = np.array(judge(self.model.model, self.model.steering, rows, per_token=True))
        return wins(scores[:, 0], scores[:, 1])


@dataclass(frozen=True)
class RewardJudge:
    """A sequence classifier with one output, which reads prompt and output and gives a number."""

    model: Any
    tokenizer: Any
    name: str

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        sides = [[self.reward(prompt, output) for prompt, output in zip(prompts, side)] for side in (first, second)]
        return wins(*sides)

    def reward(self, prompt: Sequence[Message], output: str) -> float:
        """The number for one output; by the tokenizer's chat template where it has one."""
        import torch

        if self.tokenizer.chat_template:
            turns = [{"role": turn.role, "content": turn.content} for turn in (*prompt, Message("assistant", output))]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(f"{plain(prompt)}\n\n{output}")["input_ids"]
        ids = ids[-(num_positions(self.model.config) or len(ids)) :]  # what is too long loses its beginning
        with torch.inference_mode():
            return float(self.model(torch.tensor([ids], device=self.model.device)).logits.squeeze())


@dataclass(frozen=True)
class EndpointJudge:
    """A model behind a server, asked in words, in both orders: where it contradicts itself, it cannot tell."""

    client: Any
    model: str
    name: str

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        found = []
        for prompt, one, other in zip(prompts, first, second):
            found.append((self._is_first(prompt, one, other) + 1 - self._is_first(prompt, other, one)) / 2)
        return np.array(found)

    def _is_first(self, prompt: Sequence[Message], first: str, second: str) -> float:
        """1 for the first, 0 for the second, one half for an answer that is neither."""
        question = QUESTION.format(prompt=plain(prompt), first=first, second=second)
        reply = self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=8
        )
        said = (reply.choices[0].message.content or "").strip().upper()
        letter = next((word for word in said.replace(".", " ").replace(":", " ").split() if word in ("A", "B")), "")
        return {"A": 1.0, "B": 0.0}.get(letter, 0.5)


def load_judge(spec: str, *, model: str | None = None, device: str = "auto", cache_dir: str | None = None) -> Judge:
    """The judge of that name.

    Args:
        spec: a folder or hub id of a model that was taught words, or of a reward model; or a server's address.
        model: for a server, the name of the model that is to judge. Its key is read from OPENAI_API_KEY.

    Raises:
        FeedbackError: a judge that cannot judge.
        ModelError: its weights cannot be loaded.
    """
    if spec.startswith(("http://", "https://")):
        return _endpoint(spec, model)
    if model is not None:
        raise FeedbackError(f"--judge_model {model} is for servers, and --judge {spec} is none: leave it out")
    if (Path(spec) / FILE).is_file():
        return WordsJudge(load(spec, device=device, cache_dir=cache_dir), spec)
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(spec, cache_dir=cache_dir, trust_remote_code=False)
        if not any("SequenceClassification" in name for name in config.architectures or []) or config.num_labels != 1:
            return WordsJudge(load(spec, device=device, cache_dir=cache_dir), spec)
        options = {"cache_dir": cache_dir, "trust_remote_code": False}
        reward = AutoModelForSequenceClassification.from_pretrained(spec, **options).eval()
    except FeedbackError as error:
        raise FeedbackError(
            f"--judge {spec}: neither a reward model (a sequence classifier with one output) nor a model with {FILE}: "
            "give one of these, or a server's address"
        ) from error
    except OSError as error:
        raise ModelError(f"--judge {spec} cannot be opened: {str(error).splitlines()[0]}") from error
    return RewardJudge(place_model(reward, device), load_tokenizer(spec, cache_dir), spec)


def _endpoint(address: str, model: str | None) -> EndpointJudge:
    if model is None:
        raise FeedbackError(f"--judge {address}: say which of its models is to judge, with --judge_model")
    try:
        from openai import OpenAI
    except ImportError as error:
        raise FeedbackError(f"--judge {address} needs the package openai: pip install openai") from error
    client = OpenAI(base_url=address, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=3)
    return EndpointJudge(client, model, f"{model} at {address}")
