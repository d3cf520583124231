"""mixar in Python: what the command line does, three lines do.

    import mixar

    model = mixar.load("emoji64")
    model.generate([0, 1, 2], seed=1).grid().save("grid.png")

Images come as uint8 tensors (B, 3, H, W) and as PIL images; codes as int64 (B, N). Bad input raises `UserError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from mixar_core.errors import UserError
from mixar_core.training.callback import Callback
from mixar_core.training.trainer import Result
from mixar_registry import assembly, pipeline, recipe, runs, strict_yaml
from mixar_registry.assembly import System
from mixar_registry.manager import Registry, plugin_manager
from mixar_registry.pipeline import Generation, Model, Precision
from mixar_registry.recipe import Recipe
from mixar_registry.weights import Kind

__version__ = version("mixar")
__all__ = [
    "Generation",
    "Model",
    "Recipe",
    "Registry",
    "Result",
    "System",
    "UserError",
    "build",
    "load",
    "load_recipe",
    "plugin_manager",
    "train",
]


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    weights: Kind = "ema",
    precision: Precision = "float32",
) -> Model:
    """A model to sample from: a shipped one by name, a model folder, or the folder of a run.

    Args:
        device: None takes the GPU if there is one.
        weights: averaged over training (`ema`) or those of the last step (`raw`; a run folder has both).
        precision: `bf16` computes all but the decoders under autocast: about twice as fast, and other images.
    """
    return pipeline.load(name_or_path, device=device, weights=weights, precision=precision)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()) -> Recipe:
    """A recipe by name or path, resolved.

    Args:
        overrides: `{"training.steps": 100}`, or as on the command line `["training.steps=100"]`.
    """
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={strict_yaml.dump(value)}" for key, value in overrides.items()]
    return recipe.load_recipe(name_or_path, plugin_manager(), overrides=overrides)


def build(recipe: Recipe, *, device: torch.device | str = "cpu", load_weights: bool = True) -> System:
    """The modules a recipe describes, checked to fit: `.model`, `.continuous_tokenizer`, `.prior`, `.parameters`, ...

    Args:
        load_weights: whether parts whose choice names weights get them.
    """
    return assembly.build(recipe, plugin_manager(), device=device, load_weights=load_weights)


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> Result:
    """Train what a recipe describes; afterwards `load(folder)` samples from it.

    Args:
        folder: new or empty, or with `resume` that of a run that was stopped.
        callbacks: instead of the recipe's.
    """
    return runs.train(recipe, folder, resume=resume, device=device, callbacks=callbacks)
