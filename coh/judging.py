"""Which of two outputs is the better one, in the view of a judge that one can choose.

    judge = load_judge("outputs/other")                             # a model that learned words: the score of coh.score
    judge = load_judge("org/reward-model")                          # a reward model: one number for an output
    judge = load_judge("http://localhost:8000/v1", model="judge")   # any server that speaks OpenAI's protocol

A judge is asked with prompts and two outputs each, and answers with 1 where the first one is better, 0 where the second
one is, one half where it cannot tell, and NaN where it did not judge: a reply without a letter, an output that is
longer than it reads. Processes of one group ask it together: each does its share, and all of them get all answers.
"""

from __future__ import annotations

import os
import re
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
from coh.processes import dealt, from_first
from coh.rows import JudgedRow
from coh.saved import FILE
from coh.score import judge
from coh.steered import SteeredModel, load

Floats = NDArray[np.float64]
BATCH = 16  # texts that a reward model reads at once
QUESTION = """Two assistants were given the same request. Decide which of their replies serves the person better.

Request:
{prompt}

Reply A:
{first}

Reply B:
{second}

Answer with one letter, A or B, and nothing else."""
# What a server is asked to keep to, given up one after the other where it refuses: reasoning models of OpenAI take
# neither a limit of this name nor a temperature, and vLLM no limit beyond what the prompt leaves of its context.
# Thoughts count as tokens of the reply, so that a limit of a few would leave none for the letter.
WISHES: tuple[dict[str, int], ...] = ({"temperature": 0, "max_tokens": 4096}, {"temperature": 0}, {})
REFUSALS = (400, 413, 422)  # of a question, not of whoever asks
THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
COMPARED = re.compile(r"\bthan\W+(?:[Rr]eply\W+)?[AB]\b")  # names the one that was not chosen
LETTER_ALONE = re.compile(r"[\W_]*([ABab])[\W_]*")
LETTERS = (  # the last letter in a reply counts, but first one that stands apart at its end, or else at its beginning
    re.compile(r"(?:[^\w\s]|\n)[\s_]*([AB])[\W_]*\Z"),
    re.compile(r"\A[\W_]*([AB])(?=[^\S\n]*(?:[^\w\s'\u2019]|_|\n|\Z))"),
    re.compile(r"(?<![^\W_])([AB])(?![^\W_])"),
)


