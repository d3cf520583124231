"""`mixar cache`: what frozen tokenizers make of a data set, once and for all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixar.cli.common import Device, NoPlugin, Set, as_path, at_least, command_line, open_registry
from mixar_core.errors import UserError


def cache_command(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Name or path of a recipe.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=as_path, help="Folder of the cache: new, or one that was begun."),
    ] = None,
    settings: Set = None,
    split: Annotated[Literal["train", "validation"], typer.Option(help="Which split of the data.")] = "train",
    samples: Annotated[
        bool, typer.Option("--samples", help="Keep one draw from each posterior instead of its mean and logvar.")
    ] = False,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the latents.")] = "float32",
    no_flip: Annotated[bool, typer.Option("--no-flip", help="Leave out the mirrored images.")] = False,
    shard_size: Annotated[int, typer.Option(callback=at_least(1), help="Images a file.")] = 1024,
    seed: Annotated[int, typer.Option(callback=at_least(0), help="Of --samples.")] = 0,
    batch: Annotated[int, typer.Option(callback=at_least(1), help="Images encoded at a time.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(callback=at_least(0), help="Loader processes of each process; default: the recipe's, or none."),
    ] = None,
    max_unreadable: Annotated[
        int | None,
        typer.Option(
            callback=at_least(0),
            help="Images that may be left out because they cannot be read; default: the recipe's, or none.",
        ),
    ] = None,
    device: Device = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=as_path, help="Compare this cache's files with their checksums, and stop."),
    ] = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Write latents and codes of a recipe's data into a folder that `training.cache` takes.

    What was begun goes on, and the files are the same however many processes write them. Examples:
    `mixar cache emoji64 --out caches/emoji64` ·
    `torchrun --nproc-per-node 8 -m mixar cache my_mixar_l.yaml --out /data/cache`, a recipe that names data
    and weights ·
    `mixar cache --verify caches/emoji64`
    """
    from rich.filesize import decimal

    from mixar.progress import progress_bar

    if verify is not None:
        if recipe is not None or out is not None:
            raise UserError("--verify: takes neither RECIPE nor --out")
        from mixar_core.data.cache import TokenCache

        with progress_bar("reading") as update:
            (cache := TokenCache.open(verify)).verify(update)
        print(f"{verify}: {len(cache.shards)} files are as they were written")
        return
    if recipe is None or out is None:
        raise UserError("mixar cache takes RECIPE and --out DIR, or --verify DIR")
    from mixar.cache import make_cache
    from mixar.recipe import load_recipe

    registry = open_registry(context, no_plugin)
    resolved = load_recipe(recipe, registry=registry, overrides=settings or ())
    if resolved.training is not None:
        workers = resolved.training.workers if workers is None else workers
        max_unreadable = resolved.training.max_unreadable if max_unreadable is None else max_unreadable
    main = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks
    with progress_bar("encoding", shown=main) as update:
        made = make_cache(
            resolved,
            out,
            registry,
            split=split,
            stores="samples" if samples else "moments",
            dtype=dtype,
            rows_per_shard=shard_size,
            seed=seed,
            flip=not no_flip,
            batch=batch,
            workers=workers or 0,
            max_unreadable=max_unreadable or 0,
            device=device,
            progress=update,
        )
    if not main:
        return
    index = made.index
    if index is None:
        of = "" if made.total is None else f" of {made.total}"
        print(f"stopped with {made.shards}{of} files finished; the same command goes on")
        return
    for image in index.skipped:
        print(f"left out image {image.index}: {image.reason}")
    size = sum(shard.bytes for shard in index.shards)
    rate = f"{made.encoded / made.seconds:,.0f} images/s" if made.encoded else "all of it was there already"
    print(f"{index.count:,} images, {decimal(size)} in {out} ({size / index.count:,.0f} bytes an image), {rate}")
    if split == "train":
        changed = [word for setting in settings or () for word in ("--set", setting)]
        # with a slash: `memory` and `none` mean something else, and a number would be read as one
        place = out if out.is_absolute() else f"./{out}"
        print(command_line("mixar", "train", recipe, *changed, "--set", f"training.cache={place}"))
