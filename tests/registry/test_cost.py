"""Estimates: formulas against what the modules really do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mixar.assembly import build
from mixar.cost import META, estimate, training_flop_per_image
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.errors import UserError
from mixar_core.masking import masked_after_step
from mixar_core.model import MixAR
from mixar_core.types import Guidance


def by_formula(model: MixAR, *, visible: int, wanted: int, prefix: int = 0, memory: int = 0) -> float:
    """FLOP of one pass of the backbone over one image of which `visible` tokens are known, and `wanted` predicted.

    Over T tokens, a block of width D and MLP ratio r costs 2 (4 + 2r) D^2 T for its dense layers and 4 T^2 D for its
    attention; cross-attention to M tokens 4 D^2 T and 4 T M D, beside 4 D^2 M (see `of_memory`). The decoder's last
    block makes keys and values of all, and everything else of the wanted tokens alone.
    """
    backbone, config = model.backbone, model.backbone.config
    total = 2.0 * visible * backbone.token_dim * config.width  # tokens in
    encoded = prefix + config.buffer + visible
    total += 2.0 * encoded * config.width * backbone.width  # encoder to decoder
    decoded, decoders = prefix + config.buffer + backbone.layout.tokens, config.decoder_depth or config.depth
    for length, rows, width, depth in (
        (encoded, encoded, config.width, config.depth),
        (decoded, decoded, backbone.width, decoders - 1),
        (decoded, wanted, backbone.width, 1),
    ):
        block = (
            4.0 * width**2 * length + 2.0 * (2 + 2 * config.mlp_ratio) * width**2 * rows + 4.0 * rows * length * width
        )
        if memory:
            block += 4.0 * width**2 * rows + 4.0 * rows * memory * width
        total += depth * block
    return total


def of_memory(model: MixAR, memory: int) -> float:
    """FLOP of all blocks' keys and values of a memory."""
    config = model.backbone.config
    widths = config.depth * config.width + (config.decoder_depth or config.depth) * model.backbone.width
    return 4.0 * widths * config.width * memory


@pytest.mark.parametrize("injector", ["none", "dc-mix", "dc-sa", "dc-ca"])
def test_what_is_counted_of_the_backbone_is_its_formula(family: Path, registry: Registry, injector: str) -> None:
    overrides = [
        f"injector.type={injector}", "backbone.decoder_width=12", "backbone.decoder_depth=2",
        "backbone.activation_checkpointing=false", "sampling.steps=7", "sampling.cfg=2.0",
    ]  # fmt: skip
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=overrides)
    system = build(recipe, registry, meta=True)
    assert system.model is not None
    tokens = system.model.backbone.layout.tokens
    front = {"prefix": tokens if injector == "dc-sa" else 0, "memory": tokens if injector == "dc-ca" else 0}
    found = estimate(system)
    visible = tokens - found.tokens["training_masked"]
    once = of_memory(system.model, front["memory"])
    expected = 3 * (by_formula(system.model, visible=visible, wanted=tokens - visible, **front) + once)
    assert 1e9 * found.training_gflop["backbone"] == pytest.approx(expected, rel=1e-12)  # type: ignore[operator]
    left = [tokens, *masked_after_step(tokens, 7)]
    passes = [
        by_formula(system.model, visible=tokens - now, wanted=now - then, **front)
        for now, then in pairwise(left)
        if then < now
    ]
    expected = 2 * sum(passes) + once  # of a memory once for all steps, and for both halves of the guidance
    assert 1e9 * found.sampling_gflop["backbone"] == pytest.approx(expected, rel=1e-9)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["continuous", "discrete", "prior", "mixar"])
def test_every_kind_of_recipe_has_an_estimate(family: Path, registry: Registry, name: str) -> None:
    system = build(load_recipe(family / f"recipes/{name}.yaml", registry=registry), registry, meta=True)
    found = estimate(system)
    assert found.parameters == system.parameters == sum(part.parameters for part in found.parts if part.trained)
    for costs in (found.training_gflop, found.sampling_gflop):
        assert costs["total"] == pytest.approx(sum(float(value) for key, value in costs.items() if key != "total"))
        assert all(not isinstance(value, str) and value >= 0 for value in costs.values())
    assert found.memory_gb["training"] > found.memory_gb["weights"] > 0  # type: ignore[operator]


def test_checkpointing_saves_activations_and_costs_a_forward_pass(registry: Registry) -> None:
    plain, checkpointed = (
        estimate(build(load_recipe("mar_b", registry=registry, overrides=[o, "sampling.steps=2"]), registry, meta=True))
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
    kept = sum(float(costs[part]) for part in ("backbone", "head", "prior"))
    assert of("digits", "training.cache=memory") == pytest.approx(1e9 * kept)
    # a tokenizer that is trained runs whatever is kept
    assert of("digits_lfq", "training.cache=memory") == of("digits_lfq", "training.cache=none")


def test_what_cannot_run_without_values_says_why(
    family: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["prior.type=ground-truth", "injector.type=dc-sa", "ti_mix.start=0.5"]
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=overrides)
    system = build(recipe, registry, meta=True)
    found = estimate(system)  # this prior draws from data, and there are none
    assert "cannot be counted without values: " in str(found.sampling_gflop["prior"])
    assert found.sampling_gflop["total"] == "not known, for want of: prior"
    assert isinstance(found.training_gflop["total"], float) and isinstance(found.sampling_gflop["backbone"], float)
    assert system.model is not None

    def look(*_: object, **__: object) -> None:
        raise KeyError("a value")

    monkeypatch.setattr(system.model.head, "loss", look)
    assert training_flop_per_image(system) is None
    monkeypatch.undo()
    monkeypatch.setattr(system.model.injector, "forward", look)
    assert training_flop_per_image(system) is None
    found = estimate(system)
    assert found.training_gflop["backbone"] == "cannot be counted without values: KeyError: 'a value'"
    assert "KeyError: 'a value'" in str(found.memory_gb["activations"])
    assert found.memory_gb["training"] == "not known, for want of: activations"
    monkeypatch.undo()

    def other_door(_: object) -> Guidance:
        return Guidance(fill_BND=torch.zeros(1, 16, 8, device=META))

    monkeypatch.setattr(system.model.injector, "forward", other_door)
    with pytest.raises(UserError, match="DCSA opens the doors fill"):
        estimate(system)


@pytest.mark.parametrize("sampler", ["lazymar", "recap"])
def test_a_step_that_reuses_counts_as_what_it_computes(family: Path, registry: Registry, sampler: str) -> None:
    changes = ["sampling.steps=16", "sampling.cfg=2.0", "backbone.depth=4"]

    def gflop(*overrides: str) -> float:
        recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=[*changes, *overrides])
        found = estimate(build(recipe, registry, meta=True)).sampling_gflop["backbone"]
        assert isinstance(found, float)
        return found

    exact, reused = gflop(), gflop(f"sampler.type={sampler}", "sampling.head_steps=4")
    assert 0.2 * exact < reused < 0.95 * exact
