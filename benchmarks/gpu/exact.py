"""Whether a GPU computes what it should: its peak, golden values, the program from data to images, NCCL."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import mixar
from benchmarks.gpu.models import made, recipe_of, stepper
from benchmarks.gpu.part import Part, Row
from mixar.model import Precision
from mixar.plugins import plugin_manager
from mixar.run import make_objective
from mixar_core.distributed import Processes, join_processes
from mixar_core.training.engine import Engine, shard
from tests.parity.__main__ import TOLERANCE, errors_of
from tests.tiny import write_family

CASES = Path(__file__).parents[2] / "tests" / "parity" / "cases"

# ---------------------------------------------------------------- the card


def peak(part: Part) -> None:
    """What the card does at best: products of two random 8192 x 8192 matrices, a copy, the launch of a kernel."""
    size = 256 if part.tiny else 8192
    formats = {"bf16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
    for name, dtype in formats.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        a, b = (torch.randn(size, size, device=part.device).to(dtype) for _ in range(2))
        seconds = part.seconds(lambda a=a, b=b: a @ b, 7, before=2)  # type: ignore[misc]
        part.write({"what": f"matrix product, {name}", "format": name, "TFLOP/s": 2e-12 * size**3 / seconds})
    torch.set_float32_matmul_precision("highest")
    source = torch.randn(2**16 if part.tiny else 2**28, device=part.device)
    target = torch.empty_like(source)
    seconds = part.seconds(lambda: target.copy_(source), 7, before=2)
    part.write({"what": "copy, bytes read and written", "GB/s": 2e-9 * source.nbytes / seconds})
    small = torch.zeros(1, device=part.device)
    seconds = part.seconds(lambda: [small.add_(1.0) for _ in range(1000)], 7, before=2)
    part.write({"what": "an operator on one number", "microseconds": 1e3 * seconds})


# ---------------------------------------------------------------- golden values


def parity(part: Part) -> None:
    """The published systems' golden values, as `python -m tests.parity`: float32 without TF32, and bf16 autocast."""
    folders = sorted(path for path in CASES.iterdir() if path.is_dir())
    for folder in folders[:2] if part.tiny else folders:
        part.row({"case": folder.name}, _compared, part, folder)


def _compared(part: Part, folder: Path) -> Row:
    exact = sorted((error, label) for label, error in errors_of(folder, device=part.device))
    rounded = sorted(error for _, error in errors_of(folder, device=part.device, bf16=True))
    worst, label = exact[-1]
    return {
        "tensors": len(exact),
        "float32": worst,
        "worst tensor": label.split()[-1],
        "agrees": worst <= TOLERANCE,
        "bf16, median": median(rounded),
        "bf16, worst": rounded[-1],
    }


# ---------------------------------------------------------------- the program


