"""What every measurement of one call shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from attrs import field, frozen

from mixar.folder import versions
from mixar.plugins import Registry
from mixar.sampling import Report as Progress
from mixar.sampling import device_name
from mixar_core.distributed import Processes, StopSignals
from mixar_core.perceptual import FeatureExtractor


class Stopped(Exception):
    """A signal asked to stop; what was finished is on disk, and the same call goes on from there."""


def silent(what: str) -> Progress:
    """Shows nothing."""
    return lambda done, total, fresh: None


@frozen(eq=False, kw_only=True)
class EvalContext:
    """What measures, and how.

    Args:
        extractor: on the processes' device.
        processes: that share the work; every one of them makes the same calls.
        batch_size, workers: of images at a time, and of the processes that load them.
        signals: of a wish to stop.
        show: called with what is done next; gives what is told of its progress (in the main process).
        command: by which the measuring was asked for; None from Python.
        taught: the losses of the measured model that the extractor stands in, in words; empty: none that is known.
        beside: the same with other extractors, whose distances are told too.
    """

    registry: Registry
    extractor: FeatureExtractor
    processes: Processes = Processes(0, 1, torch.device("cpu"))
    batch_size: int = 64
    workers: int = 0
    signals: StopSignals = field(factory=StopSignals)
    show: Callable[[str], Progress] = silent
    command: str | None = None
    taught: str = ""
    beside: tuple[EvalContext, ...] = ()
    began: float = field(factory=time.monotonic)

    def made(self) -> dict[str, Any]:
        """When, by what and on what a report was made."""
        return {
            **({} if self.command is None else {"command": self.command}),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds of this call": round(time.monotonic() - self.began, 1),
            "device": device_name(self.processes.device),
            "processes": self.processes.world,
            "versions": versions() | {name: version(name) for name in ("numpy", "torch-fidelity")},
        }
