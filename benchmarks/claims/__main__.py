"""`python -m benchmarks.claims NAME [--quick] [--jobs N] [--out DIR] [--device cpu|cuda] [--limit 9m]`

Trains what a claim needs, draws, measures, and writes a table (CSV, Markdown) and a plot of it under `--results`. NAME
is a claim, several with commas, or `all`: the most important jobs first. What is done is not done again, and a run that
was stopped goes on, so the command may be repeated until nothing is left. `--out` keeps runs and figures;
`claims.tar.gz` there holds all but the weights. `--quick` does the first two arms in miniature, to see that it works.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.claims import cost, jobs
from benchmarks.claims.plan import CLAIMS, jobs_of
from benchmarks.claims.report import COST, report
from benchmarks.claims.runner import Outcome, Task, pack, run_all

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def main(
    name: Annotated[str, typer.Argument(help="a claim, several with commas, or all")] = "all",
    quick: Annotated[bool, typer.Option(help="a minute's run in miniature")] = False,
    at_once: Annotated[int, typer.Option("--jobs", help="threads in use at once; 0: all in this process")] = 2,
    out: Annotated[Path, typer.Option(help="folder of runs and figures")] = Path("runs/claims"),
    results: Annotated[Path | None, typer.Option(help="folder of the reports; OUT/results if not given")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    limit: Annotated[str | None, typer.Option(help="stop after so long: 90s, 9m, 2h")] = None,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Do what the claims need, then report what there is."""
    desk = jobs.Desk(out, quick=quick, device=device)
    known = (*CLAIMS, COST)
    names = known if name == "all" else tuple(name.split(","))
    if unknown := [each for each in names if each not in known]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; allowed: all, {', '.join(known)}")
    tasks = tasks_of(names, quick=quick)
    if job:
        perform(next(task for task in tasks if task.name == job), desk)
        return
    if at_once == 0:
        for task in tasks:
            if not task.done(desk):
                perform(task, desk)
        outcome = Outcome((), 0)
    else:
        outcome = run_all(tasks, desk, of=("benchmarks.claims", name, "--job"), jobs=at_once, limit_s=seconds(limit))
    for each in names:
        report(each, desk, results or out / "results")
    print(f"figures, without weights: {pack(desk)}")
    if outcome.failed:
        print(f"failed: {', '.join(outcome.failed)}; what they said is under {out / 'logs'}")
    if outcome.left:
        print(f"{outcome.left} jobs are left: repeat the command")
    sys.exit(1 if outcome.failed else 0)


def tasks_of(names: Sequence[str], *, quick: bool) -> list[Task]:
    """The jobs of these claims, in the order in which they are worth most."""
    tasks: list[Task] = list(jobs_of([CLAIMS[each] for each in names if each in CLAIMS], quick=quick))
    if COST in names:
        tasks.insert(min(12, len(tasks)), cost.Cost())
    return tasks


def perform(task: Task, desk: jobs.Desk) -> None:
    """Do one job in this process."""
    if isinstance(task, jobs.Job):
        jobs.perform(task, desk)
    else:
        cost.perform(desk)


def seconds(limit: str | None) -> float | None:
    """Of `90s`, `9m`, `2h` or a number of seconds."""
    if limit is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", limit)
    if not found:
        raise typer.BadParameter(f"--limit {limit}; allowed: 90s, 9m, 2h")
    return float(found[1]) * _UNITS[found[2]]


if __name__ == "__main__":
    typer.run(main)
