"""The chat template of a saved model: its ids are those of `Steering`, whoever renders it."""

import json
from copy import deepcopy

import pytest
from jinja2.exceptions import TemplateError
from toys import byte_tokenizer, tiny_model_folder
from transformers import AutoTokenizer, GenerationConfig

from coh.chat_template import ORIGINAL, own_template, save_for_others, steering_chat_template
from coh.data.records import TASKS, FeedbackError, Message
from coh.data.templates import load_family, read_family
from coh.saved import Words, save_words
from coh.steering import Steering

FAMILIES = ("marker", "marker_varied", "prose")
PLAIN_TOKENIZERS = ("bytes", "gpt2", "llama_like", "bytes512", "smollm2")
FEEDBACK = (None, "good", "bad", "A short answer:", " \n An answer for children \t", "Eine gute Antwort, é 你好:")
CONVERSATIONS = {
    "one turn": [("user", "Why is the sky blue?")],
    "odd white space": [("user", "\n\n\t  Two   words \r\n and\u3000more\xa0\n \n")],
    "other scripts": [("user", "为什么天空是蓝色的?"), ("assistant", "مرحبا 👋🏽"), ("user", "Почему? ज़रा")],
    "starts with a sign": [("user", ") : \\n {x} {{ y }} {% z %}")],
    "turns": [("user", "Hi!"), ("assistant", " Hello.\n"), ("user", "Bye. ")],
    "system": [("system", " Be brief. "), ("user", "Hi!")],
    "system alone": [("system", "Be brief.")],
    "nothing": [("user", " \n")],
    "empty turns": [("user", "Hi!"), ("assistant", " "), ("user", "Bye.")],
    "ends with the assistant": [("user", "Hi!"), ("assistant", "Hello.")],
    "two users": [("user", "Hi!"), ("user", "And you?")],
    "words of the template": [("user", "{prompt} {better} User: A helpful answer:")],
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As some models have it: a generation prompt without a special token, no system message, a line break at the end.
STRICT = (
    "{{ bos_token }}{% for message in messages %}\n"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\n"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}\n"
    "{% endfor %}\n"
)
HEADERS = (
    "  {%- for message in messages -%}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def as_dicts(turns):
    return [{"role": role, "content": content} for role, content in turns]


def served_ids(tokenizer, turns, feedback=None, **options):
    variables = {} if feedback is None else {"feedback": feedback}
    found = tokenizer.apply_chat_template(as_dicts(turns), add_generation_prompt=True, **variables, **options)
    return list(found["input_ids"])


def broken(words, tokenizer, conversations=CONVERSATIONS, feedback=FEEDBACK):
    """Where template and `Steering` differ."""
    steering = Steering.of(words, tokenizer)
    served = deepcopy(tokenizer)
    served.chat_template = steering_chat_template(words, tokenizer)
    return [
        (name, wanted)
        for name, turns in conversations.items()
        for wanted in feedback
        if served_ids(served, turns, wanted)
        != steering.prompt_ids([Message(*turn) for turn in turns], wanted or "good")
    ]


@pytest.fixture(params=PLAIN_TOKENIZERS)
def tokenizer(request):
    return byte_tokenizer() if request.param == "bytes" else request.getfixturevalue("tokenizers")(request.param)


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_plain_prompts_have_the_ids_of_steering(tokenizer, prepend_bos):
    for family in map(load_family, FAMILIES):
        for task in TASKS:
            assert broken(Words(family, prepend_bos, (task,)), tokenizer) == [], (family.name, task)


@pytest.fixture(params=[CHATML, STRICT, HEADERS], ids=["chatml", "strict", "headers"])
def chat_tokenizer(request, tokenizer):
    markers = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    tokenizer.chat_template = request.param
    return tokenizer


def test_chat_prompts_have_the_ids_of_steering(chat_tokenizer):
    conversations = {name: turns for name, turns in CONVERSATIONS.items() if name != "system alone"}
    for family in map(load_family, FAMILIES):
        words = Words(family, tasks=("general",), prompt_format="chat")
        assert broken(words, chat_tokenizer, conversations) == [], family.name


@pytest.mark.parametrize("name", ["llama_like", "bytes512"])
def test_sentencepiece_and_a_chat_template_without_special_tokens(tokenizers, name):
    """Behind a generation prompt that holds no special token and ends in white space, SentencePiece puts a dummy space
    in front of the words. The law of pieces does not hold there, so texts are encoded whole, as rows of training are.
    """
    tokenizer = tokenizers(name)
    tokenizer.chat_template = CHATML  # its markers are letters here
    words = Words(load_family("marker"), prompt_format="chat")
    assert not Steering.of(words, tokenizer).is_exact
    assert broken(words, tokenizer, {"one": CONVERSATIONS["one turn"], "turns": CONVERSATIONS["turns"]}) == []


def test_the_law_can_fail(tokenizers):
    tokenizer = tokenizers("gpt2")
    words = Words(load_family("marker"))
    other = Steering.of(Words(load_family("prose")), tokenizer).prompt_ids("Why is the sky blue?")
    tokenizer.chat_template = steering_chat_template(words, tokenizer)
    good, bad = (served_ids(tokenizer, CONVERSATIONS["one turn"], feedback) for feedback in ("good", "bad"))
    assert len({tuple(good), tuple(bad), tuple(other)}) == 3
    assert served_ids(tokenizer, CONVERSATIONS["one turn"]) == good
    assert tokenizer.decode(good) == "User: Why is the sky blue? A helpful answer:"


def test_names_of_templates_are_feedback_too():
    tokenizer, words = byte_tokenizer(), Words(load_family("prose"), tasks=("answer",))
    names = [one.name for polarity in ("p", "n") for one in words.family.choices("answer", polarity)]
    assert len(names) > 10
    assert broken(words, tokenizer, {"one": CONVERSATIONS["one turn"]}, names) == []


def test_roles_and_words_of_a_family_of_ones_own():
    content = {
        "roles": {"user": 'The "user\\":', "assistant": "助手:"},
        "tasks": {
            "general": {"p": ["Frage:\n\n{prompt}\n\nGut 'so' 👍: {better}"], "n": ["{prompt}\tNein \\n: {worse}"]}
        },
    }
    words = Words(read_family("own", content), prepend_bos=True)
    assert broken(words, byte_tokenizer()) == []


@pytest.mark.parametrize("feedback", ["", " ", "A {good} answer:", 3, ["good"], "general.p.99", "summary.tie.1"])
def test_feedback_that_means_nothing_is_refused(feedback):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = steering_chat_template(Words(load_family("marker")), tokenizer)
    with pytest.raises(TemplateError, match="feedback"):
        served_ids(tokenizer, CONVERSATIONS["one turn"], feedback)


def test_what_a_message_may_be():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = steering_chat_template(Words(load_family("marker")), tokenizer)

    def render(content, role="user"):
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content}], tokenize=False, add_generation_prompt=True
        )

    parts = [{"type": "text", "text": "Why is"}, {"type": "text", "text": "the sky blue? "}]
    assert render(parts) == render("Why is the sky blue?")
    assert render(None) == render("") == render([]) == "User: A helpful answer:"
    with pytest.raises(TemplateError, match="reads text only"):
        render([*parts, {"type": "image_url", "image_url": {"url": "a.png"}}])
    with pytest.raises(TemplateError, match="role tool is none of system, user, assistant"):
        render("3", role="tool")


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_without_a_generation_prompt_nothing_is_said_of_an_output(prompt_format):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = HEADERS
    own = tokenizer.apply_chat_template(as_dicts(CONVERSATIONS["turns"]), tokenize=False)
    tokenizer.chat_template = steering_chat_template(
        Words(load_family("marker"), tasks=("conversation",), prompt_format=prompt_format), tokenizer
    )
    bare, asking = (
        tokenizer.apply_chat_template(as_dicts(CONVERSATIONS["turns"]), tokenize=False, add_generation_prompt=asks)
        for asks in (False, True)
    )
    assert bare == (own if prompt_format == "chat" else "User: Hi!\n\nAssistant: Hello.\n\nUser: Bye.")
    assert asking.startswith(bare) and asking.endswith("A helpful answer:")


