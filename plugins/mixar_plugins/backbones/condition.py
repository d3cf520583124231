"""What backbones share: how a condition enters them, how they are initialised, and what may be dropped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from attrs.validators import and_, ge, lt
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.types import Condition, Guidance, Step

#: of numbers or labels that are dropped in training: not all of them
share = and_(ge(0.0), lt(1.0))


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
        return torch.where(
            condition.counting_BT()[..., None], self.proj(condition.vectors_BTF.to(self.null.dtype)), self.null
        )


def class_vectors(table: nn.Embedding | None, no_class_1D: Tensor, labels_B: Tensor) -> Tensor:
    """The class's vector of labels int64 (B,), `no_class_1D` for NO_CLASS and without classes: (B, D)."""
    if table is None:
        return no_class_1D.expand(labels_B.shape[0], -1)
    return torch.where(labels_B[:, None] >= 0, table(labels_B.clamp(min=0)), no_class_1D)


def init_as_mar(network: nn.Module, embeddings: Iterable[Tensor | None]) -> None:
    """Initialise as MAR: normal(0.02) for embeddings, where there is one; Xavier-uniform for linear layers."""
    for embedding in embeddings:
        if embedding is not None:
            nn.init.normal_(embedding, std=0.02)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def label_rows(labels_B: Tensor, num_classes: int) -> Tensor:
    """Rows of a table of classes whose last one stands for NO_CLASS: int64 (B,)."""
    return torch.where(labels_B >= 0, labels_B, num_classes)


def only_fill(name: str, guidance: Guidance | None = None, *, memory: bool = False, condition_width: int = 0) -> None:
    """Refuse what a backbone without the other doors cannot take in.

    Raises:
        UserError: there is a prefix or a memory, or the condition has vectors.
    """
    if condition_width:
        raise UserError(f"backbone {name} takes labels only, no condition with vectors")
    doors = {"memory"} if memory else set() if guidance is None else guidance.doors.keys() - {"fill"}
    if doors:
        raise UserError(f"backbone {name} has no door {min(doors)}; allowed: an injector that opens fill, or none")


def never_again(name: str, step: Step) -> None:
    """Refuse a step that a backbone cannot do whose later tokens have seen the earlier ones.

    Raises:
        UserError: the step draws known tokens anew.
    """
    if step.redraw:
        raise UserError(
            f"backbone {name} cannot draw known tokens anew: those after them have seen them; "
            "choose a sampler without such steps or backbone masked"
        )
