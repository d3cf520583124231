"""`mixar eval statistics`: measure a reference once, and use its file from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixar.cli.common import Batch, Device, NoPlugin, Set, at_least, open_registry
from mixar_eval.cli.eval_common import ExtractorText, Workers


def statistics_command(
    context: typer.Context,
    images: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help="Real images: data:train (of --recipe), NAME:SPLIT, a folder of PNGs, an .npz of images.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="An .npz file, to give as --reference.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Whose data and image size these are: name or path.")
    ] = None,
    settings: Set = None,
    size: Annotated[
        int | None, typer.Option(callback=at_least(1), help="Side of the images of NAME:SPLIT without a recipe.")
    ] = None,
    extractor: ExtractorText = "efficientnet-lite0",
    batch: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Mean and covariance of real images' features, and of up to 50,000 images the features, in a file for --reference.

    Processes started by torchrun share the work. Examples: `mixar eval statistics data:train --recipe emoji64 --out
    emoji64.npz` · `torchrun --nproc-per-node 8 -m mixar eval statistics data:train --recipe mixar_l --set
    data.path=/data/imagenet --extractor inception:weights_file=inception.pth --out imagenet256.npz`
    """
    from mixar.cli.common import checked_device
    from mixar.cli.progress import ImageProgress
    from mixar.recipe import load_recipe
    from mixar_core.distributed import PATIENT, join_processes, naming_lost_processes
    from mixar_core.errors import UserError
    from mixar_core.storage import writing
    from mixar_eval.extractors import open_extractor
    from mixar_eval.references import open_reference

    if out.suffix != ".npz":
        raise UserError(f"--out {out}: a file whose name ends in .npz is needed")
    if out.exists() and not force:
        raise UserError(f"--out {out}: is there already; give another, or --force to replace it")
    if settings and recipe is None:
        raise UserError("--set: changes a recipe's settings; give --recipe")
    registry = open_registry(context, no_plugin)
    resolved = None if recipe is None else load_recipe(recipe, registry=registry, overrides=settings or ())
    processes = join_processes(checked_device(device), timeout=PATIENT)
    seeing = open_extractor(extractor, registry, device=processes.device)
    with naming_lost_processes(processes), ImageProgress("measuring") as bar:
        found = open_reference(
            images,
            extractor=seeing,
            registry=registry,
            processes=processes,
            recipe=resolved,
            image_size=size,
            batch_size=batch,
            workers=workers,
            progress=lambda done, of: bar(done, of, done),
            option="SET",
        )
    processes.leave()
    if processes.is_main:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        found.save(out)
        notes = "".join(f"note: {note}\n" for note in found.notes)
        print(f"{found.description}\n{seeing.identity}\n{notes}statistics: {out}")
