"""What a command does not import, so that it begins at once; and a Ctrl-C while it imports."""

from __future__ import annotations

import os
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


#: Ctrl-C while a module is looked for, which a package's own start swallows if it is to
PRESSED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {at!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise AttributeError("half imported") if {swallowed} else KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from mixar.cli import main
main()
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


@pytest.mark.parametrize(("at", "swallowed"), [("pluggy", False), ("mixar.recipe", False), ("mixar.recipe", True)])
def test_an_interrupted_start_is_one_line(at: str, swallowed: bool) -> None:
    code = PRESSED.format(at=at, swallowed=swallowed)
    done = subprocess.run([sys.executable, "-c", code, "recipe", "show", "mar_b"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_terminal_that_knows_ascii_alone_is_no_error() -> None:
    command, environment = [sys.executable, "-m", "mixar", "--help"], {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Every command has" in done.stdout and not done.stderr
