"""What a package may define to bring its parts, recipes, models and commands in: pluggy's hooks of mixar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import pluggy

if TYPE_CHECKING:
    import typer

#: of pluggy's project and of the entry points
GROUP = "mixar"
hookspec = pluggy.HookspecMarker(GROUP)
#: What a plugin decorates its hook functions with.
hookimpl = pluggy.HookimplMarker(GROUP)


@attrs.frozen
class Part:
    """One component that recipes can name.

    Args:
        kind: one of `Registry.kinds`.
        name: what a recipe writes behind `type:`; lower case, digits and hyphens.
        component: the class, derived from the kind's abstract class and built as that class's docstring says.
        config: a frozen attrs class with its settings; every field is a key of the recipe.
    """

    kind: str
    name: str
    component: type
    config: type

    @property
    def summary(self) -> str:
        """First line of the component's docstring."""
        return next(iter((self.component.__doc__ or "").strip().splitlines()), "")


class Hooks(Protocol):
    """What a plugin module may define. Import what is heavy inside the functions: `mixar --help` loads every plugin."""

    @hookspec
    def mixar_parts(self) -> Sequence[Part]:
        """The parts this package offers."""

    @hookspec
    def mixar_kinds(self) -> Mapping[str, type]:
        """Kinds of parts beyond mixar's own: name -> abstract class."""

    @hookspec
    def mixar_recipe_folders(self) -> Sequence[Path]:
        """Folders whose *.yaml, at any depth, are recipes found by file name."""

    @hookspec
    def mixar_model_folders(self) -> Sequence[Path]:
        """Folders whose sub-folders are models (recipe.yaml + weights.safetensors), found by folder name."""

    @hookspec
    def mixar_preset_folders(self) -> Sequence[Path]:
        """Folders whose *.yaml are presets of sampling (`sampler:` and `sampling:` of a recipe), found by file name."""

    @hookspec
    def mixar_commands(self, app: typer.Typer) -> None:
        """Add commands to the program: `app.command("name")(function)`, `app.add_typer(...)`."""

    @hookspec(firstresult=True)
    def mixar_evaluate(self) -> Any:
        """The function behind `mixar.evaluate`."""


#: the hooks' names
HOOKS = [name for name in vars(Hooks) if name.startswith("mixar_")]
