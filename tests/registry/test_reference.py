from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from mixar import strict_yaml
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar.reference import curves_beside
from mixar.run import train
from mixar_core.training.reference import Band, Reference
from mixar_plugins.callbacks.health import Health, HealthConfig
from mixar_plugins.callbacks.progress import ProgressBar, ProgressConfig
from tests.tiny import plain_base, plain_recipes

STEPS = 12


@pytest.fixture
def shipped(family: Path, tmp_path: Path, registry: Registry) -> tuple[Path, Registry]:
    """A recipe in a plugin's folder, and a registry that knows it."""
    plain = plain_base(family) | plain_recipes(family)["continuous"]
    plain["training"] = {**plain["training"], "steps": STEPS, "checkpoint_every": 0}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/shipped.yaml").write_text(strict_yaml.dump(plain))
    plugin = evolve(registry.plugins[0], name="mine", recipe_folders=(tmp_path / "recipes",))
    return tmp_path / "recipes/shipped.yaml", evolve(registry, plugins=(plugin, *registry.plugins))


def said(folder: Path, shipped: tuple[Path, Registry], capsys, *, high: float, **changes: float) -> list[str]:
    """What a run prints on standard error where its recipe's curves say that the loss lies between 0 and `high`."""
    path, known = shipped
    band = Band((1, STEPS), (0.0, 0.0), (high / 2, high / 2), (high, high))
    Reference(STEPS, 3, {"train/loss": band}).write(curves_beside(path))
    recipe = load_recipe("shipped", {f"training.{key}": value for key, value in changes.items()}, registry=known)
    watching = [Health(HealthConfig(steps=4)), ProgressBar(ProgressConfig(lines_every=0))]
    capsys.readouterr()
    train(recipe, folder, callbacks=watching, registry=known, device="cpu")
    return capsys.readouterr().err.splitlines()


def test_a_run_is_held_beside_the_curves_of_its_recipe(shipped, tmp_path, capsys):
    within = said(tmp_path / "within", shipped, capsys, high=10.0, seed=5)
    assert len(within) == STEPS and all(" (reference 0 to 10)  " in line for line in within)

    beyond = said(tmp_path / "beyond", shipped, capsys, high=0.01)
    (warning,) = [line for line in beyond if line.startswith("warning")]
    assert warning.startswith("warning: since step 0: train/loss is 0.") and "above its reference (0 to 0.01" in warning
    entries = [json.loads(line) for line in (tmp_path / "beyond" / "log.jsonl").read_text().splitlines()]
    assert [(entry["about"], entry["step"]) for entry in entries if entry["kind"] == "warning"] == [
        ("train/loss above", 4)
    ]

    changed = said(tmp_path / "changed", shipped, capsys, high=0.01, learning_rate=1e-6)
    assert len(changed) == STEPS and not any("reference" in line for line in changed)
