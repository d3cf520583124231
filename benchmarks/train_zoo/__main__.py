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
import os
import re
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer

from benchmarks.train_zoo.family import FAMILIES, Family, Run
from benchmarks.train_zoo.measure import Bench, best
from benchmarks.train_zoo.worker import EARLY, Spec
from mixar.folder import RECIPE, WEIGHTS
from mixar.plugins import plugin_manager
from mixar.recipe import TRAINABLE, load_recipe, to_plain

#: seconds between lines of progress, and those that a process has to write its checkpoint when it is stopped
_TELL, _STOPPING = 15, 20
#: a stage's runs that are not done after so many times their time are stopped
_PATIENCE = 1.3
_PART, _PARTS = 15 * 2**20, 6


class Zoo:
    """A family at work under `out`; `ends` is when this call has to be over."""

    def __init__(
        self, family: Family, out: Path, ends: float, *, minutes: float, device: str | None, side_by_side: int
    ) -> None:
        self.family, self.out, self.ends, self.minutes, self.device = family, out, ends, minutes, device
        self.side_by_side = side_by_side
        self.models = out / "models"
        self.bench: Bench | None = None

    # ---------------------------------------------------------------- training

    def train(self, name: str, idle: Iterator[None]) -> bool:
        """Train a stage's runs, and measure meanwhile what is `idle`. Whether there is time for the next stage."""
        stage, began, told = self.family.stages[name], time.time(), 0.0
        seconds = 60 * self.minutes * stage.share
        patience = min(self.ends, began + _PATIENCE * seconds)
        waiting = [key for key in stage.runs if not self.done(key)]
        running: dict[str, subprocess.Popen[bytes]] = {}
        print(f"\n{name}: {', '.join(waiting) or 'all done'} ({seconds:.0f} s)", flush=True)
        while (running or waiting) and time.time() < patience:
            while waiting and len(running) < self.side_by_side:
                key = waiting.pop(0)
                if (worker := self._start(key, stage.runs[key], began, seconds)) is not None:
                    running[key] = worker
            if time.time() - told > _TELL:
                told = time.time()
                print(f"[{self.ends - told:.0f} s left] " + "; ".join(map(self._progress, running)), flush=True)
            if next(idle, idle) is idle:
                time.sleep(0.5)
            running = {key: worker for key, worker in running.items() if not self._over(key, worker)}
        self._stop(running)
        print(f"{name}: {time.time() - began:.0f} s; done: {', '.join(filter(self.done, stage.runs))}", flush=True)
        return time.time() < self.ends

    def _over(self, name: str, worker: subprocess.Popen[bytes]) -> bool:
        """Whether a run has ended; one that failed is told."""
        if worker.poll() is None:
            return False
        if worker.returncode:
            print(f"{name}: FAILED\n{self._log(name).read_text()[-1500:]}", flush=True)
        return True

    def _stop(self, running: dict[str, subprocess.Popen[bytes]]) -> None:
        for worker in running.values():
            worker.terminate()
        for key, worker in running.items():
            try:
                worker.wait(_STOPPING)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            self._over(key, worker)

    def done(self, name: str) -> bool:
        """Whether a run's model is there."""
        return (self.models / name / RECIPE).is_file()

    def _log(self, name: str) -> Path:
        return self.out / "runs" / f"{name}.txt"

    def _progress(self, name: str) -> str:
        log = self.out / "runs" / name / "log.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        step = re.search(r'"step": (\d+)', lines[-1]) if lines else None
        loss = re.search(r'"loss": ([\d.e+-]+)', lines[-1]) if lines else None
        said = self._log(name).read_text().splitlines()
        plan = next((found[1] for line in said if (found := re.search(r"(\d+) steps$", line))), "?")
        return f"{name} {step[1] if step else '-'}/{plan}" + (f" {float(loss[1]):.3f}" if loss else "")

    def _start(self, name: str, run: Run, began: float, seconds: float) -> subprocess.Popen[bytes] | None:
        try:
            base, changes = self._recipe(name, run)
        except LookupError as missing:
            print(f"{name}: left out, {missing}", flush=True)
            return None
        spec = Spec(
            base=base,
            changes=changes,
            run=str(self.out / "runs" / name),
            model=str(self.models / name),
            began=began,
            seconds=seconds * run.share,
            device=self.device,
        ).write(self.out / "runs" / f"{name}.json")
        threads = {"OMP_NUM_THREADS": "2", **os.environ}  # all cores in every process would stand in each other's way
        command = [sys.executable, "-m", "benchmarks.train_zoo.worker", str(spec)]
        with self._log(name).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=threads)

    def _recipe(self, name: str, run: Run) -> tuple[str, dict[str, Any]]:
        """The recipe it begins with, and its changes with the frozen parts that were found best."""
        frozen = {key: {"weights": str(self.models / self.chosen(names))} for key, names in run.frozen.items()}
        if run.base is not None:
            return run.base, {"name": name, **frozen, **run.changes}
        begin = self.chosen(run.continues)
        changes: dict[str, Any] = {"name": name, "init": {"from": str(self.models / begin)}, **run.changes}
        if (prior := self.family.run(begin).prior) is not None and self.done(prior):
            changes["prior"] = {"weights": str(self.models / prior)}
        return str(self.models / begin / RECIPE), changes

    def chosen(self, names: tuple[str, ...]) -> str:
        """Of these runs the best by what was measured; a continued run's, by its samples."""
        there = [name for name in names if self.done(name)]
        if not there:
            raise LookupError(f"none of {', '.join(names)} is there")
        rows = {name: row for name in there if (row := self._row(name)) is not None}
        return best(rows) if rows else there[0]

    def _row(self, name: str) -> dict[str, Any] | None:
        if self.bench is None:
            return None
        prior = self.prior_of(name)
        return self.bench.rows.get(f"{name} reconstructions" if prior is None else f"{name} + {prior} samples")

    def prior_of(self, name: str) -> str | None:
        """The run whose codes a MixAR draws from; None of what is none."""
        run = self.family.run(name)
        return self.prior_of(self.chosen(run.continues)) if run.continues else run.prior

    # ---------------------------------------------------------------- measuring

    def measuring(self, *jobs: Callable[[Bench], object]) -> Iterator[None]:
        """Do what is to be measured, one thing a turn. What cannot be is told, and the rest goes on."""
        for job in jobs:
            if self.bench is not None and time.time() < self.ends:
                try:
                    job(self.bench)
                    self.bench.write()
                except Exception:
                    traceback.print_exc()
            yield

    def tokenizers(self) -> list[Callable[[Bench], object]]:
        """What is measured of the first stage."""
        names = [name for name in self.family.stages["tokenizers"].runs if self.done(name)]
        return [Bench.real, *(partial(Bench.tokenizer, name=name) for name in names)]

    def samples(self, stage: str) -> list[Callable[[Bench], object]]:
        """Samples of a stage's MixARs."""
        pairs = [(name, self.prior_of(name)) for name in self.family.stages[stage].runs if self.done(name)]
        return [
            partial(Bench.mixar, name=name, prior=prior)
            for name, prior in pairs
            if prior is not None and self.done(prior)
        ]

    def rest(self) -> list[Callable[[Bench], object]]:
        """What does not decide what is trained next: codes alone, true codes, earlier states, subcategories."""
        jobs: list[Callable[[Bench], object]] = []
        for name, run in self.family.stages["models"].runs.items():
            states = [each for each in (name, name + EARLY) if self.done(each)]
            if run.prior is None:
                jobs += [partial(Bench.codes, prior=state) for state in states]
                continue
            priors = [each for each in (run.prior, run.prior + EARLY) if self.done(each)]
            jobs += [partial(Bench.true_codes, name=state) for state in states]
            jobs += [partial(Bench.mixar, name=state, prior=prior) for state in states for prior in priors]
        return jobs

    # ---------------------------------------------------------------- results

    def winner(self) -> str | None:
        """The MixAR with the best samples."""
        names = [n for stage in ("models", "finish") for n in self.family.stages[stage].runs if self.done(n)]
        rows = {name: row for name in names if self.prior_of(name) and (row := self._row(name))}
        return best(rows) if rows else None

    def needed(self, name: str) -> list[str]:
        """A model and the runs that its recipe and its measuring name, the first stage's first."""
        plain = to_plain(load_recipe(self.models / name / RECIPE, registry=plugin_manager()))
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
            for path in sorted((*self.out.glob("runs/*.txt"), *self.out.glob("runs/*/log.jsonl"))):
                archive.add(path)
            for name in filter(self.done, dict.fromkeys(order)):
                size = (self.models / name / WEIGHTS).stat().st_size
                if data.tell() + size < _PART * _PARTS - 2**20:
                    archive.add(self.models / name)
                    kept.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(-(-len(data.getvalue()) // _PART)):
            (folder / f"models.tar.{index}").write_bytes(data.getvalue()[index * _PART : (index + 1) * _PART])
        with tarfile.open(folder / "results.tar", "w") as archive:
            for path in sorted((*self.out.glob("table.*"), *self.out.glob("*.png"), *self.out.glob("*.json"))):
                archive.add(path)
        print(f"packed: {', '.join(kept)} (best: {winner})", flush=True)


def main(
    data: str = "emoji64",
    out: Path = Path("runs/zoo"),
    minutes: float = 11.0,
    limit: str = "7m",
    pack: Path | None = None,
    device: str | None = None,
    side_by_side: int = 16,
    count: int = 450,
    only: str = "",
    quick: bool = False,
) -> None:
    """Train what is not there yet, measure it, and pack it."""
    parsed = re.fullmatch(r"([\d.]+)(m|s)", limit)
    if data not in FAMILIES or parsed is None:
        raise typer.BadParameter(f"data: {', '.join(FAMILIES)}; limit: as 9m or 90s")
    began = time.time()
    ends = began + float(parsed[1]) * {"m": 60, "s": 1}[parsed[2]] - _STOPPING - 10
    family = FAMILIES[data].quick() if quick else FAMILIES[data]
    family = family.only(only.split(",")) if only else family
    zoo = Zoo(family, out, ends, minutes=minutes, device=device, side_by_side=side_by_side)
    out.mkdir(parents=True, exist_ok=True)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{torch.__version__}, {torch.cuda.get_device_name() if where.type == 'cuda' else where.type}", flush=True)

    def open_bench() -> Iterator[None]:
        try:
            zoo.bench = Bench(family, zoo.models, out, where, count=count, quick=quick)
            print(f"real images: features of {', '.join(zoo.bench.names)}", flush=True)
        except Exception:
            traceback.print_exc()
        yield

    try:
        stages(zoo, open_bench())
    except Exception:
        traceback.print_exc()
    if pack is not None:
        zoo.pack(pack)
    print(f"{time.time() - began:.0f} s in all", flush=True)


def stages(zoo: Zoo, opening: Iterator[None]) -> None:
    """All of it, as far as the time goes."""
    if not zoo.train("tokenizers", opening):
        return
    for _ in (*opening, *zoo.measuring(*zoo.tokenizers())):
        pass
    if not zoo.train("models", iter(())):
        return
    for _ in zoo.measuring(*zoo.samples("models")):
        pass
    if not zoo.train("finish", zoo.measuring(*zoo.rest())):
        return
    for _ in zoo.measuring(*zoo.samples("finish"), *zoo.rest()):
        pass


if __name__ == "__main__":
    typer.run(main)
