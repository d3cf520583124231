"""How a condition's vectors enter a backbone: as tokens in front of the sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.types import Condition


class ConditionEmbedding(nn.Module):
    """Vectors (B, T, F) of a condition as tokens (B, T, D); one that does not count becomes a learned null token."""

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(condition_width, width)
        self.null = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.null, std=0.02)

    def forward(self, condition: Condition) -> Tensor:
        """(B, T, D).

        Raises:
            UserError: the condition has no vectors.
        """
        if condition.vectors_BTF is None:
            raise UserError("this backbone was made for a condition with vectors, and there are only labels")
        return torch.where(condition.counting_BT()[..., None], self.proj(condition.vectors_BTF), self.null)