def program(part: Part) -> None:
    """Images in a folder, two tokenizers, a prior, a MixAR; stopped and resumed, and drawn on the GPU and the CPU."""
    with tempfile.TemporaryDirectory() as name:
        folder, registry = Path(name), plugin_manager()
        write_family(folder, registry)
        trained: dict[str, Path] = {}

        def train(kind: str, steps: int, precision: str, resumed: bool = False, background: bool = False) -> Path:
            out = folder / f"runs/{kind}-{precision}-{background}-{steps}{'-resumed' if resumed else ''}"
            for last, resume in ((steps // 2, False), (steps, True)) if resumed else ((steps, False),):
                settings = {
                    "training.steps": last,
                    "training.precision": precision,
                    "training.workers": int(kind == "continuous"),
                    "training.background_checkpoints": background,
                }
                recipe = mixar.load_recipe(folder / f"recipes/{kind}.yaml", settings, registry=registry)
                mixar.train(recipe, out, device=part.device, resume=resume, registry=registry, callbacks=[])
            return out

        def repeated(kind: str, precision: str, background: bool = False) -> Row:
            trained[kind] = once = train(kind, 4, precision, background=background)
            return {"difference": _difference(once, train(kind, 4, precision, resumed=True, background=background))}

        for kind in ("continuous", "discrete", "prior", "mixar"):
            for precision in get_args(Precision) if kind == "mixar" else ("bf16",):
                what = f"{kind}, {precision}: 4 steps, and 2 and 2 more after a stop"
                part.row({"what": what}, repeated, kind, precision)
        what = "mixar, bf16, the same with checkpoints written in the background"
        part.row({"what": what}, repeated, "mixar", "bf16", True)
        for precision in get_args(Precision):
            what = f"images of the MixAR drawn here and on the CPU, {precision}"
            part.row({"what": what}, lambda p=precision: _drawn_twice(part, trained["mixar"], p))  # type: ignore[misc]


def _difference(one: Path, other: Path) -> float:
    """The largest between two runs' weights; 0: the same bits."""
    pairs = [load_file(folder / "weights_raw.safetensors") for folder in (one, other)]
    return max((pairs[0][name].double() - pairs[1][name].double()).abs().max().item() for name in pairs[0])


def _drawn_twice(part: Part, folder: Path, precision: Precision) -> Row:
    """The mean difference of their levels, of 255."""
    images = []
    for device in (part.device, torch.device("cpu")):
        model = mixar.load(folder, device=device, precision=precision)
        images.append(model.generate([0, 1, 2], seed=1).images)
    return {"difference": (images[0].float() - images[1].float()).abs().mean().item()}


# ---------------------------------------------------------------- processes

KINDS = ("ddp", "fsdp")


def processes(part: Part) -> None:
    """A MixAR's training steps under `torchrun` with one process: DDP's and FSDP2's sums through NCCL, and none."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "alone.pt"
        torch.save(run_steps(part, ""), file)
        for kind in KINDS:
            part.row({"what": f"torchrun, 1 process, {kind}"}, _beside, part, file, kind)
        part.row({"what": "once more without torchrun"}, lambda: compare(torch.load(file), run_steps(part, "")))


def _beside(part: Part, file: Path, kind: str) -> Row:
    """What the same steps gave under torchrun, beside those in the file."""
    out = file.with_name(f"{kind}.pt")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "1", "--master-port", str(port))
    worker = ("-m", "benchmarks.gpu.exact", kind, str(out), part.device.type, *(["tiny"] if part.tiny else []))
    with file.with_name("log").open("w+") as log:  # not a pipe of ours: a worker that hangs would keep it open
        command = [sys.executable, *launcher, *worker]
        code = subprocess.run(command, stdout=log, stderr=log, timeout=max(10.0, part.left)).returncode
        log.seek(0)
        if code:
            print(log.read()[-4000:])
            raise RuntimeError(f"torchrun ended with {code}")
    return compare(torch.load(file), torch.load(out))


def compare(one: dict[str, Tensor], other: dict[str, Tensor]) -> Row:
    """The largest difference of losses and of weights; 0: the same bits."""
    losses = (one.pop("losses"), other.pop("losses"))
    weights = max((one[name].double() - other[name].double()).abs().max().item() for name in one)
    return {
        "difference": weights,
        "of losses": (losses[0] - losses[1]).abs().max().item(),
        "loss": losses[0][-1].item(),
    }


def run_steps(part: Part, kind: str, steps: int = 4) -> dict[str, Tensor]:
    """Losses of a few steps, as `losses`, and the weights after them; `kind`: how the sums go, "" is not at all."""
    registry = plugin_manager()
    small = {"backbone.depth": 2, "head.depth": 2, "ti_mix": {"schedule": "constant", "start": 0.5}}
    overrides = {**small, "training.batch_size": 16, "training.micro_batch": 8, "training.precision": "float32"}
    recipe = recipe_of(part, "mixar_b", overrides, registry)
    assert recipe.training is not None
    objective = make_objective(made(part, recipe, registry), registry)
    joined = join_processes(part.device.type) if kind else None
    if kind == "fsdp" and joined is not None:
        shard(objective, recipe.training, joined)
    engine = Engine(objective, recipe.training, joined or Processes(0, 1, part.device), steps=1000, warmup=0)
    engine.sharded = kind == "fsdp"
    if kind == "ddp":
        engine.module = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    step = stepper(engine, 16)
    losses = torch.tensor([step(index)["loss"] for index in range(steps)])
    weights = {name: tensor.cpu().clone() for name, tensor in engine.whole_weights().items()}
    if joined is not None:
        torch.distributed.destroy_process_group()
    return {**weights, "losses": losses}


if __name__ == "__main__":  # what `torchrun` starts: KIND FILE DEVICE [tiny]
    _kind, _file, _device, *_tiny = sys.argv[1:]
    _chosen = torch.device(_device, 0) if _device == "cuda" else torch.device(_device)
    torch.save(run_steps(Part(_chosen, Path(_file), 0.0, bool(_tiny)), _kind), _file)
