"""Previews as PNG files."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from mixar_core.pictures import rows_picture, to_uint8, write_png
from mixar_core.storage import writing
from mixar_core.training.callback import Callback, RunInfo


@frozen
class SampleGridConfig:
    """Args: scale: how many pixels a side each pixel is shown as."""

    scale: int = field(default=2, validator=ge(1))


class SampleGrid(Callback):
    """Writes each preview to samples/step-00000100.png in the run folder."""

    def __init__(self, config: SampleGridConfig) -> None:
        self.config = config

    def on_preview(self, run: RunInfo, step: int, rows: Mapping[str, Tensor]) -> None:
        path = run.folder / "samples" / f"step-{step:08d}.png"
        picture = rows_picture(
            {name: to_uint8(row) for name, row in rows.items()},
            title=f"{run.name}, step {step}",
            scale=self.config.scale,
        )
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        write_png(path, picture)
