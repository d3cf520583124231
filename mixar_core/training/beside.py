"""What is trained beside a model, and thrown away with the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class Beside(nn.Module):
    """A module of an objective's that its loss trains, too, by an optimizer of its own and clipped apart.

    It is in checkpoints, buffers and all, but neither averaged nor written with the model. After a step every process
    has the main one's buffers.
    """

    config: Any
    """A resumed run must have an equal one."""
    learning_rate: float | None = None
    """As `training.learning_rate`, and with its schedule; None: that one."""

    def learns(self, step: int) -> bool:
        """Whether step `step` trains it; before that the loss must give it gradients all the same, of 0."""
        return True

    def learned(self, losses: Mapping[str, float]) -> None:
        """After a step that trained it, whose loss and terms these are, averaged over all processes."""
