"""The command line `mixar`. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from mixar.cli.main import main

__all__ = ["main"]
