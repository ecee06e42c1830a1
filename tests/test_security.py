"""Nothing that a model, a checkpoint, a data set or a template brings along is run, opened or obeyed.

Each attack would leave a mark if it worked: a folder that it makes, a file that it opens, a sign that a terminal or a
browser obeys. Where it can, a test shows as well that the attack works on those who trust what they read.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import shutil
import sys
import tarfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import TINY_LLAMA, byte_tokenizer, chat_tokenizer, pairs, tiny_model_folder, training_folder, write_rows

from coh import coh_train, evaluate, generate, preview, score
from coh.arguments import ConfigError, parse_or_raise
from coh.chat_template import steering_chat_template
from coh.data.forms import chat_form
from coh.data.records import FeedbackError, Message, visible
from coh.data.sources import load_groups, parse_source
from coh.data.templates import load_family, read_family
from coh.experiment import ExperimentArgs
from coh.modeling import ModelError, load_config, load_model, load_tokenizer
from coh.rows import as_line, read_judged, read_prompts
from coh.saved import Words, save_words
from coh.steering import Steering
from coh.train_args import CoHTrainArgs

SECRET = "hf_averysecrettoken0123456789"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
NASTY = "\x1b[31mred\x1b]0;title\x07 \x9b2J <script>alert('x')</script> \" onmouseover=\"alert(1) & \u202eturned"


class Bomb:
    """An object whose pickle makes a folder when it is loaded by somebody who trusts it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """The folder that attacks make where they work; at the end it must not be there."""
    path = tmp_path / "attacked"
    yield path
    assert not path.exists()


@pytest.fixture(scope="session")
def opened():
    """The files that are opened, and the addresses that are called, from now on: a list that grows."""
    found: list[str] = []

    def watch(event, args):
        if event in ("open", "socket.connect", "socket.getaddrinfo"):
            found.append(str(args[0] if event == "open" else args))

    sys.addaudithook(watch)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run with a token of the hub and other secrets: its folder, and all that it logged and printed."""
    folder = training_folder(tmp_path_factory.mktemp("run"))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger()
    secrets = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET, "OPENAI_API_KEY": SECRET}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        logger.addHandler(handler)
        patch.setattr(logger, "level", logging.DEBUG)
        options = [*options_of(folder), "--hub_token", SECRET, "--max_steps", "2", "--save_steps", "1"]
        with redirect_stdout(stream), redirect_stderr(stream):
            coh_train.main([*options, "--logging_steps", "1"])
        logger.removeHandler(handler)
    return folder, stream.getvalue()


def options_of(folder: Path, output: str = "out") -> list[str]:
    return [
        *("--model_name", str(folder / "model"), "--feedback_data", str(folder / "pairs.jsonl")),
        *(
            "--pretrain_data",
            "none",
            "--templates",
            "marker",
            "--seq_length",
            "128",
            "--use_cpu",
            "--report_to",
            "none",
            "--write_report",
            "false",
        ),
        *("--per_device_train_batch_size", "2", "--output_dir", str(folder / output), "--cache_dir", str(folder / "c")),
    ]


def trusted(content: bytes, mark: Path) -> None:
    """Loads a pickle as nobody should, to see that the attack is one."""
    pickle.loads(content)
    assert mark.is_dir()
    mark.rmdir()


# Pickles


def test_weights_in_a_pickle_are_read_as_tensors_alone(tmp_path, mark):
    import torch

    folder = Path(tiny_model_folder(tmp_path / "model"))
    model = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    again = load_model(str(folder))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))

    for content in ({"model.norm.weight": Bomb(mark)}, Bomb(mark)):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(str(folder))
    trusted(pickle.dumps(Bomb(mark)), mark)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder))


def test_what_is_saved_holds_no_pickle_of_weights(run):
    folder, _ = run
    saved = {path.name for path in (folder / "out").iterdir() if path.is_file()}
    assert "model.safetensors" in saved
    assert {name for name in saved if name.endswith((".bin", ".pt", ".pth", ".pkl"))} == {"training_args.bin"}


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_runs_nothing_when_training_goes_on(run, tmp_path, mark, name):
    import torch

    folder, _ = run
    checkpoint = shutil.copytree(folder / "out" / "checkpoint-1", tmp_path / "out" / "checkpoint-1")
    assert (checkpoint / name).is_file()
    torch.save(Bomb(mark), checkpoint / name)
    marker = checkpoint / "complete.json"
    if marker.exists():  # the attacker knows the marker of complete checkpoints as well
        about = json.loads(marker.read_text())
        about["files"][name] = (checkpoint / name).stat().st_size
        marker.write_text(json.dumps(about))
    options = [*options_of(folder), "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]
    try:
        coh_train.main([*options, "--resume_from_checkpoint", str(checkpoint)])
    except SystemExit as error:
        assert str(error.code).startswith("coh.coh_train: ")
    else:
        assert name == "training_args.bin"  # which nobody reads


# Code that lies with a model


EVIL = """
import os
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
if not os.path.isdir({mark!r}):
    os.mkdir({mark!r})
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def evil(tmp_path, mark):
    """A model whose configuration and tokenizer want to bring code of their own, with the words of a trained model."""
    folder = Path(tiny_model_folder(tmp_path / "evil"))
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "architectures": ["EvilModel"]}
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    save_words(folder, Words(load_family("marker")))
    return folder


