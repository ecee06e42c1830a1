"""A trained model that is spoken to in the words it was taught: it writes, revises, judges and chooses.

    model = load("outputs/mine")
    model.generate("How do I keep basil alive?", feedback="good")

Prompts are texts, messages, or `{"role": ..., "content": ...}`; options are those of `transformers.GenerationConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coh.arguments import ConfigError
from coh.data.records import FeedbackError, Message
from coh.generation import check_room, generate_batch, num_positions, place_model
from coh.modeling import load_model, load_tokenizer
from coh.options import checked_options
from coh.rows import JudgedRow, Prompt, as_prompt
from coh.saved import Words, load_words
from coh.score import judge
from coh.steering import Steering

WITHOUT_GUIDANCE = {"num_beams": 1, "prompt_lookup_num_tokens": None}


@dataclass(frozen=True)
class Request:
    """What one output is asked for with: the prompt, the words, and earlier versions to be bettered, worst first."""

    prompt: tuple[Message, ...]
    feedback: str = "good"
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class SteeredModel:
    """A model, its tokenizer and its words; `load` makes one. `task` is whose words are used, where tasks differ."""

    model: Any
    tokenizer: Any
    steering: Steering
    task: str | None = None

    def generate(
        self, prompt: Prompt, feedback: str = "good", *, guidance: float = 1.0, num_outputs: int = 1, **options: Any
    ) -> Any:
        """The output for a prompt as text; a list of texts where `num_outputs` is above 1.

        Args:
            feedback: "good", "bad", the name of a template such as "general.p.2", or any words.
            guidance: above 1 moves every token further towards the words and away from their opposite (classifier-free
                guidance).
            options: such as max_new_tokens=128, do_sample=True, top_k=40.
        """
        options = {"num_return_sequences": num_outputs, **options}
        guidance, options = call_options(guidance=guidance, **options)
        (outputs,) = self.answer([Request(as_prompt(prompt), feedback)], guidance=guidance, **options)
        return outputs if len(outputs) > 1 else outputs[0]

    def revise(
        self, prompt: Prompt, rounds: int = 1, *, feedback: str = "good", earlier: Sequence[str] = (), **options: Any
    ) -> list[str]:
        """All versions of an output, first to last: so many times a better one is asked for.

        Args:
            earlier: versions that are there already, worst first; otherwise the model writes the first one.
        """
        guidance, options = call_options(**options)
        turns, versions = as_prompt(prompt), list(earlier)
        for _ in range(rounds + (not versions)):
            request = Request(turns, feedback, tuple(versions))
            versions += self.answer([request], guidance=guidance, **options)[0][:1]
        return versions

    def score(self, prompt: Prompt, outputs: str | Sequence[str], *, per_token: bool = False) -> NDArray[np.float64]:
        """How much likelier good words make each output than bad words do, in nats; higher is better."""
        texts = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        if not texts:
            raise FeedbackError("there are no outputs: give at least one text to score")
        row = JudgedRow("score", as_prompt(prompt), texts, {}, (), self.task)
        return judge(self.model, self.steering, [row], per_token=per_token)[0]

    def best_of(self, prompt: Prompt, n: int = 8, feedback: str = "good", **options: Any) -> str:
        """Of `n` sampled outputs the one that the model itself scores highest."""
        guidance, options = call_options(**{"do_sample": True, **options, "num_return_sequences": n})
        (ranked,) = self.ranked([Request(as_prompt(prompt), feedback)], guidance=guidance, **options)
        return ranked[0][0]

    def prompt_ids(self, request: Request, options: dict[str, Any], where: str = "") -> list[int]:
        """What the model continues. The oldest versions go where it does not read so many tokens."""
        config, limit = self.model.config, num_positions(self.model.config)
        for start in range(len(request.earlier)):
            ids = self.steering.revising_ids(request.prompt, request.earlier[start:], self.task)
            if not limit or len(ids) + (options.get("max_new_tokens") or 1) <= limit:
                return ids
        if not request.earlier:
            ids = self.steering.prompt_ids(request.prompt, request.feedback, self.task)
        check_room(len(ids), config, options, where)
        return ids

    def answer(
        self, requests: Sequence[Request], *, guidance: float = 1.0, streamer: Any = None, **options: Any
    ) -> list[list[str]]:
        """The outputs of some requests, written together; `options` as `call_options` gives them."""
        negatives = None
        if guidance != 1:
            opposites = [("good" if request.feedback == "bad" else "bad") for request in requests]
            negatives = [
                self.steering.prompt_ids(request.prompt, words, self.task)
                for request, words in zip(requests, opposites)
            ]
        return generate_batch(
            self.model,
            self.tokenizer,
            [self.prompt_ids(request, options) for request in requests],
            ends=[self.steering.end_of_output],
            negatives=negatives,
            guidance=guidance,
            streamer=streamer,
            **options,
        )

    def ranked(self, requests: Sequence[Request], **options: Any) -> list[list[tuple[str, float]]]:
        """The outputs of some requests with their scores, best first: `best_of` is the first of them.

        Where bad words are asked for, the best is the one that they make likelier than good words do.
        """
        found = self.answer(requests, **options)
        rows = [
            JudgedRow("an output", request.prompt, tuple(outputs), {}, (), self.task)
            for request, outputs in zip(requests, found)
        ]
        ranked = []
        for request, outputs, scores in zip(requests, found, judge(self.model, self.steering, rows)):
            order = np.argsort(scores if request.feedback == "bad" else -scores, kind="stable")
            ranked.append([(outputs[place], float(scores[place])) for place in order])
        return ranked


def call_options(dashes: str = "", **given: Any) -> tuple[float, dict[str, Any]]:
    """The strength of guidance, and the other options of a call, all checked; `dashes` is how messages name them.

    >>> call_options(guidance=1.5, max_new_tokens=8)
    (1.5, {'max_new_tokens': 8, 'do_sample': False})

    Raises:
        ConfigError: everything that is wrong with them.
    """
    own_name = given.pop("guidance", None)
    guidance = given.pop("guidance_scale", own_name)  # as transformers calls it
    guidance = 1.0 if guidance is None else guidance
    problems = guidance_problems(guidance, given, dashes)
    try:
        options = checked_options(given, dashes)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return float(guidance), options


def guidance_problems(guidance: float, options: dict[str, Any], dashes: str = "") -> list[str]:
    """What is wrong with a strength of guidance, by itself and beside other options."""
    if not 0 <= guidance < float("inf"):
        return [f"{dashes}guidance {guidance}: give 1 (off) or a number above it, such as 1.5."]
    clashes = [name for name, off in WITHOUT_GUIDANCE.items() if options.get(name, off) not in (None, off)]
    return [
        f"{dashes}guidance {guidance} with {dashes}{name} {options[name]}: guidance follows one line of tokens, leave "
        "one of them out."
        for name in clashes
        if guidance != 1
    ]


def load(
    model: str,
    *,
    templates: str | None = None,
    words: Words | None = None,
    task: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
) -> SteeredModel:
    """A trained model, ready to be steered.

    Args:
        model: its folder or hub id; its `coh.json` tells the words it was taught.
        templates: other words than the model's own: a family's name or a YAML file.
        words: other words than the model's own, loaded already.
        task: whose words are used, where templates tell tasks apart.
        dtype: number format of the weights; auto is how they were saved.
        device: auto is a GPU where there is one.
        trust_remote_code: whether Python code that lies with the model may be run.

    Raises:
        FeedbackError: the words are not known.
        ModelError: the model or its tokenizer cannot be loaded.
    """
    words = words or load_words(model, templates, cache_dir)
    tokenizer = load_tokenizer(model, cache_dir, trust_remote_code=trust_remote_code)
    steering = Steering.of(words, tokenizer)
    weights = load_model(model, dtype=dtype, cache_dir=cache_dir, trust_remote_code=trust_remote_code)
    return SteeredModel(place_model(weights, device), tokenizer, steering, task)
