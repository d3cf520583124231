"""Early warning of a loader that does not keep up, or hangs."""

from __future__ import annotations

import sys
import threading
from typing import ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt

from mixar_core.training.callback import Callback, RunInfo, StepReport

_ADVICE = (
    "more loader processes (training.workers) help, or tokens that are computed once (training.cache: memory, or the "
    "folder of a token cache)"
)


@frozen
class StallWatchConfig:
    """When to warn.

    Args:
        share: of the steps' time spent waiting for data. A loader that keeps up stays under 0.05.
        window: seconds of steps over which the share is taken; a run shorter than that is not judged by it.
        seconds: of waiting for one batch.
    """

    share: float = field(default=0.1, validator=and_(gt(0.0), lt(1.0)))
    window: float = field(default=30.0, validator=ge(0.0))
    seconds: float = field(default=60.0, validator=gt(0.0))


class StallWatch(Callback):
    """Warns on standard error when training waits for data: too large a share of its time, or too long for one batch.

    The share is warned of once, and again only after it fell below half of `share`. The first report is left out: a
    loader starts in it. The single wait is watched by a thread, in every process of the run, and warned of once.
    """

    everywhere: ClassVar[bool] = True

    def __init__(self, config: StallWatchConfig) -> None:
        self.config = config
        self._last: int | None = None
        self._warned = False
        self._stop = threading.Event()

    def on_start(self, run: RunInfo) -> None:
        self._thread = threading.Thread(target=self._watch, args=(run,), name="mixar-stall-watch", daemon=True)
        self._thread.start()

    def on_step(self, run: RunInfo, report: StepReport) -> None:
        before, self._last = self._last, report.step
        if before is None:
            self._begin(report.step)
            return
        seconds = (report.step - before) * run.batch_size / report.images_per_second
        self._seconds += seconds
        self._waited += seconds * report.waiting_share
        if self._seconds < self.config.window:
            return
        share = self._waited / self._seconds
        if share > self.config.share and not self._warned and run.rank == 0:
            steps = f"steps {self._first + 1} to {report.step}"
            _warn(f"{share:.0%} of the time of {steps} went into waiting for data; {_ADVICE}")
        self._warned = share > self.config.share / (2 if self._warned else 1)
        self._begin(report.step)

    def on_end(self, run: RunInfo, step: int) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _begin(self, step: int) -> None:
        self._first, self._seconds, self._waited = step, 0.0, 0.0

    def _watch(self, run: RunInfo) -> None:
        """Look now and then at how long the present wait has been; nothing here touches torch."""
        limit, warned = self.config.seconds, False
        while not self._stop.wait(min(5.0, limit / 4)):
            waiting = run.waiting()
            if waiting >= limit and not warned:
                who = f"process {run.rank} of {run.processes}" if run.processes > 1 else "training"
                _warn(
                    f"{who} has been waiting for one batch for {waiting:.0f} s; the loader hangs, or the disk or "
                    f"network it reads from does; if it is only slow, {_ADVICE}"
                )
            warned = waiting >= limit


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
