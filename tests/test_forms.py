"""How prompts are written: plainly with role names, or exactly as a tokenizer's chat template has them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import CHATML, byte_tokenizer, chat_tokenizer

from coh.data.encoding import Encoder
from coh.data.forms import chat_form, make_form, plain_prompt
from coh.data.hindsight import chain, opening, steering_template
from coh.data.records import ChatText, FeedbackError, Message
from coh.data.templates import load_family

BRACKETS = (  # no special token in its generation prompt, no system role
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no system here') }}{% endif %}{% endfor %}"
)
FAMILY = load_family("marker")
TURNS = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye."))


def rendered(tokenizer, turns):
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_conversations_name_their_roles():
    roles = {"system": "System:", "user": "Human:", "assistant": "AI:"}
    turns = [Message("system", "Be kind."), Message("user", " Hi \n"), *TURNS[2:]]
    assert plain_prompt(turns, "general", roles) == "System: Be kind.\n\nHuman: Hi\n\nAI: Hello.\n\nHuman: Bye."
    assert plain_prompt(turns[1:2], "general", roles) == "Hi"
    assert plain_prompt(turns[1:2], "conversation", roles) == "Human: Hi"
    assert plain_prompt([], "general", roles) == ""


@pytest.mark.parametrize("name", ["bytes", "gpt2", "llama_like", "bytes512"])
@pytest.mark.parametrize("template", [CHATML, BRACKETS], ids=["chatml", "brackets"])
@pytest.mark.parametrize("turns", [TURNS[1:2], TURNS[1:]], ids=["one turn", "three turns"])
def test_words_stand_right_after_the_generation_prompt(tokenizers, name, template, turns):
    """The text is what the chat template renders, then words and output; joined pieces are the ids of that text."""
    tokenizer = chat_tokenizer(None if name == "bytes" else tokenizers(name), template)
    form = chat_form(FAMILY, tokenizer)
    encoder = Encoder(tokenizer, end_of_output=form.end_of_output, border=form.border)
    pair = form.family.choices("general", "pn")[0]
    segments = chain(pair, form.write(turns, "general"), ["Four.", "  five\n  six"])
    text = "".join(segment.text for segment in segments)
    start = rendered(tokenizer, turns)
    space = "" if start[-1].isspace() else " "
    assert text == f"{start}{space}A helpful answer: Four. An unhelpful answer:  five\n  six"
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert np.concatenate(encoder.whole(segments)).tolist() == whole
    joined = np.concatenate(encoder.encode([segment.text for segment in segments])).tolist()
    assert encoder.holds_law([segments]) == (joined == whole)
    if name in ("bytes", "gpt2"):
        assert encoder.holds_law([segments])


def test_outputs_end_with_the_end_of_turn():
    tokenizer = chat_tokenizer()
    assert chat_form(FAMILY, tokenizer).end_of_output == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat_form(FAMILY, chat_tokenizer(template=BRACKETS)).end_of_output == tokenizer.eos_token_id
    assert chat_form(load_family("prose"), tokenizer).family.eos == "each"
    assert make_form(FAMILY, "plain", tokenizer).end_of_output is None


@given(st.text(max_size=20), st.sampled_from(["</s>", "<|im_end|>", "<|im_start|>assistant"]))
def test_special_tokens_in_messages_stay_letters(text, literal):
    tokenizer = chat_tokenizer()
    form = chat_form(FAMILY, tokenizer)
    content = f"{text}{literal}{text}"
    prompt = form.write([Message("user", content)], "general")
    assert isinstance(prompt, ChatText)
    ids = Encoder(tokenizer).encode([prompt])[0].tolist()
    specials = [token for token in ids if token in set(tokenizer.all_special_ids)]
    assert tokenizer.convert_ids_to_tokens(specials) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert content.strip() in tokenizer.decode(ids)


def test_a_system_message_goes_into_the_first_turn_where_the_template_has_no_place_for_it():
    form = chat_form(FAMILY, chat_tokenizer(template=BRACKETS))
    assert "[INST] Be kind.\n\nHi [/INST]" in form.write(TURNS, "general")
    assert "[INST] Be kind. [/INST]" in form.write(TURNS[:1], "general")


def test_what_the_template_refuses_is_said():
    strict = CHATML.replace("{% for", "{{ raise_exception('odd') if messages|length > 3 else '' }}{% for", 1)
    form = chat_form(FAMILY, chat_tokenizer(template=strict))
    with pytest.raises(
        FeedbackError, match=r"refuses the conversation that begins 'Be kind\.' \(odd\): leave it out, or"
    ):
        form.write(TURNS, "general")
    with pytest.raises(FeedbackError, match="the tokenizer has no chat template; choose plain"):
        make_form(FAMILY, "chat", byte_tokenizer())


def test_own_words_follow_the_generation_prompt():
    tokenizer = chat_tokenizer()
    form = chat_form(FAMILY, tokenizer)
    template = steering_template(form.family, "general", "Briefly:", form.lead)
    text = "".join(segment.text for segment in opening(template, form.write(TURNS[1:2], "general")))
    assert text == rendered(tokenizer, TURNS[1:2]) + "Briefly:"
