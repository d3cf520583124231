"""What tests share; and hypothesis without deadlines, because a busy machine is not a failure."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mixar.plugins import Registry, plugin_manager
from tests.tiny import write_family

settings.register_profile("mixar", deadline=None)
settings.load_profile("mixar")


@pytest.fixture(scope="session", autouse=True)
def own_signals() -> Iterator[None]:
    """What SIGINT and SIGTERM do by default, for the tests and all they start: under `nohup ... &` they are ignored."""
    default = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in default.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return plugin_manager()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """A folder with data, recipes and models in miniature; tests must not change it."""
    folder = tmp_path_factory.mktemp("family")
    write_family(folder, registry)
    return folder
