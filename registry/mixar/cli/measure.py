"""`mixar measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixar.cli.common import Device, NoPlugin, Set, as_path, open_registry


def measure_command(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name or path of a continuous tokenizer's recipe.")],
    out: Annotated[Path, typer.Option(metavar="DIR", parser=as_path, help="Model folder, new.")],
    settings: Set = None,
    device: Device = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Measure a pretrained tokenizer's latents over a recipe's data, and write both as a model; nothing is trained.

    A recipe then says `continuous_tokenizer: {weights: DIR}`. What `mixar train` trains is measured at the end anyway.
    """
    from mixar.measuring import measure
    from mixar.recipe import load_recipe

    registry = open_registry(context, no_plugin)
    measure(load_recipe(recipe, registry=registry, overrides=settings or ()), out, registry, device=device)
    print(f"measured; in a recipe: continuous_tokenizer: {{weights: {out}}}")
