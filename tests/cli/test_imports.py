"""What a command does not import, so that it begins at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: torch's compiler, and what it needs
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")
SAID = "import sys; print([name for name in {} if name in sys.modules], file=sys.stderr)"
BUILD = """
import mixar
from pathlib import Path
for path in sorted(Path("recipes").glob("*/*.yaml")):
    mixar.build(mixar.load_recipe(path), meta=True)
"""


def imported(names: tuple[str, ...], *words: object) -> str:
    """Those of these modules that a command imports."""
    return ran(f"from mixar.cli import main\ntry:\n    main()\nfinally:\n    {SAID.format(names)}", *words)


def ran(code: str, *words: object) -> str:
    """What a program says on stderr."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr.strip()


def test_help_waits_for_no_torch() -> None:
    assert imported(("torch", "numpy", "PIL"), "--help") == "[]"


def test_sampling_waits_for_no_compiler(family: Path, tmp_path: Path) -> None:
    assert imported(COMPILER, "sample", family / "models/mixar", "--out", tmp_path / "out") == "[]"


@pytest.mark.slow
def test_no_published_system_is_checked_by_it() -> None:
    assert ran(BUILD + SAID.format(COMPILER)) == "[]"
