"""Trains a family in stages: `python -m benchmarks.train_zoo --data emoji64 --out runs/zoo --minutes 11 --limit 7m`

Runs of a stage are processes on one device, `--side-by-side` at most; a run's steps are as many as fit its stage's
share of `--minutes`, measured at its start. At `--limit` everything stops with a checkpoint, and the same command goes
on. What was trained lies under `--out`/models, in bfloat16, and is what later runs freeze; `table.md` has what was
measured: the tokenizers' ceilings, codes alone, MixAR from true codes and from the prior's. How the best MixAR samples
is for `mixar tune`, pictures are for `mixar eval generation --nearest`. With `--pack DIR` results and the chosen
models' weights are written there as files of at most 15 MiB: `cat DIR/models.tar.* | tar x`. A run that fails is left
out, and so is what needs it. `--only p8,m8` leaves out all runs but these: the fewer share a GPU, the more steps each
does.
"""

from __future__ import annotations

import io
import tarfile
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from attrs import frozen

from benchmarks.runner import GRACE, Desk, run_all, seconds_of
from benchmarks.study import names
from benchmarks.train_zoo.family import FAMILIES, Family, Run
from benchmarks.train_zoo.measure import Bench, best, read_table
from benchmarks.train_zoo.worker import EARLY, Spec, train
from mixar.folder import RECIPE, WEIGHTS
from mixar.plugins import plugin_manager
from mixar.recipe import TRAINABLE, load_recipe, to_plain

#: a stage's runs that are not done after so many times their time are stopped
_PATIENCE = 1.3
_PART, _PARTS = 15 * 2**20, 6


