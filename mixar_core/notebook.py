"""A place in a notebook's output that is drawn again and again. It needs no widgets, so it works in every notebook."""

from __future__ import annotations

import time
from typing import Any

#: seconds between two drawings at least
_EVERY = 0.1


class NotebookPlace:
    """What is shown last stands there; only in a notebook, where IPython is."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = float("-inf")

    def show(self, what: Any, *, at_once: bool = False) -> None:
        """Show what IPython can, such as a bar of rich's; left out if something was shown just now."""
        from IPython.display import display

        now = time.monotonic()
        if not at_once and now - self._drawn < _EVERY:
            return
        self._drawn = now
        if self._handle is None:
            self._handle = display(what, display_id=True)
        else:
            self._handle.update(what)

    def clear(self) -> None:
        """Nothing stands there any more."""
        if self._handle is not None:
            self._handle.update({"text/plain": ""}, raw=True)
