from __future__ import annotations

import shutil

import pytest
from attrs import evolve

from benchmarks.reference_curves import STEPS, digest
from mixar.recipe import load_recipe
from mixar.reference import curves_beside, reference_of
from mixar_core.training.reference import FIGURES, Reference
from mixar_zoo import mixar_recipe_folders

RECIPES = {path.stem: path for folder in mixar_recipe_folders() for path in folder.rglob("*.yaml")}


def test_every_recipe_has_curves_that_were_made_of_it():
    """Stale or missing ones: `python -m benchmarks.reference_curves`."""
    assert STEPS.keys() == RECIPES.keys()
    for name, path in RECIPES.items():
        curves, recipe = Reference.read(curves_beside(path)), load_recipe(name)
        assert curves.made["recipe"] == digest(path), f"{name} is another recipe than its curves were made of"
        assert {*FIGURES[:2]} <= curves.bands.keys() and len(curves.made["seeds"]) == curves.runs >= 1
        assert ("train/codes_used" in curves.bands) == (recipe.trains == "discrete_tokenizer")
        assert curves.steps >= 3 * recipe.training.log_every, "too few reports to see a run leave the band"
        assert curves_beside(path).stat().st_size < 6000


@pytest.mark.parametrize(
    ("changes", "has"),
    [
        ({}, True),
        ({"training.seed": 7, "training.log_every": 5, "training.evaluate_every": 10, "callbacks": []}, True),
        ({"sampling.steps": 2, "training.micro_batch": 8, "summary": "mine"}, True),
        ({"training.batch_size": 32}, False),
        ({"training.learning_rate": 1e-2}, False),
        ({"training.steps": 3000}, False),
        ({"head.width": 128}, False),
        ({"name": "mine"}, False),
    ],
)
def test_only_a_run_that_trains_the_same_has_a_reference(registry, changes, has):
    found = reference_of(load_recipe("digits", changes, registry=registry), registry)
    assert (found == Reference.read(curves_beside(RECIPES["digits"]))) if has else found is None


def test_curves_lie_beside_a_recipe_in_any_plugins_folder(registry, tmp_path):
    """And one that cannot be read is as none."""
    plugin = evolve(registry.plugins[0], name="mine", recipe_folders=(tmp_path,), problem=None)
    mine = evolve(registry, plugins=(*registry.plugins, plugin))
    path = shutil.copy(RECIPES["digits_lfq"], tmp_path / "my_lfq.yaml")
    recipe = load_recipe("my_lfq", registry=mine)
    assert reference_of(recipe, mine) is None
    shutil.copy(curves_beside(RECIPES["digits_lfq"]), tmp_path / "my_lfq.curve.json")
    assert reference_of(recipe, mine) == Reference.read(curves_beside(RECIPES["digits_lfq"]))
    assert reference_of(load_recipe(path, registry=mine), mine) is not None
    (tmp_path / "my_lfq.curve.json").write_text("{")
    assert reference_of(recipe, mine) is None
