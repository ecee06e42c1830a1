"""A conversation with a steered model in the terminal: what people type in, the model's answers out as it writes them.

A line is said to the model, or is a command: `/good` and `/bad` choose the words of the next answers, `/words ...` says
them, `/revise` asks for a better version of the last answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from coh.data.records import FeedbackError, Message, visible
from coh.generation import num_positions
from coh.modeling import ModelError
from coh.steered import Request, SteeredModel

COMMANDS = {
    "/good": "answers under good words (the usual)",
    "/bad": "answers under bad words",
    "/words": "answers under words of your own: /words A short answer:",
    "/revise": "a better version of the last answer, which takes its place",
    "/reset": "begin a new conversation",
    "/help": "show this list",
    "/quit": "leave (or Ctrl-D)",
}


@dataclass
class Chat:
    """A conversation: its turns so far, the words of the next answer, and the versions of the last one, worst first."""

    model: SteeredModel
    options: dict[str, Any]
    guidance: float = 1.0
    feedback: str = "good"
    out: TextIO = field(default_factory=lambda: sys.stdout)
    turns: tuple[Message, ...] = ()
    versions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.model.task is None and "conversation" in self.model.steering.words.tasks:
            self.model = replace(self.model, task="conversation")  # from the first turn on

    def obey(self, line: str) -> bool:
        """Does what a line asks for; false where it asks to leave."""
        command, _, words = line.partition(" ")
        actions: dict[str, Callable[[str], None]] = {
            "/good": lambda _: self._choose("good"),
            "/bad": lambda _: self._choose("bad"),
            "/words": self._choose,
            "/revise": lambda _: self._revise(),
            "/reset": lambda _: self._reset(),
            "/help": lambda _: self._say(*(f"{name:9} {meaning}" for name, meaning in COMMANDS.items())),
        }
        if command == "/quit":
            return False
        try:
            if command in actions:
                actions[command](words.strip())
            elif line.startswith("/"):
                self._say(f"{command} is not a command; /help lists them.")
            elif line.strip():
                self._answer(line.strip())
        except (FeedbackError, ModelError) as error:
            self._say(f"{error}")
        return True

    def _choose(self, feedback: str) -> None:
        self.model.steering.prompt_ids("Hello", feedback, self.model.task)  # an error now, not at the next answer
        self.feedback = feedback
        self._say(
            f"The next answers are under {feedback} words." if feedback in ("good", "bad") else f"Words: {feedback}"
        )

    def _reset(self) -> None:
        self.turns, self.versions = (), ()
        self._say("A new conversation.")

    def _answer(self, text: str) -> None:
        said = (*self.turns, Message("user", text))
        prompt = self._shortened(Request(said, self.feedback))
        answer = self._write(Request(prompt, self.feedback))
        self.turns, self.versions = (*prompt, Message("assistant", answer)), (answer,)

    def _revise(self) -> None:
        if not self.versions:
            self._say("There is no answer yet that could be revised.")
            return
        prompt = self._shortened(Request(self.turns[:-1], self.feedback, self.versions))
        answer = self._write(Request(prompt, self.feedback, self.versions))
        self.turns, self.versions = (*prompt, Message("assistant", answer)), (*self.versions, answer)

    def _shortened(self, request: Request) -> tuple[Message, ...]:
        """The turns that the model has room for; the oldest go first, a question and its answer together."""
        turns = request.prompt
        while True:
            try:
                self.model.prompt_ids(replace(request, prompt=turns), self.options)
                break
            except ModelError:
                first = 1 if turns[0].role == "system" else 0
                if len(turns) <= first + 2:
                    raise
                turns = (*turns[:first], *turns[first + 2 :])
        gone = len(request.prompt) - len(turns)
        if gone:
            limit = num_positions(self.model.model.config)
            self._say(f"(The oldest {gone} turns are forgotten: the model reads {limit} tokens.)")
        return turns

    def _write(self, request: Request) -> str:
        """An answer, shown token by token where the model writes one line of tokens."""
        is_streamed = (self.options.get("num_beams") or 1) == 1
        streamer = _streamer(self.model.tokenizer, self.out) if is_streamed else None
        answers = self.model.answer([request], guidance=self.guidance, streamer=streamer, **self.options)
        self._say("" if is_streamed else visible(answers[0][0]))
        return answers[0][0]

    def _say(self, *lines: str) -> None:
        print(*lines, sep="\n", file=self.out, flush=True)


def _streamer(tokenizer: Any, out: TextIO) -> Any:
    """Shows the words of an answer as soon as they are whole, without the white space in front of the first."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        has_begun = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            text = text if self.has_begun else text.lstrip()
            self.has_begun = self.has_begun or bool(text)
            print(visible(text), end="", file=out, flush=True)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def talk(chat: Chat, lines: TextIO | None = None) -> None:
    """Reads lines until they end, `/quit` or Ctrl-C; `lines` are those of the terminal by default."""
    source = lines or sys.stdin
    if source.isatty():
        import readline  # noqa: F401  gives input() editing and a history
    print("Say something, or /help.", file=chat.out, flush=True)
    try:
        while True:
            line = input("> ") if source is sys.stdin else next(source).rstrip("\n")
            if not chat.obey(line):
                return
    except (EOFError, StopIteration, KeyboardInterrupt):
        print(file=chat.out, flush=True)
