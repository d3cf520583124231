"""A GPU where there is none: tensors with a device, a shape and a dtype, and no values.

Under torch's FakeTensorMode an operator refuses operands on two devices, and a shape or a branch that depends on a
value cannot be computed. On `meta` the second holds as well, and the kernels are other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import GraphExecGroup

from mixar_core.noise import Noise
from mixar_core.training import engine

GPU, META = torch.device("cuda", 0), torch.device("meta")


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors on GPU are fake ones inside. What torch cannot do with them in a process without a GPU is stood in for:

    autocast (it turns itself off), the engine of `Tensor.backward` and of `autograd.grad` (it asks the driver for
    streams; the latter gives ones), moving modules (see `place`), and generators on the device. The figures that a
    training step reads at its end (`tolist`) are zeros.
    """
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.Tensor, "backward", backward)
        patch.setattr(torch.autograd, "grad", lambda _, weight, **__: (torch.ones_like(weight),))
        patch.setattr(nn.Module, "to", lambda module, *_, **__: module)
        patch.setattr(FakeTensor, "tolist", lambda tensor: [0.0] * tensor.numel())
        patch.setattr(engine, "step_noise", lambda *_, **__: DeviceNoise())
        yield


class OnlyOn(TorchDispatchMode):
    """Refuses every operator that makes a tensor elsewhere.

    More than FakeTensorMode does: it lets one number on the CPU take part, and a copy between host and device pass, and
    for those the host waits.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                device = made.fake_device if isinstance(made, FakeTensor) else made.device  # the attribute is quicker
                if device.type != self.device.type:
                    raise AssertionError(f"{func} makes a tensor on {device}, in work on {self.device}")
        return out


class HostNoise(Noise):
    """Drawn on the CPU and moved, as for sampling. A number without a value stands in for a fake one's."""

    def __init__(self) -> None:
        super().__init__(torch.Generator())

    def scalar(self, *, name: str = "") -> float:
        return 0.5


class DeviceNoise(HostNoise):
    """Drawn on the device, as in training: without a generator, which a GPU that is not there cannot have."""

    def _rows(self, draw: Callable[..., Tensor], shape: Sequence[int], device: torch.device | str) -> Tensor:
        return draw(tuple(shape), device=device)


def place(module: nn.Module, device: torch.device) -> None:
    """Move a module without values: every parameter and buffer is made anew. (`to_empty` takes no fake ones.)"""

    def made(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(made(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, made(buffer))


def backward(total: Tensor) -> None:
    """`total.backward()`, node by node.

    Raises:
        AssertionError: a gradient is not where what it is for is.
    """
    assert total.grad_fn is not None
    waiting: dict[Node, list[Tensor | None]] = {total.grad_fn: [torch.ones_like(total)]}
    with torch.no_grad(), GraphExecGroup():
        for node in _users_first(total.grad_fn):
            gradients = waiting.pop(node, None)
            if gradients is None:
                continue
            if (parameter := getattr(node, "variable", None)) is not None:
                (gradient,) = gradients
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                continue
            given = node(*gradients)
            for (following, index), gradient in zip(
                node.next_functions, given if isinstance(given, tuple) else (given,), strict=True
            ):
                if following is None or gradient is None:
                    continue
                wanted = following._input_metadata
                expected = wanted[index]
                assert gradient.device == expected.device, f"{node.name()} gives a gradient on {gradient.device}"
                if gradient.shape != expected.shape:
                    gradient = gradient.sum_to_size(expected.shape)
                if gradient.dtype != expected.dtype:
                    gradient = gradient.to(expected.dtype)
                sums = waiting.setdefault(following, [None] * len(wanted))
                before = sums[index]
                sums[index] = gradient if before is None else before + gradient


def _users_first(root: Node) -> list[Node]:
    """All nodes of a graph, each after those that use what it gives."""
    done: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, finished = stack.pop()
        if finished:
            done.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    return done[::-1]
