"""What the tests of the page share: a small model on a stage, a server of it, a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixar.plugins import Registry
from mixar_page.studio import Studio
from tests.page.serving import Server, serving


@pytest.fixture(scope="session")
def stage(family: Path, registry: Registry) -> Studio:
    return Studio.of([str(family / "models/mixar")], registry)


@pytest.fixture(scope="session")
def server(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(family / "models/mixar", folder=tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
