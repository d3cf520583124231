"""Small real data sets, small trained models and the demo: what any package does to join mixar, in three functions."""

from __future__ import annotations

from pathlib import Path

from mixar_registry.hookspecs import hookimpl
from mixar_registry.part import Part
from mixar_zoo.data_sets import Digits, Emoji64, NoSettings
from mixar_zoo.demo import ZooDemo, ZooDemoConfig

_HERE = Path(__file__).parent


@hookimpl
def mixar_parts() -> list[Part]:
    """Both data sets, and the demo."""
    return [
        Part("dataset", "emoji64", Emoji64, NoSettings),
        Part("dataset", "digits", Digits, NoSettings),
        Part("demo", "zoo", ZooDemo, ZooDemoConfig),
    ]


@hookimpl
def mixar_recipe_folders() -> list[Path]:
    """The recipes that made the models."""
    return [_HERE / "recipes"]


@hookimpl
def mixar_model_folders() -> list[Path]:
    """The models."""
    return [_HERE / "models"]
