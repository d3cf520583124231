"""`mixar demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Sample from shipped models, train a small one from scratch in minutes, and show what was reached."""
    from mixar_zoo.demo import ZooDemo, ZooDemoConfig

    ZooDemo(ZooDemoConfig()).run(out=out, seed=seed)
