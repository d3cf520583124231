"""The reference curves of a recipe: NAME.curve.json beside NAME.yaml, in any plugin's folder of recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe, to_plain
from mixar.structure import flat
from mixar_core.errors import UserError
from mixar_core.training.reference import Reference
from mixar_core.training.settings import TrainingConfig

SUFFIX = ".curve.json"
#: what two runs may differ in and still have the same curves
_FREE = re.compile(
    r"(name|summary|callbacks|sampling|sampler|accept_other_classes|backbone\.activation_checkpointing)(\..*)?"
)
_FREE_TRAINING = {"seed"} | {
    field.name
    for field in attrs.fields(TrainingConfig)
    if field.metadata.get("free") and field.name not in ("steps", "epochs")
}


def reference_of(recipe: Recipe, registry: Registry) -> Reference | None:
    """The curves that a plugin has for this recipe; None where there are none, or the run trains something else.

    A recipe is known by its name, and trains the same where all values agree that enter what a step computes; other
    seeds have the same curves. Curves that cannot be read are as none: they help to see, and a run needs none.
    """
    for path in registry.recipes().get(recipe.name, ()):
        if (curves := curves_beside(path)).is_file():
            try:
                if trained(load_recipe(path, registry=registry)) == trained(recipe):
                    return Reference.read(curves)
            except UserError:
                continue
    return None


def curves_beside(recipe: Path) -> Path:
    """Where the curves of a recipe's file lie."""
    return recipe.with_suffix(SUFFIX)


def trained(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe that decide what its curves look like, by their paths."""
    values = flat(to_plain(recipe))
    free = {f"training.{name}" for name in _FREE_TRAINING}
    return {key: value for key, value in values.items() if key not in free and not _FREE.fullmatch(key)}
