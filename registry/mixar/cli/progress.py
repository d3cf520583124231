"""How far a long piece of work is: a bar where someone watches, and else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

#: seconds at least between two lines where the output is no terminal
LINES_EVERY = 30.0


class ImageProgress:
    """Images done, images/s over all processes and time left, on standard error.

    Called as `progress(done, total, fresh)`, where `fresh` counts the images that this call did itself: those of an
    earlier, interrupted one say nothing about the rate.
    """

    def __init__(self, what: str, console: Console | None = None) -> None:
        self.what = what
        self.console = console or Console(stderr=True)
        self.bar: Bar | None = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> ImageProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int, fresh: int) -> None:
        now = time.monotonic()
        rate = fresh / max(now - self._began, 1e-9)
        figures = f"{rate:.3g} images/s  {duration((total - done) / rate)} left" if fresh else ""
        if self.console.is_terminal:
            self._show(done, total, figures)
        elif fresh and now - self._said >= LINES_EVERY:
            self._said = now
            self.console.print(
                f"{self.what}: {done:,} of {total:,}  {figures}", markup=False, highlight=False, soft_wrap=True
            )

    def _show(self, done: int, total: int, figures: str) -> None:
        if self.bar is None:
            columns = TextColumn(self.what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}")
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(self.what, figures="")
            self.bar.start()
        self.bar.update(self.task, completed=done, total=total, figures=figures)


@contextmanager
def plain_bar(what: str, *, shown: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, where that is a terminal; what is yielded takes how much is done, and of how much."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Phases(ExitStack):
    """One ImageProgress after the other: `phases("sampling")` ends the one before and begins the next."""

    def __call__(self, what: str) -> ImageProgress:
        self.close()
        return self.enter_context(ImageProgress(what))


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
