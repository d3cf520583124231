"""A callback: what watches a run."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import min_len
from mixar_core import Callback, RunInfo, StepReport


@frozen
class MyPluginCallbackConfig:
    """Where the figures go.

    Args:
        file: a name in the run's folder.
    """

    file: str = field(default="losses.csv", validator=min_len(1))


class MyPluginCallback(Callback):
    """Writes step, learning rate and losses as lines of a CSV file."""

    def __init__(self, config: MyPluginCallbackConfig) -> None:
        self.config = config

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        """One line, and above the first the names; a resumed run goes on behind its last line."""
        figures = {"step": report.step, "learning_rate": report.learning_rate, **report.losses}
        path = run.folder / self.config.file
        begins = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            if begins:
                print(",".join(figures), file=file)
            print(",".join(f"{value:g}" for value in figures.values()), file=file)
