"""Curves and previews for Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import yaml
from attrs import asdict, frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.pictures import strip
from mixar_core.storage import write_text
from mixar_core.training.callback import Callback, RunInfo, StepReport


@frozen
class WandBConfig:
    """Where a run is shown.

    Args:
        project: None: wandb's own choice, WANDB_PROJECT or `uncategorized`.
        name: None: the run folder's name.
        group: None: none; runs of one group are shown together.
        mode: `offline` writes into the run folder, for `wandb sync`; `disabled` does nothing, and needs no package.
    """

    project: str | None = None
    name: str | None = None
    group: str | None = None
    mode: Literal["online", "offline", "disabled"] = "online"


class WandB(Callback):
    """Sends losses, rates and previews to Weights & Biases (package wandb, or `pip install mixar[wandb]`).

    A resumed run goes on under the same id, which wandb_id.txt in the run folder keeps; the steps after its checkpoint,
    which it does again and which come out the same, are not sent twice. The recipe is the run's config.

    Raises:
        UserError: the package is not installed.
    """

    requires: ClassVar[tuple[str, ...]] = ("wandb",)

    def __init__(self, config: WandBConfig) -> None:
        self.config = config
        self.package: Any = None if config.mode == "disabled" else _package()
        self.run: Any = None

    def on_start(self, run: RunInfo) -> None:
        if self.config.mode == "disabled":
            return
        kept, recipe = run.folder / "wandb_id.txt", run.folder / "recipe.yaml"
        known = kept.read_text(encoding="utf-8").strip() if run.first_step and kept.is_file() else None
        self.run = self.package.init(
            **asdict(self.config) | {"name": self.config.name or run.name},
            dir=str(run.folder),
            id=known,
            resume="allow" if known else None,
            config=yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.is_file() else None,
            allow_val_change=True,  # of what a resumed run may change
        )
        write_text(kept, f"{self.run.id}\n")

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        self._send(report.figures(), report.step)

    def on_evaluation(self, run: RunInfo, step: int, losses: Mapping[str, float]) -> None:
        self._send({f"validation/{name}": value for name, value in losses.items()}, step)

    def on_preview(self, run: RunInfo, step: int, rows: Mapping[str, Tensor]) -> None:
        if self.run is not None:
            pictures = {name: strip(row_B3HW).permute(1, 2, 0).numpy() for name, row_B3HW in rows.items()}
            self._send({f"preview/{name}": self.package.Image(picture) for name, picture in pictures.items()}, step)

    def on_end(self, run: RunInfo, step: int) -> None:
        if self.run is not None:
            self.run.finish()

    def on_failure(self, run: RunInfo, step: int, error: BaseException) -> None:
        if self.run is not None:
            self.run.finish(exit_code=1)

    def _send(self, values: Mapping[str, Any], step: int) -> None:
        if self.run is not None and step >= self.run.step:  # of a resumed run, the next after the last that was sent
            self.run.log(dict(values), step=step)


def _package() -> Any:
    try:
        package = importlib.import_module("wandb")
    except ImportError:
        package = None
    if not hasattr(package, "init"):  # a folder of that name, as wandb itself makes them, imports as well
        raise UserError(
            "callback wandb: package wandb is not installed; pip install wandb, or take it out of callbacks"
        )
    return package
