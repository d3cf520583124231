"""The hooks a plugin package may implement (entry-point group `mixar`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pluggy

from mixar_registry.part import Part

hookspec = pluggy.HookspecMarker("mixar")
#: What a plugin decorates its hook functions with.
hookimpl = pluggy.HookimplMarker("mixar")


@hookspec
def mixar_parts() -> Sequence[Part]:
    """The parts this package offers."""
    raise NotImplementedError


@hookspec
def mixar_recipe_folders() -> Sequence[Path]:
    """Folders whose *.yaml, at any depth, are recipes found by file name."""
    raise NotImplementedError


@hookspec
def mixar_model_folders() -> Sequence[Path]:
    """Folders whose sub-folders are models (recipe.yaml + weights.safetensors), found by folder name."""
    raise NotImplementedError
