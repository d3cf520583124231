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
import torch

from mixar_core.errors import UserError
from mixar_core.training.checkpoint import list_checkpoints, read_sharded
from mixar_core.training.files import read_weights
from tests.core.test_training import Watch, mixar_objective
from tests.core.training_toys import ToyImages, ToyObjective, toy_run

#: TI-Mix draws, mirroring, uneven micro-batches, a batch that reaches over several epochs, evaluation and previews
SETTINGS = {"steps": 20, "flip": True, "evaluate_every": 10, "micro_batch": 3, "checkpoint_every": 10}
SETTINGS |= {"preview_every": 10, "preview_images": 2}
SHARDED = {"parallel": "fsdp", "background_checkpoints": True}


class BadInOne(ToyObjective):
    """Not finite at the third step, in the second process alone."""

    def forward(self, batch, *, step, steps, noise):
        self.bad_step = 2 if os.environ.get("RANK") == "1" else None
        return super().forward(batch, step=step, steps=steps, noise=noise)


class OneNaN(ToyImages):
    """Image 11 is not finite: one process has it in its batch, the other goes on computing."""

    def __getitem__(self, index):
        pixels, label = super().__getitem__(index)
        return (pixels.float() * float("nan") if index == 11 else pixels), label


def several_runs(folder: Path) -> None:
    """What two processes do, one run after the other."""
    watch = Watch()
    run(folder / "ddp")
    run(folder / "fsdp", callbacks=[watch], **SHARDED)
    run(folder / "from_one", resume=True, **SHARDED)
    expected = 2 if os.environ["RANK"] == "0" else 0
    assert len(watch.previews) == expected, watch.calls
    for number, settings in enumerate(
        [
            {"folder": folder},  # only the main process looks at it, and all must hear of it
            {"folder": folder / "odd", "batch_size": 7},
            {"folder": folder / "nan", "objective": BadInOne(), "checkpoint_every": 1},
            {"folder": folder / "nan_fsdp", "objective": BadInOne(), **SHARDED},
            {"folder": folder / "broken", "data": ToyImages(broken=3), "max_unreadable": 0},
            {"folder": folder / "input_fsdp", "data": OneNaN(), **SHARDED},
        ]
    ):
        try:
            toy_run(**settings)
        except UserError as error:
            print(f"refused {number} {'again' if error.reported else 'first'}: {error}", flush=True)


def run(folder: Path, **settings):
    return toy_run(folder, objective=mixar_objective(), validation=ToyImages(13), **(SETTINGS | settings))


def two_processes(folder: Path) -> tuple[int, str]:
    """Exit status and output of two processes under torchrun."""
    script = folder / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.core.test_training_distributed import several_runs\n"
        "several_runs(Path(sys.argv[1]))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*launcher, str(folder)],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=180)
    finally:
        with suppress(ProcessLookupError):  # torchrun's children too, should they hang
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def curve(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [value for line in lines for name, value in line["losses"].items() if name.endswith("loss")]


def assert_alike(ours: Path, theirs: Path) -> None:
    """The same losses to 1e-5, and weights that differ by rounding.

    By their norm: AdamW makes whole steps of the rounding errors where a gradient is zero (biases of keys).
    """
    assert len(curve(ours)) == 24 and curve(ours) == pytest.approx(curve(theirs), rel=1e-5)
    for name in ("weights", "weights_raw"):
        a, b = read_weights(ours / f"{name}.safetensors"), read_weights(theirs / f"{name}.safetensors")
        assert a.keys() == b.keys()
        apart, length = (
            torch.cat([t.flatten() for t in tensors]).norm() for tensors in ([a[n] - b[n] for n in a], b.values())
        )
        assert apart < 1e-3 * length


def test_two_processes_do_what_one_does(tmp_path, capsys):
    run(tmp_path / "one", micro_batch=None)
    run(tmp_path / "micro", micro_batch=4)
    shutil.copytree(tmp_path / "one", tmp_path / "from_one")
    shutil.rmtree(tmp_path / "from_one/checkpoints/step-00000020")
    status, output = two_processes(tmp_path)
    assert status == 0, output
    for name in ("micro", "ddp", "fsdp", "from_one"):
        assert_alike(tmp_path / name, tmp_path / "one")
    assert "shared by 1 processes and goes on with 2" in output

    # what `mixar sample` reads of a run that is not finished lies in several files
    newest = list_checkpoints(tmp_path / "fsdp")[-1]
    assert len(list((newest / "ema").iterdir())) == 2
    whole, ended = read_sharded(newest / "ema"), read_weights(tmp_path / "fsdp/weights.safetensors")
    assert whole.keys() == ended.keys() and all(torch.equal(whole[name], ended[name]) for name in whole)

    # and what two began, one goes on with
    shutil.rmtree(tmp_path / "fsdp/checkpoints/step-00000020")
    run(tmp_path / "fsdp", resume=True)
    assert_alike(tmp_path / "fsdp", tmp_path / "one")
    assert "shared by 2 processes and goes on with 1" in capsys.readouterr().err

    refused = output.split("refused ")[1:]  # two processes may write into one line
    for number, text in enumerate(
        [
            "is not an empty folder",
            "training.batch_size 7 does not divide evenly among 2 processes",
            "step 3: not finite: loss, gradient norm; first in process 1: the loss of images ",
            "step 3: not finite: loss, gradient norm; first in process 1: the loss of images ",
            "data: 1 images cannot be read, more than training.max_unreadable 0",
            "input images of images 11; the batch is kept",
        ]
    ):
        said = [line for line in refused if line.startswith(f"{number} ") and text in line]
        assert len(said) == 2, (number, refused)
        assert number == 1 or sum(line.startswith(f"{number} first: ") for line in said) == 1, said
    # the last good state is there, and so is the batch
    assert [path.name[-1] for path in list_checkpoints(tmp_path / "nan")] == ["1", "2"]
    kept = json.loads((tmp_path / "nan/bad/step-00000003-rank-1.json").read_text())
    assert kept["rank"] == 1 and len(kept["images"]) == 4
    assert read_weights(tmp_path / "nan/bad/step-00000003-rank-1.safetensors")["images"].shape == (4, 3, 16, 16)
