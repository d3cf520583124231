"""Loader processes end with the run: hung ones, and those that never began. Each case is a script of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mixar_core.data.workers import read_ahead
from mixar_core.errors import UserError

HUNG = """
import sys, time
from pathlib import Path
from mixar_core.data.workers import read_ahead

def load(number):
    if number == 3:
        Path("hangs").touch()
        while True:
            time.sleep(100)
    return number

if __name__ == "__main__":
    batches = read_ahead(load, range(5), workers=2)
    print(next(batches), flush=True)
    {ending}
"""

ENDINGS = {
    "left": "batches.close()",
    "forgotten": "sys.exit(0)",
    "interrupted": "list(batches)",
}


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script)
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_hung_worker_does_not_keep_the_run_from_ending(tmp_path: Path, ending: str) -> None:
    with start(tmp_path, HUNG.format(ending=ENDINGS[ending])) as process:
        try:
            first = ""
            if ending == "interrupted":
                assert process.stdout is not None
                first = process.stdout.readline()  # workers read ahead: one may hang before this is said
                while not (tmp_path / "hangs").exists() and process.poll() is None:
                    time.sleep(0.05)
                process.send_signal(signal.SIGINT)
            said, complaint = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert (first + said).split() == ["0"]
    assert process.returncode == (-signal.SIGINT if ending == "interrupted" else 0), complaint


SPAWNED = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from mixar_core.data.workers import read_ahead
from mixar_core.errors import UserError

class Large:
    paths = None
    def __init__(self):
        self.paths = ["x" * 50] * 4000  # more than a pipe holds
    def __call__(self, number):
        return number + 1

{guard}
    try:
        print(list(read_ahead(Large(), range(3), workers=1)))
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("guard", [True, False])
def test_a_script_without_a_guard_ends_with_a_line_that_names_it(tmp_path: Path, guard: bool) -> None:
    line = 'if __name__ == "__main__":' if guard else "if True:"
    with start(tmp_path, SPAWNED.format(guard=line)) as process:
        try:
            said, _ = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if guard:
        assert said == "[1, 2, 3]\n"
    else:
        assert said.startswith("training.workers: a loader process ended before it began") and "__main__" in said


def half(number: int) -> float:
    if number > 8:
        raise UserError(f"{number} is too large")
    return number / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_draw_nothing_from_the_run(workers: int) -> None:
    before = torch.get_rng_state()
    assert list(read_ahead(half, iter(range(6)), workers=workers)) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    with pytest.raises(UserError, match=r"^9 is too large$"):
        list(read_ahead(half, [1, 9], workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
