"""The names that people import, and the README's example from Python, run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from toys import tiny_model_folder

import coh
from coh.arguments import ConfigError

ROOT = Path(__file__).parents[1]
# What the package promises: a change of this list is a change for everybody who uses it.
NAMES = [
    *("CoHDataArgs", "CoHDataset", "CoHTrainArgs", "CoHTrainer", "ExperimentArgs", "FeedbackGroup", "Message"),
    *("SteeredModel", "load", "load_datasets", "train"),
]


def test_the_names_are_those_of_the_list():
    assert sorted(coh.__all__) == sorted(NAMES)
    assert all(getattr(coh, name).__doc__ for name in NAMES)
    with pytest.raises(AttributeError, match="module 'coh' has no attribute 'trian'"):
        _ = coh.trian


def test_importing_the_package_is_light():
    code = "import sys, coh; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_example_of_the_readme(tmp_path, monkeypatch, capsys):
    """Word for word, but for the model, which comes from the hub there."""
    (example,) = re.findall(r"```python\n(import coh\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    model = tiny_model_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changed = example.replace('model_name="gpt2"', f"model_name={model!r}, report_to='none', use_cpu=True")
    assert changed != example
    exec(compile(changed, "README.md", "exec"), {"__name__": "readme"})
    shown = capsys.readouterr().out
    assert re.search(r"The model prefers the first by -?\d+\.\d\d nats", shown)
    assert (tmp_path / "outputs" / "sums" / "coh.json").is_file()


def test_wrong_options_are_said_before_anything_loads():
    with pytest.raises(ConfigError, match="model_nmae is not an option: did you mean model_name"):
        coh.train(model_nmae="gpt2")
    with pytest.raises(ConfigError, match=r"feedback_data\[0\] is '5': give the name of a source, or a list of dicts"):
        coh.train(feedback_data=[5])
