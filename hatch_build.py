"""Puts recipes/ and docs/ inside the wheel. Editable installs read them where they lie: no copy can go stale."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class FoldersHook(BuildHookInterface):
    """Called by hatchling for every wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is "standard" or "editable"."""
        if version != "editable":
            build_data["force_include"] |= {"recipes": "mixar_plugins/recipes", "docs": "mixar/docs"}
