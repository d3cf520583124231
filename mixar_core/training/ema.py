"""The average of the weights over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def floating_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and floating-point buffers by name, detached, sharing memory with the module."""
    trained = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    named = chain(trained, module.named_buffers())
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP shards, and any other tensor itself; sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class EMA:
    """Exponential moving average of a module's weights, in float32; of sharded ones, every process averages its part.

    The decay warms up, min(decay, (1 + t) / (10 + t)) at the t-th update, so that a short run's average is not still
    its initial weights. Made after the module is on its device and sharded.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.updates = 0
        self.shadow = {name: tensor.float().clone() for name, tensor in floating_tensors(module).items()}

    def decay_at(self, update: int) -> float:
        """Decay of the `update`-th update, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, instead: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Move the average towards the module's present weights; those named, towards what is given `instead`."""
        averages, weights = self._pairs(instead)
        torch._foreach_lerp_(averages, [w.float() for w in weights], 1.0 - self.decay_at(self.updates))
        self.updates += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The module's state dict with the averages in it; they share memory with this object."""
        named = chain(self.module.named_parameters(), self.module.named_buffers())
        averages = {id(tensor): self.shadow.get(name, tensor.detach()) for name, tensor in named}
        # by tensor, not by name: tied weights have several
        state = self.module.state_dict(keep_vars=True)
        return {name: averages.get(id(tensor), tensor) for name, tensor in state.items()}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module carries the average inside the block, and its own weights again after it.

        Values change places, so what the block writes to the module stays with the average.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, weight in zip(*self._pairs(), strict=True):
            value = weight.clone()
            weight.copy_(average)
            average.copy_(value)

    def _pairs(self, instead: Mapping[str, Tensor] = MappingProxyType({})) -> tuple[list[Tensor], list[Tensor]]:
        weights = {**floating_tensors(self.module), **instead}
        return [local(average) for average in self.shadow.values()], [local(weights[name]) for name in self.shadow]
