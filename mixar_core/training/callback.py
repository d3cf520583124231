"""Callbacks: what watches a run. They see it and draw from it; they do not steer it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from attrs import field, frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.training.reference import Reference


@frozen(eq=False)
class RunInfo:
    """What stays the same during a run.

    Args:
        steps: of the whole run; `first_step` of them were done before it was resumed.
        batch_size: images of a step over all processes.
        processes: how many share the run; `rank` is this one's number among them, 0 the main one's.
        device: what this process computes on.
        precision: `float32` or `bf16` (TrainingConfig.precision).
        flop_per_image: of a training step, forward and backward, recomputed activations not counted; None if not known.
        reference: what the recipe's figures looked like in runs that went well; None: no such curves.
        waiting: seconds for which the trainer has been waiting for its batch now; 0 while it computes. May be called
            from another thread.
    """

    name: str
    folder: Path
    steps: int
    batch_size: int
    first_step: int
    processes: int = 1
    rank: int = 0
    device: torch.device = torch.device("cpu")
    precision: str = "float32"
    flop_per_image: float | None = None
    reference: Reference | None = None
    waiting: Callable[[], float] = lambda: 0.0


@frozen(eq=False)
class StepReport:
    """One step's figures. `step` counts from 1; rates are over the time since the last report.

    Args:
        images_per_second: of all processes together.
        waiting_share: of that time, spent waiting for batches; of the process that waited longest.
        extra: figures that a callback adds for those behind it in the list.
    """

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    seconds_left: float
    waiting_share: float
    extra: dict[str, float] = field(factory=dict)

    def figures(self) -> dict[str, float]:
        """All of it by the names under which curves are drawn: `train/loss`, `extra/mfu`, `run/learning_rate`."""
        return {
            **{f"train/{name}": value for name, value in self.losses.items()},
            **{f"extra/{name}": value for name, value in self.extra.items()},
            "run/learning_rate": self.learning_rate,
            "run/gradient_norm": self.gradient_norm,
            "run/images_per_second": self.images_per_second,
            "run/waiting_share": self.waiting_share,
        }


class Callback:
    """Does nothing; override what you need. Built as `Class(config)`; called in the main process.

    A UserError in `on_start` ends the run before it begins: someone is there to put it right. Nothing else that a
    callback raises ends a run, see `Callbacks`.
    """

    everywhere: ClassVar[bool] = False
    """Whether it is called in every process of the run; `RunInfo.rank` then tells it which one it is in."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Packages it imports beyond mixar's own; a recipe's default callbacks are those whose packages are installed."""

    def on_start(self, run: RunInfo) -> None:
        """Before the first step.

        Raises:
            UserError: it cannot work as it is set up; nothing is trained then.
        """

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

    def on_failure(self, run: RunInfo, step: int, error: BaseException) -> None:
        """Instead of `on_end` where an error ends the run after `step` steps; does the same unless overridden."""
        self.on_end(run, step)


class Callbacks:
    """Calls several callbacks. A run of days must not die of what only watches it.

    Whatever a callback raises is reported on standard error, and the run goes on without that callback.

    Args:
        callbacks: the same in all processes.
        is_main: whether this is the main one; the others call only those that want to be called everywhere.
    """

    def __init__(self, callbacks: Sequence[Callback], *, is_main: bool = True) -> None:
        self.active = [callback for callback in callbacks if is_main or callback.everywhere]
        #: Whether any of them looks at previews, which are dear to draw. It stays as it is where that one fails:
        #: under FSDP all processes draw them together, and only the main one knows of the failure.
        self.want_previews = any(type(callback).on_preview is not Callback.on_preview for callback in callbacks)

    def call(self, step: int, hook: Callable[[Callback], None], *, fatal: type[Exception] | tuple[()] = ()) -> None:
        """Call each one's `hook` after `step` steps; an error of the kind `fatal` is not caught."""
        for callback in list(self.active):
            try:
                hook(callback)
            except fatal:
                raise
            except Exception as error:
                self.active = [other for other in self.active if other is not callback]
                if not isinstance(error, UserError):  # a UserError's line says it all
                    traceback.print_exception(error)
                name, reason = type(callback).__name__, " ".join(f"{type(error).__name__}: {error}".split())
                warning = f"callback {name} failed at step {step}, the run goes on without it ({reason})"
                print(f"warning: {warning}", file=sys.stderr, flush=True)
