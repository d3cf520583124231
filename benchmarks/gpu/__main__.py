"""What a GPU does with this project: `python -m benchmarks.gpu [--limit 9m] [--out docs] [--only training,parity]`

In one call: the card's own peak; golden values of the published systems in float32 and bf16; the program from images
to samples, stopped and resumed; processes by NCCL; how fast MAR-B and MixAR-L train and draw, eager, compiled and with
CUDA graphs, with which share of the peak and how much memory beside what `mixar recipe check` estimates; profiles.

Writes gpu.json and gpu.md into `--out`, again whenever a row is there. Each part is a process of its own and has a
share of the limit: what a part did not need the others have. Where there is no GPU, says so and touches nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
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
from typing import Any

from attrs import frozen

from benchmarks.gpu.part import Row, read_rows, run_part
from benchmarks.gpu.report import markdown, priced
from mixar_core.storage import write_text


@frozen
class Share:
    """Where a part is, and what of the time it may take."""

    module: str
    weight: float


PARTS = {
    "peak": Share("exact", 12),
    "parity": Share("exact", 75),
    "program": Share("exact", 40),
    "processes": Share("exact", 45),
    "graphs": Share("speed", 45),
    "training": Share("speed", 70),
    "sampling": Share("speed", 130),
    "compiled": Share("speed", 90),
    "sampling_compiled": Share("speed", 60),
    "profiles": Share("speed", 25),
    "costs": Share("speed", 0),  # beside the others
}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--limit", default="9m", type=seconds_of, help="time for all of it, as 9m or 540s")
    parser.add_argument("--out", default="docs", type=Path, help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", default=",".join([*PARTS][:-1]), help="names of parts, with commas")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    if unknown := set(names) - PARTS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; allowed: {', '.join(PARTS)}")
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: nothing is measured, and no file is touched")
        return 0
    began = time.time()
    found: dict[str, Any] = {**facts(given.device), "limit": given.limit, "parts": {}}
    context = multiprocessing.get_context("forkserver")  # a process each, which need not import torch anew
    context.set_forkserver_preload(["benchmarks.gpu.speed", "benchmarks.gpu.exact"])
    with tempfile.TemporaryDirectory() as scratch:

        def start(name: str, device: str, until: float) -> Any:
            work = (f"benchmarks.gpu.{PARTS[name].module}", name, device, Path(scratch) / name, until, given.tiny)
            process = context.Process(target=run_part, args=work)
            process.start()
            return process

        counting = start("costs", "cpu", began + given.limit)
        for index, name in enumerate(names):
            left = given.limit - (time.time() - began)
            until = time.time() + left * PARTS[name].weight / sum(PARTS[other].weight for other in names[index:])
            print(f"{name}: {until - time.time():.0f} s", flush=True)
            found["parts"][name] = entry = {"ended": "well", "rows": list[Row]()}
            process = start(name, given.device, until)
            while process.is_alive() and time.time() < until:
                process.join(min(1.0, max(0.0, until - time.time())))
                publish(found, Path(scratch), given.out)
            if process.is_alive():
                entry["ended"] = "it took longer than its share of the time"
            elif process.exitcode:
                entry["ended"] = f"its process ended with {process.exitcode}"
            end(process)
        counting.join(max(0.0, began + given.limit - time.time()))
        end(counting)
        publish(found, Path(scratch), given.out)
    print(f"{time.time() - began:.0f} s in all; {given.out / 'gpu.md'}")
    return 0


def end(process: Any) -> None:
    """End a part and whatever it started, which would keep a pipe open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def publish(found: dict[str, Any], scratch: Path, out: Path) -> None:
    """Write gpu.json and gpu.md, if there are rows that are not in them."""
    told = {name: read_rows(scratch / name) for name in found["parts"]}
    fresh = {name: priced(rows, read_rows(scratch / "costs"), told.get("peak", [])) for name, rows in told.items()}
    if out.joinpath("gpu.json").is_file() and fresh == {name: part["rows"] for name, part in found["parts"].items()}:
        return
    for name, rows in fresh.items():
        found["parts"][name]["rows"] = rows
    out.mkdir(parents=True, exist_ok=True)
    titles = {n: getattr(import_module(f"benchmarks.gpu.{PARTS[n].module}"), n).__doc__ for n in found["parts"]}
    write_text(out / "gpu.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "gpu.md", markdown(found, titles))


def facts(device: str) -> dict[str, Any]:
    """The machine, and the command."""
    import torch

    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    known: dict[str, Any] = {"command": command, "date": date.today().isoformat(), "torch": torch.__version__}
    known |= {
        "python": platform.python_version(),
        "CUDA": torch.version.cuda,
        "card": device,
        "memory GB": None,
        "driver": None,
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        known |= {"card": card.name, "memory GB": round(1e-9 * card.total_memory, 1)}
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            known["driver"] = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip() or None
    return known


def seconds_of(text: str) -> float:
    """Of `9m`, `540s` or `540`."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)(m|s|)", text)):
        raise argparse.ArgumentTypeError(f"{text} is no time; for example 9m or 540s")
    return float(found[1]) * (60.0 if found[2] == "m" else 1.0)


if __name__ == "__main__":
    sys.exit(main())
