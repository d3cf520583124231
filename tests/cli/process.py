"""Runs of `mixar` in processes of their own, forked from one that has imported torch already: a tenth of the time."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

# Python 3.11's fork server does not hand its parent's sys.path to what it imports beforehand
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.cli.warm"])


def run(*arguments: object, cwd: Path | None = None, largest_file: int = -1) -> subprocess.CompletedProcess[str]:
    """Run `mixar` with these arguments, as the installed program would.

    Args:
        largest_file: bytes a file may have before writing to it fails, as on a full disk; -1: no limit.
    """
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch) / "out", Path(scratch) / "err"
        process = _FORKS.Process(target=_child, args=(words, str(cwd or Path.cwd()), str(out), str(err), largest_file))
        process.start()
        process.join(timeout=120)
        if process.exitcode is None:  # it hangs: that must not look like success
            process.kill()
            process.join()
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def good(*arguments: object, cwd: Path | None = None) -> str:
    """The output of a call that must succeed."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object, cwd: Path | None = None, largest_file: int = -1) -> str:
    """The one line of a call that must be refused."""
    done = run(*arguments, cwd=cwd, largest_file=largest_file)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@contextmanager
def started(*arguments: object, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[BaseProcess]:
    """`mixar` at work in `folder`, which gets its `stdout` and `stderr`; killed at the end, if it is still there.

    Args:
        environment: added to this process's.
    """
    words = [str(argument) for argument in arguments]
    process = _FORKS.Process(
        target=_child, args=(words, str(folder), str(folder / "stdout"), str(folder / "stderr"), -1, environment)
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@contextmanager
def launched(*arguments: object, cwd: Path, output: Path, processes: int = 2) -> Iterator[subprocess.Popen[bytes]]:
    """`mixar` in several processes under torchrun; at the end, whatever is left of them is killed.

    Each has as many threads as this process: another number of them adds in another order, and rounds otherwise.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*launcher, "-m", "mixar", *map(str, arguments)],
            cwd=cwd,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            # Each process that torchrun starts leads a session of its own: killing torchrun's group is not enough.
            send(signal.SIGKILL, tree(process.pid))
            process.wait()


def tree(pid: int) -> list[int]:
    """A process and all that it started, and those started in turn."""
    pids = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in file.read_text().split():
                pids += tree(int(child))
    return pids


def send(number: int, pids: Sequence[int]) -> None:
    """A signal to each of them that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def torchrun(*arguments: object, cwd: Path, processes: int = 2) -> str:
    """The output of `mixar` in several processes under torchrun, which must succeed."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output"
        with launched(*arguments, cwd=cwd, output=output, processes=processes) as process:
            code = process.wait(timeout=120)
        said = output.read_text()
    assert code == 0, said
    return said


def _child(
    words: Sequence[str], cwd: str, out: str, err: str, largest_file: int, environment: Mapping[str, str] | None = None
) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    os.environ.update(environment or {})
    # as where nothing is forked from a server, whose children would start one of their own for their loaders
    multiprocessing.set_start_method("fork", force=True)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ["COLUMNS"] = "120"
    sys.argv = ["mixar", *words]
    from mixar.cli import main

    main()
