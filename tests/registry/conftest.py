"""Distributions made on the spot."""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

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
