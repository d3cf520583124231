"""`mixar train` told to stop, or with a process killed, and gone on with; and what cannot be resumed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from mixar_core.distributed import StopSignals
from mixar_core.training.checkpoint import checkpoint_step, list_checkpoints
from tests.cli.process import good, launched, refused, run, send, started, tree
from tests.core.kills import Meeting, is_saving, steps_logged

#: far too many steps to end by itself; with a checkpoint at the end alone, or after every step in the background
LONG = ("--set", "training.steps=100000", "--set", "training.checkpoint_every=0")
SAVING = ("--set", "training.steps=100000", "--set", "training.background_checkpoints=true")
LOADERS = ("--set", "training.workers=1")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find child processes")


def wait_for(condition: Callable[[], bool], *processes: BaseProcess) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until and not any(process.exitcode for process in processes)
        time.sleep(0.002)


def stopped_step(said: str, folder: Path, launch: str = "mixar") -> int:
    """The step in what a stopped run printed, which must be that of its newest checkpoint."""
    (found,) = re.findall(r"stopped after step (\d+) of 100000; (.*) train (.+) --resume goes on\n", said)
    assert found[1] == launch and shlex.split(found[2]) == [str(folder)]
    assert checkpoint_step(list_checkpoints(folder)[-1]) == int(found[0])
    assert not list(folder.rglob(".*"))
    return int(found[0])


@needs_proc
@pytest.mark.parametrize(
    ("number", "settings"),
    [(signal.SIGTERM, SAVING), (signal.SIGINT, (*LONG, *LOADERS))],
    ids=["while-saving", "with-loaders"],
)
def test_a_run_that_is_told_to_stop_saves(number: int, settings: tuple[str, ...], family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started("train", family / "recipes/mixar.yaml", "--out", folder, *settings, folder=tmp_path) as process:
        wait_for(lambda: steps_logged(folder) >= 3, process)
        if settings is SAVING:
            wait_for(lambda: is_saving(folder), process)
        send(number, tree(process.pid))  # as a terminal or a scheduler does: the loaders get it too
        process.join(60)
        assert process.exitcode == 0
    step = stopped_step((tmp_path / "stdout").read_text(), folder)
    assert (tmp_path / "stderr").read_text() == ""
    assert f"{step + 1} steps in" in good("train", folder, "--resume", "--set", f"training.steps={step + 1}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(number: int, code: int, family: Path, tmp_path: Path) -> None:
    """Nothing else would end this run: its images have become pipes that nothing comes out of."""
    shutil.copytree(family / "data", tmp_path / "data")
    data = ("--set", f"data.path={tmp_path / 'data'}")
    with started(
        "train", family / "recipes/mixar.yaml", "--out", tmp_path / "run", *LONG, *data, folder=tmp_path
    ) as process:
        wait_for(lambda: steps_logged(tmp_path / "run") >= 3, process)
        images = list((tmp_path / "data/train").rglob("*.png"))
        for image in images:
            os.mkfifo(image.with_suffix(".pipe"))
            image.with_suffix(".pipe").rename(image)
        wait_for(lambda: any(map(is_read, images)), process)
        os.kill(process.pid, number)
        process.join(2.5)
        assert process.exitcode is None
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == code


def is_read(pipe: Path) -> bool:
    """Whether someone waits for a pipe; if so, its other end is held open from now on, and they go on waiting."""
    try:
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    return True


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopSignals() as signals:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert signals.requested
    monkeypatch.setattr("mixar_core.distributed.SAME_REQUEST", 0.0)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@contextmanager
def two(*arguments: object, folder: Path) -> Iterator[list[BaseProcess]]:
    """Two processes of `mixar`, as torchrun starts them; each prints into a folder of its own, 0 and 1."""
    meeting = Meeting(2)
    with ExitStack() as stack:
        for rank in range(2):
            (folder / str(rank)).mkdir()
        yield [
            stack.enter_context(started(*arguments, folder=folder / str(r), environment=meeting.environment(r)))
            for r in range(2)
        ]


def test_one_process_that_is_told_to_stop_stops_both(family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with two("train", family / "recipes/mixar.yaml", "--out", folder, *SAVING, folder=tmp_path) as processes:
        wait_for(lambda: steps_logged(folder) >= 3, *processes)
        os.kill(processes[1].pid, signal.SIGTERM)
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
    step = stopped_step((tmp_path / "0/stdout").read_text(), folder, "torchrun ... -m mixar")
    assert not any((tmp_path / name).read_text() for name in ("1/stdout", "0/stderr", "1/stderr"))
    # another number of processes goes on with it, and says so
    done = run("train", folder, "--resume", "--set", f"training.steps={step + 1}")
    assert done.returncode == 0 and f"{step + 1} steps in" in done.stdout
    assert done.stderr.startswith("warning: this run was shared by 2 processes and goes on with 1: the same batches")


@pytest.mark.slow
@needs_proc
def test_a_killed_process_ends_the_other_and_torchrun_goes_on(family: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "output"
    call = ("train", family / "recipes/mixar.yaml", "--out", folder, *SAVING)
    with launched(*call, cwd=tmp_path, output=output) as process:
        wait_for(lambda: steps_logged(folder) >= 3 or process.poll() is not None)
        (killed,) = [pid for pid in tree(process.pid) if rank_of(pid) == 1]
        os.kill(killed, signal.SIGKILL)
        assert process.wait(60) == 1
    said = output.read_text()
    ours = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1 and "process 0 of 2: lost the others, look for their messages" in ours[0]
    assert "/mixar_" not in said.replace(str(folder), ""), said

    # A scheduler signals torchrun and all it started, and torchrun hands the signal on.
    with launched("train", folder, "--resume", *LOADERS, cwd=tmp_path, output=output) as process:
        begun = steps_logged(folder)
        wait_for(lambda: steps_logged(folder) > begun + 2 or process.poll() is not None)
        send(signal.SIGTERM, tree(process.pid))
        process.wait(60)
    stopped_step(output.read_text(), folder, "torchrun --nproc-per-node 2 -m mixar")


def rank_of(pid: int) -> int | None:
    """Which process of a run this is; None: torchrun itself."""
    found = re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
    return None if found is None else int(found[1])


@pytest.fixture(scope="module")
def ended(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended; tests must not change it."""
    folder = tmp_path_factory.mktemp("resume") / "run"
    good("train", family / "recipes/mixar.yaml", "--out", folder, "--set", "training.batch_size=5")
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("backbone.depth=2",), "started with another recipe: backbone.depth was 1, is 2; resume with that, or start"),
        (("training.batch_size=3",), "step-00000002 was written with other settings: batch_size was 5, is 3; resume"),
        (("training.learning_rate=1", "training.flip=true"), "flip was False, is True, learning_rate was 0.0001, is 1"),
        (("training.steps=1",), "steps done were 2, steps is 1"),
    ],
)
def test_a_run_is_resumed_as_what_it_was(settings: tuple[str, ...], message: str, ended: Path) -> None:
    changes = [word for setting in settings for word in ("--set", setting)]
    assert message in refused("train", ended, "--resume", *changes)


