"""A script where worker processes are spawned, as on macOS: without a guard it is told which one; with it, it works."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing
import sys

import mixar

def main():
    recipe = mixar.load_recipe({recipe!r}, {{"training.workers": 2, "training.cache": "none", "training.steps": 2}})
    print("steps:", mixar.train(recipe, "run", device="cpu").step)

def nothing():
    pass

{guard}
"""
UNGUARDED = """
if multiprocessing.get_start_method(allow_none=True) is None:
    multiprocessing.set_start_method("spawn")
worker = multiprocessing.Process(target=nothing) if __name__ == "__main__" else None
if worker is not None:  # what a loader does, without the rest of a run
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
main()
"""
EVALUATES = UNGUARDED.replace("main()", "mixar.evaluate('a', 'b')")
GUARDED = """
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
"""


def script(family: Path, folder: Path, guard: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(SCRIPT).format(recipe=str(family / "recipes/continuous.yaml"), guard=guard)
    (folder / "mine.py").write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "mine.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110)


@pytest.mark.parametrize("guard", [UNGUARDED, EVALUATES], ids=["train", "evaluate"])
def test_a_script_without_a_guard_is_told_which_one(family: Path, tmp_path: Path, guard: str) -> None:
    done = script(family, tmp_path, guard)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mixar_core.errors.UserError: mine.py begins its work again in each worker process")
    assert last.endswith('call that under `if __name__ == "__main__":`')
    assert done.returncode == 1 and not (tmp_path / "run").exists()


def test_a_script_with_a_guard_trains(family: Path, tmp_path: Path) -> None:
    done = script(family, tmp_path, GUARDED)
    assert done.stdout.endswith("steps: 2\n"), done.stderr
