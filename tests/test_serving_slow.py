"""A saved folder behind a real `transformers serve`: HTTP clients get steered answers without any code of ours."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from toys import tiny_model_folder
from transformers.utils.import_utils import is_serve_available

from coh.chat_template import save_for_others
from coh.data.records import Message
from coh.data.templates import load_family
from coh.generation import generate_outputs
from coh.modeling import load_model, load_tokenizer
from coh.saved import Words, save_words
from coh.steering import Steering

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_serve_available(), reason="`transformers serve` needs `pip install 'transformers[serving]'`"
    ),
]
TURNS = [
    Message("system", "Be brief."),
    Message("user", "Hi!"),
    Message("assistant", "Hello."),
    Message("user", "Why?"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with random weights, saved as a run of training saves it."""
    folder = tmp_path_factory.mktemp("model")
    # Large weights: a model whose greedy text depends on what it reads.
    tiny_model_folder(folder, initializer_range=0.5)
    words = Words(load_family("marker"), prepend_bos=True, tasks=("conversation", "general"))
    save_words(folder, words)
    save_for_others(folder, words, load_tokenizer(str(folder)), load_model(str(folder)).generation_config)
    return folder


def ask(url: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """The address of a server that holds the folder's model; it ends with the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], stdout=output, stderr=output, env=environment
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health", process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            assert ask(url) == {"status": "ok"}
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"`transformers serve` did not come up:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def expected(folder):
    """What our own generation writes for some turns, and how long the prompt was."""
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder))
    steering = Steering.of(Words(load_family("marker"), True, ("conversation",)), tokenizer)

    def write(turns, feedback):
        ids = steering.prompt_ids(turns, feedback)
        (text,) = generate_outputs(model, tokenizer, ids, max_new_tokens=24, do_sample=False)
        return text, len(ids)

    return write


def body(folder, turns, **more):
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return {"model": str(folder), "messages": messages, "max_tokens": 24, "temperature": 0, **more}


def test_good_words_stand_in_front_of_an_answer_by_themselves(folder, server, expected):
    for turns in (TURNS, TURNS[-1:]):
        found = ask(f"{server}/v1/chat/completions", body(folder, turns))
        text, num_prompt = expected(turns, "good")
        assert found["choices"][0]["message"]["content"].strip() == text != ""
        assert found["usage"]["prompt_tokens"] == num_prompt


def test_other_words_are_asked_for_in_the_request(folder, server, expected):
    texts = set()
    for feedback in ("good", "bad", "A very short answer:"):
        more = {"chat_template_kwargs": {"feedback": feedback}}
        found = ask(f"{server}/v1/chat/completions", body(folder, TURNS, **more))["choices"][0]["message"]["content"]
        assert found.strip() == expected(TURNS, feedback)[0]
        texts.add(found)
    assert len(texts) == 3, "the words make no difference, so this shows nothing"


def test_parts_of_text_and_the_client_of_openai(folder, server, expected):
    from openai import OpenAI

    client = OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    options = {"model": str(folder), "max_tokens": 24, "temperature": 0}
    bad = {"chat_template_kwargs": {"feedback": "bad"}}
    answer = client.chat.completions.create(messages=parts, extra_body=bad, **options)
    assert answer.choices[0].message.content.strip() == expected(TURNS[-1:], "bad")[0]
    stream = client.chat.completions.create(messages=[{"role": "user", "content": "Why?"}], stream=True, **options)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    # A stream holds back the bytes of a character that is not whole yet, and random weights may end within one.
    assert "".join(pieces).strip() == expected(TURNS[-1:], "good")[0].rstrip("\ufffd")
