"""`mixar weights`: files that others published become model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixar.cli.common import NoPlugin, Offline, go_offline, open_registry, print_table

weights_app = typer.Typer(
    no_args_is_help=True,
    help="Published weights: `import` turns an official file into a model folder; `kinds` lists which.",
)


@weights_app.command("kinds")
def kinds_command(context: typer.Context, no_plugin: NoPlugin = None) -> None:
    """List the kinds of files that can be imported."""
    import attrs

    rows = []
    for part in open_registry(context, no_plugin).parts("importer"):
        options = [f"--set {field.name}=" for field in attrs.fields(part.config)]
        needs = ["--tokenizer"] if getattr(part.component, "tokenizer_key", None) else []
        rows.append((part.name, part.summary, ", ".join([*needs, *options])))
    print_table("Kinds of published files", ("kind", "file", "options"), rows)


@weights_app.command("import")
def import_command(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What the file is: see `mixar weights kinds`.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The official file: a path, or hf://owner/name/file[@revision].")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to write.")],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the imported tokenizer that the model works with.")
    ] = None,
    statistics: Annotated[
        str | None, typer.Option(metavar="FILE", help="vavae: latents_stats.pt, mean and std of the latents.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="mar: the last step's weights instead of averaged ones.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What tensors do not tell, e.g. heads=12 for unusual sizes."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model folder that is there already.")] = False,
    offline: Offline = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Turn an official file into a model folder: safetensors, resolved recipe, provenance.

    Sizes are read off the tensors, every tensor must fit, and nothing in the file is executed. Examples:
    `mixar weights import kl16 kl16.ckpt models/kl16` ·
    `mixar weights import mar checkpoint-last.pth models/mar_b --tokenizer models/kl16` · then
    `mixar sample models/mar_b --labels 207`
    """
    from mixar_import.imports import import_weights

    if offline:
        go_offline()
    done = import_weights(
        kind,
        file,
        out,
        open_registry(context, no_plugin),
        tokenizer=tokenizer,
        statistics=statistics,
        raw=raw,
        settings=settings or (),
        replace=force,
    )
    recipe = done.system.recipe
    for remark in done.remarks:
        print(f"note: {remark}")
    print(f"{out}: {kind}, {done.tensors} tensors, {done.values / 1e6:.1f}M values, {recipe.image_size} pixels")
    if recipe.trains in ("mixar", "prior"):
        print(f"mixar sample {out}")
