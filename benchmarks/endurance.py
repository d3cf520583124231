"""Is anything lost when training is killed? `python -m benchmarks.endurance [--kills 24] [--processes 1,2] [--out DIR]`

Trains a small MixAR with TI-Mix in every configuration: so many processes, DDP and FSDP, checkpoints written in the
background or not. Each run is killed (SIGKILL) at least so many times: inside a checkpoint's writing, while it starts,
while its last files are written, and of several processes sometimes only one. It is resumed every time. In the end its
weights must be those of an undisturbed run bit for bit, its log must have the same losses, and nothing unfinished may
lie about. Prints a table (kills survived, of them inside a save, steps done again in all and for each kill, how long a
process took to end after another one was killed); the exit code is 1 if a configuration failed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer

from mixar.cli.common import print_table
from tests.core.kills import PARALLEL, Outcome, Setup, endure, leave_alone

#: steps of a run for every kill it is to survive
STEPS = 8


def main(kills: int = 24, processes: str = "1,2", seed: int = 0, out: Path | None = None) -> None:
    """Kill each configuration `--kills` times; the runs go to `--out` and stay there, or nowhere."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that are started
    results: list[tuple[Setup, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="mixar-endurance-") as scratch:
        for setup in (
            Setup(processes=count, parallel=parallel, background=background, steps=STEPS * kills)
            for count in map(int, processes.split(","))
            for parallel in (PARALLEL if count > 1 else PARALLEL[:1])
            for background in (False, True)
        ):
            folder = (out or Path(scratch)) / f"{setup.processes}-{setup.parallel}-{int(setup.background)}"
            folder.mkdir(parents=True)
            pace = leave_alone(setup, folder / "alone")
            print(f"{setup.name}: {pace.seconds:.0f} s undisturbed; killing", file=sys.stderr, flush=True)
            outcome = endure(setup, folder / "killed", folder / "alone", pace, kills=kills, seed=seed)
            results.append((setup, outcome))
    show(results)
    sys.exit(any(outcome.problems for _, outcome in results))


def show(results: Sequence[tuple[Setup, Outcome]]) -> None:
    """The table, and under it what went wrong."""
    columns = ("ranks", "saves", "kills", "in save", "redone", "a kill", "others s", "all s", "equal")
    rows = [
        (
            f"{setup.processes} {setup.parallel.upper()}" if setup.processes > 1 else "1",
            "background" if setup.background else "blocking",
            outcome.kills,
            outcome.in_save,
            outcome.repeated,
            f"{outcome.repeated / max(outcome.kills, 1):.1f}",
            f"{outcome.slowest_end:.1f}" if outcome.slowest_end else "",
            f"{outcome.seconds:.0f}",
            "NO" if outcome.problems else "yes",
        )
        for setup, outcome in results
    ]
    title = f"training of {results[0][0].steps} steps, killed and resumed"
    print_table(title, columns, rows, right=range(2, len(columns)))
    for setup, outcome in results:
        for problem in outcome.problems:
            print(f"{setup.name}: {problem}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
