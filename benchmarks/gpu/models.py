"""Full-size models with seeded weights, their training steps and their drawing, on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu.part import Part
from mixar.assembly import System, build
from mixar.plugins import Registry
from mixar.presets import read_preset
from mixar.recipe import Recipe, load_recipe
from mixar.run import make_objective
from mixar_core.data.loader import BatchShard
from mixar_core.data.tokens import CachedTokens
from mixar_core.distributed import Processes
from mixar_core.precision import tf32_where
from mixar_core.training.engine import Engine
from mixar_core.training.objective import Objective
from mixar_core.types import Posterior

#: recipes made so small that a step takes no time, and what a MixAR's has beside
TINY: dict[str, Any] = {
    "image_size": 32,
    "backbone": {"width": 32, "depth": 2, "heads": 2, "buffer": 4},
    "head": {"depth": 1, "width": 32},
    "continuous_tokenizer.channels": 32,
}
TINY_CODES: dict[str, Any] = {
    "discrete_tokenizer.channels": 32,
    "prior": {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 32},
}


def recipe_of(part: Part, name: str, overrides: Mapping[str, Any], registry: Registry) -> Recipe:
    """A shipped recipe with these settings."""
    tiny = TINY | (TINY_CODES if name.startswith("mixar") else {})
    return load_recipe(name, {**(tiny if part.tiny else {}), **overrides}, registry=registry)


def with_preset(name: str, registry: Registry) -> dict[str, Any]:
    """Settings of a recipe that sample as this preset, whatever it says itself."""
    preset = read_preset(registry.find_preset(name, None), registry)
    return {"sampler": preset["sampler"]} | {f"sampling.{key}": value for key, value in preset["sampling"].items()}


def seeded(recipe: Recipe, registry: Registry, device: torch.device) -> System:
    """A recipe's parts on the device, all matrices of what is trained seeded: a fresh head would draw zeros."""
    with device:  # made there, not moved: most of the time is random numbers
        torch.manual_seed(0)
        system = build(recipe, registry, device=device, load_weights=False)
        for parameter in system.trained.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.02)
    return system


def engine_of(recipe: Recipe, registry: Registry, device: torch.device) -> Engine:
    """What trains a recipe in one process, as `mixar train` would."""
    assert recipe.training is not None
    objective = make_objective(seeded(recipe, registry, device), registry)
    return Engine(objective, recipe.training, Processes(0, 1, device), steps=1000, warmup=0)


def tokens_for(objective: Objective, batch: int, device: torch.device) -> CachedTokens:
    """A batch as a token cache gives it."""
    generator = torch.Generator(device).manual_seed(0)
    continuous, discrete = objective.tokenizers.continuous, objective.tokenizers.discrete
    assert continuous is not None
    shape = continuous.layout.shape
    size = (batch, continuous.latent_channels, shape.height, shape.width)
    mean = torch.randn(size, generator=generator, device=device)
    codes = None
    if discrete is not None:
        places = (batch, discrete.layout.tokens)
        codes = torch.randint(discrete.codebook_size, places, generator=generator, device=device)
    labels = torch.arange(batch, device=device) % 1000
    return CachedTokens(Posterior(mean, torch.full_like(mean, -4.0)), codes, labels)


def stepper(engine: Engine, tokens: CachedTokens) -> Callable[[int], dict[str, float]]:
    """A function that does training step k on one batch: losses, gradients, optimizer, average."""
    source: Any = SimpleNamespace(share=BatchShard(0, len(tokens), len(tokens)), seed=0)

    def step(index: int) -> dict[str, float]:
        with tf32_where(engine.config.precision, engine.processes.device):
            gradients = engine.gradients(tokens, source, step=index, counts={})
            engine.update(index, gradients)
        return {**gradients.losses, "norm": gradients.norm}

    return step
