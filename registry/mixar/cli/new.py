"""`mixar new`: recipes for a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixar.cli.common import Device, NoPlugin, as_path, at_least, command_line, open_registry, size_of_text


def _large_enough(parameter: typer.CallbackParam, size: Any) -> Any:
    """Refuse a size with a side below 16 pixels."""
    at_least(16)(parameter, min(size) if isinstance(size, tuple) else size)
    return size


def new_command(
    context: typer.Context,
    images: Annotated[
        Path, typer.Argument(metavar="PATH", parser=as_path, help="A folder of images, or of folders, one a class.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", parser=as_path, help="Folder of the recipes: new or empty.")],
    image_size: Annotated[
        Any,
        typer.Option(
            metavar="SIDE|HxW",
            parser=size_of_text,
            callback=_large_enough,
            help="Pixels in training; default: by the images and the machine.",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(callback=at_least(0), help="The longest that all trainings together may take here.")
    ] = 240.0,
    workers: Annotated[int, typer.Option(callback=at_least(0), help="Processes that read the images.")] = 0,
    device: Device = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Write recipes for a folder of images: two tokenizers, a prior, MixAR; and print the commands that train them.

    Every image is looked at once, and each recipe is tried for a few steps, which tells how long it will take here.
    Examples: `mixar new photos --out own` · `mixar new photos --out own --image-size 128 --minutes 600` ·
    `mixar new photos --out own --image-size 96x128`
    """
    from mixar.facts import look
    from mixar.family import empty_folder, next_commands, plan_family, write_family
    from mixar.progress import progress_bar
    from mixar.text import duration

    registry = open_registry(context, no_plugin)
    empty_folder(out)  # before minutes are spent on it
    with progress_bar("looking") as show:
        facts = look(images, registry=registry, workers=workers, progress=show)
    family = plan_family(facts, image_size=image_size, minutes=minutes, device=device, registry=registry)
    folder = write_family(family, out)
    counts = ", ".join(f"{count:,} {split}" for split, count in facts.images.items())
    of = f" of {facts.num_classes:,} classes" if facts.num_classes else ", without classes"
    print(f"{folder}: recipes for {counts} images{of}")
    for note in family.notes:
        print(f"note: {note}")
    for name, seconds in family.seconds.items():
        print(f"  {name:<12}{family.steps[name]:>7,} steps, about {duration(seconds)}")
    print(f"  together about {duration(sum(family.seconds.values()))} on this machine")
    for words in next_commands(family, folder):
        print(command_line(*words))
