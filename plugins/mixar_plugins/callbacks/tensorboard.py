"""Curves and previews for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.pictures import strip
from mixar_core.training.callback import Callback, RunInfo, StepReport
from mixar_core.training.reference import Reference

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@frozen
class TensorBoardConfig:
    """Args: subfolder: where in the run folder the event files go."""

    subfolder: str = "tensorboard"


class TensorBoard(Callback):
    """Writes losses, rates, previews and reference curves as TensorBoard events: `tensorboard --logdir RUNS`.

    Raises:
        UserError: the package is not installed.
    """

    requires: ClassVar[tuple[str, ...]] = ("tensorboard",)
    writer: SummaryWriter

    def __init__(self, config: TensorBoardConfig) -> None:
        if find_spec("tensorboard") is None:
            raise UserError(
                "callback tensorboard: package tensorboard is not installed; pip install tensorboard, or take it out "
                "of callbacks"
            )
        self.config = config

    def on_start(self, run: RunInfo) -> None:
        # Imported here: it takes a second, and only a run that starts needs it.
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run does the steps after its checkpoint again; TensorBoard then drops their first version.
        again = run.first_step + 1 if run.first_step else None
        folder = run.folder / self.config.subfolder
        self.writer = SummaryWriter(str(folder), purge_step=again)
        if run.reference is not None and again is None:
            self._draw(run.reference, folder)

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        self._scalars(report.figures(), report.step)

    def on_evaluation(self, run: RunInfo, step: int, losses: Mapping[str, float]) -> None:
        self._scalars({f"validation/{name}": value for name, value in losses.items()}, step)

    def on_preview(self, run: RunInfo, step: int, rows: Mapping[str, Tensor]) -> None:
        for name, row_B3HW in rows.items():
            self.writer.add_image(f"preview/{name}", strip(row_B3HW), step, dataformats="CHW")

    def on_end(self, run: RunInfo, step: int) -> None:
        self.writer.close()

    def _draw(self, reference: Reference, folder: Path) -> None:
        """Curves of the same names as runs of their own: TensorBoard draws them into the run's charts."""
        from torch.utils.tensorboard import SummaryWriter

        for side in ("low", "middle", "high"):
            with SummaryWriter(str(folder / f"reference_{side}")) as writer:
                for name, band in reference.bands.items():
                    for step, value in zip(band.steps, getattr(band, side), strict=True):
                        writer.add_scalar(name, value, step)

    def _scalars(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
