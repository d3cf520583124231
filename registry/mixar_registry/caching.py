"""Token caches of a recipe's data: made by `mixar cache`, checked before a run reads one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixar_core.data.cache import TokenCache
from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_registry.assembly import System, build
from mixar_registry.manager import Registry
from mixar_registry.recipe import PartChoice, Recipe
from mixar_registry.structure import join, unstructure
from mixar_registry.weights import find_weights, sha256


def open_cache(folder: Path, recipe: Recipe, registry: Registry) -> TokenCache:
    """The cache in `folder`, for training what the recipe describes.

    One without an index (latents in the published form) does not say which tokenizer made it; a line on stderr warns of
    that.

    Raises:
        UserError: it is none, is damaged, or is not of this recipe's tokenizers, image size and classes, or lacks codes
            or mirrored images that the recipe needs.
    """
    cache = TokenCache.open(folder)
    problem = _misfit(cache, recipe, registry)
    if problem is not None:
        raise UserError(f"{folder}: {problem}; make one that fits: mixar cache {recipe.name} --out DIR")
    if cache.settings is None and os.environ.get("RANK", "0") == "0":
        print(f"warning: {folder} does not say which tokenizer made it, so that is not checked", file=sys.stderr)
    return cache


def _misfit(cache: TokenCache, recipe: Recipe, registry: Registry) -> str | None:
    """Why this cache is not one for the recipe; None: it is."""
    system = build(recipe, registry, meta=True)
    continuous, discrete = needed_tokenizers(system)
    settings, classes = cache.settings, cache.num_classes
    if settings is not None and settings.image_size != recipe.image_size:
        return f"the cache is of images of {settings.image_size} pixels, the recipe of {recipe.image_size}"
    if recipe.num_classes and (classes > recipe.num_classes if settings is None else classes != recipe.num_classes):
        return f"the cache has {classes} classes, the recipe {recipe.num_classes}"
    if continuous is not None and cache.latent_shape is None:
        return "the cache has no latents, and the recipe trains on them"
    if discrete is not None and not cache.has_codes:
        user = "injector needs" if system.model is not None else "prior learns"
        return f"the cache has no codes, and the recipe's {user} them"
    if recipe.training is not None and recipe.training.flip and not cache.flip:
        return "the cache has no mirrored images, and training.flip is set"
    for key, used in (("continuous", continuous), ("discrete", discrete)):
        if used is not None and settings is not None:
            then = settings.tokenizers.get(key) or {}
            changed = _changed(then, fingerprint(getattr(recipe, f"{key}_tokenizer"), registry))
            if changed:
                return f"the cache was made by another {key} tokenizer: {', '.join(changed)}"
    if continuous is not None and cache.latent_shape is not None:
        shape = (continuous.latent_channels, continuous.grid.height, continuous.grid.width)
        if cache.latent_shape != shape:
            return f"latents are {_by(cache.latent_shape)}, the recipe's continuous tokenizer makes {_by(shape)}"
    return None


def needed_tokenizers(system: System) -> tuple[ContinuousTokenizer | None, DiscreteTokenizer | None]:
    """The tokenizers whose tokens training this system reads.

    Raises:
        UserError: it reads images.
    """
    if system.model is not None:
        return system.continuous_tokenizer, system.discrete_tokenizer if system.model.injector.needs_codes else None
    if system.recipe.trains == "prior":
        return None, system.discrete_tokenizer
    raise UserError(f"recipe {system.recipe.name} trains a {system.recipe.trains}, which reads images and not tokens")


def fingerprint(choice: PartChoice, registry: Registry) -> dict[str, Any]:
    """What tells a tokenizer from another: its type, its settings, the sha256 of its weights' file."""
    weights = None if choice.weights is None else sha256(find_weights(choice.weights, registry))
    plain: dict[str, Any] = json.loads(json.dumps(unstructure(choice.config)))
    return {"type": choice.type, "config": plain, "weights_sha256": weights}


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs, a line each: key, old and new value."""
    lines = []
    for key in sorted({*then, *now}):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _changed(old, new, join(path, key))
        elif old != new:
            lines.append(f"{join(path, key)} was {_short(old)}, is {_short(new)}")
    return lines


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
