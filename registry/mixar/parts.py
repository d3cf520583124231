"""One part of a recipe, built: on torch's default device, on `meta`, or, if it brings its own weights, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixar.folder import find_weights, read_provenance
from mixar.image_sizes import seen_by
from mixar.plugins import Registry
from mixar.recipe import PART_KEYS, PartChoice, Recipe
from mixar_core.errors import UserError, said_of
from mixar_core.meta import meta_safe, on_cpu, on_meta, without_values


def construct(recipe: Recipe, registry: Registry, key: str, **context: Any) -> Any:
    """Build the part that the recipe chose for `key`; `context` is what the abstract class's docstring names."""
    choice = chosen(recipe, key)
    part = registry.part(PART_KEYS[key], choice.type)
    component: Callable[..., Any] = part.component
    make = partial(component, choice.config, **context)
    with said_of(f"recipe {recipe.name}: {named(recipe, key)}"), seen_by(component, context.get("image_size", 1)):
        try:
            return on_meta(make, safe=meta_safe(component)) if _on_meta() else make()
        except ModuleNotFoundError as error:
            raise UserError(f"{error}; install what {registry.plugin_of(part).package} requires") from error
        except Exception as error:
            error.add_note(f"(while {named(recipe, key)} was built, of the package {registry.plugin_of(part).package})")
            raise


def construct_once(recipe: Recipe, registry: Registry, key: str, brought: dict[str, nn.Module], **context: Any) -> Any:
    """The same, but a part that brings its own weights is taken from `brought`, or built on the CPU and put there.

    On `meta` it is a copy without values.
    """
    if not getattr(registry.part(PART_KEYS[key], chosen(recipe, key).type).component, "brings_weights", False):
        return construct(recipe, registry, key, **context)
    if key not in brought or "tokenizer" in context:  # it may have kept the one that it was shown
        brought[key] = on_cpu(partial(construct, recipe, registry, key, **context))
    return without_values(brought[key]) if _on_meta() else brought[key]


def chosen(recipe: Recipe, key: str) -> PartChoice:
    """What the recipe says for this key.

    Raises:
        UserError: nothing.
    """
    choice = getattr(recipe, key)
    if not isinstance(choice, PartChoice):
        raise UserError(f"recipe {recipe.name}: {key}: required where a recipe trains {recipe.trains}")
    return choice


def weights_of(recipe: Recipe, key: str, registry: Registry) -> Path:
    """The file of weights that a recipe names for one of its parts.

    Raises:
        UserError: it is not there; says which key names it.
    """
    with said_of(f"recipe {recipe.name}: {key}.weights"):
        return find_weights(chosen(recipe, key).weights or "", registry)


def needs_codes(recipe: Recipe, registry: Registry) -> bool:
    """Whether the latents of the recipe's continuous tokenizer are what codes leave over."""
    part = registry.part(PART_KEYS["continuous_tokenizer"], chosen(recipe, "continuous_tokenizer").type)
    return getattr(part.component, "needs_codes", False)


def named(recipe: Recipe, key: str) -> str:
    """A key, with the part that the recipe chose for it."""
    choice = getattr(recipe, key, None)
    if not isinstance(choice, PartChoice):
        return key
    return f"{key} ({choice.type}{f', weights {choice.weights}' if choice.weights else ''})"


def check_frozen(folder: Path, now: Mapping[str, str], advice: str) -> None:
    """See that frozen parts have the weights that a run was started with; what it did not note is not checked.

    Args:
        now: the digests of their weights, by recipe key.

    Raises:
        UserError: others.
    """
    noted = read_provenance(folder).get("frozen", {})
    for key, digest in now.items():
        if noted.get(key, digest) != digest:
            raise UserError(
                f"{folder} was started with other weights of its {key}: their sha256 was {noted[key]}, is {digest}; "
                f"{advice}"
            )


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"
