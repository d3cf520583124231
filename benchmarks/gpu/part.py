"""A part of the benchmark at work: where it measures, until when, and the rows that it leaves."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from attrs import frozen

from mixar.text import one_line
from mixar_eval.report import number

Row = dict[str, Any]
#: seconds that a part stops before it would be ended
SPARE = 3.0


@frozen
class Part:
    """One part.

    Args:
        rows: file of its rows, a line of JSON each.
        until: of `time.time()`, when it is ended.
        tiny: models of a few parameters and few repetitions: to see that it runs.
    """

    device: torch.device
    rows: Path
    until: float
    tiny: bool = False

    @property
    def left(self) -> float:
        """Seconds until the part should be over."""
        return self.until - SPARE - time.time()

    def row(self, what: Mapping[str, Any], measure: Callable[..., Mapping[str, Any]], *given: Any) -> None:
        """Write a row of what is measured and what `measure(*given)` found, or of why it did not."""
        if self.left < 0:
            found: Mapping[str, Any] = {"failed": "no time left"}
        else:
            try:
                found = measure(*given)
            except Exception as error:
                traceback.print_exc()
                text = "out of memory" if isinstance(error, torch.OutOfMemoryError) else one_line(error)[:300]
                found = {"failed": text}
        self.write({**what, **found})
        self.forget()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row, and print it."""
        plain = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
        with self.rows.open("a") as file:
            file.write(json.dumps(plain) + "\n")
        told = (f"{key} {number(value) if isinstance(value, float) else value}" for key, value in plain.items())
        print(" ", ", ".join(told), flush=True)

    def forget(self) -> None:
        """Give back what rows before took of the GPU's memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], times: int = 1, before: int = 0) -> float:
        """The median of some runs, each waited for, after so many that do not count."""
        found = []
        for _ in range(before + times):
            self.synchronize()
            started = time.perf_counter()
            run()
            self.synchronize()
            found.append(time.perf_counter() - started)
        return median(found[before:])

    def peak_gb(self) -> float | None:
        """The most memory that tensors took since the last `forget`, in 1e9 bytes."""
        return 1e-9 * torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


def run_part(measure: Callable[[Part], None], device: str, rows: Path, until: float, tiny: bool) -> None:
    """One part in its own process and group of processes."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # a run's own, as where nothing is said
    chosen = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        measure(Part(chosen, rows, until, tiny))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def read_rows(path: Path) -> list[Row]:
    """The rows that a part has left so far."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