@frozen
class Zoo(Desk):
    """A family at work under `out`."""

    family: Family = FAMILIES["emoji64"]

    def model(self, name: str) -> Path:
        """The folder of what a run trained."""
        return self.out / "models" / name

    def has(self, run: str) -> bool:
        """Whether its model is there."""
        return (self.model(run) / RECIPE).is_file()

    def chosen(self, names: tuple[str, ...]) -> str:
        """Of these runs the best by what was measured; a continued run's, by its samples.

        Raises:
            LookupError: none is there.
        """
        there = [name for name in names if self.has(name)]
        if not there:
            raise LookupError(f"none of {', '.join(names)} is there")
        rows = self.rows(there)
        return best(rows) if rows else there[0]

    def rows(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """What was measured of these: reconstructions or samples."""
        measured, found = read_table(self.out), dict[str, dict[str, Any]]()
        for name in names:
            prior = self.prior_of(name)
            what = f"{name} reconstructions" if prior is None else f"{name} + {prior} samples"
            found |= {name: measured[what]} if what in measured else {}
        return found

    def prior_of(self, name: str) -> str | None:
        """The run whose codes a MixAR draws from; None of what is none."""
        run = self.family.run(name)
        return self.prior_of(self.chosen(run.continues)) if run.continues else run.prior

    def recipe(self, name: str) -> tuple[str, dict[str, Any]]:
        """The recipe a run begins with, and its changes with the frozen parts that were found best."""
        run = self.family.run(name)
        frozen = {key: {"weights": str(self.model(self.chosen(names)))} for key, names in run.frozen.items()}
        if run.base is not None:
            return run.base, {"name": name, **frozen, **run.changes}
        begin = self.chosen(run.continues)
        changes: dict[str, Any] = {"name": name, "init": {"from": str(self.model(begin))}, **run.changes}
        if (prior := self.family.run(begin).prior) is not None and self.has(prior):
            changes["prior"] = {"weights": str(self.model(prior))}
        return str(self.model(begin) / RECIPE), changes

    def winner(self) -> str | None:
        """The MixAR with the best samples."""
        names = [name for stage in self.family.stages.values() for name in stage.runs if self.has(name)]
        rows = self.rows([name for name in names if self.prior_of(name)])
        return best(rows) if rows else None

    def needed(self, name: str) -> list[str]:
        """A model and the runs that its recipe and its measuring name, the first stage's first."""
        plain = to_plain(load_recipe(self.model(name) / RECIPE, registry=plugin_manager()))
        parts = [Path(plain[key]["weights"]).name for key in TRAINABLE if (plain.get(key) or {}).get("weights")]
        prior = self.prior_of(name)
        return [*dict.fromkeys([*parts, *([prior] if prior else []), name])]

    def pack(self, folder: Path) -> None:
        """Write results and weights for transport, the most important first, as much as may be carried."""
        order = self.needed(winner) if (winner := self.winner()) else []
        runs = [name for stage in reversed([*self.family.stages.values()]) for name in stage.runs]
        order += [n + EARLY for n in order] + runs + [n + EARLY for n in runs]
        data, kept = io.BytesIO(), list[str]()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for path in sorted((*self.out.glob("logs/*.txt"), *self.out.glob("runs/*/log.jsonl"))):
                archive.add(path)
            for name in filter(self.has, dict.fromkeys(order)):
                size = (self.model(name) / WEIGHTS).stat().st_size
                if data.tell() + size < _PART * _PARTS - 2**20:
                    archive.add(self.model(name))
                    kept.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(-(-len(data.getvalue()) // _PART)):
            (folder / f"models.tar.{index}").write_bytes(data.getvalue()[index * _PART : (index + 1) * _PART])
        with tarfile.open(folder / "results.tar", "w") as archive:
            for path in sorted(self.out.glob("table.*")):
                archive.add(path)
        print(f"packed: {', '.join(kept)} (best: {winner})", flush=True)


@frozen
class Job:
    """A run, for the runner."""

    name: str
    needs: frozenset[str]
    threads: int = 1

    @classmethod
    def of(cls, name: str, run: Run, desk: Desk) -> Job:
        """It waits for all of the runs that it may build on, where none of them is there."""
        choices = [*run.frozen.values(), *([run.continues] if run.continues else [])]
        waits = (names for names in choices if not any(map(desk.has, names)))
        return cls(name, frozenset(name for names in waits for name in names))

    @property
    def run(self) -> str:
        """What it trains."""
        return self.name

    def done(self, desk: Desk) -> bool:
        """Whether its model is there."""
        return desk.has(self.name)


def main(
    data: str = "emoji64",
    out: Path = Path("runs/zoo"),
    minutes: float = 11.0,
    limit: str = "7m",
    pack: Path | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    side_by_side: int = 16,
    count: int = 450,
    only: str = "",
    quick: bool = False,
    until: Annotated[float, typer.Option(hidden=True)] = 0.0,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Train what is not there yet, measure it, and pack it."""
    if data not in FAMILIES:
        raise typer.BadParameter(f"data: {', '.join(FAMILIES)}")
    ends = time.time() + seconds_of(limit)
    family = FAMILIES[data].quick() if quick else FAMILIES[data]
    zoo = Zoo(out, quick, device, family)
    if job:
        base, changes = zoo.recipe(job)
        train(Spec(base, changes, until, device), zoo.folder(job), zoo.model(job))
        return
    runs = [name for stage in family.stages.values() for name in stage.runs]
    asked = names(only, runs) if only else runs
    bench: Bench | None = None
    for name, stage in family.only(asked).stages.items():
        if not stage.runs:
            continue
        began, seconds = time.time(), 60 * minutes * stage.share
        print(f"\n{name}: {', '.join(stage.runs)} ({seconds:.0f} s)", flush=True)
        of = ("benchmarks.train_zoo", "--data", data, "--until", str(began + seconds), "--job")
        tasks = [Job.of(key, run, zoo) for key, run in stage.runs.items()]
        run_all(tasks, zoo, of=of, jobs=side_by_side, limit_s=min(ends - began, _PATIENCE * seconds + GRACE))
        if time.time() < ends - GRACE:
            bench = bench or Bench(family, out / "models", out, torch.device(device), count=count, quick=quick)
            measure(zoo, bench, [*stage.runs], ends, all_states=False)
    if bench is not None:
        measure(zoo, bench, asked, ends, all_states=True)
    if pack is not None:
        zoo.pack(pack)


def measure(zoo: Zoo, bench: Bench, runs: list[str], ends: float, *, all_states: bool) -> None:
    """Measure runs while there is time; with all states earlier ones, too, and true codes, which nothing waits for."""
    suffixes = ("", EARLY) if all_states else ("",)
    for name in filter(zoo.has, runs):
        prior = zoo.prior_of(name)
        priors = [prior + suffix for suffix in suffixes if zoo.has(prior + suffix)] if prior else [None]
        for state in (name + suffix for suffix in suffixes if zoo.has(name + suffix)):
            try:
                for each in priors if time.time() < ends else ():
                    bench.real()
                    bench.model(state, each)
                if all_states and time.time() < ends:
                    bench.true_codes(state)
            except Exception:  # the rest goes on
                traceback.print_exc()


if __name__ == "__main__":
    typer.run(main)
