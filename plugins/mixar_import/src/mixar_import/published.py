"""Reading files that others published. Whatever they hold, nothing in them is executed."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import pickletools
import re
import shlex
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixar.folder import read_tensors
from mixar_core.errors import UserError

_ZIP = b"PK\x03\x04"
#: how torch words a refusal; a function or class is printed as its repr
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|(?:unrecognized function|unsupported class|but got) (<[^>]+>)")
#: run by a user who trusts a file: keeps its tensors, its modules' and its entries that hold nothing else
_WEIGHTS_ALONE = (
    "import torch; c = torch.load({file!r}, map_location='cpu', weights_only=False); "
    "d = lambda v: v.state_dict() if hasattr(v, 'state_dict') else v; "
    "torch.save({{k: d(v) for k, v in d(c).items() if hasattr(v, 'shape') or isinstance(d(v), dict) "
    "and all(hasattr(t, 'shape') for t in d(v).values())}}, {out!r})"
)


def read_published(path: Path) -> Any:
    """The content of a safetensors file or of one that torch.save wrote; large ones are mapped, not read.

    Only tensors, containers and plain values are made. A file that asks for anything else is refused before that is
    imported or called.

    Raises:
        UserError: no such file, empty, truncated, not such a file, or one that asks for another type, which is named.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise UserError(f"{path} is empty")
    zipped = start.startswith(_ZIP)
    if start[8:] == b"{" or (path.suffix == ".safetensors" and not zipped):
        return read_tensors(path)
    try:
        with torch.serialization.safe_globals(plain_values()), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # about pickle protocols and old storages; what matters raises
            mapped = zipped and path.suffix != ".safetensors"  # torch believes that ending, and maps by path alone
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged or hostile file can make the reader raise anything at all
        raise UserError(f"{path} {_complaint(' '.join(str(error).split()), path, zipped=zipped)}") from error


def plain_values() -> list[Any]:
    """What trainers write beside weights and what does nothing when it is made: numbers, arrays, paths, times."""
    values: list[Any] = [argparse.Namespace, types.SimpleNamespace, torch.torch_version.TorchVersion]
    values += [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    for module in ("pathlib", "pathlib._local"):  # the latter is Python 3.13's; a system makes its own paths alone
        values += [(pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath")]
        values += [(pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    scalar = np.float64(0).__reduce__()[0]
    array = np.zeros(0).__reduce__()[0]
    for core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
        values += [(scalar, f"{core}.multiarray.scalar"), (array, f"{core}.multiarray._reconstruct")]
    of_objects = (np.dtypes.ObjectDType, np.dtypes.VoidDType)
    kinds = {kind for name in np.dtypes.__all__ if (kind := getattr(np.dtypes, name)) not in of_objects}
    return [*values, np.ndarray, np.dtype, *kinds]


def _complaint(message: str, path: Path, *, zipped: bool) -> str:
    """What is wrong with a file that torch.load refused, by torch's message."""
    found = _REFUSED.search(message)
    refused = (found[1] or found[2]) if found else None if zipped else _asked_for(path)
    if refused:
        what = f"holds a {refused}, which is refused: a file of weights may make tensors and plain values only"
    elif zipped and "Unsupported operand" in message:
        what = "was written with a pickle_protocol above 3, which cannot be read safely"
    elif zipped:
        return (
            f"is truncated or damaged ({message.partition('. ')[0].partition(' (Could this')[0][:120] or 'no reason'})"
        )
    else:
        return "is no file that torch.save wrote, or a damaged one"
    code = _WEIGHTS_ALONE.format(file=str(path), out=f"{path.stem}.weights.pt")
    return (
        f"{what}; if you trust who made it, write its weights alone and import those (docs/weights.md): python -c "
        f"{shlex.quote(code)}"
    )


def _asked_for(path: Path) -> str | None:
    """What a pickle asks for first beside torch's own, of protocols that torch does not read far enough to name it."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):  # reads operations, and runs none
                if operation.name == "STACK_GLOBAL" and not texts[-2].startswith(("torch", "collections")):
                    return ".".join(texts[-2:])
                if isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # no pickle, or half of one
        return None
    return None