def test_what_is_there_to_resume_is_said(ended: Path, family: Path, tmp_path: Path) -> None:
    recipe = family / "recipes/mixar.yaml"
    assert "none holds no run to resume: there is no recipe.yaml" in refused(
        "train", recipe, "--out", tmp_path / "none", "--resume"
    )
    shutil.copytree(ended, tmp_path / "early", ignore=shutil.ignore_patterns("checkpoints"))
    assert "no checkpoint to resume from; start anew, without resume" in refused(
        "train", tmp_path / "early", "--resume"
    )
    killed = Path(shutil.move(tmp_path / "early", tmp_path / "killed"))
    (killed / "weights.safetensors").unlink()
    said = f"{killed} was killed before its first checkpoint; "
    line = refused("train", recipe, "--out", killed, "--resume")
    assert f"{said}remove it, and it begins anew" in line
    for words in ((killed,), (killed, "--resume")):  # with it the recipe would go
        line = refused("train", *words)
        assert f"{said}to train anew: mixar train {killed}/recipe.yaml --out runs/killed-anew" in line
    line = refused("train", family / "recipes/prior.yaml", "--out", ended, "--resume")
    assert "another recipe: trains was mixar, is prior" in line and len(line) < 600
    shutil.copytree(family / "data", tmp_path / "data")
    shutil.copy(tmp_path / "data/train/cat/0.png", tmp_path / "data/train/cat/more.png")
    data = ("--set", f"data.path={tmp_path / 'data'}")
    assert "images was 9, is 10" in refused("train", ended, "--resume", *data)


def test_a_batch_that_two_processes_cannot_share_is_refused(ended: Path, tmp_path: Path) -> None:
    with two("train", ended, "--resume", folder=tmp_path) as processes:
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [2, 2]
    for rank in range(2):
        said = (tmp_path / f"{rank}/stderr").read_text()
        assert said == "error: training.batch_size 5 does not divide evenly among 2 processes\n"
