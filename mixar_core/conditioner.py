"""Conditioners: from labels to what else an image is drawn for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mixar_core.types import Condition


class Conditioner(nn.Module, ABC):
    """Labels to a `Condition` with vectors, such as those of a text encoder; a label may number a class or a caption.

    Registered as a Part, a conditioner is built as `Class(config, num_classes=...)`. Without one, the condition is
    the labels alone. Weights that it does not have once it is built, it has only where it is among `also_trained`.
    """

    meta_safe: ClassVar[bool] = True
    """Whether it runs on torch's `meta` device, where recipes are checked without values; False: it is not tried."""
    width: int
    """F, the length of its vectors."""
    brings_weights: ClassVar[bool] = False
    """Whether its constructor loads what it has learned; then a run notes the weights' digest."""

    @abstractmethod
    def forward(self, labels_B: Tensor) -> Condition:
        """The condition of labels int64 (B,), with vectors (B, T, F), of which none counts where there is NO_CLASS."""
