"""`mixar sample`: images from a trained model. A few as PNG files and one labelled grid; many with --count."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mixar.cli.common import (
    Batch,
    Cfg,
    Device,
    NoPlugin,
    Precision,
    Raw,
    Steps,
    Temperature,
    at_least,
    checked_device,
    open_registry,
)

if TYPE_CHECKING:
    from mixar.model import Generation, Model

#: classes drawn when none are asked for
DEFAULT_CLASSES = 10
OUT = Path("samples")


def sample_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, or a shipped model's name.")
    ],
    classes: Annotated[str | None, typer.Option(metavar="A,B", help="Class names, separated by commas.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="0,1", help="Class numbers, separated by commas.")] = None,
    per_class: Annotated[
        int | None, typer.Option("-n", "--per-class", callback=at_least(1), help="Images a class; default: 1.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(callback=at_least(1), help="Images in all, spread evenly over all classes; resumable."),
    ] = None,
    random_labels: Annotated[
        bool, typer.Option("--random-labels", help="With --count: draw each image's class at random.")
    ] = False,
    steps: Steps = None,
    cfg: Cfg = None,
    temperature: Temperature = None,
    seed: Annotated[
        int,
        typer.Option(
            callback=at_least(0), help="The same seed, classes and --batch give the same images, bit for bit."
        ),
    ] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the pictures go; default: samples.")] = None,
    npz: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --count: one .npz as ADM's evaluation reads it, instead of pictures."),
    ] = None,
    codes_too: Annotated[
        bool, typer.Option("--codes-too", help="Also what the discrete codes alone decode to.")
    ] = False,
    raw: Raw = False,
    precision: Precision = "float32",
    batch: Batch = 64,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of samples that is there already.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Draw images from a trained model.

    Without classes, up to ten are drawn, spread evenly. With --count, a call that was interrupted goes on when it is
    repeated, and processes started by torchrun share the work. Examples:
    `mixar sample runs/digits --labels 3,7 -n 8` ·
    `mixar sample emoji64 --classes "Food & Drink" --steps 16 --cfg 2 --seed 1 --out food --codes-too` ·
    `torchrun --nproc-per-node 8 -m mixar sample models/mar_b --count 50000 --npz mar_b.npz`
    """
    import attrs

    from mixar.cli.output import check_folder, write_samples
    from mixar.model import load
    from mixar_core.errors import UserError

    if classes is not None and labels is not None:
        raise UserError("--classes and --labels: give one of them")
    registry = open_registry(context, no_plugin)
    if count is not None:
        for name, given in (("--per-class", per_class is not None), ("--codes-too", codes_too)):
            if given:
                raise UserError(f"--count and {name}: give one of them")
        from mixar.cli.sample_many import sample_many

        def wanted(loaded: Model) -> list[int] | None:
            return _asked(loaded, classes, labels)

        sample_many(
            model,
            wanted,
            registry=registry,
            count=count,
            random_labels=random_labels,
            steps=steps,
            cfg=cfg,
            temperature=temperature,
            seed=seed,
            out=out if npz is not None else out or OUT,
            npz=npz,
            raw=raw,
            precision=precision,
            batch=batch,
            device=device,
            force=force,
        )
        return
    for name, given in (("--npz", npz is not None), ("--random-labels", random_labels)):
        if given:
            raise UserError(f"{name}: needs --count, the number of images")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes share the images of --count only; give that, or leave torchrun away")
    out, each = out or OUT, per_class or 1
    check_folder(out, force=force)
    weights: Literal["ema", "raw"] = "raw" if raw else "ema"
    loaded = load(model, device=checked_device(device), weights=weights, precision=precision, registry=registry)
    asked = _asked(loaded, classes, labels)
    some = [label for label in (_some(loaded) if asked is None else asked) for _ in range(each)]
    drawn = _draw(loaded, some, steps=steps, cfg=cfg, temperature=temperature, seed=seed, batch=batch)
    decoded = None
    if codes_too:
        if drawn.codes is None:
            raise UserError(f"--codes-too: model {model} uses no discrete codes")
        decoded = loaded.decode_codes(drawn.codes)
    resolved = attrs.asdict(loaded.settings(steps=steps, cfg=cfg, temperature=temperature))
    settings = {"model": model, "seed": seed, "batch": batch, "raw": raw, "precision": precision, **resolved}
    write_samples(out, drawn, codes_alone=decoded, columns=each if each > 1 else None, settings=settings)
    print(f"{len(drawn.labels)} images in {out}, all of them in {out / 'grid.png'}")


def _asked(model: Model, classes: str | None, labels: str | None) -> list[int] | None:
    """Class numbers asked for; None where none are."""
    from mixar_core.errors import UserError

    if classes is not None:
        return model.labels([name.strip() for name in classes.split(",")]).tolist()
    if labels is not None:
        try:
            return model.labels([int(label) for label in labels.split(",")]).tolist()
        except ValueError as error:
            raise UserError(f"--labels {labels}: not whole numbers separated by commas") from error
    return None


def _some(model: Model) -> list[int]:
    """Up to DEFAULT_CLASSES class numbers, spread evenly."""
    from mixar_core.types import NO_CLASS

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
    from mixar.cli.progress import plain_bar

    with plain_bar("sampling") as update:
        return model.generate(
            labels,
            steps=steps,
            cfg=cfg,
            temperature=temperature,
            seed=seed,
            batch_size=batch,
            progress=update,
        )
