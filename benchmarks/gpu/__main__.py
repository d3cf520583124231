"""What a GPU does with this project: `python -m benchmarks.gpu [--limit 9m] [--out docs] [--only training,parity]`

In one call: the card's own peak; golden values of the published systems in float32 and bf16; the program from images
to samples, stopped and resumed; processes by NCCL; how fast MAR-B and MixAR-L train and draw, eager, compiled and with
CUDA graphs, with which share of the peak and how much memory beside what `mixar recipe check` estimates; profiles.

Writes gpu.json and gpu.md into `--out`, again whenever a row is there. Each part is a process of its own and has a
share of the limit: what a part did not need the others have. Where there is no GPU, says so and touches nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.part import Row, read_rows, run_part
from benchmarks.gpu.report import markdown, priced
from benchmarks.runner import seconds_of
from benchmarks.study import names
from mixar_core.storage import write_text

#: the module of a part, and its share of the time
PARTS = {
    "peak": ("exact", 12),
    "parity": ("exact", 75),
    "program": ("exact", 40),
    "processes": ("exact", 45),
    "graphs": ("speed", 45),
    "training": ("speed", 70),
    "sampling": ("speed", 130),
    "compiled": ("speed", 90),
    "sampling_compiled": ("speed", 60),
    "profiles": ("speed", 25),
    "costs": ("speed", 0),  # beside the others
}


def main(
    limit: Annotated[str, typer.Option(help="time for all of it, as 9m or 540s")] = "9m",
    out: Annotated[Path, typer.Option(help="folder of gpu.json and gpu.md")] = Path("docs"),
    only: Annotated[str, typer.Option(help="parts, with commas")] = ",".join([*PARTS][:-1]),
    device: Annotated[str, typer.Option(hidden=True)] = "cuda",
    tiny: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run the parts."""
    asked, limit_s, began = names(only, PARTS), seconds_of(limit), time.time()
    if device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: nothing is measured, and no file is touched")
        return
    found: dict[str, Any] = {**facts(device), "limit": limit_s, "parts": {}}
    context = multiprocessing.get_context("forkserver")  # a process each, which need not import torch anew
    context.set_forkserver_preload(["benchmarks.gpu.speed", "benchmarks.gpu.exact"])
    with tempfile.TemporaryDirectory() as scratch:

        def start(name: str, device: str, until: float) -> Any:
            work = (function_of(name), device, Path(scratch) / name, until, tiny)
            process = context.Process(target=run_part, args=work)
            process.start()
            return process

        counting = start("costs", "cpu", began + limit_s)
        for index, name in enumerate(asked):
            left = began + limit_s - time.time()
            until = time.time() + left * PARTS[name][1] / sum(PARTS[other][1] for other in asked[index:])
            print(f"{name}: {until - time.time():.0f} s", flush=True)
            found["parts"][name] = entry = {"ended": "well", "rows": list[Row]()}
            process = start(name, device, until)
            while process.is_alive() and time.time() < until:
                process.join(min(1.0, max(0.0, until - time.time())))
                publish(found, Path(scratch), out)
            if process.is_alive():
                entry["ended"] = "it took longer than its share of the time"
            elif process.exitcode:
                entry["ended"] = f"its process ended with {process.exitcode}"
            end(process)
        counting.join(max(0.0, began + limit_s - time.time()))
        end(counting)
        publish(found, Path(scratch), out)
    print(f"{time.time() - began:.0f} s in all; {out / 'gpu.md'}")


def function_of(name: str) -> Any:
    """What measures a part."""
    return getattr(import_module(f"benchmarks.gpu.{PARTS[name][0]}"), name)


def end(process: Any) -> None:
    """End a part and whatever it started, which would keep a pipe open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def publish(found: dict[str, Any], scratch: Path, out: Path) -> None:
    """Write gpu.json and gpu.md, if there are rows that are not in them."""
    parts = found["parts"]
    told = {name: read_rows(scratch / name) for name in parts}
    fresh = {name: priced(rows, read_rows(scratch / "costs"), told.get("peak", [])) for name, rows in told.items()}
    if out.joinpath("gpu.json").is_file() and fresh == {name: part["rows"] for name, part in parts.items()}:
        return
    for name, rows in fresh.items():
        parts[name]["rows"] = rows
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "gpu.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "gpu.md", markdown(found, {name: function_of(name).__doc__ for name in parts}))


def facts(device: str) -> dict[str, Any]:
    """The machine, and the command."""
    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    known: dict[str, Any] = {"command": command, "date": date.today().isoformat(), "torch": torch.__version__}
    known |= {"python": platform.python_version(), "CUDA": torch.version.cuda}
    known |= {"card": device, "memory GB": None, "driver": None}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        known |= {"card": card.name, "memory GB": round(1e-9 * card.total_memory, 1)}
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            known["driver"] = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip() or None
    return known


if __name__ == "__main__":
    typer.run(main)
