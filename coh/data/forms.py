"""How prompts are written: plain, with the role names of the templates, or as the tokenizer's chat template has it.

In: a family of templates and a tokenizer. Out: a `Form`, the family as it stands behind prompts of that kind. In the
chat form the feedback words come right after the generation prompt, and every output ends with the end-of-turn token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from coh.data.records import ChatText, FeedbackError, FeedbackGroup, Message
from coh.data.templates import Family, Template
from coh.modeling import special_tokens

PROMPT_FORMATS = ("plain", "chat")
# The name under which a trained model's folder keeps the tokenizer's own chat template, beside the one with the words:
# apply_chat_template(..., chat_template="original").
ORIGINAL = "original"
# How a template with the words in it begins.
MARK = "{#- Chain of Hindsight: `feedback` is good (the default), bad, the name of a template, or any words. -#}\n"
_PROBE = ({"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Reply"})


@dataclass(frozen=True)
class Form:
    """A family of templates together with the way in which prompts are written.

    `lead` stands between a prompt and words that follow it, and `border` is the special token that a prompt ends with,
    if it does. `end_of_output` is the token that ends an output, where it is not the tokenizer's end-of-text token.
    `key` tells forms apart in the names of caches.
    """

    family: Family
    write: Callable[[Sequence[Message], str], str]
    lead: str = " "
    border: str = ""
    end_of_output: int | None = None
    key: str = "plain"

    def prompt(self, group: FeedbackGroup) -> str:
        """The prompt of a group as text."""
        return self.write(group.prompt, group.task)


def make_form(family: Family, prompt_format: str, tokenizer: Any) -> Form:
    """The form that `--prompt_format` names.

    Raises:
        FeedbackError: chat is asked for, and the tokenizer has no chat template.
    """
    if prompt_format == "chat":
        return chat_form(family, tokenizer)
    roles = sorted(family.roles.items())
    return Form(family, partial(plain_prompt, roles=family.roles), key=f"plain {roles}")


def plain_prompt(messages: Sequence[Message], task: str, roles: dict[str, str]) -> str:
    """A single user turn as it is, a conversation with the name of each role.

    >>> roles = {"user": "User:", "assistant": "Assistant:"}
    >>> plain_prompt([Message("user", "Hi!")], "general", roles)
    'Hi!'
    >>> turns = [Message("user", "Hi!"), Message("assistant", "Hello."), Message("user", "Bye.")]
    >>> plain_prompt(turns, "general", roles)
    'User: Hi!\\n\\nAssistant: Hello.\\n\\nUser: Bye.'
    """
    if task != "conversation" and [message.role for message in messages] == ["user"]:
        return messages[0].content.strip()
    return "\n\n".join(f"{roles[message.role]} {message.content.strip()}".strip() for message in messages)


def chat_form(family: Family, tokenizer: Any) -> Form:
    """Prompts as the tokenizer's chat template renders them.

    What the generation prompt holds behind its last special token stands in front of the words, and is encoded with
    them, so that prompts can be encoded once and words joined to them as ids.
    """
    own = own_template(tokenizer)
    if not own:
        raise FeedbackError("--prompt_format chat: the tokenizer has no chat template; choose plain")
    specials = special_tokens(tokenizer)

    def render(messages: Sequence[dict[str, str]], asks: bool) -> str:
        return tokenizer.apply_chat_template(
            list(messages), chat_template=own, tokenize=False, add_generation_prompt=asks
        )

    try:
        question, exchange = render(_PROBE[:1], True), render(_PROBE, False)
    except Exception as error:  # whatever the template raises; it may do nothing but write
        raise FeedbackError(
            f"--prompt_format chat: the tokenizer's chat template fails ({error}); choose plain"
        ) from error
    if "Ask" not in question or "Reply" not in exchange:
        raise FeedbackError("--prompt_format chat: the tokenizer's chat template leaves out what is said; choose plain")
    after_prompt = question[question.index("Ask") + len("Ask") :]
    ends = {after_prompt.rindex(token) + len(token): token for token in specials if token in after_prompt}
    tail = after_prompt[max(ends) :] if ends else ""
    after_reply = exchange[exchange.index("Reply") + len("Reply") :].lstrip()
    ending = next((token for token in specials if after_reply.startswith(token)), tokenizer.eos_token)
    lead = tail if question[-1].isspace() else f"{tail} "
    return Form(
        family=replace(family, eos="each", templates=tuple(_behind_chat(one, lead) for one in family.templates)),
        write=partial(_chat_prompt, render=render, specials=specials, tail=tail, has_system=_renders_system(render)),
        lead=lead,
        border=ends[max(ends)] if ends else "",
        end_of_output=tokenizer.convert_tokens_to_ids(ending),
        key=f"chat {own}",
    )


def own_template(tokenizer: Any) -> str | None:
    """The chat template that a tokenizer had before it was given one that steers; None where it had none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        return template.get(ORIGINAL, template.get("default"))
    return None if not template or template.startswith(MARK) else template


def _renders_system(render: Callable[..., str]) -> bool:
    try:
        return "Be brief" in render([{"role": "system", "content": "Be brief"}, _PROBE[0]], True)
    except Exception:  # whatever the template raises
        return False


def _chat_prompt(
    messages: Sequence[Message],
    task: str,
    *,
    render: Callable[..., str],
    specials: Sequence[str],
    tail: str,
    has_system: bool,
) -> ChatText:
    turns = [{"role": turn.role, "content": _as_letters(turn.content, specials)} for turn in messages]
    if turns and turns[0]["role"] == "system" and not has_system:  # the usual place for it where there is none
        system, *turns = turns
        said = turns[0]["content"] if turns else ""
        turns = [{"role": "user", "content": f"{system['content']}\n\n{said}".strip()}, *turns[1:]]
    try:
        text = render(turns or [{"role": "user", "content": ""}], True)
    except Exception as error:  # templates refuse what they do not know in words of their own
        start = " ".join(messages[0].content.split())[:60] if messages else ""
        raise FeedbackError(
            f"the tokenizer's chat template refuses the conversation that begins {start!r} ({error}): leave it out, or "
            "choose --prompt_format plain"
        ) from error
    return ChatText(text.removesuffix(tail))


def _as_letters(content: str, specials: Sequence[str]) -> str:
    for token in specials:
        if token in content:
            content = content.replace(token, token[0] + ChatText.LITERAL + token[1:])
    return content


def _behind_chat(template: Template, lead: str) -> Template:
    """The template without the words in front of its prompt, which the chat template has of its own."""
    _, slot, rest = template.text.partition("{prompt}")
    return replace(template, text=f"{slot}{lead}{rest.lstrip()}") if slot else template
