"""Two processes (gloo) against one: same losses, same weights, and a checkpoint of one goes on with the other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from mixar.freeze import freeze
from mixar_core.distributed import Processes, naming_lost_processes, own_device
from mixar_core.errors import UserError
from mixar_core.storage import read_weights
from mixar_core.training import engine
from mixar_core.training.checkpoint import list_checkpoints, read_sharded
from mixar_core.training.engine import gather_policy
from mixar_core.training.objective import MixARObjective
from mixar_core.training.reconstruction import ContinuousReconstruction, ReconstructionConfig
from tests.core.test_training import Watch, mixar_objective
from tests.core.test_training_joint import joint
from tests.core.test_training_optimizer import Mean
from tests.core.test_training_reconstruction import LinearTokenizer
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


class FlatTokenizer(LinearTokenizer):
    """Its weights lie channel by channel, as those of tokenizers without norms do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Conv2d(3, 6, 3, padding=1).to(memory_format=torch.channels_last)


def flat_run(folder: Path, **settings) -> None:
    """Of 21 images one process has one more, for the latents' statistics too."""
    objective = ContinuousReconstruction(FlatTokenizer(), None, ReconstructionConfig())
    toy_run(folder, objective=objective, data=ToyImages(21), **settings)


def joint_run(folder: Path, **settings) -> None:
    """A tokenizer is trained with the MixAR, half of the encoder is not, and an average of the weights counts."""
    objective = joint("continuous_tokenizer")
    freeze(objective.trained, ["backbone.encoder_blocks.0"])
    toy_run(folder, objective=objective, optimizer=Mean(), learning_rate=0.05, micro_batch=2, **settings)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Under FSDP a backbone's blocks are gathered in bf16, and layer norms take such weights."""

    def norm(self, x):
        affine = (None, None) if self.weight is None else (self.weight.float(), self.bias.float())
        return F.layer_norm(x, self.normalized_shape, *affine, self.eps)

    def policy(block, config, device):
        return gather_policy(block, config, torch.device("cuda"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.LayerNorm, "forward", norm)
        patch.setattr(engine, "gather_policy", policy)
        yield


class Precisions:
    """What the weights of a backbone's first block and of its head compute in, at the last pass of a step."""

    def __init__(self, objective: MixARObjective) -> None:
        self.seen: list[torch.dtype] = []
        for part in (objective.model.backbone.encoder_blocks[0], objective.model.head.net.res_blocks[0]):
            linear = next(module for module in part.modules() if isinstance(module, torch.nn.Linear))
            linear.register_forward_pre_hook(lambda module, _: self.seen.append(module.weight.dtype))


def bf16_run(folder: Path, **settings) -> list[torch.dtype]:
    objective = mixar_objective()
    seen = Precisions(objective).seen
    toy_run(folder, objective=objective, precision="bf16", micro_batch=2, **settings)
    return seen


def several_runs(folder: Path) -> None:
    """What two processes do, one run after the other."""
    watch = Watch()
    run(folder / "ddp")
    run(folder / "fsdp", callbacks=[watch], **SHARDED)
    flat_run(folder / "flat_fsdp", **SHARDED)
    joint_run(folder / "joint_ddp")
    joint_run(folder / "joint_fsdp", **SHARDED)
    with as_on_a_gpu():
        assert set(bf16_run(folder / "bf16_fsdp", **SHARDED)) == {torch.bfloat16, torch.float32}
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

    # weights that lie channel by channel, and latents' statistics of unequal shares
    flat_run(tmp_path / "flat_one")
    ours, theirs = (read_weights(tmp_path / name / "weights.safetensors") for name in ("flat_fsdp", "flat_one"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    # an optimizer that averages, a tokenizer that is trained with the MixAR, and a block that is not
    joint_run(tmp_path / "joint_one")
    one = read_weights(tmp_path / "joint_one/weights_raw.safetensors")
    for name in ("joint_ddp", "joint_fsdp"):
        torch.testing.assert_close(read_weights(tmp_path / name / "weights_raw.safetensors"), one, rtol=1e-4, atol=1e-5)

    # blocks that are gathered in bf16
    assert set(bf16_run(tmp_path / "bf16_one")) == {torch.float32}
    ours, theirs = (
        [line["losses"]["loss"] for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())]
        for name in ("bf16_fsdp", "bf16_one")
    )
    assert ours == pytest.approx(theirs, rel=0.02) and len(ours) == 6

    # under DDP, where every process has all of it, each copied and wrote its half
    sizes = [file.stat().st_size for file in (list_checkpoints(tmp_path / "ddp")[-1] / "optimizer").iterdir()]
    assert len(sizes) == 2 and max(sizes) < 1.5 * min(sizes)

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
            "data: 1 train images cannot be read, more than training.max_unreadable 0",
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


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(own_device(each)) for each in (None, "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for device in (None, "cuda", torch.device("cuda")):
        assert own_device(device) == torch.device("cuda:1")
    assert own_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"^device cuda:0: several processes cannot share a GPU; with `cuda` each has"):
        own_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"^process 2 of this machine has no GPU: there are 2$"):
        own_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "cuda:x", "cudax", torch.device("cuda:99")])
def test_a_gpu_that_is_not_there_is_refused_in_one_line(device: str | torch.device, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=rf"^device {device}: not available here"):
        own_device(device)


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, "
LOST, SILENT = "lost the others, look for their messages", "another process of this run does not answer"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            f"{NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
            "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
            "Last error:\nError while creating shared memory segment /dev/shm/nccl-a1 (size 9637888), error: No space "
            "left on device (28)",
            f"0 of 2: {LOST} (NCCL error in: * Last error: Error while creating shared memory *No space left*(28))",
        ),
        (
            f"{NCCL}invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5\nncclInvalidUsage: This "
            "usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0",
            f"0 of 2: {LOST} (NCCL error in: * Last error: Duplicate GPU detected : rank 1 and rank 0)",
        ),
        (
            f"{NCCL}unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
            "Last error:\nCuda failure 2 'out of memory'",
            f"0 of 2: {LOST} (NCCL error in: * Cuda failure 2 'out of memory')",
        ),
        (
            f"{NCCL}remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: A call "
            "failed possibly due to a network error or a remote process exiting prematurely. \nLast error:\n",
            f"0 of 2: {LOST} (NCCL error in: *remote process exited *)",
        ),
        (
            f"{NCCL}unhandled system error, NCCL version 2.27.5\nncclSystemError: System call failed.\nLast error:\n"
            "socketPollConnect: connect to 10.0.0.1<40001> returned Connection refused, retries exceeded",
            f"0 of 2: {LOST} (NCCL error in: *)",
        ),
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=8, OpType=ALLREDUCE) ran for 900 "
            "milliseconds before timing out.",
            f"0 of 2: {SILENT} (*Watchdog caught collective operation timeout: *)",
        ),
    ],
)
def test_an_error_of_nccl_itself_is_told_whole(error, said):
    with pytest.raises(UserError) as caught, naming_lost_processes(Processes(0, 2, torch.device("cpu"))):
        raise dist.DistBackendError(error)
    assert fnmatchcase(str(caught.value), f"process {said}") and "\n" not in str(caught.value)


def test_errors_of_one_process_stay_what_they_are():
    with pytest.raises(dist.DistBackendError), naming_lost_processes(Processes(0, 1, torch.device("cpu"))):
        raise dist.DistBackendError(NCCL)
    with pytest.raises(RuntimeError, match="shapes"), naming_lost_processes(Processes(0, 2, torch.device("cpu"))):
        raise RuntimeError("shapes differ")
