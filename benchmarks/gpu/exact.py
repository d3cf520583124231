"""Whether a GPU computes what it should: its peak, golden values, the program from data to images, NCCL."""

from __future__ import annotations

import os
import socket
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import mixar
from benchmarks.gpu.models import recipe_of, seeded, stepper, tokens_for
from benchmarks.gpu.part import Part, Row
from mixar.plugins import plugin_manager
from mixar.run import make_objective
from mixar.speed import Precision
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

        def train(kind: str, out: str, steps: int, resume: bool = False, **settings: Any) -> Path:
            settings |= {"steps": steps, "workers": int(kind == "continuous")}
            changes = {f"training.{key}": value for key, value in settings.items()}
            recipe = mixar.load_recipe(folder / f"recipes/{kind}.yaml", changes, registry=registry)
            run = folder / "runs" / out
            mixar.train(recipe, run, device=part.device, resume=resume, registry=registry, callbacks=[])
            return run

        def repeated(kind: str, name: str, **settings: Any) -> Row:
            once = train(kind, name, 4, **settings)
            train(kind, f"{name}, stopped", 2, **settings)
            return {"difference": _difference(once, train(kind, f"{name}, stopped", 4, resume=True, **settings))}

        ways: list[tuple[str, str, dict[str, Any]]] = [
            (kind, "bf16", {}) for kind in ("continuous", "discrete", "prior")
        ]
        ways += [("mixar", precision, {}) for precision in get_args(Precision)]
        ways += [("mixar", "bf16", {"background_checkpoints": True})]
        for kind, precision, settings in ways:
            what = ", ".join((kind, precision, *(name.replace("_", " ") for name in settings)))
            row = {"what": f"{what}: 4 steps, and 2 and 2 more after a stop"}
            part.row(row, partial(repeated, precision=precision, **settings), kind, what)
        for precision in get_args(Precision):
            row = {"what": f"images of the MixAR drawn here and on the CPU, {precision}"}
            part.row(row, _drawn_twice, part, folder / f"runs/mixar, {precision}", precision)


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


def processes(part: Part) -> None:
    """A MixAR's training steps in a group of one process: DDP's and FSDP2's sums through NCCL, and none."""
    alone = run_steps(part, "")
    for kind in ("ddp", "fsdp", ""):
        part.row({"what": f"1 process, {kind}" if kind else "once more, alone"}, _beside, part, alone, kind)


def _beside(part: Part, alone: dict[str, Tensor], kind: str) -> Row:
    """The largest difference of losses and of weights; 0: the same bits."""
    again = run_steps(part, kind)
    off = {name: (alone[name].double() - again[name].double()).abs().max().item() for name in alone}
    return {"of losses": off.pop("losses"), "difference": max(off.values()), "loss": again["losses"][-1].item()}


def run_steps(part: Part, kind: str, steps: int = 4) -> dict[str, Tensor]:
    """Losses of a few steps, as `losses`, and the weights after them; `kind`: how the sums go, "" is not at all."""
    registry = plugin_manager()
    small = {"backbone.depth": 2, "head.depth": 2, "ti_mix": {"schedule": "constant", "start": 0.5}}
    overrides = {**small, "training.batch_size": 16, "training.micro_batch": 8, "training.precision": "float32"}
    recipe = recipe_of(part, "mixar_b", overrides, registry)
    assert recipe.training is not None
    objective = make_objective(seeded(recipe, registry, part.device), registry)
    joined = Processes(0, 1, part.device)
    if kind:
        with socket.socket() as free:
            free.bind(("", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **place}
        joined = join_processes(part.device.type)
    if kind == "fsdp":
        shard(objective, recipe.training, joined)
    engine = Engine(objective, recipe.training, joined, steps=1000, warmup=0)
    engine.sharded = kind == "fsdp"
    if kind == "ddp":
        engine.module = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    step = stepper(engine, tokens_for(objective, 16, part.device))
    losses = torch.tensor([step(index)["loss"] for index in range(steps)])
    weights = {name: tensor.cpu().clone() for name, tensor in engine.whole_weights().items()}
    if kind:
        torch.distributed.destroy_process_group()
        del os.environ["WORLD_SIZE"]
    return {**weights, "losses": losses}
