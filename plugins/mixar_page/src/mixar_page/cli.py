"""`mixar serve`: the page, on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from mixar.cli.common import Device, NoPlugin, Precision, Raw, open_registry
from mixar_core.errors import UserError

#: what is served where no model is given: those that mixar-zoo ships
DEFAULTS = ("emoji64", "digits")


def serve_command(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", help="Shipped models, model folders or runs; default: emoji64 digits."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at. Any other than this machine's own lets others draw here.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 7860,
    raw: Raw = False,
    precision: Precision = "float32",
    device: Device = None,
    no_plugin: NoPlugin = None,
) -> None:
    """A page to draw, edit and compare images, in the browser.

    It listens on this machine alone, asks nothing of any other, and writes no file. Examples:
    `mixar serve` · `mixar serve runs/mine emoji64 --port 8000`
    """
    if find_spec("gradio") is None:
        raise UserError("mixar serve needs gradio, which is not installed: pip install gradio")
    registry = open_registry(context, no_plugin)
    names = models or [name for name in DEFAULTS if name in registry.models()]
    if not names:
        raise UserError("no MODEL given, and mixar-zoo, whose models would be shown, is not installed")
    from mixar_page.server import serve
    from mixar_page.studio import Studio

    serve(Studio.of(names, registry, device=device, weights="raw" if raw else "ema", precision=precision), host, port)
