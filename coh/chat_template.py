"""A saved model for others: a chat template that puts the words in by itself, and the tokens at which to stop.

In: the words of a model and its tokenizer. Out: a Jinja template, so that whatever calls `apply_chat_template` (a
server, a chat program, another library) continues the prompt that `Steering.prompt_ids` makes, without any code of this
package. The template's variable `feedback` asks for other words than the good ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from itertools import takewhile
from pathlib import Path
from typing import Any

from coh.data.forms import MARK, ORIGINAL, Form, make_form, own_template
from coh.data.hindsight import QUALITY, steering_template
from coh.data.records import TASKS, Message
from coh.data.templates import Family, Template
from coh.saved import Words

# Openings are the templates up to the output. Names of other templates are refused: as words they would mean nothing.
_CHOICE = """\
{%- set wanted = feedback if feedback is defined and feedback is not none else "good" -%}
{%- set is_conversation = messages and (messages|length > 1 or messages[0].role != "user") -%}
{%- set openings = openings_of_conversations if is_conversation else openings_of_single_turns -%}
{%- if wanted is not string or not wanted|trim or "{" in wanted or "}" in wanted -%}
  {{- raise_exception("feedback: write good, bad, the name of a template, or words without braces") -}}
{%- elif wanted in openings -%}
  {%- set feedback_words = openings[wanted] -%}
{%- elif " " not in wanted and wanted.split(".")|length == 3 and wanted.split(".")[0] in tasks -%}
  {{- raise_exception("feedback " ~ wanted ~ " is none of " ~ openings|select|join(", ")) -}}
{%- else -%}
  {%- set feedback_words = openings[""] ~ wanted|trim -%}
{%- endif %}
"""

# Clients of OpenAI's kind may send a message as parts; several are joined as `transformers serve` joins them.
_PLAIN = """\
{%- set conversation = namespace(turns=[]) -%}
{%- for message in messages -%}
  {%- if message.role not in roles -%}
    {{- raise_exception("role " ~ message.role ~ " is none of " ~ roles|join(", ")) -}}
  {%- endif -%}
  {%- set content = message.content|default("", true) -%}
  {%- if content is not string -%}
    {%- if content|rejectattr("type", "equalto", "text")|list -%}
      {{- raise_exception("this model reads text only: send parts of type text") -}}
    {%- endif -%}
    {%- set content = content|map(attribute="text")|join(" ") -%}
  {%- endif -%}
  {%- if not is_conversation and not names_single_turns -%}
    {%- set conversation.turns = [content|trim] -%}
  {%- else -%}
    {%- set conversation.turns = conversation.turns + [(roles[message.role] ~ " " ~ content|trim)|trim] -%}
  {%- endif -%}
{%- endfor -%}
{%- set prompt = conversation.turns|join("\\n\\n") -%}
{%- set around = feedback_words.split("{prompt}") -%}
{%- set asked = around[0] ~ prompt if prompt and around|length > 1 else around[0]|trim -%}
{{- bos_token ~ (after_bos if asked else "") if starts_with_bos else "" -}}
{{- asked -}}
{{- around[1] if add_generation_prompt else "" -}}
"""

# For chat templates that refuse a system message: its text stands in front of the first user's, as in training.
_SYSTEM = """\
{%- if messages|length > 1 and messages[0].role == "system" -%}
  {%- set first = {"role": "user", "content": messages[0].content ~ "\\n\\n" ~ messages[1].content} -%}
  {%- set messages = [first] + messages[2:] -%}
{%- endif %}
"""


def steering_chat_template(words: Words, tokenizer: Any) -> str:
    """The Jinja text with which a tokenizer renders what `Steering` encodes with these words.

    It speaks for the task that the model saw most, and for conversations where there are several turns. Without
    `add_generation_prompt` nothing is said of an output.

    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> from coh.data.templates import load_family
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    >>> tokenizer.chat_template = steering_chat_template(Words(load_family("marker")), tokenizer)
    >>> ask = [{"role": "user", "content": "2 + 2?"}]
    >>> tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True, feedback="bad")
    'User: 2 + 2? An unhelpful answer:'

    Raises:
        FeedbackError: the words are for chat prompts, and the tokenizer has no chat template of its own.
    """
    tokenizer = _with_template(tokenizer, own_template(tokenizer))
    form = make_form(words.family, words.prompt_format, tokenizer)
    if words.prompt_format == "chat":
        return _behind_own(form, words.tasks[0], tokenizer)
    choice = _choice(*(_openings(form.family, task, form.lead) for task in (words.tasks[0], "conversation")))
    about = {
        "roles": words.family.roles,
        "names_single_turns": words.tasks[0] == "conversation",
        "starts_with_bos": words.prepend_bos,
        "after_bos": _gap_after_bos(tokenizer) if words.prepend_bos else "",
    }
    return MARK + choice + _settings(about) + _PLAIN


def save_for_others(folder: str | Path, words: Words, tokenizer: Any, generation_config: Any) -> None:
    """Gives a saved folder a tokenizer with a template that steers, and a generation config that ends with an output.

    The tokenizer's own chat template stays beside it under the name `original`.
    """
    own = own_template(tokenizer)
    others = dict(tokenizer.chat_template) if isinstance(tokenizer.chat_template, Mapping) else {}
    steering = steering_chat_template(words, tokenizer)
    templates = {**others, "default": steering, ORIGINAL: own} if own else steering
    _with_template(tokenizer, templates).save_pretrained(folder)
    form = make_form(words.family, words.prompt_format, _with_template(tokenizer, own))
    end = tokenizer.eos_token_id if form.end_of_output is None else form.end_of_output
    config = deepcopy(generation_config)
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = list(dict.fromkeys([end, *(token for token in known if token is not None)]))
    config._from_model_config = False  # or transformers may derive it anew from the model's config
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(folder)


def _openings(family: Family, task: str, lead: str) -> dict[str, str]:
    """What stands around a prompt, by the names for it; under "" what stands in front of words of one's own."""
    named = [template for polarity in QUALITY.values() for template in family.choices(task, polarity)]
    own = steering_template(family, task, "own", lead)
    return {
        **{quality: _opening(steering_template(family, task, quality, lead)) for quality in QUALITY},
        **{template.name: _opening(template) for template in named},
        "": _opening(own).removesuffix("own"),
    }


