"""Which optimizer learns the digits fastest? `python -m benchmarks.optimizers [--optimizers muon] [--seeds 0,1,2]`

Trains the digits with each optimizer for the same steps, at the learning rate and weight decay that the recipe has for
AdamW, and measures the whole validation split halfway and at the end. What was done already is not done again. At the
end, and with `--report-only`, the losses of all runs are printed as a table, in Markdown: of the weights as they are
(schedule-free: its average) and of their moving average (EMA), and the processor seconds a run took.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import typer

import mixar
from benchmarks.heads import spread

OPTIMIZERS = ("adamw", "muon", "schedule-free")


def main(
    optimizers: str = ",".join(OPTIMIZERS),
    seeds: str = "0,1,2",
    steps: int = 400,
    out: Path = Path("runs/optimizers"),
    report_only: bool = False,
) -> None:
    """Train, and print what all runs under `--out` have given."""
    if unknown := {*optimizers.split(",")} - {*OPTIMIZERS}:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; allowed: {', '.join(OPTIMIZERS)}")
    for seed in () if report_only else map(int, seeds.split(",")):
        for name in optimizers.split(","):
            run(name, seed, steps, out / f"{name}-{seed}")
    report(out)


def run(name: str, seed: int, steps: int, folder: Path) -> None:
    """Train one model, unless that is done."""
    if (folder / "seconds.json").is_file():
        return
    recipe = mixar.load_recipe(
        "digits_quick",
        {
            "optimizer.type": name,
            "training.seed": seed,
            "training.steps": steps,
            "training.evaluate_every": steps // 2,
            "training.evaluate_batches": 31,
            "callbacks": [],
        },
    )
    began = time.process_time()
    mixar.train(recipe, folder, resume=folder.exists())
    (folder / "seconds.json").write_text(json.dumps(time.process_time() - began) + "\n")


def report(out: Path) -> None:
    """Mean and standard deviation over the seeds."""
    header: list[str] = []
    for name in OPTIMIZERS:
        folders = sorted(path.parent for path in out.glob(f"{name}-[0-9]*/seconds.json"))
        measured = [measurements(folder) for folder in folders]
        if not measured:
            continue
        if not header:
            header = [f"{weights}, step {step}" for weights, step in measured[0]]
            print(f"| optimizer | runs | {' | '.join(header)} | seconds |\n|---|---|{'---|' * len(header)}---|")
        cells = [spread([each[key] for each in measured], ".4f") for key in measured[0]]
        seconds = spread([json.loads((folder / "seconds.json").read_text()) for folder in folders], ".0f")
        print(f"| {name} | {len(folders)} | {' | '.join(cells)} | {seconds} |")


def measurements(folder: Path) -> dict[tuple[str, int], float]:
    """Validation losses by weights (`raw`, `ema`) and step."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [entry for entry in log if entry["kind"] == "validation"]
    return {(kind, line["step"]): line["losses"][f"{kind}/loss"] for kind in ("raw", "ema") for line in lines}


if __name__ == "__main__":
    typer.run(main)
