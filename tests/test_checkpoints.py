"""A checkpoint is complete or absent, whatever happens while it is written, and the folder of a run is understood."""

import json
import shutil

import pytest
import torch

from coh import checkpoints
from coh.checkpoints import MARKER, UNFINISHED, checkpoint_bytes, checkpoints_in, choose, complete, read_checkpoint
from coh.world import RunError


def make(folder, step, time=None, **about):
    """A complete checkpoint with two files in it."""
    made, final = folder / UNFINISHED / f"checkpoint-{step}", folder / f"checkpoint-{step}"
    (made / "part").mkdir(parents=True)
    (made / "weights").write_bytes(b"w" * 10)
    (made / "part" / "moments").write_bytes(b"m" * 20)
    complete(made, final, {"step": step, **about})
    if time is not None:
        text = json.loads((final / MARKER).read_text())
        (final / MARKER).write_text(json.dumps(text | {"time": time}))
    return final


def test_what_is_complete_is_read_with_all_that_it_tells(tmp_path):
    found = read_checkpoint(make(tmp_path, 7, row=70))
    assert (found.step, found.about["row"]) == (7, 70)
    assert found.about["files"] == {"part/moments": 20, "weights": 10}
    assert not list((tmp_path / UNFINISHED).iterdir())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: (path / MARKER).unlink(), "it has no complete.json"),
        (lambda path: (path / MARKER).write_text('{"step": 3, "fil'), "its complete.json cannot be read"),
        (lambda path: (path / MARKER).write_text('{"step": 3}'), "its complete.json cannot be read"),
        (lambda path: (path / "weights").unlink(), "weights is missing"),
        (lambda path: (path / "part" / "moments").write_bytes(b"m"), "part/moments has 1 bytes of 20"),
        (lambda path: shutil.rmtree(path / "part"), "part/moments is missing"),
    ],
)
def test_a_torn_one_is_skipped_by_name_and_the_last_good_one_taken(tmp_path, spoil, reason):
    good, torn = make(tmp_path, 2), make(tmp_path, 3)
    spoil(torn)
    found, told = choose(tmp_path, "auto")
    assert found.path == good
    (sentence,) = told
    assert sentence.startswith(f"skipped: {torn} is no complete checkpoint: {reason}")
    with pytest.raises(RunError, match="is no complete checkpoint"):
        choose(tmp_path / "elsewhere", str(torn))


def test_a_checkpoint_of_the_model_alone_is_none_to_go_on_from(tmp_path):
    make(tmp_path, 3, is_model_only=True)
    with pytest.raises(RunError, match=r"holds step 3 of the model alone \(--save_only_model\)"):
        choose(tmp_path, str(tmp_path / "checkpoint-3"))


def test_the_newest_is_the_one_completed_last(tmp_path):
    """A higher number may be left of a run that went on from an earlier checkpoint."""
    make(tmp_path, 99, time=1.0)
    newest = make(tmp_path, 5)
    assert choose(tmp_path, "auto")[0].path == choose(tmp_path, True)[0].path == newest
    assert choose(tmp_path / "other", str(tmp_path))[0].path == newest


def test_rotation_takes_the_oldest_complete_ones_and_nothing_else(tmp_path):
    make(tmp_path, 99, time=1.0)
    torn = make(tmp_path, 98, time=2.0)
    (torn / "weights").unlink()
    for step in (2, 4, 6):
        make(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, keep=str(tmp_path / "checkpoint-2"))
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-98", "checkpoint-2", "checkpoint-6"}
    checkpoints.rotate(tmp_path, 1, keep=None)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-98", "checkpoint-6"}
    checkpoints.rotate(tmp_path, None, keep=None)
    assert (tmp_path / "checkpoint-6").exists()


def test_one_of_the_same_name_is_replaced_whole(tmp_path):
    make(tmp_path, 3, mark="old")
    assert read_checkpoint(make(tmp_path, 3, mark="new")).about["mark"] == "new"
    assert not list((tmp_path / UNFINISHED).iterdir())


def test_what_is_named_is_complete_at_every_operation_on_files(tmp_path, monkeypatch):
    """Looks between any two steps of making, replacing and removing a checkpoint."""
    looks = []

    def look():
        found, torn = checkpoints_in(tmp_path)
        looks.append([one.step for one in found])
        assert not torn

    rename, flush, rmtree = type(tmp_path).rename, checkpoints._flush, shutil.rmtree
    monkeypatch.setattr(type(tmp_path), "rename", lambda *a: (look(), rename(*a), look())[1])
    monkeypatch.setattr(checkpoints, "_flush", lambda path: (look(), flush(path)))
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: (look(), rmtree(*a, **k), look())[1])
    make(tmp_path, 1)
    make(tmp_path, 2)
    make(tmp_path, 1)
    checkpoints.rotate(tmp_path, 1, None)
    assert len(looks) > 20 and [2] in looks and [1] in looks


@pytest.mark.parametrize("name", ["checkpoint-9", "model.safetensors", "coh.json", "trainer_state.json", MARKER])
def test_a_folder_with_remains_is_refused_without_resume(tmp_path, name):
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text('{"step": 3}')
    with pytest.raises(RunError, match=f"holds an earlier run .{name}.: go on with it by --resume_from_checkpoint"):
        choose(tmp_path, None)
    checkpoints.remove_remains(tmp_path)
    assert choose(tmp_path, None) == (None, [])


def test_logs_and_other_files_are_no_remains(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "log.txt").write_text("")
    (tmp_path / UNFINISHED / "checkpoint-3").mkdir(parents=True)
    assert choose(tmp_path, None) == (None, [])
    assert choose(tmp_path, "auto") == (None, [f"{tmp_path} has no complete checkpoint: training starts anew"])


def test_what_cannot_be_resumed_is_said(tmp_path):
    with pytest.raises(RunError, match="no_such: there is no such folder"):
        choose(tmp_path, str(tmp_path / "no_such"))
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(RunError, match="has no complete checkpoint to resume from"):
        choose(tmp_path, "auto")  # somebody's model, which training anew would overwrite


def test_a_checkpoint_as_large_as_was_estimated():
    model = torch.nn.Linear(10, 100)
    assert checkpoint_bytes(model, "sgd") == 4400
    assert checkpoint_bytes(model.to(torch.bfloat16), "adamw_bnb_8bit") == 1100 * (2 + 2)
    model.bias.requires_grad = False
    assert checkpoint_bytes(model, "adamw_torch") == 1100 * 2 + 1000 * 8


def test_room_for_none_and_for_some(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(RunError, match=r"a checkpoint takes about .*, and .* has .* left"):
        checkpoints.check_space(tmp_path, free * 2, 1)
    assert "--save_total_limit 2 keeps what fits" in checkpoints.check_space(tmp_path, free * 10 // 35, 10)
    assert checkpoints.check_space(tmp_path, free * 2, 0) is None
    assert checkpoints.check_space(tmp_path, 10, 10) is None


def test_a_folder_that_cannot_be_written_to(tmp_path):
    checkpoints.check_writable(tmp_path / "new" / "one")
    assert not list((tmp_path / "new" / "one").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file cannot be written to \(File exists\): choose another one"):
        checkpoints.check_writable(tmp_path / "file")
