"""`mixar.evaluate` in several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = """
import atexit, os, sys
import numpy, torch.distributed
import mixar
from mixar_core.distributed import join_processes

atexit.register(lambda: print("left" if not torch.distributed.is_initialized() else "still in the group"))
if sys.argv[1] == "lost" and os.environ["RANK"] == "1":
    join_processes()
    os._exit(0)
images = numpy.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=numpy.uint8)
try:
    print(f'{mixar.evaluate(images, images[::-1], extractor="efficientnet-lite0:size=32").figures["frechet"]:.6f}')
except mixar.UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["well", "lost"])
def test_processes_that_evaluate_together_leave_together(tmp_path: Path, ending: str) -> None:
    """They end the group they began, and name the ones that were lost, as the commands do."""
    (tmp_path / "script.py").write_text(SHARED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "script.py", ending],
            cwd=tmp_path,
            env=os.environ
            | place
            | {"RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        first, second = (process.communicate(timeout=120)[0].splitlines() for process in both)
    finally:
        for process in both:
            process.kill()
    if ending == "well":
        assert first == second and first[1] == "left"
    else:
        assert first[0].startswith("process 0 of 2: lost the others, look for their messages")
