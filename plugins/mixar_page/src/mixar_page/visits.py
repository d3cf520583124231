"""Who is waiting for what: how far it is, how it is stopped, and what is told when it cannot be done."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import attrs
import gradio as gr

from mixar_core.errors import UserError
from mixar_page.studio import Stopped, Watch


@attrs.frozen(eq=False)
class Visits:
    """What is being computed for whom, so that it can be stopped."""

    running: defaultdict[str, set[threading.Event]] = attrs.field(factory=lambda: defaultdict(set))

    @contextmanager
    def watching(self, request: gr.Request, progress: Any = None) -> Iterator[Watch]:
        """The watch of one computation; what goes wrong inside becomes one line on the page."""
        visit = str(request.session_hash)
        watch = Watch() if progress is None else Watch(lambda done, of: progress((done, of), unit="steps"))
        self.running[visit].add(watch.stop)
        try:
            with told():
                yield watch
        finally:
            watch.stop.set()
            self.running[visit].discard(watch.stop)
            if not self.running[visit]:
                self.running.pop(visit, None)

    def stop(self, request: gr.Request) -> None:
        """Stop all that is computed for a visitor."""
        for stop in list(self.running.get(str(request.session_hash), ())):
            stop.set()


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong inside becomes one line on the page: its text may be a visitor's, so it is escaped."""
    try:
        yield
    except UserError as error:
        raise gr.Error(escape(str(error)), title="That cannot be drawn", print_exception=False) from None
    except Stopped:
        raise gr.Error("Nothing more is computed.", title="Stopped", duration=3, print_exception=False) from None
