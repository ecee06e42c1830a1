"""The package from Python: a reviewed list of names, a light import, and the example of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from toys import pairs, tiny_model_folder, write_rows

import coh
from coh.arguments import ConfigError

ROOT = Path(__file__).parents[1]


def test_the_names_are_these():
    assert coh.__all__ == [
        "CoHDataArgs",
        "CoHDataset",
        "CoHTrainArgs",
        "CoHTrainer",
        "ExperimentArgs",
        "FeedbackGroup",
        "Message",
        "SteeredModel",
        "load",
        "load_datasets",
        "train",
    ]
    assert set(coh.__all__) <= set(dir(coh))
    for name in coh.__all__:
        assert getattr(coh, name).__name__ == name
        assert getattr(coh, name).__module__.startswith("coh.")


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'coh' has no attribute 'tain'"):
        coh.tain  # noqa: B018


def test_the_import_is_light():
    """A process of its own: in this one everything is imported already."""
    code = "import coh, sys; coh.FeedbackGroup; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("base"))


def options_of(base, output_dir, **more):
    small = {
        "write_report": False,
        "eval_pairs": 0,
        "use_cpu": True,
        "report_to": "none",
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    data = {"pretrain_data": "none", "templates": "marker", "seq_length": 200}
    return {"model_name": base, "output_dir": str(output_dir), "max_steps": 2, **small, **data, **more}


def test_the_example_of_the_readme_runs(base, tmp_path, monkeypatch, capsys):
    """As it stands there, but for the model and what a machine without a GPU needs."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (example,) = [block for block in blocks if "coh.train(" in block]
    assert 'model_name="gpt2",' in example
    fast = f"model_name={base!r}, cache_dir={str(tmp_path / 'cache')!r}, use_cpu=True, report_to='none',"
    fast += " write_report=False,"
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(example.replace('model_name="gpt2",', fast), "README.md", "exec"), names)
    assert isinstance(names["model"], coh.SteeredModel)
    assert (Path(names["folder"]) / "coh.json").is_file()
    assert "The model prefers the first by" in capsys.readouterr().out


def test_rows_in_memory_are_rows_in_a_file(base, tmp_path):
    import torch
    from safetensors.torch import load_file

    path = write_rows(tmp_path / "pairs.jsonl", pairs(30))
    cache = str(tmp_path / "cache")
    one = coh.train(**options_of(base, tmp_path / "one", feedback_data=pairs(30), cache_dir=cache))
    other = coh.train(**options_of(base, tmp_path / "other", feedback_data=path, cache_dir=cache))
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in second)
    before = load_file(Path(base) / "model.safetensors")
    assert any(not torch.equal(before[name], second[name]) for name in second)


def test_rows_and_sources_together(base, tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(30))
    thumbs = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}", "label": True} for n in range(30)]
    folder = coh.train(
        **options_of(base, tmp_path / "out", feedback_data=[path, thumbs], cache_dir=str(tmp_path / "cache"))
    )
    model = coh.load(folder)
    assert isinstance(model.generate("3 + 1?", max_new_tokens=4), str)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model_nmae": "gpt2"}, "model_nmae is not an option: did you mean model_name?"),
        ({"warmup_ratio": 0.1}, "warmup_ratio is not an option: use warmup_steps, where a value below 1 is a ratio."),
        ({"qqq": 1}, "qqq is not an option: python -m coh.coh_train --help lists all options."),
        ({"feedback_data": [7]}, r"feedback_data\[0\] is '7': give the name of a source, or a list of dicts."),
        ({"feedback_data": [[{"prompt": "a"}, "b"]]}, r"feedback_data\[0\] is .*: give the name of a source"),
        ({"feedback_data": "nowhere.jsonl", "seq_length": 4, "use_cpu": True}, "there is no file 'nowhere.jsonl'"),
        ({"feedback_data": "nowhere.jsonl", "seq_length": 4, "use_cpu": True}, "--seq_length 4: a row needs 16"),
    ],
)
def test_what_is_wrong_with_options_is_said(tmp_path, monkeypatch, options, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=problem):
        coh.train(**options)
    assert not list(tmp_path.iterdir())


def test_datasets_are_built_from_the_same_names(tmp_path):
    from toys import byte_tokenizer

    args = coh.CoHDataArgs(
        feedback_data=[write_rows(tmp_path / "pairs.jsonl", pairs(30))], pretrain_data="none", seq_length=200
    )
    datasets = coh.load_datasets(args, byte_tokenizer(), cache_dir=str(tmp_path / "cache"))
    assert isinstance(datasets["train"], coh.CoHDataset)
