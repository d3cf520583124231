"""Commands that run for a while: train, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mixar_registry.cli.common import Device, NoPlugin, Set, open_registry


def train_command(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or path of a recipe; with --resume also a run folder.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/NAME.")] = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same as --set training.seed=N.")] = None,
    device: Device = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Train what a recipe describes, into a run folder that `mixar sample` takes.

    Examples: `mixar train digits_quick` · `mixar train kl16 --set data.path=/data/imagenet --out runs/kl` ·
    `mixar train runs/kl --resume` · `torchrun --nproc-per-node 8 -m mixar_registry train kl16`
    """
    from mixar_registry.recipe import load_recipe
    from mixar_registry.runs import train
    from mixar_registry.weights import RECIPE

    registry = open_registry(context, no_plugin)
    run = Path(recipe)
    if resume and (run / RECIPE).is_file():
        out, recipe = out or run, str(run / RECIPE)
    overrides = [*(settings or ()), *(() if seed is None else (f"training.seed={seed}",))]
    resolved = load_recipe(recipe, registry, overrides=overrides)
    result = train(
        resolved, out or Path("runs") / resolved.name, resume=resume, device=checked_device(device), registry=registry
    )
    if os.environ.get("RANK", "0") != "0":  # under torchrun one process speaks
        return
    losses = ", ".join(f"{name} {value:.4g}" for name, value in result.losses.items() if name.endswith("loss"))
    if result.stopped:
        launch = "torchrun ... -m mixar_registry" if "WORLD_SIZE" in os.environ else "mixar"
        print(f"stopped after step {result.step} of {result.steps}; {launch} train {result.folder} --resume goes on")
    else:
        measured = f"; {losses}" if losses else ""  # nothing was, where the run had ended before
        print(f"{result.steps} steps in {result.seconds:.0f} s{measured}\nmixar sample {result.folder}")


def demo_command(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Which demo, where several are installed.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    no_plugin: NoPlugin = None,
) -> None:
    """Run a demo that a plugin brings: sample from shipped models, train a small one, and show what was reached."""
    from mixar_core.errors import UserError
    from mixar_registry.text import choices

    registry = open_registry(context, no_plugin)
    demos = {part.name: part for part in registry.parts("demo")}
    if not demos:
        raise UserError("no demo is installed; `pip install -e plugins/mixar_zoo` brings one (or: make demo)")
    if name is None and len(demos) > 1:
        raise UserError(f"several demos are installed, say which; {choices(demos)}")
    part = registry.part("demo", name or next(iter(demos)))
    part.component(part.config()).run(out=out, seed=seed)


def checked_device(device: str | None) -> str | None:
    """A device that is there.

    Raises:
        UserError: it is not.
    """
    if device is None:
        return None
    import torch

    from mixar_core.errors import UserError

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not available here ({str(error).splitlines()[0]})") from error
    return device
