"""Looking at the data: rows are shown as they are trained, figures are counts, and what is wrong ends with status 1."""

import json
import re
from collections import Counter
from dataclasses import fields, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from toys import TINY_LLAMA, byte_tokenizer, pairs, tiny_model_folder, training_folder, write_rows

from coh.arguments import parse_or_raise
from coh.data.coh_data import CoHDataArgs, load_datasets
from coh.experiment import ExperimentArgs
from coh.preview import PreviewArgs, main
from coh.preview.figures import figures_of, problems_of, warnings_of
from coh.preview.report import histogram
from coh.preview.rows import split_text, view_row, visible
from coh.preview.terminal import Terminal, has_color
from coh.trainer import CoHTrainArgs

IGNORED = -100
MARKUP = "<script>alert('x')</script> & <b>bold</b> </s>"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def in_many_scripts(number):
    """Pairs whose characters take several tokens of a byte-level tokenizer, and code with its indentation."""
    return [
        {
            "prompt": f"Frage {n}: Grüße, 日本語 and 🙂?",
            "chosen": f"Ответ {n} — 🙂🙃 ja.\n\n\tx = {n}",
            "rejected": f"    return {n}\n日本 {n}",
        }
        for n in range(number)
    ]


def load(tmp_path, tokenizer, rows, text=True, **options):
    path = write_rows(tmp_path / "mine.jsonl", rows)
    options = {"seq_length": 256, "feedback_data": [path], "templates": ["marker"], "pretrain_data": "none"} | options
    if text:
        texts = [{"text": f"Text {n} über 🙂. " + "So ist es. " * (n % 60)} for n in range(40)]
        options["pretrain_data"] = write_rows(tmp_path / "text.jsonl", texts)
    args = CoHDataArgs(**options)
    return load_datasets(args, tokenizer, prepend_bos=True, cache_dir=str(tmp_path / "cache"))


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("options", [{}, {"packing": "chunk", "seq_length": 150}, {"train_on": "last"}], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama_like", "bytes512", "smollm2"])
def test_a_row_is_shown_as_it_is_trained(tmp_path, tokenizers, name, options):
    tokenizer = tokenizers(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    train = load(tmp_path, tokenizer, in_many_scripts(60), **options)["train"]
    looks = Counter()
    for number in range(0, len(train), 3):
        row, view = train[number], view_row(train, tokenizer, number)
        runs = [run for document in view.documents for run in document.runs]
        ids = [token for run in runs for token in run.ids]
        targets = [run.is_target for run in runs for _ in run.ids]
        size = int((row["source_id"] >= 0).sum())
        assert row["input_ids"][:size].tolist() == ids and view.num_padding == len(row["input_ids"]) - size
        assert (row["labels"][:size] != IGNORED).tolist() == targets
        assert view.is_text == row["is_pretrain"]
        for document in view.documents:
            shown = [token for run in document.runs for token in run.ids]
            assert "".join(run.text for run in document.runs) == decode(tokenizer, shown)
        with_tokens = view_row(train, tokenizer, number, with_tokens=True)
        for own, other in zip(view.documents, with_tokens.documents):
            assert [(run.text, run.ids) for run in own.runs] == [(run.text, run.ids) for run in other.runs]
            for run in other.runs:
                assert "".join(text for text, _ in run.tokens) == run.text
                assert tuple(token for _, numbers in run.tokens for token in numbers) == run.ids
        looks.update(run.look for run in runs)
    assert {"prompt", "words", "target", "text"} <= set(looks)
    if options.get("packing") != "chunk":  # the first token behind a cut is no target, whatever it is
        assert ("output" in looks) == (options.get("train_on") == "last")


@pytest.mark.parametrize("name", ["gpt2", "bytes512", "smollm2"])
def test_what_is_coloured_as_target_is_the_outputs(tmp_path, tokenizers, name):
    tokenizer = tokenizers(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = in_many_scripts(50)
    train = load(tmp_path, tokenizer, rows, text=False)["train"]
    outputs = {row[side] for row in rows for side in ("chosen", "rejected")}
    found = Counter()
    for number in range(len(train)):
        for document in view_row(train, tokenizer, number).documents:
            painted = "".join(run.text for run in document.runs if run.is_target)
            *shown, rest = painted.split(tokenizer.eos_token)
            assert rest == ""
            for output in shown:
                # An output starts behind a space, which the indentation of code replaces.
                assert output.removeprefix("" if output.startswith("    ") else " ") in outputs
            found.update([len(shown)])
    assert set(found) == {1, 2}
    assert figures_of({"train": train}, tokenizer, "train").altered == ()


def test_a_character_of_several_tokens_stands_whole():
    tokenizer = byte_tokenizer(merges=False)
    ids = tokenizer("a🙂b")["input_ids"]
    assert len(ids) == 6
    assert split_text(tokenizer, ids, range(1, 7)) == ["a", "", "", "", "🙂", "b"]
    assert split_text(tokenizer, ids[:3], [3]) == [decode(tokenizer, ids[:3])]


@pytest.mark.parametrize("options", [{}, {"packing": "chunk", "seq_length": 90}], ids=str)
def test_figures_are_counts(tmp_path, options):
    tokenizer = byte_tokenizer()
    datasets = load(tmp_path, tokenizer, pairs(120, length=3), webgpt_dataset_test_size=0.3, **options)
    for split, dataset in datasets.items():
        found = figures_of(datasets, tokenizer, split)
        tokens = targets = feedback = bare = 0
        lengths = []
        for number in range(len(dataset)):
            row = dataset[number]
            if row["is_pretrain"]:
                continue
            feedback += 1
            tokens += int((row["source_id"] >= 0).sum())
            targets += int((row["labels"] != IGNORED).sum())
            bare += not (row["labels"] != IGNORED).any()
            lengths += [view.num_whole for view in view_row(dataset, tokenizer, number).documents]
        assert (found.tokens, found.targets) == (tokens, targets)
        assert found.summary["feedback_rows"] == feedback and found.text_rows == len(dataset) - feedback
        assert found.summary["rows_without_target"] == bare
        if not options:
            assert found.documents == len(lengths)
            assert found.summary["lengths"]["most"] == max(lengths)
            for start, last, times in histogram(found):
                assert times == sum(start <= length <= last for length in lengths)
    assert found.splits.keys() == {"train", "validation", "test"}


def test_duplicates_and_special_tokens_as_letters(tmp_path):
    rows = [
        *pairs(30),
        *pairs(3),  # once more
        *({**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs(2, start=10)),
        {"prompt": "Question 7: what is 7 plus 7?", "chosen": "new", "rejected": "other"},
        {"prompt": "What does <pad> mean?", "chosen": "It fills.", "rejected": "No."},
        {"prompt": "How does it end?", "chosen": "With </s>, always.", "rejected": "With <s> or so."},
        {"prompt": "And this?", "chosen": "It's < s>.", "rejected": "It is </S>."},
    ]
    tokenizer = byte_tokenizer()
    datasets = load(tmp_path, tokenizer, rows, webgpt_dataset_test_size=0.0)
    found = figures_of(datasets, tokenizer, "train")
    assert found.sources["mine"].duplicates == 5
    assert found.sources["mine"].literals == {"prompt": 1, "output": 1}
    assert not problems_of(found)
    assert len(warnings_of(found)) == 3


def test_prompts_on_both_sides_of_a_split(tmp_path):
    tokenizer = byte_tokenizer()
    datasets = load(tmp_path, tokenizer, pairs(60), webgpt_dataset_test_size=0.3)
    found = figures_of(datasets, tokenizer, "train")
    assert found.shared_prompts == 0 and not problems_of(found)
    whole = load(tmp_path, tokenizer, pairs(60), webgpt_dataset_test_size=0.0)
    mixed = figures_of({**datasets, "train": whole["train"]}, tokenizer, "train")
    held_out = datasets["validation"].chains.sources[0].indices.size + datasets["test"].chains.sources[0].indices.size
    assert mixed.shared_prompts == held_out > 0
    assert problems_of(mixed) == [f"{held_out} prompts stand in training and in evaluation: hold them out."]


def test_rows_without_targets(tmp_path):
    tokenizer = byte_tokenizer()
    found = figures_of(load(tmp_path, tokenizer, pairs(60), text=False), tokenizer, "train")
    rows = found.summary["feedback_rows"]

    def with_bare(number):
        return replace(found, summary={**found.summary, "rows_without_target": number})

    assert problems_of(with_bare(rows // 2))[0].endswith(
        "of the feedback rows have no target: raise --seq_length or choose --packing fit."
    )
    assert not problems_of(with_bare(1)) and warnings_of(with_bare(1))[0].startswith("1 feedback rows have no target")
    sources = {name: replace(source, targets=0) for name, source in found.sources.items()}
    assert problems_of(replace(found, sources=sources)) == ["there is no target at all: nothing would be learned."]


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("preview"))


def options(folder, **changes):
    """A command line of training."""
    values = {
        "model_name": folder / "model",
        "feedback_data": f"mine={folder / 'pairs.jsonl'}",
        "pretrain_data": folder / "text.jsonl",
        "templates": "marker",
        "seq_length": 256,
        "output_dir": folder / "never",
        "learning_rate": "3e-3",
        "per_device_train_batch_size": 2,
        "use_cpu": "true",
        "cache_dir": folder / "cache",
    } | changes
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", *str(value).split())]


def status(arguments):
    """The exit status; a message that goes with it is status 1."""
    try:
        main(arguments)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    return 0


def test_a_command_line_of_training_is_looked_at_and_nothing_is_written(folder, capsys):
    recipe = folder / "recipe.yaml"
    recipe.write_text("warmup_steps: 3\nseq_length: 200\n", encoding="utf-8")
    before = sorted(path.name for path in folder.iterdir() if path.name != "cache")
    assert status([*options(folder, seq_length=None), "--config", str(recipe), "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Nothing was found that would make training wrong." in shown
    assert "Row 0: feedback" in shown and "Row 1: pretraining text" in shown and "Row 2" not in shown
    assert "of 200 tokens are padding" in shown and "</s>⟧" in shown and "\x1b" not in shown
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == before
    names = [field.name for kind in (ExperimentArgs, CoHDataArgs, CoHTrainArgs) for field in fields(kind)]
    assert not set(names) & {field.name for field in fields(PreviewArgs)}


def test_the_rows_asked_for_of_the_split_asked_for(folder, capsys):
    asked = ["--split", "validation", "--first_row", "1", "--rows", "1"]
    assert status([*options(folder, webgpt_dataset_test_size=0.4), *asked]) == 0
    shown = capsys.readouterr().out
    assert "Row 1:" in shown and "Row 0:" not in shown and "One pass over the validation split" in shown
    assert status([*options(folder), "--rows", "0"]) == 0
    assert "Row 0" not in capsys.readouterr().out


def wrong(tmp_path, folder, which):
    """Options and files with which training would go wrong, and what is said of it."""
    same = [{"prompt": f"Is it {n}?", "chosen": "x", "rejected": "x"} for n in range(40)]
    rows, changes, said = {
        "no usable group": (
            [{"prompt": f"Is it {n}?", "responses": ["yes", "no"], "ranks": [1, 1]} for n in range(20)],
            {"feedback_data": f"mine={folder / 'pairs.jsonl'} {tmp_path / 'rows.jsonl'}", "chains": "p"},
            "rows: no usable group",
        ),
        "groups dropped": ([*same, *pairs(20)], {}, "6.% of its groups are dropped .identical outputs: 40"),
        "too long": (
            [*pairs(20), *({"prompt": f"{n}?", "chosen": "a b " * 200, "rejected": "c d " * 200} for n in range(40))],
            {},
            r"\d+% of the chains are dropped, because an output alone is longer than a row",
        ),
    }[which]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    return {"feedback_data": path, "webgpt_dataset_test_size": 0.0, "pretrain_data": "none"} | changes, said


@pytest.mark.parametrize("which", ["no usable group", "groups dropped", "too long"])
def test_what_would_make_training_wrong_ends_with_status_1(tmp_path, folder, capsys, which):
    changes, said = wrong(tmp_path, folder, which)
    assert status([*options(folder, **changes), "--json", str(tmp_path / "found.json")]) == 1
    shown = capsys.readouterr().out
    assert "This would make training wrong" in shown and re.search(said, shown)
    (problem,) = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["problems"]
    assert re.search(said, problem)


def test_a_source_that_is_not_wanted_may_be_empty(tmp_path, folder):
    changes, _ = wrong(tmp_path, folder, "no usable group")
    assert status(options(folder, **changes, feedback_weights="1 0")) == 0


def save_model(folder, backend, **tokens):
    """A model's configuration with a tokenizer."""
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    LlamaConfig(**{**TINY_LLAMA, "vocab_size": len(tokenizer)}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_that_are_unknown(tmp_path, folder, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "</s>", "It", "is", ".", ":", "Question", "User", "helpful", "answer", "A", "An", "Not", "Right"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model = save_model(tmp_path / "words", backend, eos_token="</s>", unk_token="[UNK]")
    assert status(options(folder, model_name=model)) == 1
    assert re.search(r"\d+\.\d% of the tokens are unknown to the tokenizer", capsys.readouterr().out)


def test_outputs_that_do_not_come_back(tmp_path, folder, capsys):
    from tokenizers import normalizers

    backend = byte_tokenizer().backend_tokenizer
    for normalizer, expected in ((normalizers.Lowercase(), 1), (normalizers.NFC(), 0)):
        backend.normalizer = normalizer
        name = tmp_path / type(normalizer).__name__
        model = save_model(name, backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
        data = write_rows(
            tmp_path / "umlauts.jsonl", [{**row, "chosen": "A\u0308h " + row["chosen"]} for row in pairs(30)]
        )
        assert status(options(folder, model_name=model, feedback_data=data)) == expected
    found = capsys.readouterr().out
    assert re.search(
        r"outputs in the \d+ chains looked at are not trained as they were written \(umlauts, row \d+", found
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "test", "webgpt_dataset_test_size": 0.0}, "--split test: there is none; there are train"),
        ({"first_row": 100000}, r"--first_row 100000: train has \d+ rows, 0 to \d+"),
        ({"pretrain_data": "no.jsonl"}, "--pretrain_data no.jsonl: there is no such file"),
    ],
)
def test_what_cannot_be_shown_is_said(folder, changes, said):
    with pytest.raises(SystemExit, match=f"coh.preview: {said}"):
        main(options(folder, **changes))


def test_feedback_is_shown_where_text_is_out_of_reach(folder, capsys, monkeypatch):
    """What ends training does not keep anybody from a look at their own rows."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert status(options(folder, pretrain_data="some-org/not-there")) == 1
    shown = capsys.readouterr().out
    assert "--pretrain_data some-org/not-there cannot be read: check the name and the network" in shown
    assert "what is shown is without it" in shown and "Question" in shown


def test_options_that_do_not_fit_are_said_before_anything_is_read(folder, capsys):
    wrong = {"rows": -1, "html": folder, "json": folder / "no" / "x.json", "seq_length": 1024}
    assert status(options(folder, **wrong)) == 2
    said = capsys.readouterr().err
    assert "--rows -1: give 0 or more." in said and said.count("give a file, in a folder that is there.") == 2
    assert status(options(folder, seq_length=1024)) == 2
    assert "--seq_length 1024 is more than the model's 512 positions" in capsys.readouterr().err


# Terminal and page


def test_colour_ends_with_every_line_and_changes_no_text(tmp_path):
    tokenizer = byte_tokenizer()
    train = load(tmp_path, tokenizer, in_many_scripts(40))["train"]
    views = [view_row(train, tokenizer, number) for number in range(4)]
    painted = Terminal(color=True).rows(views)
    for line in painted.split("\n"):
        assert not line or line.endswith("\x1b[0m") or "\x1b" not in line.rpartition("\x1b[0m")[2]
        assert line.count("\x1b[0m") * 2 == line.count("\x1b[")
    for view in views:
        for document in view.documents:
            text = visible("".join(run.text for run in document.runs))
            assert text in ANSI.sub("", painted)
            plain = Terminal(color=False).row(view)
            assert text in re.sub("[⟦⟧⟨⟩⟪⟫]", "", plain) and "\x1b" not in plain
        targets = ["".join(part) for part in re.findall(r"\x1b\[1;32(?:;7)?m([^\x1b]*)\x1b", Terminal(True).row(view))]
        runs = [run.text for document in view.documents for run in document.runs if run.is_target]
        assert "".join(targets) == visible("".join(runs)).replace("\n", "")


def test_colour_is_a_matter_of_wish_terminal_and_environment(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_color("auto") and has_color("always") and not has_color("never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_color("auto") and has_color("always")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert not has_color("auto")


def test_what_a_terminal_would_obey_is_spelled_out(folder, tmp_path, capsys):
    rows = [{**row, "chosen": "\x1b[2J\x07 gone\u202e" + row["chosen"]} for row in pairs(30)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    arguments = options(folder, feedback_data=path, pretrain_data="none", chains="p")
    assert status([*arguments, "--color", "never"]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b[2J\\x07 gone\\u202eIt is" in shown and not set("\x1b\x07\u202e") & set(shown)


class Reader(HTMLParser):
    """Reads a page: the text of its documents, and that every tag is closed in its turn."""

    VOID = ("meta",)

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.bodies = [], Counter(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes).get("class")))
            if self.open[-1] == ("div", "body"):
                self.bodies.append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        if ("div", "body") in self.open and self.open[-1][0] != "sub":
            self.bodies[-1] += text


@pytest.mark.parametrize("token_ids", [False, True])
def test_the_page_is_whole_alone_and_escaped(folder, tmp_path, token_ids):
    rows = [{**row, "prompt": f"{MARKUP} {row['prompt']}", "chosen": f"{MARKUP} {row['chosen']}"} for row in pairs(40)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    file = tmp_path / "page.html"
    arguments = options(folder, feedback_data=path, seq_length=512)
    assert status([*arguments, "--rows", "3", "--html", str(file), "--token_ids", str(token_ids)]) == 0
    page = file.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    assert reader.tags["article"] == 3 and reader.tags["svg"] == 1 and reader.tags["style"] == 1
    assert not set(reader.tags) & {"script", "img", "link", "iframe", "object", "base"}
    assert not {name for name, _ in reader.attributes} & {"src", "href", "onload", "onclick", "srcset", "action"}
    assert "http" not in page and "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert any(MARKUP in text for text in reader.bodies) and MARKUP not in page

    args = parse_or_raise([ExperimentArgs, CoHDataArgs, CoHTrainArgs], arguments)
    train = load_datasets(args[1], byte_tokenizer(), seed=args[2].seed, cache_dir=str(folder / "cache"))["train"]
    documents = [one for number in range(3) for one in view_row(train, byte_tokenizer(), number).documents]
    assert reader.bodies == ["".join(visible(run.text) for run in one.runs) for one in documents]
    assert ("<sub>" in page) == token_ids
    if token_ids:
        shown = [int(number) for found in re.findall(r"<sub>([\d ]+)</sub>", page) for number in found.split()]
        assert shown == [token for one in documents for run in one.runs for token in run.ids]


def test_json_has_the_figures(folder, tmp_path):
    file = tmp_path / "found.json"
    assert status([*options(folder), "--json", str(file)]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["problems"] == [] and found["figures"]["sources"]["mine"]["documents"] > 0
    assert np.sum(found["figures"]["summary"]["lengths"]["bins"]) == found["figures"]["sources"]["mine"]["documents"]


def test_no_weights_are_needed(folder, tmp_path):
    tiny_model_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert status(options(folder, model_name=tmp_path / "model")) == 0
