"""Jobs side by side, each a process of its own, until all are done or the time is over."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import typer
from attrs import define, frozen

#: so many seconds before the end no job is begun, and so long a stopped one has to leave a checkpoint
LAST, GRACE = 15.0, 25.0


@frozen
class Desk:
    """Where jobs work.

    Args:
        out: the folder: `runs` with weights, `logs` with what jobs say, and what each kind of job adds.
        quick: everything in miniature.
    """

    out: Path
    quick: bool = False
    device: str = "cpu"

    def folder(self, run: str) -> Path:
        """Of a run."""
        return (self.out / "runs" / run).resolve()

    def has(self, run: str) -> bool:
        """Whether a run is finished and its weights are there."""
        return (self.folder(run) / "weights.safetensors").is_file()


class Task(Protocol):
    """What the runner asks of a job."""

    @property
    def name(self) -> str:
        """By which a process is told to do it."""
        ...

    @property
    def run(self) -> str:
        """The run that it trains, or draws with."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Runs that must be finished before."""
        ...

    @property
    def threads(self) -> int:
        """Threads that it computes with."""
        ...

    def done(self, desk: Desk) -> bool:
        """Whether there is nothing left to do."""
        ...


@define
class Running:
    """A process and the job that it does."""

    task: Task
    process: subprocess.Popen[bytes]
    began: float


@frozen
class Outcome:
    """Names of the jobs that failed, and how many are left."""

    failed: tuple[str, ...]
    left: int


def seconds_of(text: str) -> float:
    """Of `2h`, `9m`, `540s` or `540`."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)):
        raise typer.BadParameter(f"{text} is no time; for example 9m or 540s")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def to_do(tasks: Sequence[Task], desk: Desk) -> list[Task]:
    """Those that are not done, and those whose weights they need and that are gone."""
    names = {task.name for task in tasks if not task.done(desk)}
    while True:
        needed = {need for task in tasks if task.name in names for need in task.needs if not desk.has(need)}
        more = {task.name for task in tasks if task.run in needed} - names
        if not more:
            return [task for task in tasks if task.name in names]
        names |= more


def run_all(tasks: Sequence[Task], desk: Desk, *, of: Sequence[str], jobs: int, limit_s: float | None) -> Outcome:
    """Do what is not done, the first ones first; what failed is tried no more, and those behind it are left.

    Args:
        of: the module that does a job, and what is said to it before the job's name.
        jobs: threads in use at once.
        limit_s: seconds after which runs are stopped (they leave a checkpoint); None: until all is done.
    """
    end = None if limit_s is None else time.monotonic() + limit_s - GRACE
    waiting = to_do(tasks, desk)
    total, running, failed = len(waiting), list[Running](), list[Task]()
    print(f"{len(tasks)} jobs, {total} of them to be done, {jobs} at once", flush=True)
    while waiting or running:
        now = time.monotonic()
        if end is not None and now > end:
            _stop(running)
            break
        for each in [each for each in running if each.process.poll() is not None]:
            running.remove(each)
            good = each.process.returncode == 0 and each.task.done(desk)
            if not good:
                failed.append(each.task)
            done = total - len(waiting) - len(running)
            says = "" if good else "FAILED "
            print(f"[{done}/{total}] {now - each.began:4.0f} s  {says}{each.task.name}", flush=True)
        began = False
        if end is None or now < end - LAST:
            busy = {each.task.run for each in running}
            for task in list(waiting):
                free = jobs - sum(each.task.threads for each in running)
                if free < min(task.threads, jobs):
                    break
                if task.run not in busy and _ready(task, desk, failed):
                    waiting.remove(task)
                    running.append(Running(task, _start(task, desk, of), now))
                    busy.add(task.run)
                    began = True
            if not running and not began:
                break  # all that is left waits for what failed
        time.sleep(0.2)
    return Outcome(tuple(task.name for task in failed), len(waiting) + len(running))


def _ready(task: Task, desk: Desk, failed: Sequence[Task]) -> bool:
    """Whether what it builds on is there; what failed to train is not trained again by another job."""
    broken = any(each.run == task.run for each in failed) and not desk.has(task.run)
    return not broken and all(desk.has(need) for need in task.needs)


def _start(task: Task, desk: Desk, of: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process that does this job and writes what it says under `logs`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads), "MKL_NUM_THREADS": str(task.threads)}
    log = desk.out / "logs" / f"{task.name[:80]}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", *of, task.name]
    command += ["--out", str(desk.out), "--device", desk.device, *(["--quick"] if desk.quick else [])]
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)


def _stop(running: Sequence[Running]) -> None:
    """Ask, wait, and end what is still there."""
    for each in running:
        each.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE - 5.0
    for each in running:
        try:
            each.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()
