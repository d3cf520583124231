"""`mixar train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixar.cli.common import Device, NoPlugin, Set, as_path, command_line, open_registry
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.plugins import Registry
    from mixar.recipe import Recipe


def train_command(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe; with --resume also a run folder.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=as_path, help="Run folder; default: runs/NAME.")
    ] = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same as --set training.seed=N.")] = None,
    device: Device = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Train what a recipe describes, into a run folder that `mixar sample` takes.

    Examples: `mixar train digits_quick` · `mixar train kl16 --set data.path=/data/imagenet --out runs/kl` ·
    `mixar train runs/kl --resume` · `torchrun --nproc-per-node 8 -m mixar train kl16`
    """
    from mixar.folder import RECIPE
    from mixar.recipe import load_recipe
    from mixar.run import train

    registry = open_registry(context, no_plugin)
    run = as_path(recipe)
    if (run / RECIPE).is_file():
        if not resume and not registry.recipes().get(recipe):
            raise UserError(f"{recipe} is a run or a model; --resume goes on with it, {run / RECIPE} is its recipe")
        out, recipe = (out or run, str(run / RECIPE)) if resume else (out, recipe)
    overrides = [*(settings or ()), *(() if seed is None else (f"training.seed={seed}",))]
    resolved = load_recipe(recipe, registry=registry, overrides=overrides)
    result = train(resolved, out or Path("runs") / resolved.name, resume=resume, device=device, registry=registry)
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks
        return
    losses = ", ".join(f"{name} {value:.4g}" for name, value in result.losses.items() if name.endswith("loss"))
    if result.stopped:
        launch = "torchrun ... -m mixar" if "WORLD_SIZE" in os.environ else "mixar"
        again = f"{launch} {command_line('train', result.folder, '--resume')}"
        print(f"stopped after step {result.step} of {result.steps}; {again} goes on")
        return
    measured = f"; {losses}" if losses else ""  # nothing was, where the run had ended before
    print(f"{result.steps} steps in {result.seconds:.0f} s{measured}")
    print(_next_command(resolved, result.folder, registry))


def _next_command(recipe: Recipe, run: Path, registry: Registry) -> str:
    """What to do with a finished run: a tokenizer draws nothing by itself, but can be measured."""
    if not recipe.trains.endswith("tokenizer"):
        return command_line("mixar", "sample", run)
    from mixar.assembly import open_data

    words = ["mixar", "eval", "tokenizer", run]
    try:
        open_data(recipe, registry, "validation")
    except UserError:  # there is no such split
        words += ["--data", "data:train"]
    return command_line(*words)
