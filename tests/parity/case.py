"""A case folder: the originals' constructor arguments, seeded weights, inputs and expected outputs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

#: Entries that keep the value their part computes for them, as the originals' do.
COMPUTED = frozenset({"quantize.codebook"})


class NotACase(Exception):
    """The folder holds no case that can be run; one line says why."""


class Mismatch(Exception):
    """The case's tensors are not those of the part built for it; one line lists them."""


@frozen(eq=False)
class Case:
    """What `case.json` and `io.safetensors` hold; the file format is described where the cases come from.

    `keys` maps the original state dict's names to (shape, dtype name); `io` holds inputs and expected outputs alike. A
    tokenizer that a case brings along has its arguments under `tokenizer` in `config`, `settings` are there, too.

    Args:
        tokenizer_keys: those of a tokenizer that is seeded under its own names.
    """

    name: str
    config: Mapping[str, Any]
    salt: str
    keys: Mapping[str, tuple[tuple[int, ...], str]]
    io: Mapping[str, Tensor]
    tokenizer_keys: Mapping[str, tuple[tuple[int, ...], str]] = {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The seeded weights, under their original names; those of a tokenizer brought along as `tokenizer.<name>`."""
        return {
            f"{prefix}{name}": seeded(name.rpartition("::")[2], shape, self.salt)  # without `tokenizer::`
            for prefix, keys in (("", self.keys), ("tokenizer.", self.tokenizer_keys))
            for name, (shape, dtype) in keys.items()
            if "float" in dtype and name not in COMPUTED
        }


def seeded(name: str, shape: tuple[int, ...], salt: str) -> Tensor:
    """One weight of a case, from normal numbers: scaled by fan-in, or about 1 (a norm's scale), or about 0."""
    normal = np.random.RandomState(zlib.crc32(f"{salt}:{name}".encode())).standard_normal(shape)
    if len(shape) >= 2:
        value = normal / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1 and name.endswith(".weight"):
        value = 1 + 0.1 * normal
    else:
        value = 0.1 * normal
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def load_case(folder: Path) -> Case:
    """Read a case folder.

    Raises:
        NotACase: a file is missing, damaged or of another format.
    """
    try:
        described = json.loads((folder / "case.json").read_text())
        beside = described.get("tokenizer", {"config": None, "keys": {}})
        keys, tokenizer_keys = (
            {name: (tuple(map(int, shape)), str(dtype)) for name, (shape, dtype) in each["keys"].items()}
            for each in (described, beside)
        )
        more = {"tokenizer": beside["config"], "settings": described.get("settings")}
        config = {**described["config"], **{name: value for name, value in more.items() if value is not None}}
        salt = str(described["salt"])
        io = load_file(folder / "io.safetensors")
    except FileNotFoundError as error:
        raise NotACase(f"{Path(error.filename or folder).name} is missing") from error
    except NotADirectoryError as error:
        raise NotACase("not a folder") from error
    except OSError as error:
        raise NotACase(error.strerror or type(error).__name__) from error
    except SafetensorError as error:
        raise NotACase(f"io.safetensors is damaged: {error}") from error
    except KeyError as error:
        raise NotACase(f"case.json has no {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise NotACase(f"case.json is damaged: {error}") from error
    return Case(folder.resolve().name, config, salt, keys, io, tokenizer_keys)


def read_manifest(file: Path) -> dict[str, Tensor]:
    """A manifest's tensors, without memory: one `name shape dtype` a line, `-` for a scalar's shape."""
    tensors = {}
    for line in file.read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape, dtype = line.split()
            size = [] if shape == "-" else [int(side) for side in shape.split(",")]
            tensors[name] = torch.empty(size, dtype=getattr(torch, dtype), device="meta")
    return tensors


def load_strictly(part: nn.Module, tensors: Mapping[str, Tensor], *, kept: Collection[str] = ()) -> None:
    """Give a part these tensors, one to one; entries named in `kept` may be absent and then stay as built.

    Raises:
        Mismatch: an entry is missing, unexpected, or of another shape or dtype.
    """
    own = part.state_dict()
    problems = [f"missing {name}" for name in own.keys() - tensors.keys() - set(kept)]
    problems += [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    for name in own.keys() & tensors.keys():
        here, there = own[name], tensors[name]
        if (here.shape, here.dtype) != (there.shape, there.dtype):
            problems.append(f"{name} is {list(there.shape)} {there.dtype}, here {list(here.shape)} {here.dtype}")
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise Mismatch("; ".join(sorted(problems)[:6]) + more)
    part.load_state_dict(dict(tensors), strict=False)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected||; infinite for another shape or a value that is not finite."""
    if got.shape != expected.shape:
        return float("inf")
    difference, size = (got.double() - expected.double()).norm().item(), expected.double().norm().item()
    error = difference / size if size else difference
    return error if np.isfinite(error) else float("inf")
