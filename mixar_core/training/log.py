"""What a run measures of itself, and its log.jsonl."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixar_core.training.files import write_text, writing


class Meter:
    """Means of losses, and times, since the last report; what happens between steps is not counted."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self._sums: dict[str, float] = {}
        self._started = 0.0
        self._waits = False

    def start(self) -> None:
        """A step begins, by waiting for its batch."""
        self._started, self._waits = time.perf_counter(), True

    def waiting(self) -> float:
        """Seconds of the present wait for a batch, 0 if there is none."""
        return time.perf_counter() - self._started if self._waits else 0.0

    def arrived(self) -> None:
        """The batch is there."""
        self._waits = False
        self.waited += time.perf_counter() - self._started

    def stop(self, losses: Mapping[str, float]) -> None:
        """The step is done."""
        self.steps += 1
        self.seconds += time.perf_counter() - self._started
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def losses(self) -> dict[str, float]:
        """Means over the steps."""
        return {name: value / self.steps for name, value in self._sums.items()}


class RunLog:
    """A log in a run folder, log.jsonl the trainer's own: one JSON object a line, with its `kind` and its `step`."""

    def __init__(self, folder: Path, name: str = "log.jsonl") -> None:
        self.path = folder / name

    def forget_after(self, step: int) -> None:
        """Drop lines of steps after `step`, and a torn one: a resumed run does them again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
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


def note_unreadable(folder: Path, *, step: int, rank: int, index: int, reason: str) -> None:
    """Name an image that was skipped, on stderr and in unreadable.jsonl; every process does so for its own."""
    print(f"warning: image {index} is skipped: {reason}", file=sys.stderr)
    path = folder / "unreadable.jsonl"
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "rank": rank, "index": index, "reason": reason}) + "\n")
