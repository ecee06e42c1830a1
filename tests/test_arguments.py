"""Every problem with the options is said at once, and a recipe means what the same words on the command line mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import TrainingArguments

from coh.arguments import ConfigError, parse, parse_or_raise


@dataclass
class ModelArgs:
    """What is trained. The second sentence stays out of the help."""

    model_name: str = field(default="gpt2", metadata={"help": "Hub id or folder; 100 %% of it is loaded."})
    num_layers: int | None = field(default=None, metadata={"help": "Layers to keep."})
    use_lora: bool = field(default=False, metadata={"help": "Train adapters alone."})
    keep_head: bool = field(default=True, metadata={"help": "Keep the head."})
    dropout: float | None = field(default=0.1, metadata={"help": "Share of units dropped."})


@dataclass
class DataArgs:
    _argument_group_name = "where rows come from"

    feedback_weights: list[float] | None = field(
        default=None, metadata={"help": "Shares of the sources.", "aliases": ["--hf_weights"]}
    )
    chains: list[Literal["p", "n", "pn", "np"]] = field(
        default_factory=lambda: ["pn", "np"], metadata={"help": "Orders of good and bad."}
    )
    packing: Literal["fit", "chunk"] = field(default="fit", metadata={"help": "How rows are filled."})
    seq_length: int = field(default=512, metadata={"help": "Tokens in a row."})
    options: dict[str, Any] | None = field(default=None, metadata={"help": "Anything else."})

    def __post_init__(self) -> None:
        problems = []
        if self.seq_length < 2:
            problems.append(f"--seq_length {self.seq_length} is too short: give 2 or more.")
        if self.feedback_weights and min(self.feedback_weights) < 0:
            problems.append(f"--feedback_weights {self.feedback_weights} holds a negative share: give 0 or more.")
        if problems:
            raise ConfigError(problems)


@dataclass
class TrainArgs(TrainingArguments):
    """How it is trained."""

    pt_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the pretraining loss."})


@dataclass
class RequiredArgs:
    """What cannot be guessed."""

    prompt: str = field(metadata={"help": "The text to continue."})
    count: int = field(default=1, metadata={"help": "How many."})


@dataclass
class BareArgs:
    """What stands without an option."""

    folders: list[str] = field(default_factory=list, metadata={"help": "Where to look."})
    name: str = field(default="", metadata={"help": "What it is called."})
    deep: bool = field(default=False, metadata={"help": "Look below too."})
    broad: bool = field(default=True, metadata={"help": "Look beside too."})


def problems_of(types: list[type], argv: list[str], **kwargs: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_or_raise(types, argv, **kwargs)
    return caught.value.problems


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


class TestValues:
    def test_defaults_are_the_dataclass_own(self) -> None:
        assert parse_or_raise([ModelArgs, DataArgs], []) == (ModelArgs(), DataArgs())

    @pytest.mark.parametrize(
        "words",
        [
            ["--feedback_weights", "1,2,1"],
            ["--feedback_weights", "1", "2", "1"],
            ["--feedback_weights", "1,", "2", ",1"],
            ["--feedback_weights=1,2,1"],
            ["--hf_weights", "1, 2, 1"],
            ["--feedback-weights", "1", "2,1"],
            ["--feedback_weights", "9", "--feedback_weights", "1,2,1"],
        ],
    )
    def test_lists_take_spaces_and_commas(self, words: list[str]) -> None:
        (args,) = parse_or_raise([DataArgs], words)
        assert args.feedback_weights == [1.0, 2.0, 1.0]

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--use_lora"], True),
            (["--use_lora", "no"], False),
            (["--use_lora", "ON"], True),
            (["--use_lora=false"], False),
            ([], False),
        ],
    )
    def test_booleans(self, words: list[str], expected: bool) -> None:
        (args,) = parse_or_raise([ModelArgs], words)
        assert args.use_lora is expected

    def test_a_boolean_that_may_be_none_needs_no_value_either(self) -> None:
        (args,) = parse_or_raise([TrainArgs], ["--use_cpu", "--ddp_static_graph", "--seed", "3"])
        assert (args.ddp_static_graph, args.seed) == (True, 3)

    def test_the_opposite_of_a_boolean(self) -> None:
        assert parse_or_raise([ModelArgs], ["--no_keep_head"])[0].keep_head is False

    def test_negative_numbers_are_values_and_not_options(self) -> None:
        args, _ = parse_or_raise(
            [ModelArgs, RequiredArgs], ["--dropout", "-1e-4", "--prompt", "-5 - 3 =", "--count", "-2"]
        )
        assert (args.dropout, _.prompt, _.count) == (-1e-4, "-5 - 3 =", -2)

    def test_a_value_after_an_equals_sign_may_look_like_an_option(self) -> None:
        assert parse_or_raise([RequiredArgs], ["--prompt=--help me=now"])[0].prompt == "--help me=now"

    def test_mappings_are_json(self) -> None:
        (args,) = parse_or_raise([DataArgs], ["--options", '{"a": [1e-4, null]}'])
        assert args.options == {"a": [1e-4, None]}

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5), st.booleans())
    @example([-0.0, 1e-300, -5e-324], True)
    def test_any_list_of_numbers_survives_the_command_line(self, numbers: list[float], joined: bool) -> None:
        words = [repr(abs(number)) for number in numbers]
        (args,) = parse_or_raise([DataArgs], ["--hf_weights", *([",".join(words)] if joined else words)])
        assert args.feedback_weights == [abs(number) for number in numbers]

    def test_arguments_of_the_process_are_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.argv", ["program", "--seq_length", "64"])
        assert parse_or_raise([DataArgs])[0].seq_length == 64

    def test_training_arguments(self, tmp_path: Path) -> None:
        words = [
            "--output_dir",
            str(tmp_path),
            "--use_cpu",
            "--bf16",
            "--learning_rate",
            "1e-4",
            "--eval_strategy",
            "no",
        ]
        words += ["--report_to", "tensorboard", "wandb", "--lr_scheduler_kwargs", '{"num_cycles": 2}', "--tf32", "off"]
        (args,) = parse_or_raise([TrainArgs], words)
        assert (args.learning_rate, args.bf16, args.tf32, args.eval_strategy) == (1e-4, True, False, "no")
        assert (args.report_to, args.lr_scheduler_kwargs) == (["tensorboard", "wandb"], {"num_cycles": 2})
        assert parse_or_raise([TrainArgs], ["--use_cpu", "--report_to", "none"])[0].report_to == []

    @pytest.mark.parametrize(
        "words",
        [
            ["a", "b", "--name", "x", "--deep"],
            ["--name", "x", "a", "b", "--deep"],
            ["a", "--name=x", "b", "--deep"],
            ["--name", "x", "--no_broad", "a", "b", "--deep"],
            ["--deep", "--folders", "a", "--name", "x", "b"],
            ["--deep", "--name", "x", "--folders", "a", "b"],
        ],
    )
    def test_bare_words_stand_anywhere(self, words: list[str]) -> None:
        (args,) = parse_or_raise([BareArgs], words, bare="folders")
        assert args == BareArgs(["a", "b"], "x", True, "--no_broad" not in words)

    def test_the_dataclasses_are_left_as_they_were(self) -> None:
        before = [(f.name, f.type) for f in fields(TrainArgs)]
        parse_or_raise([TrainArgs], ["--use_cpu"])
        assert [(f.name, f.type) for f in fields(TrainArgs)] == before


class TestProblems:
    def test_all_of_them_at_once_in_order(self) -> None:
        words = ["stray", "--seq_lenght", "5", "--num_layers", "two", "--chains", "pn,nn,pq", "--packing", "tight"]
        words += ["--use_lora", "maybe", "--model_name", "--dropout", "0.1", "0.2", "--options", "[1]"]
        words += ["--no_keep_head", "yes", "--feedback_weights", "-1"]
        assert problems_of([ModelArgs, DataArgs, RequiredArgs], words) == [
            "'stray' stands before every option: name the option that it belongs to.",
            "--seq_lenght is not an option: did you mean --seq_length?",
            "--num_layers 'two' is not a whole number.",
            "--chains 'nn' is not one of p, n, pn, np; the nearest is n.",
            "--chains 'pq' is not one of p, n, pn, np; the nearest is p.",
            "--packing 'tight' is not one of fit, chunk.",
            "--use_lora 'maybe' is not true or false.",
            "--model_name needs a value: give a text.",
            "--dropout takes one value, but 2 follow (0.1 0.2): keep one, or put quotes around a value with spaces.",
            "--options '[1]' is not a JSON object such as {\"key\": 1}.",
            "--no_keep_head takes no value: remove 'yes'.",
            "--feedback_weights [-1.0] holds a negative share: give 0 or more.",
            "--prompt is missing: it has no default.",
        ]

    def test_bare_words_hide_no_problem(self) -> None:
        assert problems_of([BareArgs], ["--nam", "x", "a", "--deep", "b"], bare="folders") == [
            "--nam is not an option: did you mean --name?",
            "--deep 'b' is not true or false.",
        ]
        assert problems_of([BareArgs], ["a", "--name"], bare="folders") == ["--name needs a value: give a text."]
        assert "but 2 follow (x a)" in problems_of([BareArgs], ["--name", "x", "a"])[0]

    def test_numbers_come_with_an_example(self) -> None:
        assert problems_of([DataArgs], ["--seq_length", "5.5"]) == [
            "--seq_length '5.5' is not a whole number: give one, such as 512."
        ]

    @pytest.mark.parametrize("words", [["--feedback_weights"], ["--feedback_weights", ""], ["--feedback_weights", ","]])
    def test_an_empty_list_on_the_command_line(self, words: list[str]) -> None:
        assert problems_of([DataArgs], words) == ["--feedback_weights needs a value: give a number."]

    @pytest.mark.parametrize(
        ("word", "remedy"),
        [
            ("--Packing", "did you mean --packing?"),
            ("--pack", "did you mean --packing?"),
            ("--weights", "did you mean --hf_weights?"),
            ("--length", "did you mean --seq_length?"),
            ("--zzz", "--help lists all options."),
            ("--ing", "did you mean --packing?"),
            ("-p", "--help lists all options."),
        ],
    )
    def test_unknown_options_are_not_guessed_but_named(self, word: str, remedy: str) -> None:
        assert problems_of([DataArgs], [word, "fit"]) == [f"{word} is not an option: {remedy}"]

    @pytest.mark.parametrize(
        ("word", "remedy"),
        [
            ("--evaluation_strategy", "did you mean --eval_strategy?"),
            ("--warmup-ratio", "use --warmup_steps, where a value below 1 is a ratio."),
            ("--no_cuda", "use --use_cpu."),
        ],
    )
    def test_options_of_earlier_releases(self, word: str, remedy: str) -> None:
        assert f"{word} is not an option: {remedy}" in problems_of([TrainArgs], ["--use_cpu", word, "1"])

    def test_a_dataclass_says_all_of_its_problems(self) -> None:
        assert problems_of([DataArgs], ["--seq_length", "1", "--hf_weights", "-1"]) == [
            "--seq_length 1 is too short: give 2 or more.",
            "--feedback_weights [-1.0] holds a negative share: give 0 or more.",
        ]

    def test_hugging_face_own_errors_join_in(self) -> None:
        words = ["--use_cpu", "--fp16", "--bf16", "--seq_length", "0"]
        assert problems_of([TrainArgs, DataArgs], words) == [
            "TrainArgs: At most one of fp16 and bf16 can be True, but not both",
            "--seq_length 0 is too short: give 2 or more.",
        ]

    def test_hugging_face_own_error_is_the_cause(self) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_or_raise([TrainArgs], ["--use_cpu", "--fp16", "--bf16"])
        assert isinstance(caught.value.__cause__, ValueError)

    def test_hugging_face_json_is_named(self) -> None:
        (problem,) = problems_of([TrainArgs], ["--use_cpu", "--accelerator_config", "{x"])
        assert problem.startswith("--accelerator_config '{x' is not ")
        (problem,) = problems_of([TrainArgs], ["--use_cpu", "--accelerator_config", '{"no_such_key": 1}'])
        assert "no_such_key" in problem

    def test_checks_see_the_instances(self) -> None:
        def checks(model: ModelArgs, data: DataArgs) -> list[str]:
            return [
                f"--model_name {model.model_name} reads fewer than --seq_length {data.seq_length} tokens: shorten it."
            ]

        assert problems_of([ModelArgs, DataArgs], [], checks=checks) == [
            "--model_name gpt2 reads fewer than --seq_length 512 tokens: shorten it."
        ]
        assert parse_or_raise([ModelArgs, DataArgs], [], checks=lambda model, data: []) == (ModelArgs(), DataArgs())

    def test_nothing_is_said_of_the_default_that_stands_in_for_a_refused_value(self) -> None:
        def checks(data: DataArgs) -> list[str]:
            return ["--seq_length 512 is more than the model reads.", "--packing fit needs something."]

        assert problems_of([DataArgs], ["--seq_length", "x"], checks=checks) == [
            "--seq_length 'x' is not a whole number: give one, such as 512.",
            "--packing fit needs something.",
        ]

    def test_nor_of_the_default_that_a_misspelled_option_left(self) -> None:
        def checks(model: ModelArgs) -> list[str]:
            return [f"--model_name {model.model_name} is not there."]

        assert problems_of([ModelArgs], ["--model_nmae", "gpt2-xl"], checks=checks) == [
            "--model_nmae is not an option: did you mean --model_name?"
        ]

    def test_parse_prints_one_sentence_a_line_and_exits_with_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            parse([DataArgs], ["--seq_length", "1", "--zzz"], prog="coh-train")
        assert caught.value.code == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.splitlines() == [
            "coh-train: 2 problems with the options",
            "--zzz is not an option: --help lists all options.",
            "--seq_length 1 is too short: give 2 or more.",
        ]

    def test_parse_gives_what_parse_or_raise_gives(self) -> None:
        assert parse([DataArgs], ["--seq_length", "64"]) == (DataArgs(seq_length=64),)

    def test_problems_are_single_lines(self) -> None:
        assert str(ConfigError(["a\n  b", "c"])) == "a b\nc"
        assert ConfigError("a sentence").problems == ["a sentence"]


class TestRecipe:
    @pytest.mark.parametrize(
        ("line", "words"), [("fsdp: true", ["--fsdp"]), ("fsdp: false", []), ("", ["--fsdp=True"])]
    )
    def test_what_may_stand_alone_may_be_true_too(
        self, recipe: Callable[[str], str], line: str, words: list[str]
    ) -> None:
        """transformers wants True itself of a text option that may stand alone, and takes "true" for a strategy."""
        (told,) = (
            parse_or_raise([TrainArgs], ["--config", recipe(line)]) if line else parse_or_raise([TrainArgs], ["--fsdp"])
        )
        (alone,) = parse_or_raise([TrainArgs], words)
        assert told.fsdp == alone.fsdp and bool(alone.fsdp) == bool(words)

    def test_values_are_the_words_of_a_command_line(self, recipe: Callable[[str], str]) -> None:
        path = recipe(
            """
            # any options, of any dataclass
            learning_rate: 1e-4
            pt_loss_weight: .5
            max_steps: 10
            use_lora: true
            keep_head: off
            use_cpu: yes
            eval_strategy: no        # a word here, not a boolean
            model_name: 1.0
            hf_weights: [1, 2e0, 1]
            chains: p,np
            report_to:
              - tensorboard
              - wandb
            lr_scheduler_kwargs: {num_cycles: 2, min_lr: 1e-5}
            options:
              nested: {rate: 1e-4, on: yes}
            dropout: null
            """
        )
        model, data, train = parse_or_raise([ModelArgs, DataArgs, TrainArgs], ["--config", path])
        assert model == ModelArgs(model_name="1.0", use_lora=True, keep_head=False, dropout=None)
        assert data.feedback_weights == [1.0, 2.0, 1.0]
        assert data.chains == ["p", "np"]
        assert data.options == {"nested": {"rate": 1e-4, "true": True}}
        assert (train.learning_rate, train.pt_loss_weight, train.max_steps) == (1e-4, 0.5, 10)
        assert (train.eval_strategy, train.report_to) == ("no", ["tensorboard", "wandb"])
        assert train.lr_scheduler_kwargs == {"num_cycles": 2, "min_lr": 1e-5}

    @pytest.mark.parametrize("words", [["--seq_length", "64", "--config", "{}"], ["--config={}", "--seq_length=64"]])
    def test_the_command_line_wins(self, recipe: Callable[[str], str], words: list[str]) -> None:
        path = recipe("seq_length: 128\npacking: chunk\n")
        assert parse_or_raise([DataArgs], [word.format(path) for word in words]) == (
            DataArgs(seq_length=64, packing="chunk"),
        )

    @pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}\n"])
    def test_an_empty_file_changes_nothing(self, recipe: Callable[[str], str], text: str) -> None:
        assert parse_or_raise([DataArgs], ["--config", recipe(text)]) == (DataArgs(),)

    def test_an_empty_list_is_a_value_here(self, recipe: Callable[[str], str]) -> None:
        assert parse_or_raise([DataArgs], ["--config", recipe("chains: []\n")])[0].chains == []

    def test_shared_parts(self, recipe: Callable[[str], str]) -> None:
        path = recipe("<<: &base {seq_length: 128, packing: chunk}\nseq-length: 256\n")
        assert parse_or_raise([DataArgs], ["--config", path]) == (DataArgs(seq_length=256, packing="chunk"),)

    def test_problems_name_file_and_line_beside_those_of_the_command_line(self, recipe: Callable[[str], str]) -> None:
        path = recipe(
            "seq_lenght: 5\nnum_layers: two\n\nseq_length:\nno_cuda: true\npacking: fit\npacking: chunk\nconfig: x\n"
        )
        assert problems_of([ModelArgs, DataArgs, TrainArgs], ["--use_cpu", "--packing", "x", "--config", path]) == [
            f"{path}, line 7: packing is given twice: keep one.",
            f"{path}, line 8: config cannot stand in a recipe: give one recipe, on the command line.",
            f"{path}, line 1: seq_lenght is not an option: did you mean seq_length?",
            f"{path}, line 2: num_layers 'two' is not a whole number.",
            f"{path}, line 4: seq_length has no value: give a whole number, or remove the line.",
            f"{path}, line 5: no_cuda is not an option: use use_cpu.",
            "--packing 'x' is not one of fit, chunk.",
        ]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("- a\n- b\n", "--config {} holds no YAML mapping: write `option: value`, one on a line."),
            ("a: [1\n", "--config {} is not YAML: "),
            ("a: 1\n---\nb: 1\n", "--config {} is not YAML: "),
            ("options: !!python/object:os.system {{}}\n", "--config {} is not YAML: "),
            ("options: &a {{b: *a}}\n", "--config {} is not YAML: "),
        ],
    )
    def test_files_that_are_no_recipe(self, recipe: Callable[[str], str], text: str, sentence: str) -> None:
        path = recipe(text.replace("{{", "{").replace("}}", "}"))
        (problem,) = problems_of([DataArgs], ["--config", path])
        assert problem.startswith(sentence.format(path))

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing.yaml"
        assert problems_of([DataArgs], ["--config", str(missing)]) == [
            f"--config {missing} cannot be read: No such file or directory."
        ]
        missing.write_bytes(b"\xff\xfe\x00")
        assert problems_of([DataArgs], ["--config", str(missing)])[0].startswith(f"--config {missing} ")
        assert problems_of([DataArgs], ["--config"]) == ["--config needs a value: give a text."]

    def test_a_field_named_config_keeps_the_name(self, recipe: Callable[[str], str]) -> None:
        @dataclass
        class WithConfig:
            config: str | None = field(default=None, metadata={"help": "A recipe."})
            seed: int = field(default=0, metadata={"help": "Where chance starts."})

        path = recipe("seed: 3\n")
        globals()["WithConfig"] = WithConfig
        assert parse_or_raise([WithConfig], ["--config", path]) == (WithConfig(config=path, seed=3),)


class TestHelp:
    def help_of(self, types: list[type], capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
        with pytest.raises(SystemExit) as caught:
            parse(types, ["--no_such_option", flag], prog="coh-train", description="Learn from feedback.")
        assert caught.value.code == 0
        return capsys.readouterr().out

    def test_every_option_once_grouped_by_class_own_first(self, capsys: pytest.CaptureFixture[str]) -> None:
        types = [ModelArgs, DataArgs, TrainArgs]
        text = self.help_of(types, capsys)
        titles = [line for line in text.splitlines() if re.match(r"\w+Arg\w+(:|$)", line)]
        assert titles[:3] == [
            "ModelArgs: What is trained:",
            "DataArgs: where rows come from:",
            "TrainArgs: How it is trained:",
        ]
        assert [title.partition(":")[0] for title in titles] == [
            "ModelArgs",
            "DataArgs",
            "TrainArgs",
            "TrainingArguments",
        ]
        listed = re.findall(r"^  --(\w+)", text, re.M)
        expected = [f.name for cls in (ModelArgs, DataArgs) for f in fields(cls)] + ["pt_loss_weight"]
        expected += [f.name for f in fields(TrainingArguments) if f.init]
        assert [name for name in listed if name != "config"] == expected

    def test_what_an_entry_says(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = " ".join(self.help_of([ModelArgs, DataArgs], capsys, "-h").split())
        assert text.startswith("usage: coh-train [--config FILE] [options] Learn from feedback.")
        assert "--model_name TEXT Hub id or folder; 100 % of it is loaded. (default: gpt2)" in text
        assert "--num_layers INT Layers to keep. --use_lora [true|false] Train adapters alone. (default: False)" in text
        assert "--feedback_weights, --hf_weights NUMBER [NUMBER ...] Shares of the sources. --chains" in text
        assert "--packing fit|chunk How rows are filled. (default: fit)" in text
        assert "(default: pn np)" in text
        assert "--options JSON" in text
        assert "second sentence" not in text
        with pytest.raises(SystemExit):
            parse([BareArgs], ["--help"], prog="coh-look", bare="folders")
        assert capsys.readouterr().out.startswith("usage: coh-look FOLDERS ... [--config FILE] [options]")
        assert "no_keep_head" not in text
