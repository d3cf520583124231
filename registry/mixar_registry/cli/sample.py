"""`mixar sample`: images from a trained model, as PNG files and one labelled grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixar_registry.cli.common import NoPlugin, at_least, open_registry
from mixar_registry.cli.train import checked_device

if TYPE_CHECKING:
    from mixar_registry.pipeline import Generation, Model

#: classes drawn when none are asked for
DEFAULT_CLASSES = 10


def sample_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, or a shipped model's name.")
    ],
    classes: Annotated[str | None, typer.Option(metavar="A,B", help="Class names, separated by commas.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="0,1", help="Class numbers, separated by commas.")] = None,
    count: Annotated[int, typer.Option("-n", "--per-class", callback=at_least(1), help="Images a class.")] = 1,
    steps: Annotated[
        int | None, typer.Option(callback=at_least(1), help="Sampling steps; default: the recipe's.")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(callback=at_least(0), help="Guidance scale; default: the recipe's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(callback=at_least(0), help="Scale of the noise; default: the recipe's.")
    ] = None,
    seed: Annotated[
        int, typer.Option(callback=at_least(0), help="The same seed gives the same images, bit for bit.")
    ] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("samples"),
    codes_too: Annotated[
        bool, typer.Option("--codes-too", help="Also what the discrete codes alone decode to.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The last step's weights instead of the averaged ones.")] = False,
    batch: Annotated[int, typer.Option(callback=at_least(1), help="Images at a time.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: the GPU if there is one.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of samples that is there already.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Draw images from a trained model.

    Without classes, up to ten are drawn, spread evenly. Examples: `mixar sample runs/digits --labels 3,7 -n 8` ·
    `mixar sample emoji64 --classes "Food & Drink" --steps 16 --cfg 2 --seed 1 --out food --codes-too`
    """
    from mixar_core.errors import UserError
    from mixar_registry.cli.output import check_folder, write_samples
    from mixar_registry.pipeline import load

    if classes is not None and labels is not None:
        raise UserError("--classes and --labels: give one of them")
    check_folder(out, force=force)
    loaded = load(
        model,
        device=checked_device(device),
        weights="raw" if raw else "ema",
        registry=open_registry(context, no_plugin),
    )
    wanted = [label for label in _wanted(loaded, classes, labels) for _ in range(count)]
    drawn = _draw(loaded, wanted, steps=steps, cfg=cfg, temperature=temperature, seed=seed, batch=batch)
    decoded = None
    if codes_too:
        if drawn.codes is None:
            raise UserError(f"--codes-too: model {model} uses no discrete codes")
        decoded = loaded.decode_codes(drawn.codes)
    settings = {"model": model, "seed": seed, "steps": steps, "cfg": cfg, "temperature": temperature, "raw": raw}
    write_samples(out, drawn, codes_alone=decoded, columns=count if count > 1 else None, settings=settings)
    print(f"{len(drawn.labels)} images in {out}, all of them in {out / 'grid.png'}")


def _wanted(model: Model, classes: str | None, labels: str | None) -> list[int]:
    """Class numbers to draw."""
    from mixar_core.errors import UserError
    from mixar_core.types import NO_CLASS

    if classes is not None:
        return model.labels([name.strip() for name in classes.split(",")]).tolist()
    if labels is not None:
        try:
            return model.labels([int(label) for label in labels.split(",")]).tolist()
        except ValueError as error:
            raise UserError(f"--labels {labels}: not whole numbers separated by commas") from error
    number = model.recipe.num_classes
    if number == 0:
        return [NO_CLASS]
    shown = min(number, DEFAULT_CLASSES)
    return [index * number // shown for index in range(shown)]


def _draw(
    model: Model,
    labels: list[int],
    *,
    steps: int | None,
    cfg: float | None,
    temperature: float | None,
    seed: int,
    batch: int,
) -> Generation:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("sampling", total=None)
        return model.generate(
            labels,
            steps=steps,
            cfg=cfg,
            temperature=temperature,
            seed=seed,
            batch_size=batch,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
