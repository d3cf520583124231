"""Recipes that train a tokenizer against a discriminator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from mixar.assembly import build
from mixar.cost import estimate
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import load_recipe, make_recipe, to_yaml
from mixar.run import train
from mixar_core.errors import UserError
from mixar_core.tokenizer import Tokenizer
from mixar_core.training.adversarial import AdversarialConfig

PATCHGAN = {"discriminator": {"type": "patchgan", "channels": 4, "layers": 2}}
MASKBIT = {"discriminator": {"type": "maskbit", "channels": 8, "stages": 2, "pool": 2}}


@pytest.mark.parametrize(("name", "opponent"), [("continuous", PATCHGAN), ("discrete", MASKBIT)])
def test_both_kinds_of_tokenizer_are_trained_against_both(
    tmp_path: Path, family: Path, registry: Registry, name: str, opponent: dict
) -> None:
    plain = load_recipe(family / f"recipes/{name}.yaml", registry=registry)
    changes = {**opponent, "adversarial.lecam_weight": 0.05, "training.micro_batch": 2}
    recipe = load_recipe(family / f"recipes/{name}.yaml", changes, registry=registry)
    result = train(recipe, tmp_path / "run", registry=registry)
    terms = {"adversarial", "adversarial_weight", "discriminator", "discriminator_norm", "lecam"}
    assert terms | {"logits_real", "logits_fake"} <= result.losses.keys()
    weights = load_file(tmp_path / "run/weights.safetensors")
    assert weights.keys() == build(plain, registry).trained.state_dict().keys()

    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert written["adversarial"]["lecam_weight"] == 0.05
    assert make_recipe(written, registry, where="it") == recipe
    loaded = build(recipe, registry, trained_weights=tmp_path / "run/weights.safetensors")
    assert loaded.discriminator is None  # what is trained is used without it
    train(load_recipe(tmp_path / "run", ["training.steps=3"], registry=registry), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"started with another recipe: adversarial\.lecam_weight"):
        changed = load_recipe(tmp_path / "run", ["adversarial.lecam_weight=0.1"], registry=registry)
        train(changed, tmp_path / "run", resume=True, registry=registry)


def test_recipes_without_a_discriminator_say_nothing_of_it(registry: Registry) -> None:
    recipe = load_recipe("digits_lfq", registry=registry)
    assert recipe.discriminator is None and recipe.adversarial == AdversarialConfig()
    assert not {"adversarial", "discriminator"} & yaml.safe_load(to_yaml(recipe)).keys()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digits_prior", PATCHGAN, "discriminator: only where a tokenizer is trained, and this recipe trains prior"),
        ("digits_lfq", {"adversarial.weight": 0.1}, "adversarial: is about a discriminator, and the recipe has none"),
        ("digits_lfq", {**PATCHGAN, "adversarial.loss": "wgan"}, "adversarial.loss"),
        ("digits_lfq", {"discriminator": {"type": "patchgan", "weights": "x"}}, "discriminator.weights: only"),
        ("digits_lfq", {"discriminator": {"type": "patchgan", "layers": 4}}, "patchgan: image_size 32 is too small"),
        ("digits_lfq", {"discriminator": {"type": "maskbit", "stages": 6}}, "maskbit: image_size 32 cannot be"),
    ],
)
def test_what_does_not_go_together_is_refused(registry: Registry, name: str, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(load_recipe(name, changes, registry=registry), registry, meta=True)


def test_an_adaptive_weight_needs_a_layer_that_learns(
    family: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = family / "recipes/continuous.yaml"
    frozen = {"init": {"from": str(family / "models/continuous"), "freeze": ["decoder"]}}
    for changes in (frozen, {}):
        if not changes:
            kl = plugin_manager().part("continuous-tokenizer", "kl").component
            monkeypatch.setattr(kl, "last_layer", Tokenizer.last_layer)
        recipe = load_recipe(path, {**PATCHGAN, **changes}, registry=registry)
        with pytest.raises(UserError, match=r"do not fit: no trained last_layer against need of it"):
            build(recipe, registry, meta=True)
        fixed = load_recipe(path, {**PATCHGAN, **changes, "adversarial.adaptive": False}, registry=registry)
        assert build(fixed, registry, meta=True).discriminator is not None


def test_it_counts_in_training_and_nowhere_else(registry: Registry) -> None:
    found = {}
    for name, changes in (("without", {}), ("with", PATCHGAN)):
        system = build(load_recipe("digits_lfq", changes, registry=registry), registry, meta=True)
        found[name] = estimate(system)
    plain, against = found["without"], found["with"]
    own = next(part for part in against.parts if part.part == "discriminator")
    assert own.trained and own.type == "patchgan" and against.parameters == plain.parameters
    assert against.memory_gb["discriminator"] == pytest.approx(16e-9 * own.parameters)
    assert against.memory_gb["activations"] > plain.memory_gb["activations"]
    assert against.training_gflop["total"] == pytest.approx(
        plain.training_gflop["total"] + against.training_gflop["discriminator"]
    )
    assert against.sampling_gflop == plain.sampling_gflop
    assert against.memory_gb["sampling"] == plain.memory_gb["sampling"]
    assert json.dumps(against.memory_gb)
