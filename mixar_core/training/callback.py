"""Callbacks: what watches a run. They see it and draw from it; they do not steer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from attrs import field, frozen
from torch import Tensor


@frozen(eq=False)
class RunInfo:
    """What stays the same during a run.

    Args:
        steps: of the whole run; `first_step` of them were done before it was resumed.
        batch_size: images of a step over all processes.
        processes: how many share the run.
        device: what this process computes on.
        flop_per_image: of a training step, forward and backward, recomputed activations not counted; None if not known.
        waiting: seconds for which the trainer has been waiting for its batch now; 0 while it computes. May be called
            from another thread.
    """

    name: str
    folder: Path
    steps: int
    batch_size: int
    first_step: int
    processes: int = 1
    device: torch.device = torch.device("cpu")
    flop_per_image: float | None = None
    waiting: Callable[[], float] = lambda: 0.0


@frozen(eq=False)
class StepReport:
    """One step's figures. `step` counts from 1; rates are over the time since the last report."""

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    seconds_left: float
    waiting_share: float
    extra: Mapping[str, float] = field(factory=dict)


class Callback:
    """Does nothing; override what you need. Built as `Class(config)`; called on the main process only."""

    def on_start(self, run: RunInfo) -> None:
        """Before the first step."""

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        """After a step."""

    def on_evaluation(self, run: RunInfo, step: int, losses: Mapping[str, float]) -> None:
        """After the validation split was measured."""

    def on_preview(self, run: RunInfo, step: int, rows: Mapping[str, Tensor]) -> None:
        """Rows of pictures by name, float (B, 3, H, W) in [-1, 1], drawn with the averaged weights."""

    def on_checkpoint(self, run: RunInfo, step: int, path: Path) -> None:
        """After a checkpoint is complete on disk."""

    def on_end(self, run: RunInfo, step: int) -> None:
        """After the last step, or when the run is stopped early."""
