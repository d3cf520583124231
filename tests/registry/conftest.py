"""Distributions made on the spot, and an environment of its own for real ones."""

from __future__ import annotations

import importlib
import re
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registry.environments import PLUGINS, ROOT, Environment, made

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(distribution, entry, code): puts a distribution with one module and one entry point on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(distribution: str, entry: str, code: str) -> None:
        module = re.sub(r"\W", "_", f"{distribution}_{tmp_path.name}")  # a module of its own for every test
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mixar]\n{entry} = {module}\n")
        importlib.invalidate_caches()

    return make


def folders_hook(folder: Path) -> str:
    """The module of a plugin that brings the recipes of a folder, and the models in its `models`."""
    return f"""
        from pathlib import Path
        from mixar import hookimpl

        @hookimpl
        def mixar_recipe_folders():
            return [Path({str(folder)!r})]

        @hookimpl
        def mixar_model_folders():
            return [Path({str(folder)!r}) / "models"]
    """


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """All packages of this repository, mixar's wheel made from its sdist; tests leave it as they find it."""
    folder = tmp_path_factory.mktemp("installed")
    with tarfile.open(made("sdist", ROOT, folder / "sdist")) as file:
        file.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    wheels = [made("wheel", source, folder / "mixar")]
    wheels += [made("wheel", ROOT / "plugins" / name, folder / name) for name in PLUGINS]
    return Environment(folder / "environment", wheels)
