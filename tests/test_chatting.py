"""A conversation in the terminal: lines in, answers out, and a way out at any time."""

import fcntl
import io
import os
import pty
import signal
import subprocess
import sys
import termios
from dataclasses import replace

import pytest
from toys import tiny_model_folder

from coh.chatting import COMMANDS, Chat, talk
from coh.data.records import Message
from coh.data.templates import load_family
from coh.saved import Words, save_words
from coh.steered import Request, load

OPTIONS = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_folder(folder, initializer_range=0.3)
    save_words(folder, Words(load_family("marker"), tasks=("answer", "conversation")))
    return str(folder)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def chat_of(model, **options):
    return Chat(model, {**OPTIONS, **options}, out=io.StringIO())


def said(chat, *lines):
    """What the terminal shows after some lines."""
    before = len(chat.out.getvalue())
    for line in lines:
        assert chat.obey(line)
    return chat.out.getvalue()[before:]


def answer_to(model, turns, feedback="good", earlier=()):
    model = replace(model, task="conversation")
    return model.answer([Request(tuple(turns), feedback, earlier)], **OPTIONS)[0][0]


def test_the_history_is_the_conversation(model):
    chat = chat_of(model)
    first = said(chat, "Hi")
    turns = [Message("user", "Hi"), Message("assistant", answer_to(model, [Message("user", "Hi")]))]
    assert chat.turns == tuple(turns) and first.strip() == turns[1].content.strip() and first.endswith("\n")
    said(chat, "Why?")
    turns.append(Message("user", "Why?"))
    turns.append(Message("assistant", answer_to(model, turns)))
    assert chat.turns == tuple(turns)


def test_words_are_for_the_next_answers(model):
    hi = [Message("user", "Hi")]
    chat = chat_of(model)
    assert said(chat, "/bad") == "The next answers are under bad words.\n"
    said(chat, "Hi")
    assert chat.turns[-1].content == answer_to(model, hi, "bad") != answer_to(model, hi)
    assert said(chat, "/words Say it, in short:") == "Words: Say it, in short:\n"
    assert said(chat, "/reset") == "A new conversation.\n" and chat.turns == ()
    said(chat, "Hi")
    assert chat.turns[-1].content == answer_to(model, hi, "Say it, in short:")
    said(chat, "/good", "/reset", "Hi")
    assert chat.turns[-1].content == answer_to(model, hi)
    assert "write good, bad" in said(chat, "/words") and chat.feedback == "good"


def test_revising_takes_the_place_of_the_last_answer(model):
    chat = chat_of(model)
    assert said(chat, "/revise") == "There is no answer yet that could be revised.\n"
    said(chat, "Hi")
    first, hi = chat.turns[-1].content, [Message("user", "Hi")]
    said(chat, "/revise")
    second = answer_to(model, hi, earlier=(first,))
    assert chat.turns == (*hi, Message("assistant", second)) and chat.versions == (first, second)
    said(chat, "/revise")
    assert chat.turns == (*hi, Message("assistant", answer_to(model, hi, earlier=(first, second))))


def test_too_long_a_history_loses_its_oldest_turns(model):
    chat = chat_of(model)
    shown = said(chat, *(f"{n} " + "a" * 150 for n in range(4)))
    assert shown.count("(The oldest 2 turns are forgotten: the model reads 512 tokens.)") == 2
    users = [turn.content.split()[0] for turn in chat.turns if turn.role == "user"]
    assert users == ["2", "3"] and chat.turns[0].role == "user"


def test_too_long_a_message_is_not_kept(model):
    chat = chat_of(model)
    said(chat, "Hi")
    turns = chat.turns
    assert "the model has 512 positions" in said(chat, "a" * 600)
    assert chat.turns == turns


def test_beams_are_shown_when_they_are_done(model):
    chat = chat_of(model, num_beams=2)
    assert said(chat, "Hi") == chat.turns[-1].content + "\n"


def test_guidance(model):
    chat = Chat(model, OPTIONS, guidance=3.0, out=io.StringIO())
    said(chat, "Hi")
    assert chat.turns[-1].content != answer_to(model, [Message("user", "Hi")])


def test_help_and_what_is_no_command(model):
    chat = chat_of(model)
    shown = said(chat, "/help")
    assert all(name in shown for name in COMMANDS)
    assert said(chat, "/hlep") == "/hlep is not a command; /help lists them.\n"
    assert said(chat, "", "  ") == "" and chat.turns == ()
    assert not chat.obey("/quit")


@pytest.mark.parametrize("lines", ["Hi\n", "Hi\n/quit\nNo more\n", ""])
def test_talking_ends_with_the_lines_or_before(model, lines):
    chat = chat_of(model)
    talk(chat, io.StringIO(lines))
    assert [turn.content for turn in chat.turns if turn.role == "user"] == (["Hi"] if lines else [])


def test_ctrl_c_while_an_answer_is_written_leaves(model):
    class Lines(io.StringIO):
        def __next__(self):
            raise KeyboardInterrupt

    chat = chat_of(model)
    talk(chat, Lines("Hi\n"))
    assert chat.out.getvalue().endswith("/help.\n\n")


@pytest.mark.parametrize(
    "way_out", ["/quit\n", pytest.param("\x04", marks=pytest.mark.slow), pytest.param("\x03", marks=pytest.mark.slow)]
)
def test_in_a_real_terminal(folder, way_out):
    """The whole command behind a pseudo-terminal; Ctrl-D and Ctrl-C are what the terminal makes of these bytes."""
    main_end, its_end = pty.openpty()
    command = [sys.executable, "-m", "coh.generate", "--model", folder, "--interactive", "--max_new_tokens", "4"]
    process = subprocess.Popen(
        command,
        stdin=its_end,
        stdout=its_end,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=in_its_terminal,
    )
    os.close(its_end)
    try:
        shown = read_until(main_end, "> ")
        assert "Say something, or /help." in shown
        os.write(main_end, b"Hi\n")
        assert "Hi" in read_until(main_end, "\n> ")
        errors = leave(process, main_end, way_out)
        assert process.returncode == 0 and b"Traceback" not in errors
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        os.close(main_end)


def leave(process, descriptor, way_out):
    """Presses the keys, and again where nothing happens: Python looks for a Ctrl-C that comes between the prompt and
    the wait for a key only when the next one is pressed.
    """
    for _ in range(5):
        os.write(descriptor, way_out.encode())
        try:
            return process.communicate(timeout=10)[1]
        except subprocess.TimeoutExpired:
            continue
    return pytest.fail(f"{way_out!r} is no way out")


def in_its_terminal():
    """What a shell does before it starts a program: tests that run in the background were told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(descriptor, words):
    shown = ""
    while not shown.endswith(words):
        shown += os.read(descriptor, 4096).decode(errors="replace").replace("\r", "")
        shown = shown.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
    return shown
