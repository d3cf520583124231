"""Model folders: recipe.yaml, weights.safetensors and provenance.json, written all or nothing and loaded strictly."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixar import hub, strict_yaml
from mixar.plugins import Registry
from mixar.text import one_line
from mixar.written import bare, located
from mixar_core.errors import UserError
from mixar_core.storage import file_sha256, read_weights, whole_folder, write_text, write_weights

RECIPE, WEIGHTS, PROVENANCE = "recipe.yaml", "weights.safetensors", "provenance.json"
#: what provenance.json says under `paths` of a recipe whose paths are seen from its own folder
FROM_FOLDER = "from this folder"
#: averaged weights, or those of the last step
Kind = Literal["ema", "raw"]


def find_weights(weights: str, registry: Registry) -> Path:
    """The file behind a recipe's `weights:`: a model's name, a model or run folder, a .safetensors file, or `hf://`.

    Raises:
        UserError: there is no such model, or the hub's file cannot be had.
    """
    if hub.is_file(weights):
        return hub.fetch(weights).path if weights.startswith(hub.PREFIX) else located(weights)
    return weights_file(registry.find_model(weights))


def weights_file(folder: Path, kind: Kind = "ema") -> Path:
    """The weights of a model folder, or (a folder) of a run's newest checkpoint while the run is not finished.

    Where a run keeps no average, those of its last step stand for either.

    Raises:
        UserError: there are none; a shipped model has averaged (ema) weights only.
    """
    file = folder / ("weights_raw.safetensors" if kind == "raw" and _has_average(folder) else WEIGHTS)
    if file.is_file():
        return file
    from mixar_core.training.checkpoint import list_checkpoints  # torch's checkpoints take most of a second to import

    checkpoints = list_checkpoints(folder)
    if checkpoints and not (folder / WEIGHTS).exists():
        return checkpoints[-1] / (kind if _has_average(folder) else "raw")
    raise UserError(f"model {folder}: there is no {file.name}, and no checkpoint")


def _has_average(folder: Path) -> bool:
    """Whether `weights.safetensors` are averaged: all are but those of a run with `training.ema_decay: null`."""
    if not (folder / RECIPE).is_file():
        return True
    plain = strict_yaml.load((folder / RECIPE).read_text(encoding="utf-8"), where=str(folder / RECIPE))
    return bare((plain.get("training") or {}).get("ema_decay", 0.0)) is not None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, or of a checkpoint's folder; floating-point ones as float32.

    Raises:
        UserError: not such a file, truncated, or unreadable.
    """
    if path.is_dir():
        from mixar_core.training.checkpoint import read_sharded

        tensors = read_sharded(path)
    else:
        tensors = read_weights(path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Load a state dict strictly: every tensor there, none too many, each of the right shape.

    Raises:
        UserError: says how many are missing, unexpected and misshapen, and names the first of each.
    """
    check_fit(module, tensors, where=where)
    module.load_state_dict(dict(tensors), strict=True)


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str, listed: int | None = 5) -> None:
    """See that a state dict is this module's, which may be on the meta device.

    Args:
        listed: how many missing, unexpected, misshapen and quantised tensors to name of each; None: all.

    Raises:
        UserError: it is not.
    """
    own = module.state_dict()
    wrong = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} ({_shape(tensors[name])}, not {_shape(tensor)})"
            for name, tensor in own.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
        "of whole numbers": [
            f"{name} ({tensors[name].dtype})".replace("torch.", "")
            for name, tensor in own.items()
            if name in tensors and is_quantised(tensors[name], tensor)
        ],
    }
    complaints = [
        f"{len(names)} {what}: {', '.join(names[:listed])}{', ...' if len(names) > len(names[:listed]) else ''}"
        for what, names in wrong.items()
        if names
    ]
    if complaints:
        raise UserError(f"{where} does not fit {type(module).__name__}: tensors {'; '.join(complaints)}")


def is_quantised(given: Tensor, own: Tensor) -> bool:
    """Whether whole numbers are given for a weight: of what scale, another tensor would have to say."""
    return own.is_floating_point() and not given.is_floating_point()


def save_model(
    folder: Path,
    *,
    recipe_yaml: str,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    replace: bool = False,
) -> None:
    """Write a model folder; it appears whole or not at all.

    Args:
        facts: goes into provenance.json beside the file's sha256 and the libraries' versions; JSON values.
        dtype: what floating-point tensors are stored as; None leaves them as they are.
        replace: whether a folder of this name may be replaced.

    Raises:
        UserError: the folder is there already, or cannot be written.
    """
    if folder.exists() and not replace:
        raise UserError(f"{folder}: is there already")
    with whole_folder(folder, replace=replace) as new:
        write_weights(new / WEIGHTS, tensors, dtype=dtype)
        write_text(new / RECIPE, recipe_yaml)
        provenance = {"sha256": sha256(new / WEIGHTS), "versions": versions(), **(facts or {})}
        write_text(new / PROVENANCE, json.dumps(provenance, indent=2) + "\n")


def read_provenance(folder: Path) -> dict[str, Any]:
    """What provenance.json says; empty where there is none."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / PROVENANCE}: cannot be read: {one_line(error)}") from error
    return found if isinstance(found, dict) else {}


def sha256(path: Path) -> str:
    """A file's digest, in hex; of a folder (a checkpoint's), that of its files' digests in order of their names."""
    if path.is_dir():
        return hashlib.sha256("".join(sha256(file) for file in sorted(path.iterdir())).encode()).hexdigest()
    return file_sha256(path)


def versions() -> dict[str, str]:
    """Versions of what computes: mixar, torch, timm where it is installed, safetensors, Python."""
    packages = {name: version(name) for name in ("mixar", "torch", "timm", "safetensors") if find_spec(name)}
    return {**packages, "python": platform.python_version()}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
