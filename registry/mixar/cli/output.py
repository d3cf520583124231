"""Writing a folder of samples, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixar.model import Generation, grid_picture
from mixar_core.errors import UserError
from mixar_core.pictures import to_pil
from mixar_core.storage import writing

SETTINGS = "sample.json"


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a folder that samples cannot go to.

    Raises:
        UserError: it is not empty and `force` is not given, or not a folder of samples, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not force:
            raise UserError(f"--out {folder}: is there already and not empty; give another, or --force to replace it")
        if not (folder / SETTINGS).is_file():  # --force must never remove what mixar did not write
            raise UserError(f"--out {folder}: holds something else than samples; give another")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()


def write_samples(
    folder: Path,
    drawn: Generation,
    *,
    codes_alone: Tensor | None,
    columns: int | None,
    settings: Mapping[str, Any],
) -> None:
    """PNGs `000_name.png`, `grid.png` and sample.json; with `codes_alone` (uint8 images) `codes/` and `codes_grid.png`.

    Raises:
        UserError: the folder cannot be written; nothing is left behind.
    """
    with (
        writing(folder),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp") as scratch,
    ):
        new = Path(scratch) / "new"
        new.mkdir()
        names = [f"{index:03d}_{_plain(name)}.png" for index, name in enumerate(drawn.names)]
        for name, image in zip(names, drawn.pil(), strict=True):
            image.save(new / name)
        drawn.grid(columns=columns).save(new / "grid.png")
        if codes_alone is not None:
            (new / "codes").mkdir()
            for name, image_3HW in zip(names, codes_alone, strict=True):
                to_pil(image_3HW).save(new / "codes" / name)
            grid_picture(codes_alone, drawn.names, columns=columns).save(new / "codes_grid.png")
        (new / SETTINGS).write_text(json.dumps({**settings, "labels": drawn.labels}, indent=2) + "\n")
        if folder.exists():
            os.rename(folder, Path(scratch) / "old")
        os.rename(new, folder)


def _plain(name: str) -> str:
    """A class name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_") or "image"
