"""`python -m mixar_registry` is `mixar`."""

from __future__ import annotations

from mixar_registry.cli import main

if __name__ == "__main__":
    main()
