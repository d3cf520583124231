"""Callbacks: what watches a run. They see it and draw from it; they do not steer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import field, frozen
from torch import Tensor


@frozen(eq=False)
class RunInfo:
    """What stays the same during a run. `preview()` draws rows of pictures with the averaged weights."""

    name: str
    folder: Path
    steps: int
    batch_size: int
    first_step: int
    is_main: bool
    preview: Callable[[], Mapping[str, Tensor]]


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
