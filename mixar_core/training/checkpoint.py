"""Checkpoints: all that a run needs to go on as if it had never stopped.

    checkpoints/step-00000100/
        raw.safetensors   the trained module's state        ema.safetensors   the same with averaged weights
        optimizer.pt      AdamW's moments                   run.json          step, settings, sizes of the files

A folder of that name is complete: it is written under another name, forced to disk, and renamed. Random streams and the
order of images are functions of the step, so there is nothing of them to keep.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mixar_core.errors import UserError
from mixar_core.training.ema import EMA
from mixar_core.training.files import read_weights, sync, write_text, write_weights, writing

_NAME = re.compile(r"step-(\d{8,})")


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    root = folder / "checkpoints"
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """Steps done at a checkpoint."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    trained: nn.Module,
    ema: EMA,
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `step` steps done, then remove all but the last `keep`.

    Raises:
        UserError: it cannot be written; the older ones are as they were.
    """
    path = folder / "checkpoints" / f"step-{step:08d}"
    if path.exists():  # a run that was resumed at its own last step
        return path
    unfinished = path.with_name(f".{path.name}.unfinished")
    with writing(path):
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write_weights(unfinished / "raw.safetensors", trained.state_dict())
            with ema.swapped():
                write_weights(unfinished / "ema.safetensors", trained.state_dict())
            _save_optimizer(optimizer, unfinished / "optimizer.pt")
            sizes = {file.name: file.stat().st_size for file in sorted(unfinished.iterdir())}
            write_text(
                unfinished / "run.json", json.dumps({"step": step, "settings": settings, "sizes": sizes}, indent=1)
            )
            os.replace(unfinished, path)
            sync(path.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        # Renamed first: a half-removed folder must not look complete.
        doomed = old.with_name(f".{old.name}.removed")
        with writing(old):
            os.replace(old, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return path


def load_checkpoint(
    path: Path, *, trained: nn.Module, ema: EMA, optimizer: Optimizer, settings: Mapping[str, Any]
) -> int:
    """Put a run back to where it was; returns the steps done.

    Raises:
        UserError: a file is missing or not whole, the settings or the tensors are not those it was written with.
    """
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        for name, size in run["sizes"].items():
            if (path / name).stat().st_size != size:
                raise UserError(f"{path / name} has {(path / name).stat().st_size} bytes, not the {size} written")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a whole checkpoint: {error}; remove it to resume from the one before"
        ) from error
    if differing := _differences(run["settings"], settings):
        raise UserError(f"{path} was written with other settings: {differing}; resume with those, or start a new run")
    try:
        trained.load_state_dict(read_weights(path / "raw.safetensors"))
        with ema.swapped():
            trained.load_state_dict(read_weights(path / "ema.safetensors"))
        optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
    except (RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} does not fit what is trained: {' '.join(str(error).split())}") from error
    ema.updates = run["step"]
    return int(run["step"])


def _save_optimizer(optimizer: Optimizer, path: Path) -> None:
    try:
        torch.save(optimizer.state_dict(), path)
    except RuntimeError as error:  # how torch's writer reports a full disk
        raise OSError(str(error)) from error
    sync(path)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    return ", ".join(f"{name} was {then.get(name)}, is {now.get(name)}" for name in names)
