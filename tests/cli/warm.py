"""Imported once by the process that the others are forked from: what every command would import for itself."""

from __future__ import annotations

import timm  # noqa: F401
import torch
import torch.utils.tensorboard
import torch_fidelity  # noqa: F401
import typer
import typer.rich_utils
from PIL import Image

import mixar.cli
import mixar.cost
import mixar.run  # noqa: F401
from mixar.plugins import plugin_manager

plugin_manager()  # all plugins, and what their parts import
Image.init()


def _parsed(number: int = 0) -> None:
    """A command."""


# newer ones of typer import pydantic when the first command line is parsed
_app = typer.Typer()
_app.command()(_parsed)
_app([], standalone_mode=False)

# torch brings its meta kernels, and its compiler with them, when the first elementwise one is used
_ = (torch.arange(2, device="meta") != 0).float() * 2 - 1
