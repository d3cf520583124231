"""What a run measures of itself, and its log.jsonl."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field

from mixar_core.distributed import Processes
from mixar_core.storage import write_text, writing

T = TypeVar("T")


@define
class Meter:
    """Sums of losses, and times, of the steps since the last report; what happens between steps is not counted."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(factory=dict)
    counts: dict[str, int] = field(factory=dict)
    _started: float = 0.0
    _waits: bool = False

    def next(self, batches: Iterator[T]) -> T:
        """A step begins, by waiting for its batch."""
        self._started, self._waits = time.perf_counter(), True
        batch = next(batches)
        self.waited += self.waiting()
        self._waits = False
        return batch

    def waiting(self) -> float:
        """Seconds of the present wait for a batch, 0 if there is none."""
        return time.perf_counter() - self._started if self._waits else 0.0

    def stop(self, losses: Mapping[str, float]) -> None:
        """The step is done."""
        self.steps += 1
        self.seconds += time.perf_counter() - self._started
        for name, value in losses.items():  # not every step has every term
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1


class RunLog:
    """A log in a run folder, log.jsonl the trainer's own: one JSON object a line, with its `kind` and its `step`."""

    def __init__(self, folder: Path, name: str = "log.jsonl") -> None:
        self.path = folder / name

    def forget_after(self, step: int) -> None:
        """Drop lines of steps after `step`, and a torn one: a resumed run does them again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break
        write_text(self.path, "".join(kept))

    def write(self, kind: str, step: int, **figures: Any) -> None:
        """Append a line."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")


class Unreadable:
    """Images of a split that could not be read: each named once by each process that met it, and limited in number.

    Args:
        limit: so many different ones may be skipped, by all processes together.
        split: what errors call it.
    """

    def __init__(self, folder: Path, processes: Processes, *, limit: int, split: str) -> None:
        self.log, self.processes, self.limit, self.split = RunLog(folder, "unreadable.jsonl"), processes, limit, split
        self._named: set[int] = set()
        self._counted = limit

    def too_many(self, found: Mapping[int, str], *, step: int, total: int | None = None) -> str | None:
        """Name those that this process found, and say why the run cannot go on; None, in all alike, if it can.

        Args:
            found: reasons by the images' indices.
            total: how many were found, summed over the processes, if that is known: an upper bound, since several may
                have met the same image. Where it has not grown beyond the limit since it was last asked for, the
                processes do not ask each other which ones.
        """
        for index in sorted(found.keys() - self._named):
            print(f"warning: {self.split} image {index} is skipped: {found[index]}", file=sys.stderr)
            about = {"split": self.split, "rank": self.processes.rank, "index": index, "reason": found[index]}
            self.log.write("unreadable", step, **about)
        self._named.update(found)
        if total is None:
            total = sum(self.processes.all_gather(len(found)))
        if total <= self._counted:
            return None
        self._counted = total
        count = len(set[int]().union(*self.processes.all_gather(set(found))))
        return (
            f"data: {count} {self.split} images cannot be read, more than training.max_unreadable {self.limit}; they "
            f"are named in {self.log.path}"
            if count > self.limit
            else None
        )