def test_code_of_a_model_runs_when_asked_for_and_never_else(evil, mark, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question, where only the option counts"))
    for load in (load_config, load_tokenizer, load_model):
        with pytest.raises(ModelError, match=r"code of its own, which is not run unasked: .* --trust_remote_code"):
            load(str(evil))
    assert not mark.exists()
    assert type(load_config(str(evil), trust_remote_code=True)).__name__ == "EvilConfig"
    assert mark.is_dir()  # it is code indeed
    assert type(load_model(str(evil), trust_remote_code=True)).__name__ == "EvilModel"
    assert load_tokenizer(str(evil), trust_remote_code=True)("Hi").input_ids
    mark.rmdir()


def test_every_program_refuses_it_and_names_the_option(evil, tmp_path, capsys):
    rows = write_rows(tmp_path / "pairs.jsonl", pairs(30))
    data = ["--feedback_data", rows, "--cache_dir", str(tmp_path / "cache")]
    training = ["--model_name", str(evil), *data, "--pretrain_data", "none", "--output_dir", str(tmp_path / "out")]
    programs = [
        (coh_train.main, [*training, "--use_cpu"]),
        (preview.main, [*training, "--use_cpu"]),
        (generate.main, ["--model", str(evil), "--prompt", "Hi"]),
        (score.main, ["--model", str(evil), "--input", rows, "--cache_dir", str(tmp_path / "cache")]),
        (evaluate.main, ["--model", str(evil), *data, "--split", "all"]),
    ]
    for main, options in programs:
        with pytest.raises(SystemExit) as exit_:
            main(options)
        assert "--trust_remote_code" in f"{exit_.value.code} {capsys.readouterr().err}"


def test_the_option_is_off(tmp_path):
    assert ExperimentArgs().trust_remote_code is False
    (args,) = parse_or_raise([ExperimentArgs], ["--trust_remote_code"])
    assert args.trust_remote_code is True


def test_code_beside_a_known_model_is_left_alone(tmp_path, mark):
    folder = Path(tiny_model_folder(tmp_path / "model"))
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(
        EVIL.format(mark=str(mark)) + "def generate(*a, **k): ...\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.EvilModel"}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(str(folder))
    assert type(model).__name__ == "LlamaForCausalLM"
    model.generate(load_tokenizer(str(folder))("Hi", return_tensors="pt").input_ids, max_new_tokens=1)


def test_attention_from_a_repository_is_not_fetched(tmp_path, opened):
    folder = Path(tiny_model_folder(tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_attn_implementation": "evil/kernel"}))
    start = len(opened)
    with suppress(ModelError):
        assert "/" not in (load_model(str(folder)).config._attn_implementation or "")
    assert not [what for what in opened[start:] if "evil" in what]


# Templates


@pytest.mark.parametrize(
    "words", ["{prompt} {better.__class__}", "{prompt} {0}", "{prompt} A {{ 7*7 }}: {better}", "{prompt!r} A: {better}"]
)
def test_words_reach_no_attribute_and_run_no_code(words):
    with pytest.raises(FeedbackError, match=r"is no slot|stands alone|touches"):
        read_family("mine", {"tasks": {"general": {"p": [words]}}})


def test_signs_of_jinja_and_of_format_strings_stay_words():
    words = "{prompt} A {%s} answer, 100 %, %(x)s $x {better}".replace("{%s}", "%s")
    family = read_family("mine", {"tasks": {"general": {"p": [words], "n": ["{prompt} {# no"[:9] + "Bad: {worse}"]}}})
    tokenizer = byte_tokenizer()
    ids = Steering.of(Words(family), tokenizer).prompt_ids("{{ 7*7 }} {prompt} {0.__class__} %s {% x %}", "good")
    assert tokenizer.decode(ids) == "{{ 7*7 }} {prompt} {0.__class__} %s {% x %} A %s answer, 100 %, %(x)s $x"


@pytest.mark.parametrize(
    "text",
    [
        "tasks: !!python/object/apply:os.mkdir [MARK]",
        "tasks: {general: {p: [!!python/object/new:os.mkdir [MARK]]}}",
        "tasks: {general: {p: !!python/name:os.mkdir ''}}",
        "eos: !evil each",
    ],
)
def test_yaml_makes_no_objects(tmp_path, mark, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("MARK", str(mark)))
    with pytest.raises(FeedbackError, match=r"line 1: .* is no plain text, list or mapping: take the tag away"):
        load_family(str(path))
    path.write_text(text.replace("MARK", str(mark)).replace("tasks", "model_name").replace("eos", "model_name"))
    with pytest.raises(ConfigError, match=r"is not YAML: .* is no plain value: take the tag away"):
        parse_or_raise([ExperimentArgs], ["--config", str(path)])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}Ask Reply",
        "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}Ask Reply",
        "{% set _ = messages.append({'role': 'user', 'content': 'more'}) %}Ask Reply",
        "{% for x in range(10**9) %}{% endfor %}Ask Reply",
        "{% include '/etc/passwd' %}",
        "{% if %}",
        "nothing that was said",
    ],
)
def test_a_chat_template_can_do_nothing_but_write(mark, template):
    tokenizer = chat_tokenizer(template=template.replace("MARK", str(mark)))
    with pytest.raises(FeedbackError, match=r"chat template (fails|leaves out)"):
        chat_form(load_family("marker"), tokenizer)


