"""The promise: what `mixar` and `mixar_core` export, what docs/api.md says of it, and what is there agree."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mixar
import mixar_core

#: lines of the longest abstract class, docstrings included
SCREEN = 66
DOCS = Path(__file__).parents[2] / "docs/api.md"


def documented(module: ModuleType) -> list[str]:
    """Names in the tables below the headings that name the module."""
    sections = re.split(r"^## ", DOCS.read_text(encoding="utf-8"), flags=re.M)
    ours = [section for section in sections if section.startswith(f"`import {module.__name__}`")]
    return [name for section in ours for name in re.findall(r"^\| `(\w+)` \| \S", section, flags=re.M)]


@pytest.mark.parametrize("module", [mixar, mixar_core], ids=lambda module: module.__name__)
def test_lists_docs_and_reality_agree(module: ModuleType) -> None:
    names = documented(module)
    assert sorted(names) == sorted(module.__all__) and len({*names}) == len(names)
    assert {*module.__all__} <= {*dir(module)} == {*dir(module)} & {*module.__all__, "__version__"}
    space: dict[str, object] = {}
    exec(f"from {module.__name__} import *", space)
    assert {*module.__all__} == {*space} - {"__builtins__"}
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = module.evaluat


@pytest.mark.parametrize("module", [mixar, mixar_core], ids=lambda module: module.__name__)
def test_everything_promised_has_a_docstring(module: ModuleType) -> None:
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue  # a constant, or a name of types
        assert (value.__doc__ or "").strip(), name
        public = (
            {key: method for key, method in vars(value).items() if not key.startswith("_")}
            if inspect.isclass(value)
            else {}
        )
        for key, method in public.items():
            if inspect.isfunction(method) or isinstance(method, property | classmethod | staticmethod):
                assert (method.__doc__ or "").strip(), f"{name}.{key}"


def test_an_abstract_class_fits_on_a_screen() -> None:
    classes = [value for name in mixar_core.__all__ if inspect.isabstract(value := getattr(mixar_core, name))]
    long = {kind.__name__: len(inspect.getsource(kind).splitlines()) for kind in classes}
    assert len(long) > 10 and max(long.values()) <= SCREEN, long


@pytest.mark.parametrize("light", ["mixar", "mixar.cli", "mixar_core", "mixar_core.errors", "mixar.plugins"])
def test_the_faces_wait_for_no_torch(light: str) -> None:
    program = f"import sys, {light}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_the_module_is_the_program() -> None:
    for command in ([sys.executable, "-m", "mixar"], [str(Path(sys.executable).with_name("mixar"))]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.split()[:2]) == (0, ["mixar", mixar.__version__]), done.stderr
