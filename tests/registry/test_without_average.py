"""A run that keeps no average of its weights: what is drawn from it takes those of its last step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mixar
from mixar.assembly import build
from mixar.folder import weights_file
from mixar.memory import training_memory
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar.run import train
from mixar.sampling import Plan, describe
from mixar_core.errors import UserError
from mixar_core.storage import read_weights


def test_its_last_weights_stand_for_either(family: Path, tmp_path: Path, registry: Registry) -> None:
    over = {"training.ema_decay": None, "training.checkpoint_every": 1}
    recipe = load_recipe(family / "recipes/mixar.yaml", over, registry=registry)
    folder = train(recipe, tmp_path / "run", registry=registry).folder
    assert not (folder / "weights_raw.safetensors").exists()
    assert weights_file(folder, "raw") == weights_file(folder, "ema") == folder / "weights.safetensors"
    model = mixar.load(folder, device="cpu")
    assert model.weights == "raw" and torch.equal(
        model.generate([0], seed=1).images, mixar.load(folder, device="cpu", weights="raw").generate([0], seed=1).images
    )
    plan = Plan(1, 1, 0, model.settings(), (0,), "balanced")
    assert describe(model, plan)["model"]["weights"] == "raw"
    twin = load_recipe(family / "recipes/mixar.yaml", {"training.ema_decay": 0.5}, registry=registry)
    averaged = train(twin, tmp_path / "averaged", registry=registry).folder
    alone, raw = read_weights(folder / "weights.safetensors"), read_weights(averaged / "weights_raw.safetensors")
    assert all(torch.equal(alone[name], raw[name]) for name in raw)
    (folder / "weights.safetensors").unlink()  # as before a run's end
    assert (
        weights_file(folder, "raw")
        == weights_file(folder, "ema")
        == sorted((folder / "checkpoints").iterdir())[-1] / "raw"
    )
    assert mixar.load(folder, device="cpu").weights == "raw"


def test_a_shipped_model_still_has_averaged_weights_only(family: Path) -> None:
    with pytest.raises(UserError, match=r"no weights_raw\.safetensors"):
        mixar.load(family / "models/mixar", device="cpu", weights="raw")


def test_memory_is_without_a_second_copy(family: Path, registry: Registry) -> None:
    needed = {}
    for decay in (0.9, None):
        recipe = load_recipe(family / "recipes/mixar.yaml", {"training.ema_decay": decay}, registry=registry)
        needed[decay] = training_memory(build(recipe, registry, meta=True))
    assert needed[None]["ema"] == 0.0 and needed[0.9]["ema"] == needed[0.9]["weights"]
    assert float(needed[0.9]["training"]) - float(needed[None]["training"]) == pytest.approx(float(needed[0.9]["ema"]))
