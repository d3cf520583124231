"""Puts recipes/ inside the wheel. Editable installs read it where it lies, so they get no copy that could go stale."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecipesHook(BuildHookInterface):
    """Called by hatchling for every wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is "standard" or "editable"."""
        if version != "editable":
            build_data["force_include"]["recipes"] = "mixar_plugins/recipes"
