"""What stops a run that went wrong, and says where: the first tensor that is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor, nn

from mixar_core.data.source import Batch, Source
from mixar_core.data.tokens import CachedTokens
from mixar_core.storage import write_text, write_weights, writing
from mixar_core.training.ema import local
from mixar_core.training.engine import Engine
from mixar_core.types import ImageBatch


@frozen
class Bad:
    """What one process found: the first tensor that is not finite, and the data set's images of the pass it was in."""

    rank: int
    tensor: str
    images: list[int]
    #: whether it appeared on the way back only
    backward: bool = False


def not_finite(values: Mapping[str, float]) -> list[str]:
    """Names of the values that are not finite."""
    return [name for name, value in values.items() if not math.isfinite(value)]


def find_bad(engine: Engine, batch: Batch, source: Source, *, step: int) -> Bad | None:
    """Compute a step's loss again, whose randomness is a function of the step, and watch every tensor of it.

    Under FSDP all processes must call it, and compute the loss together whatever each has found before.
    """
    rank, indices = engine.processes.rank, source.wanted(step)[0]
    found: Bad | None = None
    for name, tensor in tensors_of(batch).items():
        good_B = tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else tensor.isfinite()
        if not good_B.all():
            found = found or Bad(rank, f"input {name}", indices[~good_B.cpu()].tolist())
    for name, parameter in engine.objective.trained.named_parameters():
        if not _is_finite(parameter):
            found = found or Bad(rank, f"weights {name}", [])
    engine.optimizer.zero_grad(set_to_none=True)
    engine.seed_dropout(step)
    for part in engine.micro_batches(batch, source, step):
        with _watched(engine.objective) as seen, engine.autocast():
            total = engine.objective(part.batch, step=step, steps=engine.steps, noise=part.noise).total
        total.backward()
        if not seen and not _is_finite(total):
            seen.append("the loss")
        if seen:
            found = found or Bad(rank, seen[0], indices[part.rows].tolist())
        elif found is None:  # backwards, the parameter nearest to the loss comes first
            named = reversed(list(engine.objective.trained.named_parameters()))
            bad = [name for name, p in named if p.grad is not None and not _is_finite(p.grad)]
            found = Bad(rank, f"gradient of {bad[0]}", indices[part.rows].tolist(), backward=True) if bad else None
    return found


def where_it_began(engine: Engine, batch: Batch, source: Source, folder: Path, *, step: int) -> str:
    """Find the first tensor that is not finite in any process, and keep that process's batch under `folder`/bad.

    All processes must call it; all get the same words.
    """
    processes = engine.processes
    found = [bad for bad in processes.all_gather(find_bad(engine, batch, source, step=step)) if bad is not None]
    if not found:
        return "it was finite when computed again, which points at the hardware"
    first: Bad = min(found, key=lambda bad: bad.backward)  # backwards, it spreads to the other processes
    path = folder / "bad" / f"step-{step + 1:08d}-rank-{first.rank}.safetensors"
    if first.rank == processes.rank:
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        write_weights(path, tensors_of(batch))
        write_text(path.with_suffix(".json"), json.dumps({"step": step + 1, **asdict(first)}, indent=1))
    images = f" of images {', '.join(map(str, first.images))}" if first.images else ""
    return f"first in process {first.rank}: {first.tensor}{images}; the batch is kept in {path}"


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """A batch's tensors by name."""
    if isinstance(batch, ImageBatch):
        return {"images": batch.images_B3HW, "labels": batch.labels_B}
    assert isinstance(batch, CachedTokens)
    tensors = {"labels": batch.labels_B}
    if batch.codes_BN is not None:
        tensors["codes"] = batch.codes_BN
    if batch.posterior is not None:
        tensors["latents"] = batch.posterior.mean_BChw
    return tensors


@contextmanager
def _watched(root: nn.Module) -> Iterator[list[str]]:
    """Collects, in the order in which they appear, the modules inside whose output is not finite."""
    seen: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, arguments: Any, output: Any) -> None:
            several = output if isinstance(output, tuple | list) else (output,)
            if any(isinstance(value, Tensor) and not _is_finite(value) for value in several):
                seen.append(f"output of {name} ({type(module).__name__})")

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in root.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(local(tensor.detach())).all())