class Judge(Protocol):
    """Anything that compares outputs."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        """1 where the first output is better, 0 where the second is, one half where neither; NaN: it did not judge."""


def preferences(
    judge: Judge, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]
) -> Floats:
    """What the judge prefers, NaN where it did not judge; two outputs that are the same are a tie without it."""
    differ = [number for number, (one, other) in enumerate(zip(first, second)) if one != other]
    found = np.full(len(prompts), 0.5)
    if differ:
        one, other = ([side[number] for number in differ] for side in (first, second))
        found[differ] = judge.prefer([prompts[number] for number in differ], one, other)
    return found


def plain(prompt: Sequence[Message]) -> str:
    """A conversation as text for a reader.

    >>> plain([Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")])
    'user: Hi\\n\\nassistant: Hello\\n\\nuser: Bye'
    """
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def letter_of(reply: str) -> str:
    """The letter that a reply decides for, "A" or "B", whatever stands around it; "" where it names none.

    Thoughts do not count, and neither does an article: a small letter does only where there is nothing else.

    >>> [letter_of(reply) for reply in ("**B**", "<think>A?</think> It is a close call: B", "b.", "Both are fine.")]
    ['B', 'B', 'B', '']
    """
    said = THOUGHTS.sub("", reply).rpartition("</think>")[2]  # some servers leave out the tag that opens them
    if alone := LETTER_ALONE.fullmatch(said):
        return alone[1].upper()
    said = COMPARED.sub("", said)
    return next((found[-1] for found in (letter.findall(said) for letter in LETTERS) if found), "")


@dataclass(frozen=True)
class WordsJudge:
    """A model that was taught words: that output is better which good words, against bad ones, make likelier.

    Outputs that it does not read whole, with the words in front, are not judged.
    """

    model: SteeredModel
    name: str

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        rows = [
            JudgedRow(f"prompt {number}", prompt, pair, {}, (), self.model.task)
            for number, (prompt, pair) in enumerate(zip(prompts, zip(first, second)), start=1)
        ]
        found = np.full(len(rows), np.nan)
        read = [number for number, row in enumerate(rows) if self._reads(row)]
        if read:
            own = [rows[number] for number in read]
            scores = np.array(judge(self.model.model, self.model.steering, own, per_token=True))
            found[read] = wins(scores[:, 0], scores[:, 1])
        return found

    def _reads(self, row: JudgedRow) -> bool:
        """Whether it reads everything but the beginning of the prompt."""
        limit = num_positions(self.model.model.config)
        made = (
            document
            for words in ("good", "bad")
            for document in self.model.steering.output_documents(row.prompt, row.outputs, words, row.task)
        )
        return not limit or all(len(one.input_ids) - (one.prompt[1] - one.prompt[0]) <= limit for one in made)


@dataclass(frozen=True)
class RewardJudge:
    """A sequence classifier with one output, which reads prompt and output and gives a number."""

    model: Any
    tokenizer: Any
    name: str

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        ids = [self._ids(prompt, output) for side in (first, second) for prompt, output in zip(prompts, side)]
        batches = self._batches(list(map(len, ids)))
        rewards = dealt(batches, lambda batch: self._rewards([ids[n] for n in batch]), f"Judging, {self.name}")
        found = np.zeros(len(ids))
        for places, numbers in zip(batches, rewards):
            found[places] = numbers
        return wins(*found.reshape(2, -1))

    def reward(self, prompt: Sequence[Message], output: str) -> float:
        """The number for one output; by the tokenizer's chat template where it has one."""
        return self._rewards([self._ids(prompt, output)])[0]

    def _ids(self, prompt: Sequence[Message], output: str) -> list[int]:
        if self.tokenizer.chat_template:
            turns = [{"role": turn.role, "content": turn.content} for turn in (*prompt, Message("assistant", output))]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(f"{plain(prompt)}\n\n{output}")["input_ids"]
        start = int(ids[:1] in ([self.tokenizer.cls_token_id], [self.tokenizer.bos_token_id]))
        return ids[:start] + ids[start + max(len(ids) - self._limit, 0) :]  # what is too long loses its beginning

    @property
    def _limit(self) -> int:
        """The most tokens that it reads: by its positions and by its tokenizer."""
        limits = [num_positions(self.model.config), self.tokenizer.model_max_length]
        for name, part in self.model.named_modules():
            # Where positions have one for padding, they count from behind it (RoBERTa).
            if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
                limits.append(part.num_embeddings - part.padding_idx - 1)
        return min(limit for limit in limits if limit)

    @property
    def _pad_id(self) -> int | None:
        """The token by which the model itself finds where a text ends."""
        return self.model.config.get_text_config().pad_token_id

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Places of neighbours in length; single ones where the model knows no padding, as it then reads no others."""
        size = 1 if self._pad_id is None else BATCH
        order = sorted(range(len(lengths)), key=lambda place: lengths[place])
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _rewards(self, texts: Sequence[Sequence[int]]) -> list[float]:
        import torch

        longest = max(map(len, texts))
        padded = [[*ids, *[self._pad_id or 0] * (longest - len(ids))] for ids in texts]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts]
        with torch.inference_mode():
            input_ids, attention_mask = (torch.tensor(rows, device=self.model.device) for rows in (padded, mask))
            logits = self.model(input_ids, attention_mask=attention_mask).logits
        return logits.float().reshape(-1).tolist()


class RefusedQuestion(FeedbackError):
    """A server answers, but not to this question."""


@dataclass(frozen=True)
class EndpointJudge:
    """A model behind a server, asked in words, in both orders: where it contradicts itself, it cannot tell.

    Where one of the two replies names no letter, or the server refuses the question (one too long for it, or one that a
    filter stops), it did not judge.
    """

    client: Any
    model: str
    name: str

    def prefer(self, prompts: Sequence[tuple[Message, ...]], first: Sequence[str], second: Sequence[str]) -> Floats:
        def ask(asked: tuple[tuple[Message, ...], str, str]) -> float:
            prompt, one, other = asked
            return (self._is_first(prompt, one, other) + 1 - self._is_first(prompt, other, one)) / 2

        return np.array(dealt(list(zip(prompts, first, second)), ask, f"Judging, {self.name}"))

    def _is_first(self, prompt: Sequence[Message], first: str, second: str) -> float:
        """1 for the first, 0 for the second, NaN where there is no letter."""
        try:
            said = self.reply(QUESTION.format(prompt=plain(prompt), first=first, second=second))
        except RefusedQuestion:
            return np.nan
        return {"A": 1.0, "B": 0.0}.get(letter_of(said), np.nan)

    def reply(self, question: str) -> str:
        """What the server says to a question.

        Raises:
            FeedbackError: it cannot be reached, it refuses, or what it says is no reply.
        """
        address = str(self.client.base_url).rstrip("/")
        reply = self._asked(question, address)
        choices = getattr(reply, "choices", None)
        if not choices:
            raise FeedbackError(
                f"--judge {address}: its answer is no chat completion: give the address that ends in /v1"
            )
        said = choices[0].message.content
        return said if isinstance(said, str) else ""

    def _asked(self, question: str, address: str) -> Any:
        """The answer to a request, with as many of the wishes as the server takes."""
        from openai import OpenAIError

        request = {"model": self.model, "messages": [{"role": "user", "content": question}]}
        for wishes in WISHES:
            try:
                return self.client.chat.completions.create(**request, **wishes)
            except OpenAIError as error:
                is_refusal = getattr(error, "status_code", None) in REFUSALS
                if not (wishes and is_refusal):
                    kind = RefusedQuestion if is_refusal else FeedbackError
                    raise kind(f"--judge {address}: {self._told(error)}") from error

    def _told(self, error: Exception) -> str:
        """An error of the client and what to do about it, without the key."""
        remedies = {
            401: "set its key in OPENAI_API_KEY",
            403: "set a key in OPENAI_API_KEY that may use this model",
            404: f"the address often ends in /v1, and --judge_model {self.model} is to be one of its models",
            429: "wait, or ask for fewer outputs (--num_prompts)",
        }
        status = getattr(error, "status_code", None)
        if status is None:
            return f"no answer ({error.__cause__ or error}): start the server, or mend the address"
        said = (str(error).splitlines() or [""])[0].replace(self.client.api_key, "...")[:300]
        return f"{said}: {remedies.get(status, 'see what the server logs')}"


def load_judge(spec: str, *, model: str | None = None, device: str = "auto", cache_dir: str | None = None) -> Judge:
    """The judge of that name.

    Args:
        spec: a folder or hub id of a model that was taught words, or of a reward model; or a server's address.
        model: for a server, the name of the model that is to judge. Its key is read from OPENAI_API_KEY.

    Raises:
        FeedbackError: a judge that cannot judge; a server is asked an easy question.
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
    judge = EndpointJudge(client, model, f"{model} at {address}")
    question = QUESTION.format(prompt="Say hello.", first="Hello!", second="No.")
    said = from_first(lambda: judge.reply(question))  # while nothing is lost yet if it cannot
    if not letter_of(said):
        raise FeedbackError(
            f"--judge {address}: asked for a letter, A or B, {model} said {said[-200:]!r}: choose a model that answers "
            "with one, with enough context for its thoughts"
        )
    return judge
