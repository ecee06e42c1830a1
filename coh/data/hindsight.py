"""Group + template -> segments: what people said of an output, written in front of it.

The same two functions make training chains and the prompts of a steered generation, so that the second are always the
beginning of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coh.data.records import FeedbackGroup, Message, Segment
from coh.data.templates import Family, Part, Template

QUALITY = {"good": "p", "bad": "n"}


def prompt_text(messages: Sequence[Message], task: str, roles: Mapping[str, str]) -> str:
    """The prompt as one text: a single user turn as it is, a conversation with the name of each role.

    >>> roles = {"user": "User:", "assistant": "Assistant:"}
    >>> prompt_text([Message("user", "Hi!")], "general", roles)
    'Hi!'
    >>> prompt_text([Message("user", "Hi!"), Message("assistant", "Hello."), Message("user", "Bye.")], "general", roles)
    'User: Hi!\\n\\nAssistant: Hello.\\n\\nUser: Bye.'
    """
    if task != "conversation" and [message.role for message in messages] == ["user"]:
        return messages[0].content.strip()
    return "\n\n".join(f"{roles[message.role]} {message.content.strip()}".strip() for message in messages)


def fill_part(part: Part, prompt: str, outputs: Mapping[str, str]) -> str:
    """The text of one part; an absent prompt takes its white space with it."""
    if not part.slot:
        return part.text
    if part.slot == "prompt":
        return part.text + prompt if prompt else ""
    return part.text + outputs[part.slot]


def chain(template: Template, prompt: str, outputs: Sequence[str]) -> list[Segment]:
    """One segment per part of the template, and one for a question's answer; `outputs` in the order of the text.

    >>> pair = Template("general.pn.1", "{prompt} Good: {better} Bad: {worse}")
    >>> [segment.text for segment in chain(pair, "2 + 2?", ["4", "5"]) if segment.is_target]
    [' 4', ' 5']
    """
    filled = dict(zip(template.outputs, outputs, strict=True))
    is_question = template.polarity == "question"
    segments = [
        Segment(fill_part(part, prompt, filled), is_target=part.slot not in ("", "prompt") and not is_question)
        for part in template.parts
    ]
    return [*segments, Segment(f" {template.answer}", is_target=True)] if is_question else segments


def opening(template: Template, prompt: str) -> list[Segment]:
    """The chain up to its first output: what a model continues when it is asked for an output of that quality.

    >>> "".join(segment.text for segment in opening(Template("general.p.1", "{prompt} Good: {better}"), "2 + 2?"))
    '2 + 2? Good:'
    """
    segments = []
    for part in template.parts:
        if part.slot not in ("", "prompt"):
            break
        segments.append(Segment(fill_part(part, prompt, {}), is_target=False))
    return segments


def steering_template(family: Family, task: str, quality: str) -> Template:
    """The template that asks for an output of this quality, "good" or "bad": the first p or n template of the task."""
    choices = family.choices(task, QUALITY[quality])
    if not choices:
        raise ValueError(f"templates {family.name} have no {QUALITY[quality]} template for {task} or general: add one")
    return choices[0]


def group_prompt(group: FeedbackGroup, family: Family) -> str:
    """The prompt's text of a group under a family's role names."""
    return prompt_text(group.prompt, group.task, family.roles)
