"""Equal runs are equal: one process or two, any launcher, any engine, through the command line, six steps.

The launchers, the files of `ds_config/` and what `docs/scaling.md` gives to paste run as they stand.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_coh_train import options
from test_launchers import block
from toys import tiny_model_folder, training_folder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PROGRAM = ["-m", "coh.coh_train"]


class Result(NamedTuple):
    folder: Path
    said: str

    def logged(self, name: str) -> list[float]:
        history = json.loads((self.folder / "trainer_state.json").read_text())["log_history"]
        return [log[name] for log in history if name in log]

    @property
    def evaluation(self) -> dict[str, float]:
        timing = ("runtime", "per_second", "epoch")
        figures = json.loads((self.folder / "test_results.json").read_text())
        return {name: value for name, value in figures.items() if not any(word in name for word in timing)}

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """Before and after: the loss on held-out text, and figures of pairs."""
        found = json.loads((self.folder / "evaluation.json").read_text())
        names = ("loss_p", "loss_n", "steering_gap", "pair_accuracy", "chain_gain")
        return {
            model: {name: one["sources"]["mine"][name]["value"] for name in names}
            | {"text": one["text_loss"]["value"], "texts": one["text_loss"]["n"]}
            for model, one in found.items()
        }

    @property
    def weights(self) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.folder / "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = training_folder(tmp_path_factory.mktemp("engines"))
    tiny_model_folder(folder / "model", tie_word_embeddings=True)  # one parameter in two places
    return folder


def words(folder: Path, output: Path, batch_size: int, accumulation: int, **changes: Any) -> list[str]:
    cut = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    cut |= {"eval_pairs": 7, "eval_prompts": 1}
    return options(folder, output, max_steps=6, logging_steps=1, **(cut | changes))


def start(command: list[Any], cwd: Path = ROOT, **variables: str) -> tuple[int, str]:
    """Status and output of a command with all of its processes, which end with it whatever happens."""
    hidden = ("NPROC", "CUDA_VISIBLE_DEVICES", "COH_ALLOW_CPU_IDS", "TORCH_EXTENSIONS_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **variables}
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def run(output: Path, command: list[Any], **variables: str) -> Result:
    status, said = start(command, **variables)
    assert status == 0, said[-6000:]
    return Result(output, said)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Result:
    """Batches of eight in one process, by the entry point itself."""
    from coh.coh_train import main

    main(words(folder, folder / "alone", 8, 1))
    return Result(folder / "alone", "")


def one_by_one(folder: Path, output: Path) -> Result:
    return run(output, ["sh", "train.sh", *words(folder, output, 1, 8, use_cpu=None)], CUDA_VISIBLE_DEVICES="")


def ddp(folder: Path, output: Path) -> Result:
    result = run(output, ["sh", "train.sh", "0,1", *words(folder, output, 2, 2)], COH_ALLOW_CPU_IDS="1")
    assert "CUDA_VISIBLE_DEVICES=0,1" in result.said and "--nproc_per_node 2" in result.said
    return result


def zero3(folder: Path, output: Path) -> Result:
    command = ["sh", "llama_train.sh", "", folder / "model", *words(folder, output, 2, 2, model_name=None)]
    result = run(output, command, TORCH_EXTENSIONS_DIR=str(folder / "extensions"))
    assert "ds_config/zero3.json" in result.said and "--nproc_per_node 2" in result.said
    assert not (folder / "extensions").exists(), "nothing is compiled"
    return result


def zero2_offload(folder: Path, output: Path) -> Result:
    engine = ["--deepspeed", "ds_config/zero2_offload.json"]
    return run(output, ["sh", "train.sh", "0,1", *engine, *words(folder, output, 2, 2)], COH_ALLOW_CPU_IDS="1")


def deepspeed(config: str) -> Callable[[Path, Path], Result]:
    def go(folder: Path, output: Path) -> Result:
        command = [BIN / "deepspeed", "--num_gpus", "2", "--module", "coh.coh_train", "--deepspeed", config]
        return run(output, [*command, *words(folder, output, 2, 2)])

    return go


def fsdp2(folder: Path, output: Path) -> Result:
    """By accelerate's launcher; that the model is really sharded is what the program itself checks."""
    config = folder / "fsdp2.yaml"
    # As accelerate sets it up by itself, so that it would save nothing whole.
    config.write_text(block("fsdp2.yaml").replace("FULL_STATE_DICT", "SHARDED_STATE_DICT"))
    command = [BIN / "accelerate", "launch", "--config_file", config, ROOT / "tests" / "fsdp_on_cpu.py"]
    return run(output, [*command, *words(folder, output, 2, 2)])


def slurm(folder: Path, output: Path) -> Result:
    """Two nodes that share their disks: the batch script, with an `srun` that starts both tasks here."""
    tools = folder / "slurm"
    tools.mkdir()
    for name, text in {
        "scontrol": 'test "$*" = "show hostnames node[0-1]" && printf "localhost\\nlocalhost\\n"',
        "srun": 'shift\nexport SLURM_STEP_NUM_TASKS=2\n"$@" & first=$!\n"$@" || exit\nwait $first',
        "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    (folder / "coh.sbatch").write_text(block("coh.sbatch"))
    job = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "2"}
    job |= {"SLURM_GPUS_ON_NODE": "1", "PATH": f"{tools}:{os.environ['PATH']}"}
    return run(output, ["bash", folder / "coh.sbatch", *words(folder, output, 2, 2)], **job)


ENGINES = {
    "one_by_one": one_by_one,
    "ddp": ddp,
    "torchrun_zero2_offload": zero2_offload,
    "torchrun_zero3": zero3,
    "deepspeed_zero2": deepspeed("ds_config/zero2.json"),
    "deepspeed_zero3_offload": deepspeed("ds_config/zero3_offload.json"),
    "fsdp2": fsdp2,
    "slurm": slurm,
}


