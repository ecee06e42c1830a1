"""Judges of every kind: oracles win, ties are halves, and a server that contradicts itself cannot tell."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch
from toys import byte_tokenizer, tiny_model_folder

from coh.data.records import FeedbackError, Message, as_messages
from coh.data.templates import load_family
from coh.judging import load_judge, plain
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


@pytest.mark.parametrize("has_chat_template", [False, True])
def test_a_reward_model_judges_by_its_number(tmp_path, has_chat_template):
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
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = load_judge(str(tmp_path), device="cpu")
    outputs = ["short", "a rather different answer"]
    rewards = [judge.reward(PROMPTS[1], output) for output in outputs]
    assert rewards[0] != rewards[1]
    first, second = [*outputs, outputs[0]], [*outputs[::-1], outputs[0]]
    expected = [float(rewards[0] > rewards[1]), float(rewards[1] > rewards[0]), 0.5]
    assert judge.prefer([PROMPTS[1]] * 3, first, second).tolist() == expected
    assert np.isfinite(judge.reward(PROMPTS[1], "word " * 200))  # longer than it reads


class Server(BaseHTTPRequestHandler):
    """Speaks OpenAI's protocol; each model name is a way to judge."""

    asked: ClassVar[list] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.asked.append((self.path, self.headers["Authorization"], text))
        first, second = text.split("Reply A:\n")[1].split("\n\nReply B:\n")
        says = {
            "longest": "A" if len(first.strip()) > len(second.split("\n\nAnswer")[0].strip()) else " b.",
            "first": "Answer: A",
            "mute": "Both are fine.",
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
    Server.asked.clear()
    judge = load_judge(address, model="longest")
    assert judge.prefer(PROMPTS, ["long and good", "no"], ["bad", "yes {second}"]).tolist() == [1.0, 0.0]
    assert len(Server.asked) == 4 and Server.asked[0][:2] == ("/v1/chat/completions", "Bearer a-secret")
    assert "user: Why {first}?" in Server.asked[2][2] and "yes {second}" in Server.asked[2][2]
    assert "a-secret" not in judge.name


@pytest.mark.parametrize("model", ["first", "mute"])
def test_a_server_that_contradicts_itself_or_does_not_say_cannot_tell(address, model):
    judge = load_judge(address, model=model)
    assert judge.prefer(PROMPTS, ["one", "two"], ["three", "four"]).tolist() == [0.5, 0.5]


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