WORDS = (
    st.text(st.sampled_from("ab1 '\"\\%#-}{\n\t$é🙂\u2028\x07<>|"), min_size=1, max_size=14).map(str.strip).filter(bool)
)


@given(words=WORDS.filter(lambda text: not set("{}") & set(text)), role=WORDS)
@example(words='x" %} {% set y = 1 %} "'.replace("{", "").replace("}", ""), role="{{ 7*7 }}")
@example(words="' ~ raise_exception(1) ~ '", role="{%- endset -%}")
@example(words="\\", role='\\"')
@settings(max_examples=60)
def test_words_stay_words_in_the_chat_template_that_is_saved(words, role):
    family = read_family(
        "mine",
        {
            "roles": {"user": role},
            "tasks": {"general": {"p": ["{prompt} %s {better}" % words], "n": ["{prompt} Bad {worse}"]}},
        },
    )
    tokenizer = byte_tokenizer()
    steering = Steering.of(Words(family), tokenizer)
    tokenizer.chat_template = steering_chat_template(Words(family), tokenizer)
    turns = [Message("user", "{{ 7*7 }}"), Message("assistant", "Hm {% x %}"), Message("user", "2 + 2?")]
    for asked in (turns, turns[:1]):
        messages = [vars(turn) for turn in asked]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == tokenizer.decode(steering.prompt_ids(asked, "good"))


# Data


def test_a_data_set_that_is_a_program_is_not_run(tmp_path, mark):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(EVIL.format(mark=str(mark)))
    with pytest.raises(FeedbackError, match="cannot load the folder"):
        load_groups(parse_source(str(folder)), cache_dir=tmp_path / "cache")
    write_rows(folder / "train.jsonl", pairs(3))  # with rows beside it, the rows are read and the program is not
    try:
        assert len(load_groups(parse_source(str(folder)), cache_dir=tmp_path / "cache")["train"]) == 3
    except FeedbackError as error:
        assert "it is a program and no data" in str(error)


@pytest.mark.parametrize("name", ["rows.pkl", "rows.npy", "rows.pt", "rows.pickle"])
def test_pickles_are_no_data(tmp_path, mark, name):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(FeedbackError, match=r"ends in one of \.jsonl"):
        parse_source(str(folder / name))
    with pytest.raises(FeedbackError, match="cannot load the folder"):
        load_groups(parse_source(str(folder)), cache_dir=tmp_path / "cache")


def test_an_archive_is_not_unpickled(tmp_path, mark):
    folder = tmp_path / "rows"
    folder.mkdir()
    with tarfile.open(folder / "rows.tar", "w") as archive:
        for name in ("a.pickle", "a.pyd", "a.pth", "a.npy"):
            content = pickle.dumps(Bomb(mark))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(FeedbackError):
        load_groups(parse_source(str(folder)), cache_dir=tmp_path / "cache")


