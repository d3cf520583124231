"""What the command line's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixar_registry.manager import Registry, plugin_manager
from tests.tiny import write_family


@pytest.fixture(scope="session")
def registry() -> Registry:
    return plugin_manager()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """A folder with data, recipes and models in miniature; tests must not change it."""
    folder = tmp_path_factory.mktemp("family")
    write_family(folder, registry)
    return folder
