"""mixar in Python: what the command line does, three lines do.

    import mixar

    model = mixar.load("emoji64")
    model.generate([0, 1, 2], seed=1).grid().save("grid.png")

Images come as uint8 tensors (B, 3, H, W) and as PIL images; codes as int64 (B, N). Bad input raises `UserError`.
Names are imported when they are first used, so that `mixar --help` need not wait for torch. docs/api.md lists them all.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixar.assembly import System, build
    from mixar.editing import Edited
    from mixar.facts import DataFacts, look
    from mixar.generation import Generation
    from mixar.model import Model, load
    from mixar.plugins import Part, Registry, evaluate, hookimpl, plugin_manager
    from mixar.recipe import PartChoice, Recipe, load_recipe
    from mixar.run import train
    from mixar_core.errors import UserError
    from mixar_core.training.trainer import Result

__version__ = version("mixar")
__all__ = [
    "DataFacts",
    "Edited",
    "Generation",
    "Model",
    "Part",
    "PartChoice",
    "Recipe",
    "Registry",
    "Result",
    "System",
    "UserError",
    "build",
    "evaluate",
    "hookimpl",
    "load",
    "load_recipe",
    "look",
    "plugin_manager",
    "train",
]

_HOMES = {
    "mixar.assembly": ("System", "build"),
    "mixar.editing": ("Edited",),
    "mixar.facts": ("DataFacts", "look"),
    "mixar.generation": ("Generation",),
    "mixar.model": ("Model", "load"),
    "mixar.plugins": ("Part", "Registry", "evaluate", "hookimpl", "plugin_manager"),
    "mixar.recipe": ("PartChoice", "Recipe", "load_recipe"),
    "mixar.run": ("train",),
    "mixar_core.errors": ("UserError",),
    "mixar_core.training.trainer": ("Result",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
