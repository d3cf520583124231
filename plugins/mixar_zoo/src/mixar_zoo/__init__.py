"""Small real data sets, small trained models and the demo: what any package does to join mixar, in three functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mixar import Part, hookimpl

if TYPE_CHECKING:
    import typer

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2
_HERE = Path(__file__).parent


@hookimpl
def mixar_parts() -> list[Part]:
    """Both data sets."""
    from mixar_zoo.data_sets import Digits, Emoji64, Emoji64Config, NoSettings

    return [
        Part("dataset", "emoji64", Emoji64, Emoji64Config),
        Part("dataset", "digits", Digits, NoSettings),
    ]


@hookimpl
def mixar_recipe_folders() -> list[Path]:
    """The recipes that made the models."""
    return [_HERE / "recipes"]


@hookimpl
def mixar_model_folders() -> list[Path]:
    """The models."""
    return [_HERE / "models"]


@hookimpl
def mixar_commands(app: typer.Typer) -> None:
    """`mixar demo`."""
    from mixar_zoo.cli import demo_command

    app.command("demo")(demo_command)
