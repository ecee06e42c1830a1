"""The commit of a run is that of coh's own code, whatever repository it is started in, and none where git is absent."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coh import provenance as room
from coh.provenance import commit, commit_of_package, provenance


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    """Makes a repository with one commit, of a package `coh` among other things."""

    def make(name):
        folder = tmp_path / name
        (folder / "coh").mkdir(parents=True)
        (folder / "coh" / "__init__.py").write_text(f"# {name}")
        (folder / ".gitignore").write_text(".venv\n")
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", name)
        return folder

    return make


@pytest.fixture
def facts(monkeypatch):
    """The facts of a run that is started in one folder, with the package in another."""

    def of(working, package):
        monkeypatch.chdir(working)
        monkeypatch.setattr(room, "PACKAGE", Path(package))
        monkeypatch.setattr(room, "engine", lambda train: "one process")
        found = provenance(SimpleNamespace(device=torch.device("cpu"), world_size=1), ["--seed", "1"])
        return json.loads(json.dumps(found))

    return of


def test_the_commit_is_that_of_coh_and_not_of_where_one_stands(repository, facts):
    own, other = repository("own"), repository("other")
    found = facts(other, own / "coh")
    assert found["commit"] == git(own, "rev-parse", "--short=12", "HEAD").strip()
    assert found["commit_of_working_folder"] == git(other, "rev-parse", "--short=12", "HEAD").strip()


def test_one_repository_is_named_once(repository, facts):
    own = repository("own")
    (own / "runs").mkdir()
    found = facts(own / "runs", own / "coh")
    assert found["commit"] == commit(own) and "commit_of_working_folder" not in found


def test_a_package_installed_inside_of_a_repository_has_no_commit_of_its_own(repository, facts):
    other = repository("other")
    installed = other / ".venv" / "coh"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit_of_package(installed) == ""
    found = facts(other, installed)
    assert "commit" not in found and found["commit_of_working_folder"] == commit(other)


def test_a_hook_of_another_repository_is_not_believed(repository, monkeypatch):
    own, other = repository("own"), repository("other")
    expected = commit(own)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert commit_of_package(own / "coh") == expected == commit(own)


def test_without_git_a_run_starts_all_the_same(repository, facts, monkeypatch, tmp_path):
    own = repository("own")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = facts(own, own / "coh")
    assert "commit" not in found and "commit_of_working_folder" not in found
    assert found["command"] == "python -m coh.coh_train --seed 1"
    assert commit(tmp_path / "nowhere") == ""
