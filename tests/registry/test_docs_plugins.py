"""docs/plugins.md: its Python is run as it stands there, as plugins in distributions of their own."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

import mixar_core
from mixar.assembly import build
from mixar.model import load
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import load_recipe
from mixar.run import train
from mixar_core import testing
from tests.toys import SignTokenizer

PAGE = (Path(__file__).parents[2] / "docs/plugins.md").read_text(encoding="utf-8")
INJECTOR, TEST, OTHERS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)
NAMES = {"dc_sum": INJECTOR, "edges_first": OTHERS}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The registry with the page's plugins installed."""
    for name, code in NAMES.items():
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mixar]\n{name.replace('_', '-')} = {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield plugin_manager()
    for name in NAMES:
        sys.modules.pop(name, None)


def test_every_python_block_is_run_here() -> None:
    assert len(re.findall(r"^```", PAGE, flags=re.M)) == 2 * 3


def test_the_simplest_injector_is_one_file_of_thirty_lines() -> None:
    lines = [line for line in INJECTOR.splitlines() if line.strip()]
    assert len(lines) <= 30 and max(map(len, lines)) <= 120


def test_the_plugins_load_and_keep_their_contracts(written: Registry) -> None:
    assert not written.broken
    module = ModuleType("test_dc_sum")
    exec(TEST, module.__dict__)
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0](SignTokenizer())
    sampler, conditioner = written.part("sampler", "edges-first"), written.part("conditioner", "two-words")
    testing.check_conditioner(partial(conditioner.component, conditioner.config(), num_classes=3), num_classes=3)
    testing.check_sampler(partial(sampler.component, sampler.config()))


def test_a_recipe_trains_and_draws_with_them(written: Registry, family: Path, tmp_path: Path) -> None:
    chosen = {
        "injector": {"type": "dc-sum", "scale": 0.5},
        "sampler": {"type": "edges-first"},
        "conditioner": {"type": "two-words"},
    }
    recipe = load_recipe(family / "recipes/mixar.yaml", chosen, registry=written)
    assert build(recipe, written, meta=True).model is not None
    train(recipe, tmp_path / "run", registry=written)
    drawn = load(tmp_path / "run", registry=written).generate(["cat", "owl"], seed=0)
    assert drawn.images.shape == (2, 3, 16, 16)


def test_the_page_knows_every_kind_contract_and_the_version(registry: Registry) -> None:
    missing = [kind for kind in registry.kinds if f"`{kind}`" not in PAGE and kind != "importer"]
    assert not missing
    assert [name for name in testing.__all__ if f"`{name}`" not in PAGE] == []
    assert f"`mixar_core.INTERFACE` is {mixar_core.INTERFACE}" in PAGE
    assert f"from {mixar_core.INTERFACE - 1} to {mixar_core.INTERFACE}" in PAGE
