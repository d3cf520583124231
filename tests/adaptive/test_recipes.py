"""The adaptive mixture in recipes: what its sampling costs, and what it does not go with."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixar.assembly import build
from mixar.cost import estimate
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.errors import UserError
from mixar_core.model import MixAR
from tests.registry.test_cost import by_formula


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_tokens_that_are_drawn_again_cost_again(family: Path, registry: Registry, cfg: float) -> None:
    def cost(*overrides: str) -> tuple[MixAR, dict[str, object]]:
        chosen = ["sampler.type=adaptive", "sampler.confident=0", "sampling.steps=3", f"sampling.cfg={cfg}", *overrides]
        recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=chosen)
        system = build(recipe, registry, meta=True)
        assert system.model is not None
        return system.model, estimate(system).sampling_gflop

    model, once = cost()
    _, again = cost("sampler.redraw=0.5")
    assert model.backbone.layout.tokens == 16
    steps = ((16, 5), (11, 5), (6, 6), (8, 8))  # tokens that are masked, and those predicted
    passes = sum(by_formula(model, visible=16 - masked, wanted=wanted) for masked, wanted in steps)
    assert 1e9 * again["backbone"] == pytest.approx((1 + (cfg != 1.0)) * passes, rel=1e-9)  # type: ignore[operator]
    assert again["head"] == pytest.approx(24 / 16 * once["head"])  # type: ignore[operator]
    _, quick = cost("sampler.confident=0.5", "sampling.head_steps=6", "sampler.confident_head_steps=3")
    _, even = cost("sampling.head_steps=6")
    assert quick["head"] < even["head"]  # type: ignore[operator]


def test_an_injector_that_follows_needs_passes_with_one_share_of_known_tokens(family: Path, registry: Registry) -> None:
    causal = ["backbone={type: causal, width: 16, depth: 1, heads: 2, buffer: 2}", "masking=null"]
    for injector, fits in (("dc-mix", True), ("dc-mix-adaptive", False)):
        overrides = [*causal, f"injector.type={injector}"]
        recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=overrides)
        if fits:
            build(recipe, registry, meta=True)
            continue
        with pytest.raises(UserError, match=r"backbone .* and injector .* do not fit: no share of known tokens"):
            build(recipe, registry, meta=True)


def test_steps_that_the_head_does_not_have_are_refused_when_a_recipe_is_checked(
    family: Path, registry: Registry
) -> None:
    overrides = ["head={type: mse, depth: 1, width: 8}", "sampler={type: adaptive, confident_head_steps: 3}"]
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=overrides)
    with pytest.raises(UserError, match=r"sampling.head_steps: 3; head mse draws a token in one go"):
        estimate(build(recipe, registry, meta=True))
