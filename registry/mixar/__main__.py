"""`python -m mixar` is `mixar`."""

from __future__ import annotations

from mixar.cli import main

if __name__ == "__main__":
    main()
