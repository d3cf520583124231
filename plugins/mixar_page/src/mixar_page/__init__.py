"""`mixar serve`: a page on which people draw, edit and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixar import hookimpl

if TYPE_CHECKING:
    import typer

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2


@hookimpl
def mixar_commands(app: typer.Typer) -> None:
    """`mixar serve`."""
    from mixar_page.cli import serve_command

    app.command("serve")(serve_command)
