"""The presets that shipped models carry."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixar
import mixar_zoo
from mixar import Registry
from mixar.presets import read_preset

[MODELS] = mixar_zoo.mixar_model_folders()
CARRIED = sorted(MODELS.glob("*/presets/*.yaml"))


@pytest.mark.parametrize("model", ["digits", "emoji64"])
def test_shipped_models_carry_what_tune_found(model: str) -> None:
    assert MODELS / model / "presets/fast.yaml" in CARRIED


@pytest.mark.parametrize("path", CARRIED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_carried_preset_draws(path: Path, registry: Registry) -> None:
    said = read_preset(path, registry)
    model = mixar.load(path.parts[-3], device="cpu", preset=path.stem)
    assert said["summary"] and model.precision == (said["precision"] or "float32")
    assert model.recipe.sampling.prior_steps == said["sampling"]["prior_steps"]
    assert len(model.generate([0, 1], seed=0).images.unique()) > 10
