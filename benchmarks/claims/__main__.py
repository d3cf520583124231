"""`python -m benchmarks.claims NAME [--quick] [--jobs N] [--out DIR] [--device cpu|cuda] [--limit 9m]`

Trains what a claim needs, draws, measures, and writes a table (CSV, Markdown) and a plot of it under `--results`. NAME
is a claim, several with commas, or `all`: the most important jobs first. What is done is not done again, and a run that
was stopped goes on, so the command may be repeated until nothing is left. `--out` keeps runs and figures;
`claims.tar.gz` there holds all but the weights. `--quick` does the first two arms in miniature, to see that it works.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.claims.cost import Cost
from benchmarks.claims.jobs import Job
from benchmarks.claims.plan import CLAIMS, jobs_of
from benchmarks.claims.report import COST, report
from benchmarks.runner import Desk, run_all, seconds_of
from benchmarks.study import names as names_of


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
    desk = Desk(out, quick, device)
    known = (*CLAIMS, COST)
    names = known if name == "all" else tuple(names_of(name, known))
    tasks, failed = tasks_of(names, quick=quick), False
    if job:
        next(task for task in tasks if task.name == job).perform(desk)
        return
    if at_once == 0:
        for task in tasks:
            if not task.done(desk):
                task.perform(desk)
    else:
        limit_s = None if limit is None else seconds_of(limit)
        outcome = run_all(tasks, desk, of=("benchmarks.claims", name, "--job"), jobs=at_once, limit_s=limit_s)
        failed = bool(outcome.failed)
        if failed:
            print(f"failed: {', '.join(outcome.failed)}; what they said is under {out / 'logs'}")
        if outcome.left:
            print(f"{outcome.left} jobs are left: repeat the command")
    for each in names:
        report(each, desk, results or out / "results")
    print(f"figures, without weights: {pack(out)}")
    sys.exit(failed)


def tasks_of(names: Sequence[str], *, quick: bool) -> list[Job | Cost]:
    """The jobs of these claims, in the order in which they are worth most."""
    tasks: list[Job | Cost] = [*jobs_of([CLAIMS[each] for each in names if each in CLAIMS], quick=quick)]
    if COST in names:
        tasks.insert(min(12, len(tasks)), Cost())
    return tasks


def pack(out: Path) -> Path:
    """All that is worth keeping in one file: figures, a few images, reports; no weights."""
    file = out / "claims.tar.gz"
    unfinished = file.with_name(f".{file.name}.unfinished")
    with tarfile.open(unfinished, "w:gz") as archive:
        for name in ("measured", "samples", "results"):
            if (out / name).is_dir():
                archive.add(out / name, arcname=name)
    unfinished.replace(file)
    return file


if __name__ == "__main__":
    typer.run(main)