def test_chat_words_need_a_chat_template():
    with pytest.raises(FeedbackError, match="has no chat template; choose plain"):
        steering_chat_template(Words(load_family("marker"), prompt_format="chat"), byte_tokenizer())


def saved(folder, prompt_format, template=None, eos=1):
    tiny_model_folder(folder)
    tokenizer, words = byte_tokenizer(), Words(load_family("marker"), prompt_format=prompt_format)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    save_words(folder, words)
    save_for_others(folder, words, tokenizer, GenerationConfig(eos_token_id=eos))
    return tokenizer, words


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_the_saved_folder_steers_and_keeps_the_template_it_had(tmp_path, prompt_format):
    tokenizer, words = saved(tmp_path, prompt_format, CHATML)
    assert tokenizer.chat_template == CHATML  # the one in hand stays as it is
    reloaded, turns = AutoTokenizer.from_pretrained(tmp_path), CONVERSATIONS["one turn"]
    assert served_ids(reloaded, turns) == Steering.of(words, tokenizer).prompt_ids(turns[0][1])
    assert own_template(reloaded) == reloaded.chat_template[ORIGINAL] == CHATML
    assert served_ids(reloaded, turns, chat_template=ORIGINAL) == served_ids(tokenizer, turns)
    again = tmp_path / "again"
    save_for_others(again, words, reloaded, GenerationConfig())  # trained further
    assert AutoTokenizer.from_pretrained(again).chat_template == reloaded.chat_template


@pytest.mark.parametrize("prompt_format", ["plain", "chat"])
def test_the_tokenizer_of_a_saved_folder_still_steers(tmp_path, prompt_format):
    tokenizer, words = saved(tmp_path, prompt_format, CHATML)
    reloaded = Steering.of(words, AutoTokenizer.from_pretrained(tmp_path))
    assert reloaded.prompt_ids("Why?", "bad") == Steering.of(words, tokenizer).prompt_ids("Why?", "bad")


def test_a_template_of_ours_alone_is_not_taken_for_the_tokenizers_own(tmp_path):
    saved(tmp_path, "plain")
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(reloaded.chat_template, str) and own_template(reloaded) is None


@pytest.mark.parametrize("eos", [None, 1, [1, 7]])
def test_servers_stop_where_an_output_ends(tmp_path, eos):
    for prompt_format, end in (("plain", "</s>"), ("chat", "<|im_end|>")):
        tokenizer, _ = saved(tmp_path / prompt_format, prompt_format, CHATML, eos)
        config = json.loads((tmp_path / prompt_format / "generation_config.json").read_text(encoding="utf-8"))
        known = [] if eos is None else eos if isinstance(eos, list) else [eos]
        assert config["eos_token_id"] == list(dict.fromkeys([tokenizer.convert_tokens_to_ids(end), *known]))
        assert config["pad_token_id"] == tokenizer.pad_token_id
