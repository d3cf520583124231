from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mixar_core import storage as lock
from mixar_core.errors import UserError
from mixar_core.storage import LOCK, FolderLock
from mixar_core.training.trainer import train
from tests.core.cache_toys import begun, plan
from tests.core.training_toys import ToyImages, ToyObjective, toy_config, toy_run

HOLD = """
import sys, time
from pathlib import Path
from mixar_core import storage as lock
lock.PATIENCE = 0.0
held = lock.FolderLock(Path(sys.argv[1]))
held.take()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.0)


@contextmanager
def other_process(folder: Path) -> Iterator[int]:
    """Another process that works in `folder`, killed at the end; its number."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "taken\n"
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_two_runs_cannot_be_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    toy_run(folder, steps=2)
    before = sorted(folder.rglob("*"))
    with other_process(folder) as number:
        with pytest.raises(
            UserError,
            match=rf"run: process {number} on \S+ works in it; wait for its end, or stop it; "
            rf"if its machine is gone, remove {folder / LOCK}$",
        ):
            toy_run(folder, steps=4, resume=True)
        assert sorted(path for path in folder.rglob("*") if path.name != LOCK) == before
    assert (folder / LOCK).exists()  # it was killed, and that is enough
    toy_run(folder, steps=4, resume=True)
    assert not (folder / LOCK).exists()


def test_a_life_that_begins_too_early_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 60.0)
    with other_process(tmp_path) as number:
        end = threading.Timer(1.5, os.kill, (number, signal.SIGKILL))
        end.start()
        with closing(FolderLock(tmp_path)) as mine:
            mine.take()
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
        end.join()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{tmp_path}: process {number} on ")
    assert said[0].endswith(" works in it; waiting up to 60 s for its end")


def test_two_calls_cannot_write_one_cache(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert begun(folder, plan()) is None
    unfinished = folder / ".tokens_00000.safetensors.1.unfinished"
    unfinished.write_bytes(b"half")
    with other_process(folder), pytest.raises(UserError, match="works in it"):
        begun(folder, plan())
    assert unfinished.exists()
    assert begun(folder, plan()) is None
    assert not unfinished.exists()


def test_a_lock_that_its_owner_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.take()
    locked = lock._lock

    def and_then_it_is_removed(file) -> str | None:
        monkeypatch.setattr(lock, "_lock", locked)
        holder = locked(file)
        first.close()
        return holder

    monkeypatch.setattr(lock, "_lock", and_then_it_is_removed)
    second.take()
    with closing(second):
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode and f"process {os.getpid()} on " in refused.stderr.splitlines()[-1]


def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    free = FolderLock(tmp_path)
    free.take()
    free.close()
    free.close()
    assert not (tmp_path / LOCK).exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        FolderLock(tmp_path / "nowhere").take()
    with pytest.raises(UserError, match="nowhere"):
        toy_run(tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_waited_for_another_leaves_what_that_one_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw an empty folder; the other had the lock first."""
    taken = FolderLock.take

    def late(mine: FolderLock) -> None:
        monkeypatch.setattr(FolderLock, "take", taken)
        toy_run(tmp_path / "run", steps=2)
        taken(mine)

    monkeypatch.setattr(FolderLock, "take", late)
    with pytest.raises(UserError, match="run is not an empty folder"):
        toy_run(tmp_path / "run", steps=4)
    assert toy_run(tmp_path / "run", steps=2, resume=True).step == 2
    assert {path.name for path in tmp_path.rglob("step-*")} == {"step-00000002"}


def test_a_lock_is_given_back_where_nothing_can_be_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that fails is made read-only: what the run died of is the error, not its lock."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    mine = FolderLock(tmp_path)
    mine.take()
    with monkeypatch.context() as broken, pytest.raises(UserError, match="it"), closing(mine):
        broken.setattr(Path, "unlink", refused)
        raise UserError("it")
    FolderLock(tmp_path).take()


class Interrupting(ToyImages):
    """A signal comes while it is read: Ctrl-C is pressed, or a scheduler wants the machine back."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __getitem__(self, index: int):
        if index == 3:
            signal.raise_signal(self.number)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    "data",
    [ToyImages(broken=3), Interrupting(signal.SIGINT), Interrupting(signal.SIGTERM)],
    ids=["an error", "Ctrl-C", "SIGTERM"],
)
def test_a_start_that_fails_leaves_its_folder_to_the_next(tmp_path: Path, data: ToyImages) -> None:
    """What is kept in memory is made before the first step, which may take long."""
    folder = tmp_path / "run"

    def start(data: ToyImages, steps: int = 2, *, resume: bool = False) -> int:
        config, files = toy_config(cache="memory", max_unreadable=0, steps=steps), {"recipe.yaml": "a: 1"}
        return train(ToyObjective(), data, None, config, folder, files=files, resume=resume, device="cpu").step

    with pytest.raises((UserError, KeyboardInterrupt, SystemExit)):
        start(data)
    assert list(folder.iterdir()) == []
    assert start(ToyImages()) == 2
    with pytest.raises((UserError, KeyboardInterrupt, SystemExit)):
        start(data, 4, resume=True)
    assert (folder / "recipe.yaml").exists() and (folder / "weights.safetensors").exists()
    assert start(ToyImages(), 4, resume=True) == 4
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
