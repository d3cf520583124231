"""`mixar weights`: files that others published become model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixar.cli.common import NoPlugin, Offline, as_path, command_line, open_registry, print_table

weights_app = typer.Typer(
    no_args_is_help=True,
    help="Published weights: `import` turns an official file into a model folder; `kinds` lists which.",
)


@weights_app.command("kinds")
def kinds_command(context: typer.Context, no_plugin: NoPlugin = None) -> None:
    """List the kinds of files that can be imported."""
    from mixar_import.importers import Importer

    rows = []
    for part in open_registry(context, no_plugin).parts("importer"):
        kind: type[Importer] = part.component
        needed = {"--tokenizer": kind.tokenizer_key, "--statistics": kind.takes_statistics}
        options = [option for option, needs in needed.items() if needs]
        rows.append((part.name, part.summary, ", ".join(options), ", ".join(kind.recipes) or "none: give --recipe"))
    print_table("Kinds of published files", ("kind", "file", "options", "recipes"), rows)


@weights_app.command("import")
def import_command(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What the file is: see `mixar weights kinds`.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The official file: a path, or hf://owner/name/file[@revision].")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", parser=as_path, help="The model folder to write.")],
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="The recipe whose sizes it has; else one is looked for."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the imported tokenizer that the model works with.")
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Mean and std of latents: vavae's latents_stats.pt, detok's stats.pkl."),
    ] = None,
    entry: Annotated[
        str | None, typer.Option(metavar="NAME", help="The file's entry that holds the weights, where it has several.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="mar, detok: the last step's weights, not averaged ones.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Over the recipe, e.g. image_size=512 or backbone.width=512."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model folder that is there already.")] = False,
    offline: Offline = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Turn an official file into a model folder: safetensors, resolved recipe, provenance.

    Its tensors must be exactly those of a recipe, and nothing in the file is executed. Examples:
    `mixar weights import kl16 kl16.ckpt models/kl16` ·
    `mixar weights import mar checkpoint-last.pth models/mar_b --tokenizer models/kl16` · then
    `mixar sample models/mar_b --labels 207`
    """
    from mixar_core.types import Grid
    from mixar_import.imports import import_weights

    done = import_weights(
        kind,
        file,
        out,
        open_registry(context, no_plugin),
        recipe=recipe,
        tokenizer=tokenizer,
        statistics=statistics,
        entry=entry,
        raw=raw,
        settings=settings or (),
        replace=force,
    )
    for remark in done.remarks:
        print(f"note: {remark}")
    values = sum(tensor.numel() for tensor in done.tensors.values())
    filled = done.system.recipe
    print(
        f"{out}: {kind}, recipe {filled.name}, {len(done.tensors)} tensors, {values / 1e6:.1f}M values, "
        f"{Grid.of_pixels(filled.image_size).written} pixels"
    )
    if filled.trains in ("mixar", "prior"):
        print(command_line("mixar", "sample", out))
