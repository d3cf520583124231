"""A folder of 300 mixed images to samples and a report, by the commands that `mixar new` prints, and their times.

`python -m benchmarks.own_images runs/own_images` (about 10 minutes on two cores). Called again, it goes on.
"""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import typer

from mixar_core.storage import write_text
from tests.mixed_images import write_mixed_images


def main(out: Path, images: int = 300, seed: int = 0) -> None:
    """Run what is not done yet; what each command said and took goes into times.json."""
    if not (out / "images").exists():
        write_mixed_images(out / "images", images, seed=seed)
    file = out / "times.json"
    times = json.loads(file.read_text()) if file.exists() else {}
    commands = ["mixar new images --out own"]
    for command in commands:
        words = shlex.split(command)
        if words[1] not in times:
            print(command, flush=True)
            if words[1] == "train" and (out / "own/runs").exists():
                words.append("--resume")
            before, started = cpu_seconds(), time.perf_counter()
            program = [sys.executable, "-m", "mixar", *words[1:]]
            said = subprocess.run(program, cwd=out, stdout=subprocess.PIPE, text=True, check=True).stdout
            took = {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - before}
            times[words[1]] = {"said": said, **took}
            write_text(file, json.dumps(times, indent=2) + "\n")
        if words[1] == "new":  # which says what comes after it
            commands += [line for line in times["new"]["said"].splitlines() if line.startswith("mixar ")]
    for name, row in times.items():
        print(f"mixar {name:<6} {row['cpu_seconds']:7.0f} CPU seconds {row['seconds']:7.0f} s")
    print(f"report: {out / 'own/report/report.md'}")


def cpu_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    typer.run(main)
