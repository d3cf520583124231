"""Modules with shapes and no memory, on torch's `meta` device; also of parts that cannot be built there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixar_core.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


class _Unfilled(TorchFunctionMode):
    """On `meta` normal numbers are not drawn: torch would import its compiler for it, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            tensor: Tensor = args[0] if args else named["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **named)


def meta_safe(part: object) -> bool:
    """Whether a part, or its class, runs on `meta`: unless it says `meta_safe = False`, or brings its own weights."""
    return getattr(part, "meta_safe", True) and not getattr(part, "brings_weights", False)


def on_meta(make: Callable[[], T], *, safe: bool = True) -> T:
    """What `make` builds, on `meta`. Where that raises, it is built on the CPU, and this is a copy without values.

    A module of a library may read a tensor's value while it is built, or load a file: neither can be done on `meta`.
    An error that has nothing to do with `meta` comes from the CPU, too, and is raised as it is.

    Args:
        safe: False: it is not tried on `meta`.
    """
    if safe:
        try:
            with torch.device("meta"), _Unfilled():
                return make()
        except UserError:
            raise
        except Exception:
            pass
    return without_values(on_cpu(make))


def constant(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A function whose tensor is computed on the CPU and then moved to the default device: a constructor's table.

    Arithmetic on `meta` is right, too, but the first in a process imports torch's compiler, which takes seconds.
    """

    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.device("cpu"):
            found = function(*args, **kwargs)
        return found.to(torch.get_default_device())

    return computed


def on_cpu(make: Callable[[], T]) -> T:
    """What `make` builds, on the CPU whatever the default device, and the same every time.

    Torch's global generator stays where it was.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make()


def without_values(part: T) -> T:
    """A copy of a module on `meta`; anything else is itself."""
    if not isinstance(part, nn.Module):
        return part
    empty: dict[int, object] = {}
    for tensor in (*part.parameters(), *part.buffers()):
        shape: Tensor = torch.empty_like(tensor, device="meta")
        parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if parameter else shape
    return copy.deepcopy(part, empty)
