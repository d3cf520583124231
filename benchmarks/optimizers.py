"""Which optimizer learns the digits fastest? `python -m benchmarks.optimizers [--optimizers muon] [--seeds 0,1,2]`

Trains the digits with each optimizer for the same steps, at the learning rate and weight decay that the recipe has for
AdamW, and measures the whole validation split halfway and at the end: the losses of the weights as they are
(schedule-free: its average) and of their moving average (EMA), and the processor seconds a run took.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import typer

from benchmarks import study

OPTIMIZERS = ("adamw", "muon", "schedule-free")


def main(
    optimizers: str = ",".join(OPTIMIZERS), seeds: str = "0,1,2", steps: int = 400, out: Path = Path("runs/optimizers")
) -> None:
    """Train, and tell of all runs under `--out`."""
    for seed, name in product(study.numbers(seeds), study.names(optimizers, OPTIMIZERS)):
        changes = {"optimizer.type": name, "training.seed": seed, **study.validated(steps, parts=2)}
        run = study.trained(out / f"{name}-{seed}", "digits_quick", changes)
        study.measured(run, losses, optimizer=name, seed=seed)
    study.report(out / "optimizers", out, ["optimizer"], OPTIMIZERS)


def losses(run: Path, about: study.Row) -> study.Found:
    """Of a run, by weights and step."""
    found = study.losses_of(run)
    row = {f"{kind}, step {step}": found[step][f"{kind}/loss"] for kind in ("raw", "ema") for step in found}
    return [{**row, "seconds": study.seconds_of(run)}], {}


if __name__ == "__main__":
    typer.run(main)
