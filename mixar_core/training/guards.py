"""What stops a run that went wrong, and says where: the first tensor that is not finite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor, nn

from mixar_core.data.source import Batch, Source
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


def look_again(engine: Engine, batch: Batch, source: Source, *, step: int) -> Iterator[Bad]:
    """Compute a step's loss again, whose randomness is a function of the step, and watch every tensor of it.

    Under FSDP all processes must go through it to the end: they compute the loss together.
    """
    rank, indices = engine.processes.rank, source.wanted(step)[0]
    for name, tensor in tensors_of(batch).items():
        bad_B = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
        if bad_B.any():
            yield Bad(rank, f"input {name}", indices[bad_B.cpu()].tolist())
    named = [*engine.objective.trained.named_parameters(), *engine.objective.beside.named_parameters(prefix="beside")]
    yield from (Bad(rank, f"weights {name}", []) for name, p in named if not _is_finite(p))
    engine.zero_grad()
    engine.seed_dropout(step)
    for part in engine.micro_batches(batch, source, step):
        with _watched(engine.objective) as seen:
            total = engine.losses(part, step=step).total
        total.backward()
        if not _is_finite(total):
            seen.append("the loss")
        images = indices[part.rows].tolist()
        yield from (Bad(rank, what, images) for what in seen[:1])
        # backwards, the parameter nearest to the loss comes first
        bad = [name for name, p in reversed(named) if p.grad is not None and not _is_finite(p.grad)]
        yield from (Bad(rank, f"gradient of {name}", images, backward=True) for name in bad[:1])


def where_it_began(engine: Engine, batch: Batch, source: Source, folder: Path, *, step: int) -> str:
    """Find the first tensor that is not finite in any process, and keep that process's batch under `folder`/bad.

    All processes must call it; all get the same words.
    """
    processes = engine.processes
    own = list(look_again(engine, batch, source, step=step))[:1]
    found: list[Bad] = [bad for each in processes.all_gather(own) for bad in each]
    if not found:
        return "it was finite when computed again, which points at the hardware"
    first = min(found, key=lambda bad: bad.backward)  # backwards, it spreads to the other processes
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
    tensors = {"labels": batch.labels_B}
    if batch.codes_BN is not None:
        tensors["codes"] = batch.codes_BN
    if (posterior := batch.posterior) is not None:  # a logvar of -inf, of samples, is sound
        tensors |= {"latents": posterior.mean_BChw, "deviations": torch.exp(0.5 * posterior.logvar_BChw)}
    return tensors


@contextmanager
def _watched(root: nn.Module) -> Iterator[list[str]]:
    """Collects, in the order in which they appear, the modules inside whose output is not finite."""
    seen: list[str] = []

    def look(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        several = output if isinstance(output, tuple | list) else (output,)
        if any(isinstance(value, Tensor) and not _is_finite(value) for value in several):
            seen.append(f"output of {name} ({type(module).__name__})")

    handles = [module.register_forward_hook(partial(look, name)) for name, module in root.named_modules() if name]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(local(tensor.detach())).all())
