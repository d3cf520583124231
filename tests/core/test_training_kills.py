"""Killed at any moment and resumed, a run ends as if nothing had happened: benchmarks.endurance in small."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from mixar_core import distributed
from mixar_core.errors import UserError
from mixar_core.training import checkpoint
from tests.core.kills import Attempts, Setup, endure, leave_alone, steps_logged, train_one
from tests.core.training_toys import toy_run

SETUPS = [
    (Setup(processes=1, background=True, steps=40, checkpoint_every=4), 10),
    (Setup(processes=2, parallel="ddp", steps=24, checkpoint_every=4), 6),
    (Setup(processes=2, parallel="fsdp", background=True, steps=12, checkpoint_every=3), 3),
    (Setup(processes=2, adversarial=True, steps=12, checkpoint_every=3), 2),
    # the sums of more than two depend on their order
    (Setup(processes=4, parallel="ddp", steps=16, checkpoint_every=4), 2),
]


@pytest.mark.parametrize(("setup", "kills"), SETUPS, ids=lambda value: getattr(value, "name", str(value)))
def test_a_killed_run_loses_nothing(setup: Setup, kills: int, tmp_path: Path) -> None:
    pace = leave_alone(setup, tmp_path / "alone")
    outcome = endure(setup, tmp_path / "killed", tmp_path / "alone", pace, kills=kills)
    assert not outcome.problems, "\n".join(outcome.problems)
    assert outcome.kills >= kills and outcome.in_save > 0


def hasty(*words) -> None:
    """A process that does not wait long for the others."""
    distributed.TIMEOUT = checkpoint.TIMEOUT = timedelta(seconds=3)
    train_one(*words)


@pytest.mark.parametrize("every", [1, 1000], ids=["saving", "between"])
def test_a_process_that_hangs_does_not_keep_the_others(every: int, tmp_path: Path) -> None:
    setup = Setup(processes=2, background=True, steps=10_000, checkpoint_every=every)
    attempts = Attempts(setup, tmp_path / "run", work=hasty)
    attempts.start()
    try:
        assert attempts.wait_for(lambda: steps_logged(tmp_path / "run") >= 3), attempts.said()
        stopped, other = attempts.running
        os.kill(stopped.pid, signal.SIGSTOP)
        other.join(60)
        assert other.exitcode == 2, attempts.said()
    finally:
        attempts.kill(attempts.running)
    assert attempts.said().startswith("error: process 1 of 2: another process of this run does not answer (Timed out")
    assert attempts.said().count("\n") == 1


def meet(setup: Setup, folder: str, resume: bool, workers: int, environment: dict[str, str], output: str) -> None:
    """A process that shares out long work; the second one comes late, and the next time never."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    distributed.LATE = timedelta(seconds=0.5)
    processes = distributed.join_processes("cpu", timeout=timedelta(seconds=2))
    try:
        with distributed.naming_lost_processes(processes):
            for seconds in (1.3, 600.0):
                time.sleep(seconds * processes.rank)
                assert processes.all_gather(processes.rank) == [0, 1]
    except UserError as error:
        print("error:", error, file=sys.stderr, flush=True)
        os._exit(2)


def test_those_who_wait_say_for_whom(tmp_path: Path) -> None:
    attempts = Attempts(Setup(processes=2), tmp_path / "run", work=meet)
    attempts.start()
    try:
        attempts.running[0].join(60)
        assert attempts.running[0].exitcode == 2
    finally:
        attempts.kill(attempts.running)
    said = attempts.said().splitlines()
    late = [line.split(" since ") for line in said[:-1]]
    assert {who for who, _ in late} == {"waiting for process 1 of 2"}
    assert [since for _, since in late].count("0:00:00.500000") == 2 and len(late) > 2  # at both meetings
    assert said[-1].startswith("error: process 0 of 2: another process of this run does not answer")


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    toy_run(folder)
    left = (".weights.safetensors.12.unfinished", ".tmpAbC123", "checkpoints/.step-00000009.unfinished/run.json")
    for name in (*left, "checkpoints/.step-00000003.removed/run.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    toy_run(folder, resume=True)
    assert not list(folder.rglob(".*"))