def same_run(result: Result, alone: Result, rel: float = 1e-5) -> None:
    for name in ("loss", "loss_feedback", "loss_pretrain", "grad_norm"):
        expected = alone.logged(name)
        assert len(expected) == 6 and result.logged(name) == pytest.approx(expected, rel=rel), name
    for name in ("target_share", "num_tokens_seen", "learning_rate"):
        assert result.logged(name) == alone.logged(name), name
    assert result.evaluation.keys() == alone.evaluation.keys()
    for name, expected in alone.evaluation.items():
        assert f"{result.evaluation[name]:.4f}" == f"{expected:.4f}", name
    assert result.measured.keys() == {"base", "model"}
    for model, expected in alone.measured.items():
        assert result.measured[model] == pytest.approx(expected, rel=1e-4, abs=1e-4), model


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_losses_evaluation_and_weights(engine: str, folder: Path, alone: Result) -> None:
    import torch

    result = ENGINES[engine](folder, folder / engine)
    same_run(result, alone)
    # Whole weights, under the names they came by, that give the figures which the run reported.
    theirs, expected = result.weights, alone.weights
    assert theirs.keys() == expected.keys()
    for name, value in expected.items():
        # Adam divides by the root of the squared gradient, so that a rounding of what is almost zero grows.
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=2e-5)
    for name in ("config.json", "tokenizer.json", "coh.json", "generation_config.json"):
        assert (result.folder / name).exists(), name


@pytest.mark.parametrize("engine", ["torchrun_zero3", "fsdp2"])
def test_the_saved_folder_evaluates_as_the_run_did(engine: str, folder: Path) -> None:
    """Nothing is trained: the folder of a sharded run is a model like any other."""
    if not (folder / engine).exists():
        ENGINES[engine](folder, folder / engine)
    from coh.coh_train import main

    model = {"model_name": folder / engine, "learning_rate": "1e-30", "lr_scheduler_type": "constant"}
    main(options(folder, folder / f"again_{engine}", max_steps=1, **model))
    again, before = Result(folder / f"again_{engine}", "").evaluation, Result(folder / engine, "").evaluation
    assert again == pytest.approx(before, rel=1e-6)


def test_two_nodes_that_share_nothing(folder: Path, alone: Result) -> None:
    """One torchrun for each, as on two machines, with caches and outputs of their own."""
    agents = []
    for node in ("left", "right"):
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{20000 + os.getpid() % 20000 + 1}"]
        command = [*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", "coh", *meeting, *PROGRAM]
        own = words(folder, folder / node, 2, 2, cache_dir=folder / f"cache_{node}")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        agents.append(subprocess.Popen([*command, *own], env=environment, cwd=folder, start_new_session=True))
    try:
        assert [agent.wait(timeout=240) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    first, second = (folder / node / "model.safetensors" for node in ("left", "right"))
    assert first.exists() != second.exists(), "process 0 saves the model"
    same_run(Result((first if first.exists() else second).parent, ""), alone)


def test_bf16_within_its_own_noise(folder: Path, alone: Result) -> None:
    """Two processes differ from one by no more than bf16 differs from float32."""
    from coh.coh_train import main

    main(words(folder, folder / "bf16", 8, 1, bf16="true"))
    command = ["sh", "train.sh", "0,1", *words(folder, folder / "bf16_of_two", 2, 2, bf16="true")]
    two = run(folder / "bf16_of_two", command, COH_ALLOW_CPU_IDS="1").logged("loss")
    one, exact = Result(folder / "bf16", "").logged("loss"), alone.logged("loss")
    noise = max(abs(a - b) for a, b in zip(one, exact))
    assert 0 < noise < 1e-3 and max(abs(a - b) for a, b in zip(two, one)) <= 2 * noise


def test_processes_that_would_train_alone_are_stopped(folder: Path) -> None:
    """torchrun without --use_cpu on a machine without GPUs: each would believe that it is the only one."""
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *PROGRAM]
    status, said = start([*command, *words(folder, folder / "none", 2, 2, use_cpu=None)], CUDA_VISIBLE_DEVICES="")
    assert status != 0
    assert "2 processes were launched, but each would train a model of its own: pass --use_cpu" in said
    assert not (folder / "none").exists()


def test_fsdp_that_would_be_something_else_is_stopped(folder: Path) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", *PROGRAM, "--fsdp"]
    status, said = start([*command, *words(folder, folder / "none", 2, 2)])
    assert status != 0 and "fsdp was asked for, but the model is wrapped as DistributedDataParallel" in said
    assert not (folder / "none" / "config.json").exists()


@pytest.mark.timeout(900)
def test_deepspeed_s_own_optimizer_on_the_cpu(folder: Path, alone: Result) -> None:
    if os.environ.get("COH_TEST_OFFLOAD") != "1":
        pytest.skip("DeepSpeed's CPU optimizer compiles for minutes: COH_TEST_OFFLOAD=1 runs this")
    config = json.loads((ROOT / "ds_config" / "zero3_offload.json").read_text())
    path = folder / "own_optimizer.json"
    path.write_text(json.dumps(config | json.loads(block('"optimizer"'))))
    extensions = {"TORCH_EXTENSIONS_DIR": str(ROOT / ".cache" / "torch_extensions")}
    command = ["sh", "llama_train.sh", "", folder / "model", "--deepspeed", path]
    same_run(
        run(folder / "own", [*command, *words(folder, folder / "own", 2, 2, model_name=None)], **extensions), alone
    )
