"""`mixar edit`: part of an image drawn anew by a trained model, as PNG files and one picture beside the input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixar.cli.common import (
    Batch,
    Cfg,
    Device,
    ModelName,
    NoPlugin,
    Preset,
    PresetPrecision,
    Raw,
    Steps,
    Temperature,
    as_path,
    asked_classes,
    at_least,
    open_registry,
)
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from mixar.editing import Edited


def _numbers(count: int) -> Any:
    def parse(text: str) -> tuple[int, ...]:
        try:
            numbers = tuple(map(int, text.split(",")))
        except ValueError:
            numbers = ()
        if len(numbers) != count:
            raise typer.BadParameter(f"{text}: not {count} whole numbers separated by commas")
        return numbers

    return parse


def edit_command(
    context: typer.Context,
    model: ModelName,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", parser=as_path, help="The image to edit.")],
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=as_path, help="A picture of the image's size, light where it is to be drawn anew."
        ),
    ] = None,
    region: Annotated[
        Any, typer.Option(metavar="X,Y,W,H", parser=_numbers(4), help="A box in the image's pixels instead of a mask.")
    ] = None,
    outside: Annotated[bool, typer.Option("--outside", help="Draw all but the mask or region anew.")] = False,
    place: Annotated[
        Any,
        typer.Option(
            metavar="X,Y,W",
            parser=_numbers(3),
            help="Outpaint: scale the image to this width, put it there on the model's canvas, and draw the rest.",
        ),
    ] = None,
    level: Annotated[
        Literal["both", "latents", "codes"] | None,
        typer.Option(
            help="What is drawn anew: codes and latents, latents under the image's own codes, or codes alone; "
            "default: both where there are codes."
        ),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="What is drawn; may be given more than once.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NUMBER", help="The same by number; without either, no class."),
    ] = None,
    count: Annotated[int, typer.Option(callback=at_least(1), help="Results a class.")] = 1,
    preset: Preset = None,
    steps: Steps = None,
    cfg: Cfg = None,
    temperature: Temperature = None,
    seed: Annotated[int, typer.Option(callback=at_least(0), help="The same seed gives the same results.")] = 0,
    peek: Annotated[
        bool,
        typer.Option("--peek", help="Let the encoders see what the region held: what is drawn is then more like it."),
    ] = False,
    no_paste: Annotated[
        bool, typer.Option("--no-paste", help="The result as decoded; else what is kept comes from the input.")
    ] = False,
    feather: Annotated[
        int | None,
        typer.Option(
            callback=at_least(0), help="Pixels over which the input fades in; default: a quarter of a token's side."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", parser=as_path, help="Where the pictures go.")] = Path("edited"),
    raw: Raw = False,
    precision: PresetPrecision = None,
    batch: Batch = 64,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of results that is there already.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Draw a region of an image anew and keep the rest.

    A token is drawn anew if any of its pixels lies in the region. Results are of the model's size: a larger image is
    cropped to its middle square and scaled, as training images are. Examples:
    `mixar edit emoji64 face.png --region 16,16,32,32 --class "Smileys & Emotion" --count 4` ·
    `mixar edit emoji64 face.png --region 16,16,32,32 --outside --class "Food & Drink"` ·
    `mixar edit emoji64 face.png --place 16,16,32 --out wider` ·
    `mixar edit digits three.png --mask mask.png --level latents --label 3`
    """
    if mask is not None and region is not None:
        raise UserError("--mask and --region: give one of them")
    if outside and mask is None and region is None:
        raise UserError("--outside: needs --mask or --region")
    from mixar.folder import sha256
    from mixar.model import load
    from mixar.progress import progress_bar
    from mixar.sampling import Plan, describe
    from mixar.stores import check_folder, write_folder
    from mixar_core.types import NO_CLASS

    registry = open_registry(context, no_plugin)
    check_folder(out, force=force)
    loaded = load(
        model, device=device, weights="raw" if raw else "ema", precision=precision, preset=preset, registry=registry
    )
    wanted = asked_classes(loaded, classes or (), labels or ()) or [NO_CLASS]
    changes: dict[str, Any] = {"steps": steps, "cfg": cfg, "temperature": temperature}
    asked = {"outside": outside, "place": place, "peek": peek, "paste": not no_paste, "feather": feather}
    with progress_bar("editing") as show:
        edited = loaded.edit(
            image,
            region if mask is None else mask,
            [label for label in wanted for _ in range(count)],
            level=level,
            seed=seed,
            batch_size=batch,
            progress=show,
            **asked,
            **changes,
        )
    settings = loaded.settings(**changes, of_prior=edited.level == "codes")
    plan = Plan(count=len(edited.labels), batch=batch, seed=seed, settings=settings, classes=edited.labels)
    files = {"image": sha256(image), "mask": None if mask is None else sha256(mask)}
    how = {"level": edited.level, **files, "region": region, **asked, "seam": edited.figures()}
    write_folder(out, _pictures(edited), describe(loaded, plan) | {"edit": how}, replace=force)
    for line in (*edited.notes, *edited.report()):
        print(line)
    print(f"{plan.count} result{'s' * (plan.count > 1)} in {out}, beside what they were made of in {out / 'edit.png'}")


def _pictures(edited: Edited) -> dict[str, Image.Image]:
    """What is written, by the files' names: all have the same input and mask."""
    from mixar.stores import named_pictures
    from mixar_core.pictures import to_pil

    return {
        "edit.png": edited.picture(),
        "input.png": to_pil(edited.originals[0]),
        "mask.png": to_pil(edited.masks[0].byte().mul(255).expand(3, -1, -1)),
        **named_pictures(edited.images, edited.names),
        **named_pictures(edited.raw, edited.names, "raw/"),
    }
