"""The words of a trained model, ready for its tokenizer: prompts to continue and documents to score, as ids.

Both are built by the code that builds training rows, so a prompt's ids are the beginning of such a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coh.data.encoding import Encoder
from coh.data.forms import Form, make_form
from coh.data.hindsight import chain, opening, revising_template, steering_template
from coh.data.records import (
    TASKS,
    Document,
    FeedbackError,
    FeedbackGroup,
    Message,
    Segment,
    as_messages,
    clean_output,
)
from coh.data.sources.turns import task_of
from coh.data.templates import Template
from coh.saved import Words


@dataclass(frozen=True)
class Steering:
    """What is needed to speak to a model in the words it was taught."""

    words: Words
    form: Form
    encoder: Encoder
    is_exact: bool = True  # whether pieces join to the text's ids; otherwise texts are encoded whole, as in training

    @classmethod
    def of(cls, words: Words, tokenizer: Any) -> Steering:
        """The words of a model, with its tokenizer."""
        form = make_form(words.family, words.prompt_format, tokenizer)
        encoder = Encoder(tokenizer, words.prepend_bos, form.end_of_output, form.border)
        prompt = Segment(form.write(as_messages("Ask"), words.tasks[0]), is_target=False)
        example = [prompt, Segment(f"{form.lead}Answer:", is_target=False), Segment(" Reply", is_target=True)]
        return cls(words, form, encoder, encoder.holds_law([example]))

    @property
    def end_of_output(self) -> int:
        """The token that ends an output."""
        return int(self.encoder.eos[0])

    def prompt_ids(self, prompt: str | Sequence[Message], feedback: str = "good", task: str | None = None) -> list[int]:
        """The ids that a model continues with an output of that quality.

        Args:
            prompt: a text, or the turns of a conversation.
            feedback: "good", "bad", the name of a template, or any words.
            task: whose words are used where templates tell tasks apart; by default that of conversations for several
                turns, and else the one the model saw most.

        Raises:
            FeedbackError: there are no such words.
        """
        task = self._task(task, prompt)
        template = self._template(feedback, task)
        return self._ids(template, opening(template, self._text(prompt, task)))

    def revising_ids(
        self, prompt: str | Sequence[Message], earlier: Sequence[str], task: str | None = None
    ) -> list[int]:
        """The ids that a model continues with an output better than these earlier ones, which stand worst first.

        Where the templates have no words for so many, the last one stands alone.
        """
        task = self._task(task, prompt)
        template = revising_template(self.form.family, task, len(earlier))
        shown = earlier[-(len(template.outputs) - 1) :]
        return self._ids(template, opening(template, self._text(prompt, task), shown))

    def documents(self, group: FeedbackGroup, feedback: str) -> list[Document]:
        """One document per output of a group: prompt, words, output, end of output."""
        return self.output_documents(group.prompt, group.outputs, feedback, group.task)

    def output_documents(
        self, prompt: str | Sequence[Message], outputs: Sequence[str], feedback: str, task: str | None = None
    ) -> list[Document]:
        """The same for any outputs; they may be empty or alike, as those of a model sometimes are."""
        task = self._task(task, prompt)
        template, text = self._template(feedback, task), self._text(prompt, task)
        if len(template.outputs) != 1 or template.polarity == "critique":
            raise FeedbackError(f"template {template.name} is not for one output: choose one of p or n")
        return [self._chain(template, text, [clean_output(output)]) for output in outputs]

    def chain_documents(self, pair: FeedbackGroup, polarity: str) -> list[Document]:
        """The pair in one document, both outputs targets: pn has the better one first, np the worse one.

        Empty where the templates have no such words.
        """
        template = next(iter(self.form.family.choices(pair.task, polarity)), None)
        if template is None:
            return []
        outputs = {"better": pair.outputs[0], "worse": pair.outputs[-1]}
        text = self._text(pair.prompt, pair.task)
        return [self._chain(template, text, [outputs[slot] for slot in template.outputs])]

    def question_documents(self, pair: FeedbackGroup, number: int = 0) -> tuple[Document, Document] | None:
        """A question about a pair with its true answer, and the same with the outputs changed over, where it is false.

        None where the templates ask nothing. `number` chooses among the questions, one after another.
        """
        choices = self.form.family.choices(pair.task, "question")
        if not choices:
            return None
        template, text = choices[number % len(choices)], self._text(pair.prompt, pair.task)
        outputs = {"better": pair.outputs[0], "worse": pair.outputs[-1]}
        found = []
        for first, second in (("better", "worse"), ("worse", "better")):
            swapped = {"better": outputs[first], "worse": outputs[second]}
            found.append(self._chain(template, text, [swapped[slot] for slot in template.outputs]))
        return found[0], found[1]

    def _chain(self, template: Template, text: str, outputs: Sequence[str]) -> Document:
        """A whole chain; the end-of-text token stands behind its last target, or behind each."""
        segments = chain(template, text, outputs)
        last = max(number for number, part in enumerate(segments) if part.is_target)
        ends = [part.is_target and (number == last or self._ends_each) for number, part in enumerate(segments)]
        prompt = next((number for number, part in enumerate(template.parts) if part.slot == "prompt"), None)
        return self.encoder.document(segments, "", ends, is_whole=not self.is_exact, prompt=prompt)

    @property
    def _ends_each(self) -> bool:
        return self.form.family.eos == "each"

    def _task(self, task: str | None, prompt: str | Sequence[Message]) -> str:
        if task is not None and task not in TASKS:
            raise FeedbackError(f"task {task!r} is not one of {', '.join(TASKS)}")
        by_turns = task_of(as_messages(prompt))
        return task or (by_turns if by_turns == "conversation" else self.words.tasks[0])

    def _template(self, feedback: str, task: str) -> Template:
        return steering_template(self.form.family, task, feedback, self.form.lead)

    def _text(self, prompt: str | Sequence[Message], task: str) -> str:
        return self.form.write(as_messages(prompt), task)

    def _ids(self, template: Template, segments: Sequence[Segment]) -> list[int]:
        """The ids of the beginning of a chain; outputs that stand in it end as they do in training."""
        ends = [part.is_target and self._ends_each for part in segments]
        return list(self.encoder.document(segments, "", ends, is_whole=not self.is_exact).input_ids)
