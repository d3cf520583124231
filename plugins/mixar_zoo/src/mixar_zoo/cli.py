"""`mixar demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixar.cli.common import as_path, at_least


def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", parser=as_path, help="Where the pictures go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(callback=at_least(0), help="Seed of everything random.")] = 0,
) -> None:
    """Sample from shipped models, train a small one from scratch in minutes, and show what was reached."""
    from mixar_zoo.demo import run_demo

    run_demo(out, seed)
