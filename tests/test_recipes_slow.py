"""Recipes that name an engine start under it, in two processes, on a tiny model."""

import json

import pytest
from test_engines_slow import ROOT, TORCHRUN, run
from test_recipes import small
from toys import training_folder

pytestmark = pytest.mark.slow
LAUNCHED = {
    "llama-8b-zero3": (["sh", "train.sh", "0,1"], "DeepSpeed, ZeRO stage 3"),
    "llama-8b-fsdp2": ([*TORCHRUN, "--nproc_per_node", "2", ROOT / "tests" / "fsdp_on_cpu.py"], "FSDP"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_recipe_starts_under_its_engine(name, folder, tmp_path):
    launcher, engine = LAUNCHED[name]
    recipe = ROOT / "recipes" / name / "recipe.yaml"
    words = small(folder, recipe=recipe, model=folder / "model", output=tmp_path / "out", seq_length=256)
    result = run(tmp_path / "out", [*launcher, *words], COH_ALLOW_CPU_IDS="1", OMP_NUM_THREADS="1")
    about = json.loads((result.folder / "coh.json").read_text())
    assert about["run"]["processes"] == 2 and about["run"]["engine"] == engine
    assert (result.folder / "model.safetensors").is_file()
