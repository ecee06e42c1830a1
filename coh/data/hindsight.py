"""Group + template -> segments: what people said of an output, written in front of it.

The same functions make training chains and the prompts of a steered generation, so that the second are always the
beginning of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coh.data.records import FeedbackError, Segment, joined
from coh.data.templates import NOT_OUTPUTS, Family, Template

QUALITY = {"good": "p", "bad": "n"}


def chain(template: Template, prompt: str, outputs: Sequence[str], critique: str = "") -> list[Segment]:
    """One segment per part of the template, and one for a question's answer; `outputs` in the order of the text.

    >>> pair = Template("general.pn.1", "{prompt} Good: {better} Bad: {worse}")
    >>> [segment.text for segment in chain(pair, "2 + 2?", ["4", "5"]) if segment.is_target]
    [' 4', ' 5']
    """
    filled = {"prompt": prompt, "critique": critique, **dict(zip(template.outputs, outputs, strict=True))}
    return _filled(template, filled)


def opening(template: Template, prompt: str, outputs: Sequence[str] = (), critique: str = "") -> list[Segment]:
    """The chain up to its first output that is not given: what a model continues when it is asked for such an output.

    >>> "".join(segment.text for segment in opening(Template("general.p.1", "{prompt} Good: {better}"), "2 + 2?"))
    '2 + 2? Good:'
    """
    return _filled(template, {"prompt": prompt, "critique": critique, **dict(zip(template.outputs, outputs))})


def _filled(template: Template, texts: Mapping[str, str]) -> list[Segment]:
    """Segments up to the first slot without a text; an absent prompt takes its white space with it."""
    is_question = template.polarity == "question"
    segments = []
    for part in template.parts:
        if not part.slot:
            segments.append(Segment(part.text, is_target=False))
        elif part.slot in texts:
            text = texts[part.slot]
            is_target = part.slot not in NOT_OUTPUTS and not is_question
            segments.append(Segment(joined(part.text, text) if text else "", is_target))
        else:
            return segments
    return [*segments, Segment(f" {template.answer}", is_target=True)] if is_question else segments


def steering_template(family: Family, task: str, feedback: str, lead: str = " ") -> Template:
    """The template that asks for an output of some quality.

    Args:
        feedback: "good" or "bad" (the first p or n template of the task), the name of a template such as
            "general.p.2", or any words, which then stand between prompt and output.
        lead: what stands between a prompt and such words.

    Raises:
        FeedbackError: there is no such template.
    """
    if feedback in QUALITY:
        return _first(family, task, QUALITY[feedback])
    named = next((template for template in family.templates if template.name == feedback), None)
    if named:
        return named
    if not feedback.strip() or "{" in feedback or "}" in feedback:
        raise FeedbackError(f"feedback {feedback!r}: write good, bad, the name of a template, or words without braces")
    before, slot, _ = _first(family, task, "p").text.partition("{prompt}")
    start = f"{before}{slot}{lead}" if slot else ""  # a template without a prompt begins with its words
    return Template(f"{task}.p.own", f"{start}{feedback.strip()} {{better}}")


def revising_template(family: Family, task: str, num_earlier: int) -> Template:
    """The template that asks for an output better than these earlier ones, which stand in front of it, worst first.

    >>> from coh.data.templates import load_family
    >>> revising_template(load_family("marker"), "general", 1).outputs
    ('worse', 'better')
    """
    rankings = family.choices(task, "worst_first")
    if num_earlier > 1 and rankings:
        return rankings[0].ranking([False] * num_earlier)
    return _first(family, task, "np")


def _first(family: Family, task: str, polarity: str) -> Template:
    choices = family.choices(task, polarity)
    if not choices:
        raise FeedbackError(f"templates {family.name} have no {polarity} template for {task} or general: add one")
    return choices[0]
