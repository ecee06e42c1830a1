"""Judges of every kind: oracles win, ties are halves, who contradicts itself cannot tell, who is silent is counted."""

import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch
from test_processes import together
from toys import byte_tokenizer, tiny_model_folder

from coh.data.records import FeedbackError, Message, as_messages
from coh.data.templates import load_family
from coh.judging import RewardJudge, letter_of, load_judge, plain, preferences
from coh.modeling import ModelError
from coh.saved import Words, save_words

PROMPTS = [as_messages("How?"), (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why {first}?"))]


def test_a_model_with_words_judges_by_its_score(tmp_path):
    from coh.steered import load

    tiny_model_folder(tmp_path, initializer_range=0.3)
    save_words(tmp_path, Words(load_family("marker")))
    judge, model = load_judge(str(tmp_path)), load(str(tmp_path))
    found = judge.prefer(PROMPTS, ["one answer", "yes"], ["another", "yes"])
    scores = model.score(PROMPTS[0], ["one answer", "another"], per_token=True)
    assert found.tolist() == [float(scores[0] > scores[1]), 0.5]
    assert judge.prefer(PROMPTS, ["another", "yes"], ["one answer", "yes"]).tolist() == [1 - found[0], 0.5]


def test_a_pair_that_a_model_with_words_does_not_read_whole_is_not_judged(tmp_path):
    tiny_model_folder(tmp_path, initializer_range=0.3)  # 512 positions
    save_words(tmp_path, Words(load_family("marker")))
    judge = load_judge(str(tmp_path), device="cpu")
    prompts, first, second = [PROMPTS[0]] * 4, ["one answer", "x" * 1500, "yes", "x" * 508], ["another", "y", "no", "y"]
    found = judge.prefer(prompts, first, second)
    assert np.isnan(found).tolist() == [False, True, False, True]  # 508 letters fit, but not with the words in front
    assert found[[0, 2]].tolist() == judge.prefer(prompts[:2], ["one answer", "yes"], ["another", "no"]).tolist()
    assert np.isnan(judge.prefer(prompts[:1], ["x" * 1500], ["y"])).all()
    long = [as_messages("Why? " * 400)]
    assert not np.isnan(judge.prefer(long, ["one answer"], ["another"])).any()  # a prompt may lose its beginning


def reward_model(folder, has_chat_template=False, has_padding=True):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = byte_tokenizer()
    if has_chat_template:
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id if has_padding else None,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_judge(str(folder), device="cpu")


@pytest.mark.parametrize("has_padding", [True, False])
def test_a_reward_model_reads_batches_as_it_reads_one(tmp_path, has_padding):
    judge = reward_model(tmp_path, has_padding=has_padding)
    outputs = ["word " * (n % 7) for n in range(40)]
    prompts = [PROMPTS[n % 2] for n in range(40)]
    ids = [judge._ids(prompt, output) for prompt, output in zip(prompts, outputs)]
    batches = judge._batches([len(own) for own in ids])
    assert sorted(n for batch in batches for n in batch) == list(range(40)) and max(map(len, batches)) == (
        16 if has_padding else 1
    )
    found = {n: reward for batch in batches for n, reward in zip(batch, judge._rewards([ids[n] for n in batch]))}
    for n in range(40):
        assert found[n] == pytest.approx(judge.reward(prompts[n], outputs[n]), abs=1e-5)
    first = judge.prefer(prompts[:20], outputs[:20], outputs[20:])
    assert first.tolist() == [(found[n] > found[20 + n]) + 0.5 * (found[n] == found[20 + n]) for n in range(20)]


@pytest.mark.parametrize("has_chat_template", [False, True])
def test_a_reward_model_judges_by_its_number(tmp_path, has_chat_template):
    judge = reward_model(tmp_path, has_chat_template)
    outputs = ["short", "a rather different answer"]
    rewards = [judge.reward(PROMPTS[1], output) for output in outputs]
    assert rewards[0] != rewards[1]
    first, second = [*outputs, outputs[0]], [*outputs[::-1], outputs[0]]
    expected = [float(rewards[0] > rewards[1]), float(rewards[1] > rewards[0]), 0.5]
    assert judge.prefer([PROMPTS[1]] * 3, first, second).tolist() == expected
    assert np.isfinite(judge.reward(PROMPTS[1], "word " * 200))  # longer than it reads


ENCODERS = {"Roberta": 66, "Bert": 64}  # positions: RoBERTa's first ones are for padding


@pytest.fixture(params=ENCODERS)
def encoder(request):
    """A reward model of the other kind: it reads 64 tokens, or 63, between special tokens of its own."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.cls_token, tokenizer.sep_token, tokenizer.bos_token = "<s>", "</s>", None
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        max_position_embeddings=ENCODERS[request.param],
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{request.param}ForSequenceClassification")(config).eval()
    return RewardJudge(model, tokenizer, request.param)


class TestEncoders:
    def test_what_is_too_long_loses_its_beginning_and_no_special_token(self, encoder):
        tokenizer = encoder.tokenizer
        whole = tokenizer(" ".join(["why"] * 80) + "\n\nsince")["input_ids"]
        ids = encoder._ids(as_messages("why " * 80), "since")
        most = 66 - tokenizer.pad_token_id - 1 if encoder.name == "Roberta" else 64
        assert len(ids) == most < len(whole)
        assert ids == [tokenizer.cls_token_id, *whole[1 - most :]] and ids[-1] == tokenizer.sep_token_id
        assert np.isfinite(encoder.reward(as_messages("why " * 80), "since"))
        short = encoder._ids(as_messages("why"), "since")
        assert short == tokenizer("why\n\nsince")["input_ids"]

    def test_a_tokenizer_that_stops_earlier_is_obeyed(self, encoder):
        encoder.tokenizer.model_max_length = 20
        ids = encoder._ids(as_messages("why " * 80), "since")
        assert len(ids) == 20 and ids[0] == encoder.tokenizer.cls_token_id

    def test_long_and_short_ones_are_judged_together(self, encoder):
        prompts = [as_messages("why " * n) for n in (1, 90, 4)]
        first, second = ["since", "for", "as"], ["no", "never", "not so"]
        rewards = [[encoder.reward(p, o) for p, o in zip(prompts, side)] for side in (first, second)]
        assert encoder.prefer(prompts, first, second).tolist() == [float(a > b) for a, b in zip(*rewards)]


REPLIES = {
    "{}": "one letter",
    "{}.": "a full stop",
    "**{}**": "bold",
    "__{}__": "bold with lines",
    "({})": "brackets",
    '"{}"': "marks of quotation",
    "{})": "half a bracket",
    "[[{}]]": "two brackets",
    "`{}`": "code",
    "$\\boxed{{\\text{{{}}}}}$": "a box",
    "Answer:{}": "an answer",
    "\n{}\n": "lines",
    "It is a close call: {}": "an article",
    "A close call. Reply {}.": "an article that begins a sentence",
    "{}, since the other one is rude": "a reason behind it",
    "{}: it is better than {other}": "the other one behind it",
    "**{}**\n\nReply {other} is rude, and {other}'s end is missing.": "reasons behind it",
    "Reply {other} is short. Reply {} helps": "the other one before it",
    "{} is better than {other}.": "a comparison",
    "A: short.\nB: kind.\n\n{}": "a list before it",
    "<think>A or B? {other}, I think.</think> {}": "thoughts",
    "Hm, {other}.\n</think>\n\n{}": "thoughts whose beginning a server left out",
}


class TestLetters:
    @pytest.mark.parametrize("reply", REPLIES, ids=REPLIES.values())
    @pytest.mark.parametrize("letter, other", ["AB", "BA"])
    def test_it_is_read_whatever_stands_around_it(self, reply, letter, other):
        assert letter_of(reply.format(letter, other=other)) == letter

    @pytest.mark.parametrize("letter", "ab")
    def test_a_small_one_counts_only_where_it_is_all_there_is(self, letter):
        assert [letter_of(said) for said in (letter, f" {letter}.", f"**{letter}**")] == [letter.upper()] * 3
        assert letter_of(f"option {letter}") == letter_of(f"a {letter}") == ""

    @pytest.mark.parametrize("reply", ["", "Both are fine.", "ABBA", "B2B", "<think>\nOkay, A", "a close call", "!"])
    def test_there_is_none(self, reply):
        assert letter_of(reply) == ""


class Server(BaseHTTPRequestHandler):
    """Speaks OpenAI's protocol; each model name is a way to judge."""

    asked: ClassVar[list] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.asked.append((self.path, self.headers["Authorization"], text))
        if body["model"] == "strict" and ("max_tokens" in body or "temperature" in body or "filtered" in text):
            return self.refuse("strict")
        if body["model"] in ("unknown", "barred", "page"):
            return self.refuse(body["model"])
        if body["model"] == "tiring" and "Say hello." not in text:
            return self.refuse("barred")
        first, second = text.split("Reply A:\n")[1].split("\n\nReply B:\n")
        says = {
            "longest": "A" if len(first.strip()) > len(second.split("\n\nAnswer")[0].strip()) else " b.",
            "first": "Answer: A",
            "never": "Both are fine.",
            "mute": "A" if "Say hello." in text else "Both are fine.",
            "strict": "A" if "long" in first else "**B**",
            "tiring": "A",
        }[body["model"]]
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": says}}],
        }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, how):
        status = {"unknown": 404, "barred": 401, "page": 200, "strict": 400}[how]
        said = {"error": {"message": f"{how}: {self.headers['Authorization']}"}} if how != "page" else {}
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_server_is_asked_in_both_orders(address, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    judge = load_judge(address, model="longest")
    Server.asked.clear()
    assert judge.prefer(PROMPTS, ["long and good", "no"], ["bad", "yes {second}"]).tolist() == [1.0, 0.0]
    assert len(Server.asked) == 4 and Server.asked[0][:2] == ("/v1/chat/completions", "Bearer a-secret")
    assert "user: Why {first}?" in Server.asked[2][2] and "yes {second}" in Server.asked[2][2]
    assert "a-secret" not in judge.name


@pytest.mark.parametrize(
    "model, says", [("unknown", "--judge_model unknown"), ("barred", "OPENAI_API_KEY"), ("page", "ends in /v1")]
)
def test_a_server_that_refuses_is_found_at_once(address, monkeypatch, model, says):
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    with pytest.raises(FeedbackError) as error:
        load_judge(address, model=model)
    assert says in str(error.value) and f"--judge {address}: " in str(error.value)
    assert "a-secret" not in str(error.value)


def test_a_server_that_is_not_there_is_found_at_once():
    pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    with pytest.raises(FeedbackError, match=r"--judge http://127.0.0.1:9/v1: no answer \(.*\): start the server"):
        load_judge("http://127.0.0.1:9/v1", model="any")


def test_processes_share_the_questions(address):
    judge = load_judge(address, model="longest")
    first, second = [f"answer {'x' * n}" for n in range(5)], ["answer xx"] * 5
    Server.asked.clear()
    found = together(lambda rank: preferences(judge, [PROMPTS[0]] * 5, first, second).tolist())
    assert found == [[0.0, 0.0, 0.5, 1.0, 1.0]] * 2
    assert len(Server.asked) == 2 * 4  # both orders, and none of the two that are the same


def test_processes_share_what_a_reward_model_reads(tmp_path):
    judge = reward_model(tmp_path)
    outputs = ["word " * (n % 9) for n in range(40)]

    def work(rank):
        return judge.prefer([PROMPTS[0]] * 20, outputs[:20], outputs[20:]).tolist()

    alone = work(0)
    assert together(work) == [alone, alone] and len(set(alone)) > 1


def test_a_server_that_fails_one_process_fails_all(address):
    judge = load_judge(address, model="longest")

    def work(rank):
        own = judge if rank else replace(judge, model="barred")
        with pytest.raises(FeedbackError, match="OPENAI_API_KEY"):
            own.prefer([PROMPTS[0]] * 3, ["a"] * 3, ["b"] * 3)
        return rank

    assert together(work) == [0, 1]


def test_a_server_that_contradicts_itself_cannot_tell_and_one_that_does_not_say_does_not_judge(address):
    asked = PROMPTS, ["one", "two"], ["three", "four"]
    assert load_judge(address, model="first").prefer(*asked).tolist() == [0.5, 0.5]
    assert np.isnan(load_judge(address, model="mute").prefer(*asked)).all()


def test_a_server_that_names_no_letter_for_an_easy_question_is_refused_with_its_reply(address):
    with pytest.raises(FeedbackError, match=r"--judge .*: asked for a letter, A or B, never said 'Both are fine.'"):
        load_judge(address, model="never")


def test_a_server_that_takes_no_wishes_is_asked_without_and_what_it_refuses_is_not_judged(address):
    judge = load_judge(address, model="strict")
    found = judge.prefer([*PROMPTS, PROMPTS[0]], ["long one", "no", "filtered"], ["bad", "long two", "good"])
    assert found[:2].tolist() == [1.0, 0.0] and np.isnan(found[2])


def test_what_cannot_judge_says_so(tmp_path):
    with pytest.raises(FeedbackError, match="--judge http://x: say which of its models"):
        load_judge("http://x")
    with pytest.raises(FeedbackError, match="--judge_model m is for servers"):
        load_judge("gpt2", model="m")
    folder = tiny_model_folder(tmp_path / "plain")
    with pytest.raises(FeedbackError, match=r"neither a reward model .* nor a model with coh.json"):
        load_judge(folder)
    with pytest.raises(ModelError, match="cannot be opened"):
        load_judge(str(tmp_path / "nothing"))


def test_conversations_for_readers():
    assert plain(PROMPTS[0]) == "How?"
    assert plain(PROMPTS[1]).startswith("user: Hi\n\nassistant: Hello\n\nuser: Why")
