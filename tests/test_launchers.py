"""What the launchers start: the scripts really run, with an interpreter that writes down what it was given.

What docs/scaling.md gives to paste is parsed by the launchers it is for; tests/test_engines_slow.py runs the engines.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coh.arguments import _build_parser, parse_or_raise

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ["zero2", "zero2_offload", "zero3", "zero3_offload"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SHELL = shutil.which("dash") or "sh"

# Says how many GPUs there are when it is asked, otherwise writes down words and environment and exits with FAKE_STATUS.
FAKE_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then echo "${FAKE_GPUS:-0 False}"; exit 0; fi
for word in "$@"; do printf '%s\\0' "$word"; done > "$FAKE_RECORD"
env > "$FAKE_RECORD.env"
exit "${FAKE_STATUS:-0}"
"""


class Launch(NamedTuple):
    status: int
    words: list[str]
    environment: dict[str, str]
    printed: str
    error: str

    @property
    def options(self) -> list[str]:
        """The words that the program gets."""
        return self.words[self.words.index("coh.coh_train") + 1 :]

    def value(self, option: str) -> str | None:
        """What the last of equal options says, which is the one that counts."""
        places = [place for place, word in enumerate(self.options) if word == option]
        return self.options[places[-1] + 1] if places else None


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Launch]:
    """Runs a launcher with the fake interpreter; `gpus` is how many it reports."""

    def run(script: str, *words: str, gpus: int = 0, bf16: bool = True, home: Path = ROOT, **variables: Any) -> Launch:
        folder = tmp_path / "fake interpreter"
        folder.mkdir(exist_ok=True)
        python, record = folder / "python", folder / "record"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        for old in folder.glob("record*"):
            old.unlink()
        hidden = ("CUDA_VISIBLE_DEVICES", "NPROC", "OMP_NUM_THREADS", "COH_ALLOW_CPU_IDS", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"PYTHON": str(python), "FAKE_RECORD": str(record), "FAKE_GPUS": f"{gpus} {bf16 and gpus > 0}"}
        environment |= {name: str(value) for name, value in variables.items()}
        environment = {name: value for name, value in environment.items() if value != "unset"}
        done = subprocess.run(
            [SHELL, str(home / script), *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        recorded = record.read_text().split("\0")[:-1] if record.exists() else []
        lines = record.with_name("record.env").read_text().splitlines() if recorded else []
        return Launch(
            done.returncode,
            recorded,
            dict(line.split("=", 1) for line in lines if "=" in line),
            done.stdout,
            done.stderr,
        )

    return run


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder as transformers writes it, and the older pair, side by side."""
    for name in ("whole", "pair/llama-7b"):
        folder = tmp_path / "my llama" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "my llama" / "pair" / "tokenizer").mkdir()
    return tmp_path / "my llama"


@pytest.mark.parametrize("script", ["train.sh", "llama_train.sh"])
def test_the_scripts_are_posix_sh(script: str) -> None:
    assert (ROOT / script).read_text().startswith("#!/bin/sh\n")
    done = subprocess.run([SHELL, "-n", str(ROOT / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class TestTrain:
    @pytest.mark.parametrize("ids", [[], [""]])
    @pytest.mark.parametrize("gpus", [0, 1])
    def test_without_ids_one_process_on_what_is_there(
        self, launch: Callable[..., Launch], ids: list[str], gpus: int
    ) -> None:
        run = launch("train.sh", *ids, "--seed", "3", gpus=gpus)
        assert run.words[:2] == ["-m", "coh.coh_train"]
        assert run.words[-2:] == ["--seed", "3"]
        assert "--use_cpu" not in run.words
        assert "CUDA_VISIBLE_DEVICES" not in run.environment

    @pytest.mark.parametrize(("ids", "count"), [("3", 1), ("0,1", 2), ("0,1,2,3", 4), ("10,2", 2)])
    def test_one_process_for_each_id(self, launch: Callable[..., Launch], ids: str, count: int) -> None:
        run = launch("train.sh", ids, "--seed", "3", gpus=count)
        assert run.words[:6] == [*TORCHRUN, str(count), "-m"]
        assert run.environment["CUDA_VISIBLE_DEVICES"] == ids
        assert run.options[-2:] == ["--seed", "3"]
        assert "--use_cpu" not in run.words
        assert run.printed.startswith(f"CUDA_VISIBLE_DEVICES={ids} ")

    @pytest.mark.parametrize(
        "ids", ["0,", ",0", "0,,1", "0 1", "0,a", "-", "gpu0", "0;1", "0\n1", "all", "recipe.yaml", "="]
    )
    def test_what_is_no_list_of_ids(self, launch: Callable[..., Launch], ids: str) -> None:
        run = launch("train.sh", ids, gpus=8)
        if ids.startswith("-"):  # an option, for the program to judge
            assert run.options[-1] == ids
        else:
            assert (run.status, run.words) == (2, [])
            assert f"'{ids}' is no list of GPU ids: write numbers with commas, such as 0,1,2,3" in run.error

    def test_ids_that_cannot_be_used(self, launch: Callable[..., Launch]) -> None:
        for ids, gpus, sentence in [
            ("0,1,0", 8, "train.sh: '0,1,0' names a GPU twice\n"),
            (
                "0,5",
                1,
                "train.sh: 2 processes (ids 0,5) need a GPU each, and 1 can be seen: ask for no more than that\n",
            ),
            (
                "0",
                0,
                "train.sh: no GPU is there for the ids 0: leave them out to train on the CPU, "
                "or set COH_ALLOW_CPU_IDS=1\n",
            ),
        ]:
            run = launch("train.sh", ids, gpus=gpus)
            assert (run.status, run.words, run.error) == (2, [], sentence)

    def test_ids_may_stand_for_cpu_processes(self, launch: Callable[..., Launch]) -> None:
        run = launch("train.sh", "0,1,2", COH_ALLOW_CPU_IDS=1)
        assert run.words[:5] == [*TORCHRUN, "3"]
        assert run.value("--use_cpu") == "True"

    @pytest.mark.parametrize(
        ("nproc", "gpus", "count"), [("3", 0, 3), ("auto", 0, 2), ("auto", 4, 4), ("1", 0, 1), ("2", 4, 2)]
    )
    def test_a_number_of_processes_without_ids(
        self, launch: Callable[..., Launch], nproc: str, gpus: int, count: int
    ) -> None:
        run = launch("train.sh", gpus=gpus, NPROC=nproc)
        assert run.words[:5] == [*TORCHRUN, str(count)]
        assert run.value("--use_cpu") == (None if gpus else "True")

    @pytest.mark.parametrize("nproc", ["0", "two", "-1", "1.5"])
    def test_no_number_of_processes(self, launch: Callable[..., Launch], nproc: str) -> None:
        run = launch("train.sh", NPROC=nproc)
        assert (run.status, run.words) == (2, [])
        assert f"NPROC is '{nproc}': give a number of processes" in run.error

    def test_more_processes_than_gpus(self, launch: Callable[..., Launch]) -> None:
        run = launch("train.sh", gpus=2, NPROC=3)
        assert (run.status, run.error) == (
            2,
            "train.sh: 3 processes need a GPU each, and 2 can be seen: ask for no more than that\n",
        )

    def test_one_process_takes_one_of_several_gpus(self, launch: Callable[..., Launch]) -> None:
        run = launch("train.sh", gpus=4)
        assert run.environment["CUDA_VISIBLE_DEVICES"] == "0"
        assert "4 GPUs are there, and one is used" in run.printed
        assert launch("train.sh", gpus=2, CUDA_VISIBLE_DEVICES="6,7").environment["CUDA_VISIBLE_DEVICES"] == "6"
        # Somebody who hides the GPUs means it.
        assert launch("train.sh", "", CUDA_VISIBLE_DEVICES="").environment["CUDA_VISIBLE_DEVICES"] == ""

    def test_cores_are_shared_out(self, launch: Callable[..., Launch]) -> None:
        cores = int(subprocess.run(["getconf", "_NPROCESSORS_ONLN"], capture_output=True, check=True).stdout)
        assert launch("train.sh", NPROC=2).environment["OMP_NUM_THREADS"] == str(max(1, cores // 2))
        assert launch("train.sh", NPROC=10_000).environment["OMP_NUM_THREADS"] == "1"
        assert launch("train.sh", NPROC=2, OMP_NUM_THREADS=7).environment["OMP_NUM_THREADS"] == "7"
        assert "OMP_NUM_THREADS" not in launch("train.sh").environment

    def test_bf16_where_the_gpu_has_it(self, launch: Callable[..., Launch]) -> None:
        assert launch("train.sh", gpus=1).value("--bf16") == "True"
        assert launch("train.sh", gpus=1, bf16=False).value("--bf16") is None
        assert launch("train.sh").value("--bf16") is None
        assert launch("train.sh", "--fp16", gpus=1).value("--bf16") is None
        assert launch("train.sh", "--bf16=False", gpus=1).value("--bf16") is None

    @pytest.mark.parametrize("words", [["--config", "recipe.yaml"], ["--config=recipe.yaml"]])
    def test_a_recipe_stands_in_the_place_of_the_defaults(
        self, launch: Callable[..., Launch], words: list[str]
    ) -> None:
        assert launch("train.sh", *words, gpus=1).options == words
        assert launch("train.sh", *words, NPROC=2).options == ["--use_cpu", "True", *words]

    def test_the_program_reads_the_defaults_and_the_caller_wins(self, launch: Callable[..., Launch]) -> None:
        from coh.coh_train import CoHDataArgs, CoHTrainArgs, ExperimentArgs

        def parsed(*words: str) -> Any:
            return parse_or_raise([ExperimentArgs, CoHDataArgs, CoHTrainArgs], launch("train.sh", *words).options)[2]

        assert (parsed().output_dir, parsed().save_total_limit) == ("outputs/coh", 2)
        train = parsed("--learning_rate", "1e-3", "--output_dir=elsewhere", "--pt_loss_weight", "1.5")
        assert (train.learning_rate, train.output_dir, train.pt_loss_weight) == (1e-3, "elsewhere", 1.5)
        assert train.save_total_limit == 2

    def test_any_words_arrive_and_are_printed_as_a_shell_reads_them(self, launch: Callable[..., Launch]) -> None:
        words = [
            "--run_name",
            'it\'s a "test"',
            "",
            "$HOME `id` \\ *",
            "two\nlines",
            "--a=b c",
            "ä",
            "#",
            "~",
            "&",
            "-0.5",
        ]
        run = launch("train.sh", *words)
        assert run.words[-len(words) :] == words
        assert shlex.split(run.printed)[1:] == run.words
        again = subprocess.run(
            [SHELL, "-c", f"set -- {run.printed.rstrip()}; for w; do printf '%s\\0' \"$w\"; done"], capture_output=True
        )
        assert again.stdout.decode().split("\0")[1:-1] == run.words

    @pytest.mark.parametrize("status", [0, 1, 2, 7, 130])
    def test_the_status_of_the_program(self, launch: Callable[..., Launch], status: int) -> None:
        assert launch("train.sh", FAKE_STATUS=status).status == status

    def test_which_interpreter(self, launch: Callable[..., Launch], tmp_path: Path) -> None:
        home = tmp_path / "the project's folder"
        shutil.copytree(ROOT / "ds_config", home / "ds_config")
        for script in ("train.sh", "llama_train.sh"):
            shutil.copy(ROOT / script, home)
        launch("train.sh")  # makes the fake interpreter
        fake = tmp_path / "fake interpreter" / "python"
        (tmp_path / "bin").mkdir()
        shutil.copy(fake, tmp_path / "bin" / "python3")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"

        run = launch("train.sh", home=home, PYTHON="unset", PATH=path)
        assert shlex.split(run.printed)[0] == "python3"
        assert run.environment["PYTHONPATH"] == str(home)
        (home / ".venv" / "bin").mkdir(parents=True)
        shutil.copy(fake, home / ".venv" / "bin" / "python")
        run = launch("train.sh", home=home, PYTHON="unset", PATH=path, PYTHONPATH="/other")
        assert shlex.split(run.printed)[0] == str(home / ".venv" / "bin" / "python")
        assert run.environment["PYTHONPATH"] == f"{home}:/other"

    def test_an_interpreter_without_torch(self, launch: Callable[..., Launch]) -> None:
        for python in ("/bin/false", "/no/such/python"):
            run = launch("train.sh", PYTHON=python)
            assert (run.status, run.words) == (2, [])
            assert f"train.sh: {python} cannot import torch: `make setup` makes .venv, or PYTHON names" in run.error


class TestLlamaTrain:
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_hugging_face_folder(self, launch: Callable[..., Launch], llama: Path, slash: str) -> None:
        run = launch("llama_train.sh", "0,1", f"{llama / 'whole'}{slash}", "--seed", "3", gpus=2)
        assert run.words[:5] == [*TORCHRUN, "2"]
        assert run.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert run.value("--model_name") == str(llama / "whole")
        assert run.value("--tokenizer_name") is None
        assert run.value("--deepspeed") == str(ROOT / "ds_config" / "zero3.json")
        assert run.value("--bf16") == "True"
        assert run.options[-2:] == ["--seed", "3"]

    def test_the_older_pair_of_folders(self, launch: Callable[..., Launch], llama: Path) -> None:
        run = launch("llama_train.sh", "", "my llama/pair", "--model_name", "mine")
        assert run.value("--tokenizer_name") == "my llama/pair/tokenizer"
        assert run.options[-4:] == ["--tokenizer_name", "my llama/pair/tokenizer", "--model_name", "mine"]
        assert run.options[run.options.index("--model_name") + 1] == "my llama/pair/llama-7b"

    @pytest.mark.parametrize(("gpus", "nproc", "count"), [(0, "", 2), (0, "3", 3), (4, "", 4), (4, "1", 1), (1, "", 1)])
    def test_processes_without_ids(
        self, launch: Callable[..., Launch], llama: Path, gpus: int, nproc: str, count: int
    ) -> None:
        # torchrun for one process too: DeepSpeed reads the variables that it sets.
        run = launch("llama_train.sh", "", str(llama / "whole"), gpus=gpus, NPROC=nproc)
        assert run.words[:5] == [*TORCHRUN, str(count)]
        assert run.value("--use_cpu") == (None if gpus else "True")

    def test_another_configuration_wins(self, launch: Callable[..., Launch], llama: Path) -> None:
        run = launch("llama_train.sh", "", str(llama / "whole"), "--deepspeed", "ds_config/zero2.json")
        assert run.value("--deepspeed") == "ds_config/zero2.json"

    def test_errors_come_before_anything_starts(
        self, launch: Callable[..., Launch], llama: Path, tmp_path: Path
    ) -> None:
        for words, sentence in [
            ([], "two arguments are needed: sh llama_train.sh IDS LLAMA_PATH [options...]"),
            (["0,1"], "two arguments are needed"),
            ([str(llama / "whole"), "--seed"], f"'{llama / 'whole'}' is no list of GPU ids"),
            (["", str(llama)], f"{llama} holds neither config.json nor llama-7b/config.json and tokenizer/: convert"),
            (["", str(llama / "pair" / "tokenizer")], "holds neither config.json nor"),
            (["", str(tmp_path / "nowhere")], f"{tmp_path / 'nowhere'} is no folder: give a Hugging Face model folder"),
            (["", "--seed", "3"], "--seed is no folder"),
            (["0,1,", str(llama / "whole")], "'0,1,' is no list of GPU ids"),
        ]:
            run = launch("llama_train.sh", *words, gpus=2)
            assert (run.status, run.words) == (2, [])
            assert sentence in run.error

    def test_the_status_of_the_program(self, launch: Callable[..., Launch], llama: Path) -> None:
        assert launch("llama_train.sh", "", str(llama / "whole"), FAKE_STATUS=7).status == 7


def auto_keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from auto_keys(value, f"{prefix}{key}.")
        elif value == "auto":
            yield prefix + key


class TestConfigurations:
    def test_there_are_these(self) -> None:
        assert sorted(path.stem for path in (ROOT / "ds_config").iterdir()) == CONFIGS

    @pytest.mark.parametrize("name", CONFIGS)
    def test_stage_offload_and_optimizer(self, name: str) -> None:
        config = json.loads((ROOT / "ds_config" / f"{name}.json").read_text())
        zero = config["zero_optimization"]
        assert zero["stage"] == int(name[4])
        assert [key for key in zero if key.startswith("offload")] == {
            "zero2": [],
            "zero3": [],
            "zero2_offload": ["offload_optimizer"],
            "zero3_offload": ["offload_optimizer", "offload_param"],
        }[name]
        assert zero.get("stage3_gather_16bit_weights_on_model_save") == (True if name.startswith("zero3") else None)
        # The Trainer's own optimizer, whose groups spare biases and norms, on whatever device.
        assert "optimizer" not in config
        assert (config["zero_allow_untested_optimizer"], config["zero_force_ds_cpu_optimizer"]) == (True, False)

    @pytest.mark.parametrize("bf16", [False, True])
    @pytest.mark.parametrize("name", CONFIGS)
    def test_hugging_face_fills_in_every_auto(
        self, name: str, bf16: bool, tiny_llama: Callable[..., Any], tmp_path: Path
    ) -> None:
        from transformers import TrainingArguments
        from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

        args = TrainingArguments(
            str(tmp_path), use_cpu=True, bf16=bf16, gradient_accumulation_steps=3, max_grad_norm=0.5
        )
        config = HfTrainerDeepSpeedConfig(str(ROOT / "ds_config" / f"{name}.json"))
        assert len(list(auto_keys(config.config))) >= 7
        config.trainer_config_process(args)
        config.trainer_config_finalize(args, tiny_llama(), num_training_steps=10)
        assert list(auto_keys(config.config)) == []
        assert (config.config["bf16"]["enabled"], config.config["fp16"]["enabled"]) == (bf16, False)
        assert (config.config["gradient_accumulation_steps"], config.config["gradient_clipping"]) == (3, 0.5)

    @pytest.mark.parametrize("name", CONFIGS)
    def test_deepspeed_knows_every_key(self, name: str) -> None:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
        from pydantic import ValidationError

        zero = json.loads((ROOT / "ds_config" / f"{name}.json").read_text())["zero_optimization"]
        filled = {key: 1000 if value == "auto" else value for key, value in zero.items()}
        assert DeepSpeedZeroConfig(**filled).stage == zero["stage"]
        with pytest.raises(ValidationError):
            DeepSpeedZeroConfig(**filled, no_such_key=1)


PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
TOOLS = ("torchrun", "accelerate", "deepspeed", "sbatch")


def blocks(*languages: str) -> list[str]:
    return [text for language, text in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S) if language in languages]


def block(about: str) -> str:
    """The file that docs/scaling.md names, or the one block of a file that holds these words."""
    named = re.search(rf"as `{re.escape(about)}`:\n\n```\w+\n(.*?)```", PAGE, re.S)
    if named:
        return named[1]
    (found,) = [text for text in blocks("json", "yaml") if about in text]
    return found


def page_commands() -> list[list[str]]:
    """The words of every command on the page, but those of the batch script."""
    texts = [text for text in blocks("sh", "bash") if not text.startswith("#!")]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [shlex.split(line) for line in lines]


def program_words(words: list[str]) -> list[str]:
    """What `coh.coh_train` gets from a launcher that parses these words itself."""
    tool, *rest = words
    if tool == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(rest)
        assert parsed.module and parsed.training_script == "coh.coh_train"
        return parsed.training_script_args
    if tool == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert rest[0] == "launch"
        parsed = launch_command_parser().parse_args(rest[1:])
        assert parsed.module and parsed.training_script == "coh.coh_train"
        return parsed.training_script_args
    if tool == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        parsed = parse_args(rest)
        assert parsed.module and parsed.user_script == "coh.coh_train"
        return parsed.user_args
    assert words[:2] == ["sbatch", "coh.sbatch"]
    return words[2:]


class TestScalingPage:
    def test_it_shows_every_launcher(self) -> None:
        tools = [words[0] for words in page_commands()]
        assert {*TOOLS, "sh", "python"} == set(tools) and tools.count("torchrun") == 2

    @pytest.mark.parametrize(
        "words", [words for words in page_commands() if words[0] in TOOLS], ids=lambda words: " ".join(words)[:70]
    )
    def test_launchers_know_their_options_and_the_program_its_own(self, words: list[str]) -> None:
        from coh.coh_train import CoHDataArgs, CoHTrainArgs, ExperimentArgs

        known = _build_parser([ExperimentArgs, CoHDataArgs, CoHTrainArgs], None, None)._option_string_actions
        rest = program_words(words)
        assert rest and {word for word in rest if word.startswith("--")} <= set(known)

    def test_accelerate_reads_its_file(self, tmp_path: Path) -> None:
        from accelerate.commands.config.config_args import load_config_from_file

        (tmp_path / "fsdp2.yaml").write_text(block("fsdp2.yaml"))
        config = load_config_from_file(str(tmp_path / "fsdp2.yaml"))
        assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2

    def test_the_batch_script_starts_one_torchrun_a_node(self, tmp_path: Path) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        for name, text in {
            "scontrol": "printf 'node7\\nnode8\\n'",
            "srun": "for word; do printf '%s\\0' \"$word\"; done",
        }.items():
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        (tmp_path / "coh.sbatch").write_text(block("coh.sbatch"))
        job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
        environment = os.environ | job | {"PATH": f"{tools}:{os.environ['PATH']}"}
        command = ["bash", str(tmp_path / "coh.sbatch"), "--run_name", "two words"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        kill, *words = done.stdout.split("\0")[:-1]
        assert kill == "--kill-on-bad-exit=1"
        assert program_words(words) == ["--run_name", "two words"]
        assert words[1:5] == ["--nnodes", "2", "--nproc_per_node", "8"] and "node7:20041" in words

    def test_a_batch_script_outside_of_a_job_stops(self, tmp_path: Path) -> None:
        (tmp_path / "coh.sbatch").write_text(block("coh.sbatch"))
        done = subprocess.run(["bash", str(tmp_path / "coh.sbatch")], capture_output=True, text=True)
        assert done.returncode != 0 and "SLURM_JOB_NODELIST" in done.stderr

    def test_the_optimizer_to_add_leaves_nothing_open(self, tiny_llama: Callable[..., Any], tmp_path: Path) -> None:
        from transformers import TrainingArguments
        from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

        config = json.loads((ROOT / "ds_config" / "zero3_offload.json").read_text()) | json.loads(block('"optimizer"'))
        filled = HfTrainerDeepSpeedConfig(config)
        args = TrainingArguments(str(tmp_path), use_cpu=True)
        filled.trainer_config_process(args)
        filled.trainer_config_finalize(args, tiny_llama(), num_training_steps=10)
        assert list(auto_keys(filled.config)) == [] and filled.config["optimizer"]["type"] == "AdamW"

    def test_every_key_of_the_configurations_is_explained(self) -> None:
        table = set(re.findall(r"`([a-z_0-9.]+)`", " ".join(re.findall(r"^\| (`.*?) \|", PAGE, re.M))))
        for name in CONFIGS:
            config = json.loads((ROOT / "ds_config" / f"{name}.json").read_text())
            assert {
                key for key in leaves(config) if key not in table and key.rpartition(".")[0] not in table
            } == set(), name


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


class TestForReal:
    @pytest.mark.slow
    def test_help_is_the_program_s(self) -> None:
        done = subprocess.run([SHELL, str(ROOT / "train.sh"), "--help"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
        assert "CoHTrainArgs: " in done.stdout
