"""Every part keeps the contract of its kind, and mixar finds it."""

from __future__ import annotations

from typing import Any

import pytest
from mixar import Part, plugin_manager
from mixar_core.testing import check_part

from my_plugin import mixar_parts

# By kind, what a part is checked with: all settings that have no default, and small sizes where the defaults are large.
# For example: {"dataset": {"folder": "tests/images"}, "backbone": {"depth": 1, "width": 32}}
SETTINGS: dict[str, dict[str, Any]] = {}


@pytest.mark.parametrize("part", mixar_parts(), ids=lambda part: part.kind)
def test_it_keeps_the_contract_of_its_kind(part: Part) -> None:
    check_part(part.component, part.config(**SETTINGS.get(part.kind, {})))


def test_mixar_finds_them_all() -> None:
    (plugin,) = [plugin for plugin in plugin_manager().plugins if plugin.name == "my-plugin"]
    assert plugin.problem is None
    assert [part.kind for part in plugin.parts] == [part.kind for part in mixar_parts()]
