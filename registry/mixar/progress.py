"""How far a long piece of work is: a bar where someone watches, in a notebook too, and else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mixar.text import duration
from mixar_core.notebook import NotebookPlace

#: seconds at least between two lines where the output is no terminal
LINES_EVERY = 30.0


@contextmanager
def progress_bar(what: str, *, shown: bool = True) -> Iterator[Callable[..., None]]:
    """What is done, of how much, how fast and how long it will take, on standard error.

    What is yielded is called as `show(done, total, fresh)`, where `fresh` counts the images that this call did itself:
    those of an earlier, interrupted one say nothing about the rate. Without it there is a bar only.
    """
    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}")
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=None, figures="")
    began = said = time.monotonic()
    place = NotebookPlace()

    def show(done: int, total: int | None, fresh: int = 0) -> None:
        nonlocal said
        now, figures = time.monotonic(), ""
        if fresh and total is not None:
            rate = fresh / max(now - began, 1e-9)
            figures = f"{rate:.3g} images/s  {duration((total - done) / rate)} left"
        bar.update(task, completed=done, total=total, figures=figures)
        if shown and console.is_jupyter:
            place.show(bar)
        elif shown and console.is_terminal:
            bar.start()
        elif shown and figures and now - said >= LINES_EVERY:
            said = now
            console.print(f"{what}: {done:,} of {total:,}  {figures}", markup=False, highlight=False, soft_wrap=True)

    try:
        yield show
    finally:
        place.clear()
        if bar.live.is_started:
            bar.stop()


@contextmanager
def in_notebook(what: str, progress: Callable[[int, int], None] | None) -> Iterator[Callable[[int, int], None]]:
    """The caller's `progress`; where there is none a bar in a notebook, and elsewhere nothing."""
    if progress is None and Console().is_jupyter:
        with progress_bar(what) as show:
            yield show
    else:
        yield progress or (lambda done, of: None)


class Phases(ExitStack):
    """One bar after the other: `phases("sampling")` ends the one before and begins the next."""

    def __call__(self, what: str) -> Callable[..., None]:
        self.close()
        return self.enter_context(progress_bar(what))
