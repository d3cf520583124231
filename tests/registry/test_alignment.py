from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from mixar.recipe import load_recipe, make_recipe, to_yaml
from mixar.run import train
from mixar_core.errors import UserError
from mixar_core.training.alignment import AlignmentConfig
from mixar_core.training.optimizer import AdamW, Weight
from tests.networks import TIMM_MODEL, write_timm

ALIGNED = {"aligned_to": {"type": "efficientnet-lite0", "maps_scale": 2}}


def test_a_recipe_says_what_latents_are_held_to(registry):
    recipe = load_recipe("digits_continuous", {**ALIGNED, "alignment.margin_cos": 0.0}, registry=registry)
    assert recipe.alignment == AlignmentConfig(margin_cos=0.0)
    written = yaml.safe_load(to_yaml(recipe))
    assert written["alignment"] == {"weight": 0.1, "adaptive": True, "margin_cos": 0.0, "margin_dist": 0.25}
    assert make_recipe(written, registry, where="it") == recipe
    assert "align" not in to_yaml(load_recipe("digits_continuous", registry=registry))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digits_lfq", ALIGNED, "aligned_to: is for a continuous_tokenizer, and this recipe trains discrete_tokenizer"),
        ("digits_continuous", {"alignment.weight": 0.5}, "alignment: is about a foundation model, aligned_to"),
        ("digits_continuous", {**ALIGNED, "alignment.margin_dist": -1.0}, "alignment"),
    ],
)
def test_what_cannot_be_held_is_refused(registry, name, changes, message):
    with pytest.raises(UserError, match=message):
        load_recipe(name, changes, registry=registry)


def test_a_timm_model_of_a_local_file_by_recipe(tmp_path: Path, registry):
    vit = {
        "type": "timm",
        "model": TIMM_MODEL,
        "weights_file": str(write_timm(tmp_path / "vit.safetensors")),
        "size": 32,
    }
    changes = {
        "aligned_to": {**vit, "layers": [-1], "norm": True},
        "extractor": vit,
        "reconstruction.perceptual_weight": 0.1,
        "continuous_tokenizer.channels": 4,
        "reconstruction.statistics_images": 8,
        **{f"training.{key}": value for key, value in {"steps": 2, "batch_size": 4, "cache": "none"}.items()},
        "training.evaluate_every": 0,
        "training.preview_every": 0,
        "callbacks": [],
    }
    result = train(load_recipe("digits_continuous", changes, registry=registry), tmp_path / "run", registry=registry)
    assert {"alignment_cos", "alignment_dist", "perceptual"} <= result.losses.keys()
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_an_optimizer_that_refuses_the_projection_leaves_no_folder(
    tmp_path: Path, registry, monkeypatch: pytest.MonkeyPatch
):
    make = AdamW.make

    def picky(self: AdamW, weights: Sequence[Weight], training):
        if any(weight.name.startswith("projection") for weight in weights):
            raise UserError("no projections")
        return make(self, weights, training)

    monkeypatch.setattr(AdamW, "make", picky)
    changes = {**ALIGNED, "training.steps": 1, "training.batch_size": 4, "training.cache": "none"}
    recipe = load_recipe("digits_continuous", changes, registry=registry)
    with pytest.raises(UserError, match=r"recipe digits_continuous: optimizer \(adamw\): no projections"):
        train(recipe, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run").exists()
