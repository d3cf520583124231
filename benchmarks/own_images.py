"""A folder of 300 mixed images to samples and a report, by the commands that `mixar new` prints, and their times.

`python -m benchmarks.own_images runs/own_images` (about 10 minutes on two cores). Called again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.mixed_images import write_mixed_images


def main() -> None:
    """Run what is not done yet; times go into times.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of images, recipes, runs, samples and report")
    parser.add_argument("--images", type=int, default=300, help="how many, of which two are broken")
    parser.add_argument("--seed", type=int, default=0, help="of the images")
    asked = parser.parse_args()
    out: Path = asked.out.absolute()
    if not (out / "images").exists():
        write_mixed_images(out / "images", asked.images, seed=asked.seed)
    told, done = out / "commands.txt", out / "times.json"
    times: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {}
    if "new" not in times:
        said = timed(times, "new", ["mixar", "new", "images", "--out", "own"], out)
        told.write_text(said)
        done.write_text(json.dumps(times, indent=2))
    commands = [shlex.split(line) for line in told.read_text().splitlines() if line.startswith("mixar ")]
    for words in commands:
        if words[1] not in times:
            if words[1] == "train" and (out / "own/runs").exists():
                words.append("--resume")
            timed(times, words[1], words, out)
            done.write_text(json.dumps(times, indent=2))
    for name, row in times.items():
        print(f"mixar {name:<6} {row['cpu_seconds']:7.0f} CPU seconds {row['seconds']:7.0f} s")
    print(f"report: {out / 'own/report/report.md'}")


def timed(times: dict[str, Any], name: str, words: list[str], folder: Path) -> str:
    """The output of a command run in `folder`; its wall time and the CPU time of all its threads go into `times`."""
    print(shlex.join(words), flush=True)
    before, started = cpu_seconds(), time.perf_counter()
    program = [sys.executable, "-m", "mixar", *words[1:]]
    said = subprocess.run(program, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(said, flush=True)
    times[name] = {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - before}
    return said


def cpu_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
