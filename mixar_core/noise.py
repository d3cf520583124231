"""The one source of randomness: every random number of training and sampling is drawn through it.

A test hands in its own subclass to replay recorded draws; a run hands in a seeded one, and draws the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Noise:
    """Draws from one `torch.Generator`, for the rows of this process.

    Of a global batch of `total` rows, this process holds rows `first` onwards. Every process draws the rows of all and
    keeps its own, so that a loss does not depend on how many processes share the batch. Without `total`, the rows
    asked for are all there are.

    Args:
        generator: source of the random numbers; draws happen on its device and then move to the one asked for.
        first: index of this process's first row in the global batch.
        total: rows of the global batch, or None.
    """

    def __init__(self, generator: torch.Generator, *, first: int = 0, total: int | None = None) -> None:
        self.generator = generator
        self.first = first
        self.total = total
        # A number drawn on a GPU would have to be waited for: it comes from a generator on the host, of the same seed.
        on_host = generator.device.type == "cpu"
        self._on_host = generator if on_host else torch.Generator().manual_seed(generator.initial_seed())

    @classmethod
    def seeded(cls, seed: int, *, device: torch.device | str = "cpu") -> Noise:
        """Noise from a fresh generator with this seed."""
        return cls(torch.Generator(device).manual_seed(seed))

    def normal(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        """Standard normal numbers, float32. `shape[0]` counts rows; `name` tells a replaying test what is asked for."""
        return self._rows(torch.randn, shape, device)

    def uniform(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        """Numbers uniform in [0, 1), float32. `shape[0]` counts rows."""
        return self._rows(torch.rand, shape, device)

    def integers(self, high: int, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        """Integers uniform in [0, high), int64. `shape[0]` counts rows."""
        return self._rows(lambda size, **kw: torch.randint(high, size, **kw), shape, device)

    def scalar(self, *, name: str = "") -> float:
        """One number uniform in [0, 1), the same in every process: for what a whole batch shares."""
        return float(torch.rand((), generator=self._on_host).item())

    def _rows(self, draw: Callable[..., Tensor], shape: Sequence[int], device: torch.device | str) -> Tensor:
        rows, *rest = shape
        source = self.generator.device
        # From pinned memory the copy to a GPU is queued like a kernel; from other memory it waits for all before it.
        pinned = source.type == "cpu" and torch.device(device).type == "cuda"
        size = (rows if self.total is None else self.total, *rest)
        drawn = draw(size, generator=self.generator, device=source, pin_memory=pinned)
        if self.total is not None:
            drawn = drawn[self.first : self.first + rows]
        return drawn.to(device, non_blocking=pinned)
