"""Makes model folders of finished runs: `python -m mixar_zoo.publish RUN [RUN ...] [--into DIR]`.

A model folder gets the run's recipe, its averaged weights in bfloat16, and in provenance.json how the run ended
(steps, date, the last losses on the validation split).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from mixar.folder import RECIPE, WEIGHTS, read_provenance, save_model
from mixar.plugins import plugin_manager
from mixar.recipe import load_recipe
from mixar_core.storage import read_weights

MODELS = Path(__file__).parent / "models"


def publish(
    run: Path, folder: Path, *, step: int | None = None, tensors: Mapping[str, Tensor] | None = None, **facts: Any
) -> Path:
    """Write a run's model folder, over what is there.

    Args:
        step, tensors: of an earlier state of the run, instead of its end.
        facts: more for provenance.json.
    """
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = max(entry["step"] for entry in log) if step is None else step
    measured = [entry["losses"] for entry in log if entry["kind"] == "validation" and entry["step"] <= last]
    validation = {name: round(value, 5) for name, value in measured[-1].items()} if measured else {}
    save_model(
        folder,
        recipe_yaml=(run / RECIPE).read_text(),
        tensors=read_weights(run / WEIGHTS) if tensors is None else tensors,
        facts={**read_provenance(run), "steps": last, "finished": finished(run), "validation": validation, **facts},
        dtype=torch.bfloat16,
        replace=True,
    )
    return folder


def finished(run: Path) -> str:
    """The day on which a run's weights were written, as 2026-11-26."""
    return datetime.fromtimestamp((run / WEIGHTS).stat().st_mtime, UTC).date().isoformat()


def main(runs: list[Path], into: Path = MODELS) -> None:
    """Publish each run under its recipe's name."""
    for run in runs:
        recipe = load_recipe(run / RECIPE, registry=plugin_manager())
        print(publish(run, into / recipe.name))


if __name__ == "__main__":
    typer.run(main)
