"""Objectives: what one kind of training minimises. The trainer knows nothing else about what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from mixar_core.noise import Noise
from mixar_core.types import ImageBatch, Losses, TokenBatch


class Objective(nn.Module, ABC):
    """A loss over a batch, and a picture to look at. Frozen parts inside it have `requires_grad=False`."""

    #: The module whose weights are trained, averaged (EMA) and saved.
    trained: nn.Module
    #: Whether `forward` takes tokens (TokenBatch) or images (ImageBatch).
    takes_tokens: bool

    @abstractmethod
    def forward(self, batch: ImageBatch | TokenBatch, *, step: int, steps: int, noise: Noise) -> Losses:
        """The loss of step `step` of `steps` (both count from 0), randomness drawn from `noise`."""

    def tokenize(self, images: ImageBatch, *, noise: Noise) -> TokenBatch:
        """Images through the frozen tokenizers, without gradient. Objectives on images do not have it."""
        raise TypeError(f"{type(self).__name__} trains on images")

    @abstractmethod
    def preview(self, images: ImageBatch, *, noise: Noise) -> Mapping[str, Tensor]:
        """Rows of pictures by name, float (B, 3, H, W) in [-1, 1] each: originals, reconstructions, samples."""
