"""The average of the weights over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def averaged_tensors(module: nn.Module) -> list[Tensor]:
    """What is averaged: parameters and floating-point buffers, detached, sharing memory with the module."""
    tensors = [*module.parameters(), *module.buffers()]
    return [t.detach() for t in tensors if t.is_floating_point()]


class EMA:
    """Exponential moving average of a module's weights, in float32. The module must not change device after this.

    The decay warms up, min(decay, (1 + t) / (10 + t)) at the t-th update, so that a short run's average is not still
    its initial weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live = averaged_tensors(module)
        self.shadow = [t.float().clone() for t in self.live]

    def decay_at(self, update: int) -> float:
        """Decay of the `update`-th update, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the module's present weights."""
        torch._foreach_lerp_(self.shadow, [t.float() for t in self.live], 1.0 - self.decay_at(self.updates))
        self.updates += 1

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
        for live, shadow in zip(self.live, self.shadow, strict=True):
            value = live.clone()
            live.copy_(shadow)
            shadow.copy_(value)
