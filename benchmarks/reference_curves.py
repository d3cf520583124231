"""Makes the zoo's reference curves. `python -m benchmarks.reference_curves [--recipes digits,digits_lfq] [--seeds 0]`

Trains each recipe as it stands, once for every seed, and leaves `NAME.curve.json` beside it: the bands in which loss,
gradient norm, validation loss and code usage lay, which `mixar train NAME` then holds its own run beside. Long recipes
are stopped after their first steps (STEPS), which is all that their curves cover. Runs that are done are not done
again; the curves are those of all seeds whose runs are there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import signal
from pathlib import Path

import typer

import mixar
from mixar.plugins import plugin_manager
from mixar.recipe import read_plain
from mixar.reference import curves_beside
from mixar_core.training.callback import Callback, RunInfo, StepReport
from mixar_core.training.reference import Reference

#: recipe -> its first steps: about a minute of one thread, of `digits_quick` all
STEPS = {
    "digits": 400,
    "digits_quick": 1200,
    "digits_causal": 300,
    "digits_continuous": 600,
    "digits_lfq": 800,
    "digits_prior": 500,
    "digits_categorical": 300,
    "digits_energy": 300,
    "digits_flow": 400,
    "digits_joint": 300,
    "digits_mixture": 300,
    "digits_mse": 600,
    "digits_pyramid": 700,
    "digits_rvq": 700,
    "emoji64": 150,
    "emoji64_continuous": 200,
    "emoji64_lfq": 300,
    "emoji64_prior": 150,
}


def main(
    recipes: str = ",".join(STEPS),
    seeds: str = "0,1,2",
    out: Path = Path("runs/reference_curves"),
    write_only: bool = False,
) -> None:
    """Train what is not there yet, and write the curves."""
    names = recipes.split(",")
    if unknown := {*names} - STEPS.keys():
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; allowed: {', '.join(STEPS)}")
    for seed in () if write_only else map(int, seeds.split(",")):
        for name in names:
            run(name, seed, out / f"{name}-{seed}")
    for name in names:
        write(name, out)


class StopAfter(Callback):
    """Stops the run as a person would, once it has done so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.asked = steps, False

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        if report.step >= self.steps and not self.asked:
            self.asked = True  # asked twice, it would end at once
            os.kill(os.getpid(), signal.SIGTERM)


def run(name: str, seed: int, folder: Path) -> None:
    """Train the first steps of one recipe, unless that is done."""
    if (folder / "done").is_file():
        return
    changes = {"seed": seed, "evaluate_every": 100, "preview_every": 0, "checkpoint_every": 0}
    recipe = mixar.load_recipe(name, {f"training.{key}": value for key, value in changes.items()} | {"callbacks": []})
    mixar.train(recipe, folder, callbacks=[StopAfter(STEPS[name])])
    (folder / "done").write_text("")


def write(name: str, out: Path) -> None:
    """The curves of all runs of a recipe, beside it."""
    runs = {int(done.parent.name.rpartition("-")[2]): done.parent for done in sorted(out.glob(f"{name}-[0-9]*/done"))}
    if not runs:
        return
    (path,) = plugin_manager().recipes()[name]
    reference = Reference.of(
        [folder / "log.jsonl" for folder in runs.values()],
        recipe=digest(path),
        seeds=[*runs],
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    reference.write(curves_beside(path))
    print(f"{name}: the first {reference.steps} steps of {reference.runs} runs, seeds {', '.join(map(str, runs))}")


def digest(path: Path) -> str:
    """Of what a recipe's file says, together with those that it extends: curves of another recipe are stale."""
    said = {key: value for key, value in read_plain(path, plugin_manager()).items() if key not in ("name", "summary")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    typer.run(main)
