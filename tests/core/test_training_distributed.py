"""Two processes (gloo) against one: same losses, same weights, and a checkpoint of one goes on with the other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.core.test_training import mixar_objective
from tests.core.training_toys import ToyImages, toy_run

SETTINGS = {"flip": True, "evaluate_every": 3, "micro_batch": 3, "checkpoint_every": 3}
SCRIPT = """
import sys
from pathlib import Path
from mixar_core.errors import UserError
from tests.core.test_training import mixar_objective
from tests.core.test_training_distributed import SETTINGS
from tests.core.training_toys import ToyImages, toy_run
folder = Path(sys.argv[1])
try:  # only the main process looks at the folder, and all must hear of it
    toy_run(folder.parent)
except UserError as error:
    print("refused:", error)
toy_run(folder, objective=mixar_objective(), validation=ToyImages(13), **SETTINGS)
"""


def two_processes(folder: Path) -> tuple[int, str]:
    """Exit status and output of two processes under torchrun."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path]), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [*launcher, str(folder)],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):  # torchrun's children too, should they hang
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def curve(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [value for line in lines for name, value in line["losses"].items() if name.endswith("loss")]


def test_two_processes_do_what_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    toy_run(one, objective=mixar_objective(), validation=ToyImages(13), **SETTINGS)
    status, output = two_processes(two)
    assert status == 0, output
    assert output.count("is not an empty folder") == 2
    assert curve(two) == pytest.approx(curve(one), rel=1e-5)
    # and what two began, one goes on with
    shutil.rmtree(two / "checkpoints" / "step-00000006")
    toy_run(two, objective=mixar_objective(), validation=ToyImages(13), resume=True, **SETTINGS)
    assert curve(two) == pytest.approx(curve(one), rel=1e-5)
