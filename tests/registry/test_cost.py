"""Estimates: formulas against what the modules really do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixar.assembly import build
from mixar.cost import META, backbone_flop, estimate, training_flop_per_image
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.errors import UserError
from mixar_core.masking import split_by_order
from mixar_core.types import Guidance


@pytest.mark.parametrize("injector", ["none", "dc-mix", "dc-sa", "dc-ca"])
def test_the_backbones_formula_is_what_torch_counts(family: Path, registry: Registry, injector: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    overrides = [f"injector.type={injector}", "backbone.decoder_width=12", "backbone.decoder_depth=2"]
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=overrides)
    model = build(recipe, registry, meta=True).model
    assert model is not None
    tokens = model.backbone.grid.tokens
    codes_BN = torch.zeros(1, tokens, dtype=torch.int64, device=META)
    guidance = model.guidance(codes_BN)
    latents_BNC = torch.zeros(1, tokens, model.backbone.token_dim, device=META)
    for masked in (1, tokens // 2, tokens):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.backbone(latents_BNC, split_by_order(codes_BN, masked), codes_BN[:, 0], guidance)
        prefix = tokens if injector == "dc-sa" else 0
        memory = tokens if injector == "dc-ca" else 0
        counted = backbone_flop(model, visible=tokens - masked, prefix=prefix, memory=memory)
        assert counted == counter.get_total_flops()


@pytest.mark.parametrize("name", ["continuous", "discrete", "prior", "mixar"])
def test_every_kind_of_recipe_has_an_estimate(family: Path, registry: Registry, name: str) -> None:
    system = build(load_recipe(family / f"recipes/{name}.yaml", registry=registry), registry, meta=True)
    found = estimate(system)
    assert found.parameters == system.parameters == sum(part.parameters for part in found.parts if part.trained)
    for costs in (found.training_gflop, found.sampling_gflop):
        assert costs["total"] == pytest.approx(sum(value or 0.0 for key, value in costs.items() if key != "total"))
        assert all(value is not None and value >= 0 for value in costs.values())
    assert found.memory_gb["training"] > found.memory_gb["weights"] > 0  # type: ignore[operator]


def test_checkpointing_saves_activations_and_costs_a_forward_pass(registry: Registry) -> None:
    plain, checkpointed = (
        estimate(build(load_recipe("mar_b", registry=registry, overrides=[o]), registry, meta=True))
        for o in ("backbone.activation_checkpointing=false", "backbone.activation_checkpointing=true")
    )
    assert checkpointed.memory_gb["activations"] < plain.memory_gb["activations"] * 0.7  # type: ignore[operator]
    assert checkpointed.training_gflop["backbone"] == pytest.approx(plain.training_gflop["backbone"] * 4 / 3)  # type: ignore[operator]
    assert plain.tokens["training_decoder"] == plain.tokens["sampling_decoder"] == 64 + 256
    assert plain.tokens["sampling_encoder_first"] == 64


def test_model_flop_count_neither_recomputation_nor_tokenizers_that_do_not_run(registry: Registry) -> None:
    def of(name: str, *overrides: str) -> float | None:
        return training_flop_per_image(
            build(load_recipe(name, registry=registry, overrides=overrides), registry, meta=True)
        )

    costs = estimate(build(load_recipe("digits", registry=registry), registry, meta=True)).training_gflop
    assert of("digits", "training.cache=none") == pytest.approx(1e9 * costs["total"])  # type: ignore[operator]
    assert of("digits", "training.cache=none", "backbone.activation_checkpointing=true") == of(
        "digits", "training.cache=none"
    )
    kept = sum(costs[part] or 0.0 for part in ("backbone", "head", "prior"))
    assert of("digits", "training.cache=memory") == pytest.approx(1e9 * kept)
    # a tokenizer that is trained runs whatever is kept
    assert of("digits_lfq", "training.cache=memory") == of("digits_lfq", "training.cache=none")


def test_what_cannot_run_without_values_is_left_out(
    family: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["prior.type=ground-truth", "injector.type=dc-sa", "ti_mix.start=0.5"]
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=overrides)
    system = build(recipe, registry, meta=True)
    found = estimate(system)  # this prior draws from data, and there are none
    assert found.sampling_gflop["prior"] is None and found.sampling_gflop["total"] is None
    assert found.training_gflop["total"] is not None and found.sampling_gflop["backbone"] is not None
    assert system.model is not None

    def look(*_: object, **__: object) -> None:
        raise KeyError("a value")

    monkeypatch.setattr(system.model.head, "loss", look)
    assert training_flop_per_image(system) is None
    monkeypatch.undo()
    monkeypatch.setattr(system.model.injector, "forward", look)
    assert training_flop_per_image(system) is None
    monkeypatch.undo()

    def other_door(_: object) -> Guidance:
        return Guidance(fill_BND=torch.zeros(1, 16, 8, device=META))

    monkeypatch.setattr(system.model.injector, "forward", other_door)
    with pytest.raises(UserError, match="DCSA opens the doors fill"):
        estimate(system)
