"""How far the run is, for whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from attrs.validators import ge
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mixar_core.notebook import NotebookPlace
from mixar_core.training.callback import Callback, RunInfo, StepReport


@frozen
class ProgressConfig:
    """Args: lines_every: seconds at least between two lines where the output is no terminal."""

    lines_every: float = field(default=10.0, validator=ge(0.0))


class ProgressBar(Callback):
    """A bar with step, loss, images/s and time left; plain lines where the output is no terminal and no notebook.

    Beside the loss stands what it lies between in reference runs, where the recipe has curves of such.
    """

    def __init__(self, config: ProgressConfig, console: Console | None = None) -> None:
        self.config = config
        # Standard error: standard output stays free for what a command returns.
        self.console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.bar = Progress(*columns, console=self.console)
        self._said = float("-inf")
        self._place = NotebookPlace()

    def on_start(self, run: RunInfo) -> None:
        self.task = self.bar.add_task(run.name, total=run.steps, completed=run.first_step, figures="")
        if self.console.is_terminal:
            self.bar.start()

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        left = duration(report.seconds_left)
        band = run.reference.at("train/loss", report.step) if run.reference else None
        beside = f" (reference {band[0]:.3g} to {band[2]:.3g})" if band else ""
        figures = f"loss {report.losses['loss']:.4g}{beside}  {report.images_per_second:.4g} images/s  {left} left"
        self.bar.update(self.task, completed=report.step, figures=figures)
        now = self.console.get_time()
        last = report.step == run.steps
        if self.console.is_jupyter:
            self._place.show(self.bar, at_once=last)
        elif not self.console.is_terminal and (last or now - self._said >= self.config.lines_every):
            self._said = now
            self._line(f"step {report.step}/{run.steps}  {figures}")

    def on_evaluation(self, run: RunInfo, step: int, losses: Mapping[str, float]) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in losses.items() if name.endswith("/loss"))
        self._line(f"step {step}/{run.steps}  validation  {figures}")

    def on_end(self, run: RunInfo, step: int) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """45s, 3m20s, 2h05m, 3d04h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02d}h"
    if hours:
        return f"{hour}h{minute:02d}m"
    return f"{minute}m{second:02d}s" if minute else f"{second}s"