def test_an_extension_type_of_arrow_is_not_unpickled(tmp_path, mark):
    import pyarrow as pa
    from pyarrow import parquet

    bomb = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Bomb(mark))}
    schema = pa.schema(
        [pa.field("prompt", pa.string(), metadata=bomb), ("chosen", pa.string()), ("rejected", pa.string())]
    )
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table([["Why?"], ["So."], ["No."]], schema=schema), path)
    assert len(load_groups(parse_source(str(path)), cache_dir=tmp_path / "cache")["train"]) == 1


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_column_of_images_opens_no_path(tmp_path, opened, kind):
    import pyarrow as pa
    from datasets import Features, Image, Value, load_dataset
    from pyarrow import parquet

    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    features = Features({"prompt": Value("string"), "chosen": Image(), "rejected": Value("string")})
    table = pa.table([["Why?"], [{"bytes": None, "path": str(secret)}], ["No."]], schema=features.arrow_schema)
    folder = tmp_path / "rows"
    folder.mkdir()
    path = folder / "train.parquet"
    parquet.write_table(table, path)
    start = len(opened)
    with pytest.raises(FeedbackError, match=r"row 1: field 'chosen' is an object"):
        load_groups(parse_source(str(path if kind == "file" else folder)), cache_dir=tmp_path / "cache")
    assert str(secret) not in opened[start:]
    with pytest.raises(Exception, match="image"):
        next(iter(load_dataset("parquet", data_files=str(path), split="train", streaming=True)))
    assert str(secret) in opened[start:]  # it would have been opened


def test_a_path_in_a_row_is_a_text(tmp_path, opened):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    texts = [str(secret), secret.as_uri(), "http://evil.example/x", "../secret.txt", "~/x"]
    rows = [{"prompt": text, "chosen": f"{text} a", "rejected": f"{text} b"} for text in texts]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    plain = write_rows(tmp_path / "plain.jsonl", [{"prompt": text, "outputs": texts} for text in texts])
    start = len(opened)
    store = load_groups(parse_source(path), cache_dir=tmp_path / "cache")["train"]
    assert [store.group(n).prompt[0].content for n in range(len(store))] == texts
    assert [row.prompt[0].content for row in read_prompts(plain)] == texts
    assert [list(row.outputs) for row in read_judged(plain, cache_dir=str(tmp_path / "cache"))] == [texts] * len(texts)
    assert not [what for what in opened[start:] if what == str(secret) or "evil" in what]


# What people look at


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_preview_shows_what_data_holds_and_obeys_none_of_it(tmp_path, capsys):
    model = tiny_model_folder(tmp_path / '<b onclick="x">model')
    folder = tmp_path / "<script>alert(1)"
    folder.mkdir()
    rows = [{"prompt": f"{n} {NASTY}", "chosen": f"yes {n} {NASTY}", "rejected": f"no {n} {NASTY}"} for n in range(40)]
    data = write_rows(folder / '"><img src=x onerror=alert(1)>.jsonl', rows)
    words = tmp_path / "words.yaml"
    text = json.dumps("{prompt} </script><script>alert(2)</script> Good' onclick=\"x: {better}\n")
    words.write_text(f"tasks: {{general: {{p: [{json.dumps(json.loads(text).strip())}]}}}}", encoding="utf-8")
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    options = ["--model_name", model, "--feedback_data", data, "--templates", str(words), "--pretrain_data", "none"]
    options += ["--seq_length", "512", "--use_cpu", "--cache_dir", str(tmp_path / "cache"), "--html", str(page)]
    options += ["--json", str(figures), "--color", "never", "--output_dir", str(tmp_path)]
    for more in ([], ["--token_ids"]):
        preview.main([*options, *more])
        printed, html = capsys.readouterr(), page.read_text(encoding="utf-8")
        assert "\\x1b" in printed.out and not CONTROLS.search(printed.out)
        assert not CONTROLS.search(printed.err.replace("\r", ""))  # the bars of `datasets` begin their line anew
        assert (more or "&lt;script&gt;" in html) and "\\x1b" in html and not CONTROLS.search(html)
        tags = Tags()
        tags.feed(html)
        assert {"html", "title", "table", "span"} <= tags.tags
        assert not tags.tags & {"script", "img", "iframe", "object", "embed", "link", "form", "a", "base", "b onclick"}
        assert not {name for name in tags.attributes if name.startswith("on")} and not tags.attributes & {"href", "src"}


