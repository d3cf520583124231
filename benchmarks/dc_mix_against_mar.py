"""Does guidance lower the diffusion loss? `python -m benchmarks.dc_mix_against_mar [--steps 900] [--out FOLDER]`

Trains recipe `digits_quick` twice from the same seed, for the same steps on the same images, masks and noise: as plain
MAR and as DC-Mix with ground-truth codes. Prints the validation loss of both (EMA weights, fixed masks and noise).
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

import mixar
from mixar.cli.common import print_table

VARIANTS = {"mar": "none", "dc-mix": "dc-mix"}


def curve(injector: str, steps: int, folder: Path) -> dict[int, float]:
    """Validation loss by step of one training."""
    recipe = mixar.load_recipe(
        "digits_quick",
        {
            "injector": {"type": injector},
            "ti_mix.schedule": "constant",
            "training.steps": steps,
            "training.evaluate_every": max(1, steps // 6),
            "training.evaluate_batches": 31,
            "callbacks": [{"type": "progress"}],
        },
    )
    mixar.train(recipe, folder)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["losses"]["ema/loss"] for entry in log if entry["kind"] == "validation"}


def main(steps: int = 900, out: Path = Path("runs/dc_mix_against_mar")) -> None:
    """Train both into a new or empty folder, print a table, write the figures beside the runs."""
    curves = {name: curve(injector, steps, out / name) for name, injector in VARIANTS.items()}
    rows = [(step, *(f"{curves[name][step]:.4f}" for name in curves)) for step in sorted(curves["mar"])]
    title = f"diffusion loss on the validation digits, {steps} steps"
    print_table(title, ("step", *curves), rows, right=range(3))
    end = {name: values[max(values)] for name, values in curves.items()}
    print(f"end: mar {end['mar']:.4f}, dc-mix {end['dc-mix']:.4f} ({1 - end['dc-mix'] / end['mar']:.1%} lower)")
    (out / "curves.json").write_text(json.dumps(curves, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
