"""Puts a finished run into the zoo: `python plugins/mixar_zoo/publish.py RUN [RUN ...]`.

A model folder gets the run's recipe, its averaged weights in bfloat16, and in provenance.json how the run ended
(steps, date, the last losses on the validation split).
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from mixar.folder import read_provenance, save_model
from mixar.plugins import plugin_manager
from mixar.recipe import load_recipe
from mixar_core.storage import read_weights

MODELS = Path(__file__).parent / "src" / "mixar_zoo" / "models"


def publish(run: Path) -> Path:
    """Copy one run to MODELS under its recipe's name, over what is there."""
    text = (run / "recipe.yaml").read_text()
    recipe = load_recipe(run / "recipe.yaml", registry=plugin_manager())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    measured = [entry for entry in log if entry["kind"] == "validation"]
    weights = run / "weights.safetensors"
    facts = {
        **read_provenance(run),
        "steps": max(entry["step"] for entry in log),
        "finished": datetime.fromtimestamp(weights.stat().st_mtime, UTC).date().isoformat(),
        "validation": {k: round(v, 5) for k, v in measured[-1]["losses"].items()} if measured else {},
    }
    folder = MODELS / recipe.name
    save_model(folder, recipe_yaml=text, tensors=read_weights(weights), facts=facts, dtype=torch.bfloat16, replace=True)
    return folder


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(publish(Path(argument)))
