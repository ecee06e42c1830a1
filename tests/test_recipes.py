"""Every recipe starts: all of its options are taken, on a tiny model and tiny data, without its engine."""

import re
from pathlib import Path

import pytest
import yaml
from toys import CHATML, tiny_model_folder, training_folder

from coh.coh_train import main
from coh.saved import load_words

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.parent.name for path in (ROOT / "recipes").glob("*/recipe.yaml"))
ENGINES = ("deepspeed", "fsdp")  # they need processes: tests/test_recipes_slow.py starts them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("recipes"))


def content_of(name):
    return yaml.safe_load((ROOT / "recipes" / name / "recipe.yaml").read_text(encoding="utf-8"))


def small(folder, *, recipe, model, output, seq_length=512):
    """The options that make a recipe a matter of seconds."""
    changes = {
        "config": recipe,
        "model_name": model,
        "feedback_data": f"mine={folder / 'pairs.jsonl'}",
        "pretrain_data": folder / "text.jsonl",
        "cache_dir": folder / "cache",
        "seq_length": seq_length,
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": "true",
        "eval_pairs": "0",
        "write_report": "false",
        "bf16": "false",
        "output_dir": output,
    }
    return [word for option, value in changes.items() for word in (f"--{option}", str(value))]


def test_there_are_recipes_and_all_are_listed():
    listed = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert len(RECIPES) >= 9
    for name in RECIPES:
        assert f"[{name}]({name}/README.md)" in listed
        readme = (ROOT / "recipes" / name / "README.md").read_text(encoding="utf-8")
        assert f"--config recipes/{name}/recipe.yaml" in readme


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_starts(name, folder, tmp_path):
    content = content_of(name)
    if content.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    for engine in ENGINES:
        content.pop(engine, None)
    model = folder / "model"
    if content.get("prompt_format") == "chat":
        model = folder / "chat"
        tiny_model_folder(model)
        (model / "chat_template.jinja").write_text(CHATML)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    main(small(folder, recipe=recipe, model=model, output=tmp_path / "out"))
    words = load_words(tmp_path / "out")
    assert words.family.name == content["templates"]
    assert words.prepend_bos == content.get("prepend_bos", False)


def test_the_paper_is_followed_where_it_speaks():
    content = content_of("paper")
    assert content["pt_loss_weight"] == 1.5 and content["fcm_max_ratio"] == 0.05
    assert (content["adam_beta1"], content["adam_beta2"], content["adam_epsilon"]) == (0.9, 0.95, 1e-8)
    rows = content["per_device_train_batch_size"] * content["gradient_accumulation_steps"] * 8
    assert rows == 512 + 2048 and content["pretrain_ratio"] == 2048 / 512


def test_a_number_in_a_recipe_is_a_number():
    for name in RECIPES:
        for key, value in content_of(name).items():
            assert not (isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value)), f"{name}: {key} {value}"


def test_the_engine_of_a_recipe_is_one_that_is_there():
    found = {name: {key: content_of(name)[key] for key in ENGINES if key in content_of(name)} for name in RECIPES}
    engines = {name: engine for name, engine in found.items() if engine}
    zero3 = {"deepspeed": "ds_config/zero3.json"}
    assert engines == {"paper": zero3, "llama-8b-zero3": zero3, "llama-8b-fsdp2": {"fsdp": True}}
    assert (ROOT / zero3["deepspeed"]).is_file()
