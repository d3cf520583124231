"""`mixar publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixar.cli.common import Device, NoPlugin, Raw, as_path, open_registry


def publish_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, a model folder, or a run.")],
    to: Annotated[str, typer.Option(metavar="FOLDER|hf://OWNER/NAME", help="Where to; @BRANCH behind a hub's name.")],
    licence: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="For the card, as the hub calls it: apache-2.0.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", parser=as_path, help="Of a mixar eval generation: goes into the card."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made now.")] = False,
    raw: Raw = False,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is there already.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Put a model and all its frozen parts into one folder, here or at the hub, with a model card.

    The folder needs no other: `mixar.load` and every command take it wherever it is. The hub's token is that of
    `hf auth login`. Examples: `mixar publish runs/mine --to mine --license apache-2.0` ·
    `mixar publish runs/mine --to hf://me/mine --report runs/eval_generation`
    """
    from mixar.publish import publish

    found = publish(
        model,
        to,
        weights="raw" if raw else "ema",
        licence=licence,
        report=report,
        private=private,
        replace=force,
        device=device,
        registry=open_registry(context, no_plugin),
    )
    print(f"published: {found}")
