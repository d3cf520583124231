"""Statistics of latents: what torch.save wrote, or a plain pickle of numbers, of which nothing else is made."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixar_core.errors import UserError
from mixar_import.entries import flatten
from mixar_import.published import plain_values, read_published


def read_statistics(path: Path, *, where: str) -> dict[str, Tensor]:
    """Tensors by name, those inside of others joined by dots and counted from 0 in lists.

    Raises:
        UserError: it cannot be read, or holds something else than numbers, which is named.
    """
    if path.suffix not in (".pkl", ".pickle"):
        return flatten(read_published(path), where=where)[0]
    try:
        with path.open("rb") as file:
            content = _Numbers(file).load()
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from error
    except _Refused as error:
        raise UserError(f"{where}: holds a {error}, which is refused: statistics are numbers") from error
    except Exception as error:  # a damaged or hostile file can make the reader raise anything at all
        raise UserError(f"{where}: is no pickle of numbers, or a damaged one") from error
    return dict(_tensors(content, "", where))


class _Refused(Exception):
    """What a pickle asks for, by its full name."""


class _Numbers(pickle.Unpickler):
    """Makes numbers, arrays, tensors and containers of them, and asks for nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        known = {_name(value): value[0] if isinstance(value, tuple) else value for value in plain_values()}
        known |= {
            "collections.OrderedDict": dict,
            "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
            "torch.storage._load_from_bytes": _storage,
        }
        if asked not in known:
            raise _Refused(asked)
        return known[asked]


def _name(value: Any) -> str:
    return str(value[1]) if isinstance(value, tuple) else f"{value.__module__}.{value.__qualname__}"


def _storage(content: bytes) -> Any:
    """A tensor's values, as torch pickles them."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensors(value: Any, name: str, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, list | tuple) and not all(isinstance(each, int | float) for each in value):
        value = {str(index): each for index, each in enumerate(value)}
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(each, f"{name}.{key}" if name else str(key), where)
        return
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    try:
        yield name, torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: {name or 'it'} is of type {type(value).__name__}: statistics are numbers") from error
