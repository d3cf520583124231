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
from itertools import product
from pathlib import Path

import typer

from benchmarks import study
from mixar_eval.report import table
from tests.core.kills import PARALLEL, Setup, endure, leave_alone

#: steps of a run for every kill it is to survive
STEPS = 8


def main(kills: int = 24, processes: str = "1,2", seed: int = 0, out: Path | None = None) -> None:
    """Kill each configuration `--kills` times; the runs go to `--out` and stay there, or nowhere."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that are started
    rows, problems = [], list[str]()
    with tempfile.TemporaryDirectory(prefix="mixar-endurance-") as scratch:
        for count, parallel, background in product(study.numbers(processes), PARALLEL, (False, True)):
            if count == 1 and parallel != PARALLEL[0]:
                continue  # one process shares nothing
            setup = Setup(processes=count, parallel=parallel, background=background, steps=STEPS * kills)
            folder = (out or Path(scratch)) / f"{count}-{parallel}-{int(background)}"
            folder.mkdir(parents=True)
            pace = leave_alone(setup, folder / "alone")
            print(f"{setup.name}: {pace.seconds:.0f} s undisturbed; killing", file=sys.stderr, flush=True)
            outcome = endure(setup, folder / "killed", folder / "alone", pace, kills=kills, seed=seed)
            problems += [f"{setup.name}: {problem}" for problem in outcome.problems]
            row = {"training": setup.name, "kills": outcome.kills, "in save": outcome.in_save}
            row |= {"redone": outcome.repeated, "a kill": outcome.repeated / max(outcome.kills, 1)}
            row |= {"others s": outcome.slowest_end or None, "all s": outcome.seconds}
            rows.append({**row, "equal": "NO" if outcome.problems else "yes"})
    print(f"training of {STEPS * kills} steps, killed and resumed\n\n{table(rows)}")
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    typer.run(main)
