"""Interruptions of whole runs: SIGKILL at random moments, several processes, a full disk, a rank that dies or hangs."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import Forks
from safetensors.torch import load_file
from test_coh_train import options
from test_resume import TIMES
from toys import tiny_model_folder, training_folder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
AUTO = ("--resume_from_checkpoint", "auto")
ZERO3 = {"deepspeed": str(ROOT / "ds_config" / "zero3.json")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = training_folder(tmp_path_factory.mktemp("interrupted"))
    tiny_model_folder(folder / "model", attention_dropout=0.2, initializer_range=0.1)
    return folder


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


def wanted(folder, output, **changes):
    values = {"max_steps": 10, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "pretrain_data": "none"}
    return options(folder, output, **(values | changes))


def outcome(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logs = [
        {name: value for name, value in log.items() if name not in TIMES} for log in history if "train_loss" not in log
    ]
    return logs, load_file(output / "model.safetensors")


def assert_same(one, other):
    (logs, weights), (other_logs, other_weights) = one, other
    assert logs == other_logs and len(logs) > 5
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_twenty_kills_of_which_ten_inside_a_save(folder, forks):
    """Each run is killed five times, and gone on with each time; the moments are drawn from the seed shown."""
    seed = int.from_bytes(os.urandom(2), "little")
    print("seed", seed)
    draw = random.Random(seed)
    assert forks.run(wanted(folder, folder / "undisturbed"))[0] == [0]
    num_kills = {"in a save": 0, "anywhere": 0}
    for number in range(12):
        words = [*wanted(folder, folder / f"killed{number}"), *AUTO]
        for kill in range(5 + number % 2):
            place = ("in a save", "anywhere")[(kill + number) % 2]
            moment = {"kill_after": draw.uniform(0.3, 4)}
            if place == "in a save":
                moment = {"kill_at": draw.randint(1, 40), "delay": draw.choice([0, 0, draw.random() / 200])}
            statuses, said = forks.run(words, **moment)
            assert statuses in ([-9], [0]), said
            if statuses == [0]:
                break
            num_kills[place] += 1
        statuses, said = forks.run(words)
        assert statuses == [0], said
        assert_same(outcome(folder / f"killed{number}"), outcome(folder / "undisturbed"))
        if num_kills["in a save"] >= 10 and sum(num_kills.values()) >= 20:
            break
    print(num_kills)
    assert num_kills["in a save"] >= 10 and sum(num_kills.values()) >= 20


@pytest.mark.parametrize("changes", [{}, ZERO3], ids=["ddp", "zero3"])
def test_two_processes_stopped_twice_are_never_stopped(folder, forks, changes, request):
    """SIGTERM comes to one of the two alone, and both stop behind the same step."""
    name = request.node.callspec.id
    whole = forks.run(wanted(folder, folder / f"{name}_whole", **changes), world=2)
    assert whole[0] == [0, 0], whole[1]
    words = [*wanted(folder, folder / f"{name}_parts", save_steps=100, **changes), *AUTO]
    for stop in ([1, 2, "SIGTERM"], [0, 7, "SIGTERM"]):
        statuses, said = forks.run(words, world=2, at=stop)
        assert statuses == [143, 143], said
        assert f"SIGTERM: stopped behind step {stop[1] + 1}." in said
        assert not (folder / f"{name}_parts" / "model.safetensors").exists()
    statuses, said = forks.run(words, world=2)
    assert statuses == [0, 0], said
    assert_same(outcome(folder / f"{name}_whole"), outcome(folder / f"{name}_parts"))


def test_a_signal_to_the_whole_job_spares_the_workers(folder, forks, tmp_path):
    words = wanted(folder, tmp_path / "out", dataloader_num_workers=2, save_steps=100)
    statuses, said = forks.run(words, at=[0, 3, "group"])
    assert statuses == [143] and "SIGTERM: stopped behind step 4." in said, said
    statuses, said = forks.run([*words, *AUTO])
    assert statuses == [0], said
    assert forks.run(wanted(folder, tmp_path / "whole"))[0] == [0]
    assert_same(outcome(tmp_path / "out"), outcome(tmp_path / "whole"))


def test_another_number_of_processes_goes_on_with_the_same_rows(folder, forks, tmp_path):
    output = tmp_path / "out"
    two = wanted(folder, output)
    assert forks.run(two, world=2, rows_to=str(tmp_path / "rows"), at=[0, 3, "SIGTERM"])[0] == [143, 143]
    statuses, said = forks.run([*two, *AUTO])
    assert statuses == [1] and "rows of a step was 4 and is 2" in said
    one = wanted(folder, output, gradient_accumulation_steps=2)
    statuses, said = forks.run([*one, *AUTO], rows_to=str(tmp_path / "rows"))
    assert statuses == [0] and "written by 2 processes, and there are 1: rows go on in their order" in said, said
    lines = [json.loads(line) for path in tmp_path.glob("rows.*") for line in path.read_text().splitlines()]
    assert sorted(row for _, rows in lines for row in rows) == list(range(40))
    assert all(row // 4 == step for step, rows in lines for row in rows)


DISK = """
mount -t tmpfs -o size=$SIZE tmpfs "$1" || exit 77
shift; "$@"; echo "status $?"
ls -d "$OUT"/checkpoint-* "$OUT"/unfinished/* 2>/dev/null
mount -o remount,size=20m "$DISK" && "$@" --resume_from_checkpoint auto; echo "status $?"
"""


def test_a_full_disk_is_a_sentence_and_costs_no_checkpoint(folder, tmp_path):
    """On a disk with room for two checkpoints and a half; once it is larger, the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = [sys.executable, "-m", "coh.coh_train", *wanted(folder, disk / "out")]
    environment = os.environ | {"SIZE": "1300k", "OUT": str(disk / "out"), "DISK": str(disk), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", DISK, "sh", str(disk), *words],
        capture_output=True, text=True, timeout=200, cwd=ROOT, env=environment,
    )  # fmt: skip
    if run.returncode == 77 or "unshare" in run.stderr[:40]:
        pytest.skip(f"no file system can be mounted here: {run.stderr.strip()[:200]}")
    first, second = run.stdout.split("status ")[1:]
    assert first.startswith("1"), run.stdout + run.stderr
    assert "checkpoint-6 cannot be written to" in run.stderr and "(the disk is full: " in run.stderr, run.stderr
    assert f"The last complete checkpoint is {disk / 'out' / 'checkpoint-4'}" in run.stderr
    listed = [line for line in first.splitlines() if line.startswith(str(disk))]
    assert listed == [str(disk / "out" / name) for name in ("checkpoint-2", "checkpoint-4")]
    assert second.startswith("0"), run.stderr


def test_a_rank_that_hangs_is_named_within_the_time_limit(folder, forks, tmp_path):
    words = wanted(folder, tmp_path / "out", ddp_timeout=15)
    statuses, said = forks.run(words, world=2, at=[1, 3, "hang"])
    assert statuses == [124, 124], said
    assert "rank 1 of 2 has stood still for" in said and "in step 4: it hangs, others wait" in said, said
    assert "rank 0 of 2 has stood still" in said and "it waits for rank 1 (pid" in said, said
    assert "time.sleep(1000)" in said, "where it hangs is shown"
    assert "The last complete checkpoint" not in said or "checkpoint-2" in said


def test_a_stopped_process_is_named_by_the_others(folder, forks, tmp_path):
    """It cannot speak for itself, as one whose machine is gone."""
    words = wanted(folder, tmp_path / "out", ddp_timeout=15)
    statuses, said = forks.run(words, world=2, at=[1, 3, "SIGSTOP"], like_torchrun=True)
    assert statuses[0] == 124, said
    assert "rank 0 of 2 has stood still" in said and "it waits for rank 1 (pid" in said, said


def test_a_rank_that_dies_ends_the_run_at_once(folder, forks, tmp_path):
    words = wanted(folder, tmp_path / "out")
    statuses, said = forks.run(words, world=2, at=[1, 3, "SIGKILL"], like_torchrun=True)
    assert statuses[1] == -9 and statuses[0] not in (0, 143), said
