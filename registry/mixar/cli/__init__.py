"""The command line `mixar`. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import sys

try:
    from mixar.cli.main import main
except KeyboardInterrupt:  # pressed before there is a `main` to mind it
    print("interrupted", file=sys.stderr)
    sys.exit(130)

__all__ = ["main"]
