"""The program on a real pretrained model. Launchers and engines are in test_engines_slow.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def test_the_demonstration_in_short(tmp_path):
    """`make demo` with few rows: the real model, from its GGUF file to a table of figures."""
    command = [sys.executable, "-m", "coh.demo", "--epochs", "0.15", "--pairs_per_source", "1"]
    found = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT, timeout=290
    )
    assert found.returncode == 0, found.stderr[-3000:]
    for words in ("before", "after", "loss on good outputs", "pair accuracy", "steering gap", "after, bad words:"):
        assert words in found.stdout, found.stdout
    line = next(line for line in found.stdout.splitlines() if line.startswith("loss on good outputs"))
    before, after = map(float, re.findall(r"(\d+\.\d+)(?: \(|\s+|$)", line)[:2])
    assert after < before