def test_logs_and_errors_hold_nothing_that_a_terminal_obeys(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [{"prompt": f"{n} {NASTY}", "chosen": NASTY, "rejected": "b", NASTY: 1} for n in range(3)]
    load_groups(parse_source(write_rows(tmp_path / "rows.jsonl", rows)), cache_dir=tmp_path / "cache")
    assert "red" in caplog.text
    assert not [record.message for record in caplog.records if CONTROLS.search(record.getMessage())]
    attacks = {
        "no.jsonl": f"{{ {NASTY}",
        "columns.jsonl": json.dumps({NASTY: 1}),
        "role.jsonl": json.dumps({"prompt": [{"role": NASTY, "content": ""}], "chosen": "a", "rejected": "b"}),
        "value.jsonl": json.dumps({"prompt": {NASTY: NASTY}, "chosen": "a", "rejected": "b"}),
        "fields.jsonl": json.dumps({"fields": f"[{NASTY}]"}),
        "head.csv": f"{NASTY},{NASTY}\n1,2\n",
    }
    for name, text in attacks.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(FeedbackError) as error:
            load_groups(parse_source(str(tmp_path / name)), cache_dir=tmp_path / "cache")
        assert "red" in str(error.value) and not CONTROLS.search(str(error.value)), name
    assert not CONTROLS.search(str(ConfigError(f"--x {NASTY}")))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": NASTY}))
    with pytest.raises(ModelError) as refused:
        load_config(str(tmp_path))
    assert not CONTROLS.search(str(refused.value))


def test_what_a_model_writes_is_shown_and_not_obeyed(tmp_path, capsys, monkeypatch):
    model = tiny_model_folder(tmp_path / "model")
    save_words(model, Words(load_family("marker")))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    generate.main(["--model", model, "--prompt", "Hi", "--max_new_tokens", "300", "--do_sample", "--seed", "1"])
    shown = capsys.readouterr().out
    assert "\\x" in shown and not CONTROLS.search(shown)  # its letters are random: there are all signs among them
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": NASTY, "outputs": ["a" + NASTY, "b"]}])
    score.main(["--model", model, "--input", data, "--cache_dir", str(tmp_path / "cache")])
    (line,) = capsys.readouterr().out.splitlines()
    assert not CONTROLS.search(line) and json.loads(line)["prompt"] == NASTY


@given(st.text(max_size=20) | st.text(st.characters(codec=None, exclude_categories=()), max_size=5))
@example("\x85\u2028\ud800\x9b")
def test_a_line_of_json_gives_back_what_it_holds(text):
    line = as_line({"text": text, text: [1.5]})
    assert json.loads(line) == {"text": text, text: [1.5]}
    assert len(line.splitlines()) == 1 and not CONTROLS.search(line)
    line.encode()
    assert not CONTROLS.search(visible(text).replace("\t", "").replace("\n", ""))


# Secrets


def test_secrets_are_in_nothing_that_a_run_leaves(run):
    folder, logged = run
    assert "loss" in logged and SECRET not in logged
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert {"coh.json", "training_args.bin", "model.safetensors", "trainer_state.json"} <= {path.name for path in files}
    assert not [path.name for path in files if SECRET.encode() in path.read_bytes()]
    assert json.loads((folder / "out" / "coh.json").read_text())["arguments"]["hub_token"] == "<HUB_TOKEN>"


def test_options_are_shown_without_their_secrets(tmp_path):
    args = CoHTrainArgs(output_dir=str(tmp_path), hub_token=SECRET, use_cpu=True, report_to="none")
    assert args.hub_token == SECRET
    assert SECRET not in f"{args} {args!r} {args.to_dict()} {args.to_json_string()}"
    assert SECRET.encode() not in pickle.dumps(args)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"hub_token: [{SECRET}, {SECRET}]\nlearning_rate: fast\n")
    with pytest.raises(ConfigError) as error:
        parse_or_raise([CoHTrainArgs], ["--config", str(recipe), "--hub_token", SECRET, SECRET])
    assert "hub_token takes one value" in str(error.value) and SECRET not in str(error.value)


def test_the_attacks_are_real(tmp_path):
    """What the fixture `mark` looks for does come about."""
    trusted(pickle.dumps(Bomb(tmp_path / "attacked")), tmp_path / "attacked")
    assert CONTROLS.search(NASTY) and "<script>" in NASTY
    assert TINY_LLAMA