def _opening(template: Template) -> str:
    return "".join(str(part) for part in takewhile(lambda part: part.slot in ("", "prompt"), template.parts))


def _behind_own(form: Form, task: str, tokenizer: Any) -> str:
    """The tokenizer's own chat template, with the words behind its generation prompt."""

    def render(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def has_system() -> bool:
        try:
            return "Be brief" in render(("system", "Be brief"), ("user", "Ask"))
        except Exception:  # whatever the template raises
            return False

    # A form encodes the end of the generation prompt together with the words; here the template has written it already.
    written = render(("user", "Ask")).removeprefix(form.write([Message("user", "Ask")], task))
    behind = [
        {name: text.removeprefix("{prompt}").removeprefix(written) for name, text in openings.items()}
        for openings in (_openings(form.family, one, form.lead) for one in (task, "conversation"))
    ]
    # Jinja drops the line break at the very end of a template, where now the words follow. They come as an expression:
    # a block would take white space in front of it away.
    own = str(tokenizer.chat_template).removesuffix("\n")
    words = '{{ feedback_words if add_generation_prompt else "" }}'
    return MARK + _choice(*behind) + ("" if has_system() else _SYSTEM) + own + words


def _choice(single_turns: Mapping[str, str], conversations: Mapping[str, str]) -> str:
    """The part of a template that finds the words asked for."""
    openings = {"openings_of_single_turns": single_turns, "openings_of_conversations": conversations}
    return _settings({**openings, "tasks": TASKS}) + _CHOICE


def _settings(values: Mapping[str, Any]) -> str:
    # JSON is Jinja too, as long as letters beyond ASCII are not escaped.
    texts = {name: json.dumps(value, ensure_ascii=False, separators=(",\n  ", ": ")) for name, value in values.items()}
    return "".join(f"{{%- set {name} = {text} -%}}\n" for name, text in texts.items())


def _with_template(tokenizer: Any, template: str | Mapping[str, str] | None) -> Any:
    copy = deepcopy(tokenizer)
    copy.chat_template = template
    return copy


def _gap_after_bos(tokenizer: Any) -> str:
    """What to write between the beginning-of-text token and a text, so that the text keeps its ids.

    SentencePiece puts a dummy space in front of a text, and none behind a special token.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    wanted = [tokenizer.bos_token_id, *ids("Ask")]
    return next((gap for gap in ("", " ") if ids(f"{tokenizer.bos_token}{gap}Ask") == wanted), "")
