"""Does guidance lower the diffusion loss? `python -m benchmarks.dc_mix_against_mar [--steps 900] [--out FOLDER]`

Trains recipe `digits_quick` twice from the same seed, for the same steps on the same images, masks and noise: as plain
MAR and as DC-Mix with ground-truth codes. Prints the validation loss of both (EMA weights, fixed masks and noise).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

import mixar

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


def main() -> None:
    """Train both, print a table, write the figures beside the runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=900, help="optimizer steps of each training")
    parser.add_argument("--out", type=Path, default=Path("runs/dc_mix_against_mar"), help="new or empty folder")
    arguments = parser.parse_args()

    curves = {name: curve(injector, arguments.steps, arguments.out / name) for name, injector in VARIANTS.items()}
    table = Table(title=f"diffusion loss on the validation digits, {arguments.steps} steps")
    table.add_column("step", justify="right")
    for name in curves:
        table.add_column(name, justify="right")
    for step in sorted(curves["mar"]):
        table.add_row(str(step), *(f"{curves[name][step]:.4f}" for name in curves))
    Console().print(table)
    end = {name: values[max(values)] for name, values in curves.items()}
    print(f"end: mar {end['mar']:.4f}, dc-mix {end['dc-mix']:.4f} ({1 - end['dc-mix'] / end['mar']:.1%} lower)")
    (arguments.out / "curves.json").write_text(json.dumps(curves, indent=2) + "\n")


if __name__ == "__main__":
    main()
