"""A conditioner: from labels to vectors."""

from __future__ import annotations

import torch
from attrs import field, frozen
from attrs.validators import ge
from mixar_core import NO_CLASS, Condition, Conditioner
from torch import Tensor


@frozen
class MyPluginConditionerConfig:
    """Sizes of what a class becomes.

    Args:
        vectors: of a class.
        width: length of a vector.
    """

    vectors: int = field(default=2, validator=ge(1))
    width: int = field(default=16, validator=ge(1))


class MyPluginConditioner(Conditioner):
    """Sines of the class number, at frequencies of their own."""

    speeds_TF: Tensor

    def __init__(self, config: MyPluginConditionerConfig, *, num_classes: int) -> None:
        super().__init__()
        self.width = config.width
        speeds = torch.arange(1.0, config.vectors * config.width + 1.0)
        self.register_buffer("speeds_TF", speeds.view(config.vectors, config.width), persistent=False)

    def forward(self, labels_B: Tensor) -> Condition:
        """Labels int64 (B,) with vectors (B, T, F); where there is no class, none of them counts."""
        vectors_BTF = torch.sin(labels_B[:, None, None] * self.speeds_TF)
        mask_BT = (labels_B != NO_CLASS)[:, None].expand(vectors_BTF.shape[:2])
        return Condition(labels_B, vectors_BTF, mask_BT)
