"""The command line `mixar`. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

from mixar_registry.cli.main import main

__all__ = ["main"]
