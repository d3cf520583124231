"""Reading files that others published. Whatever they hold, nothing in them is executed."""

from __future__ import annotations

import argparse
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixar.folder import read_tensors
from mixar_core.errors import UserError

#: What a file may hold beside tensors, containers and plain values: MAR's checkpoints keep their command line in one.
ALLOWED = (argparse.Namespace,)
_ZIP = b"PK\x03\x04"
#: how torch words a refusal; a function or class is printed as its repr
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|(?:unrecognized function|unsupported class|but got) (<[^>]+>)")


def read_published(path: Path) -> Any:
    """The content of a .safetensors file or of one that torch.save wrote; large ones are mapped, not read.

    Only tensors, containers, plain values and ALLOWED are made. A file that asks for anything else is refused before
    that is imported or called.

    Raises:
        UserError: no such file, empty, truncated, not such a file, or one that asks for another type, which is named.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise UserError(f"{path} is empty")
    try:
        with torch.serialization.safe_globals(list(ALLOWED)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and old storages; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start == _ZIP)
    except Exception as error:  # a damaged or hostile file can make the reader raise anything at all
        raise UserError(f"{path} {_complaint(error, path, zipped=start == _ZIP)}") from error


def _complaint(error: Exception, path: Path, *, zipped: bool) -> str:
    """What is wrong with a file that torch.load refused."""
    message = " ".join(str(error).split())
    found = _REFUSED.search(message)
    refused = (found[1] or found[2]) if found else None if zipped else _first_global(path)
    if refused:
        return f"holds a {refused}, which is refused: a file of weights may make tensors and plain values only"
    if zipped:
        return f"is truncated or damaged ({_short(message) or type(error).__name__})"
    return "is no file that torch.save wrote, or a damaged one"


def _first_global(path: Path) -> str | None:
    """What a pickle asks for first beside torch's own, of protocols that torch does not read far enough to name it."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):  # reads operations, and runs none
                if isinstance(argument, str) and operation.name != "GLOBAL":
                    texts.append(argument)
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    name = str(argument).replace(" ", ".") if operation.name == "GLOBAL" else ".".join(texts[-2:])
                    if not name.startswith(("torch.", "collections.")):
                        return name
    except Exception:  # no pickle, or half of one
        return None
    return None


def _short(message: str) -> str:
    return message.partition(". ")[0].partition(" (Could this")[0][:120]


def state_dict(content: Any, entry: str | None, *, where: str, others: str = "") -> dict[str, Tensor]:
    """The tensors of what a file holds: under `entry`, or the file's content itself where there is no such entry.

    Args:
        others: ends the message where what is there are no tensors.

    Raises:
        UserError: it is no dict of tensors; names the first entry that is none.
    """
    if isinstance(content, Mapping) and entry is not None and entry in content:
        content, where = content[entry], f"{where}: {entry}"
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: holds no tensors by name, but is {_kind(content)}{others}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{where}: entry {str(name)[:60]!r} is {_kind(value)}, not a tensor{others}")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise UserError(f"{where}: tensor {name} is stored in a way that weights are not ({value.layout})")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise UserError(f"{where}: tensor {name} claims {value.numel()} values, more than the file holds for it")
    return {name: value.detach() for name, value in content.items()}


def _kind(value: object) -> str:
    return "an empty dict" if isinstance(value, Mapping) and not value else f"of type {type(value).__name__}"
