"""The processes that share a run. One process is one case of it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from mixar_core.errors import UserError

#: How long a process waits for the others before it gives up on them: the longest work that one may do alone.
TIMEOUT = timedelta(minutes=15)
#: The same where processes share out hours of work and meet rarely, or one works on alone: drawing, measuring.
PATIENT = timedelta(hours=2)
#: After how long, and how often, those who wait then say for whom.
LATE = timedelta(minutes=10)
_MEETINGS = count()


@frozen
class Processes:
    """This process's place among them, and the device it computes on."""

    rank: int
    world: int
    device: torch.device
    #: whether this object started the process group, and so ends it
    owner: bool = False
    #: where processes with PATIENT to spare note that they are here, see `meeting`
    store: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do `work` in the main process alone; its result, or its UserError, is everyone's."""
        done: list[Any] = [None, None]
        if self.is_main:
            try:
                done[0] = work()
            except UserError as error:
                done[1] = str(error)
        if self.world > 1:
            with self.meeting():
                dist.broadcast_object_list(done, src=0, device=self.device)
        if done[1] is not None:
            raise self.common_error(done[1])
        return done[0]

    def together(self, work: Callable[[], None]) -> None:
        """Do `work` in every process; the UserError of one, the first by rank, is everyone's."""
        problem = None
        try:
            work()
        except UserError as error:
            problem = str(error)
        if problems := [each for each in self.all_gather(problem) if each is not None]:
            raise self.common_error(problems[0])

    def common_error(self, message: str) -> UserError:
        """What all processes raise for the same reason, so that it is printed once."""
        return UserError(message, reported=not self.is_main)

    def all_gather(self, value: Any) -> list[Any]:
        """Each process's `value`, in the order of their ranks, in all of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self.meeting():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around what all wait for: says on standard error, every LATE minutes, who is not here yet."""
        if self.store is None:
            yield
            return
        store, number, over = self.store, next(_MEETINGS), threading.Event()
        store.set(f"{number}/{self.rank}", "")

        def watch() -> None:
            waited = LATE
            while not over.wait(LATE.total_seconds()):
                here = [rank for rank in range(self.world) if store.check([f"{number}/{rank}"])]
                late = ", ".join(str(rank) for rank in range(self.world) if rank not in here)
                if late and self.rank == here[0]:
                    print(f"waiting for process {late} of {self.world} since {waited}", file=sys.stderr, flush=True)
                waited += LATE

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, on this one's device; `values` itself where it is alone."""
        if self.world > 1:
            values = values.to(self.device, copy=True)
            with self.meeting():
                dist.all_reduce(values)
        return values

    def leave(self) -> None:
        """The run ended well: end the process group when the interpreter exits, where this object started it.

        Not at once, since a group cannot be started twice under one `torchrun`; and not after an error, since a process
        that waits for the others at its exit would keep `torchrun` from ending them.
        """
        if self.owner:
            atexit.register(dist.destroy_process_group)


def available_device(device: torch.device | str) -> torch.device:
    """A device that is there.

    Raises:
        UserError: it is not.
    """
    try:
        chosen = torch.device(device)
        known = chosen.type == "cuda" and torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()
        if not known:  # asked of a GPU that is there, this would take memory of it
            torch.empty(0, device=chosen).cpu()
        return chosen
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device {device}: not available here ({next(iter(str(error).splitlines()), '')})") from error


def own_device(device: torch.device | str | None = None) -> torch.device:
    """Where this process computes: on `device`, or where that is None on a GPU of its own, or else on the CPU.

    `cuda` without a number is a GPU of its own too.

    Raises:
        UserError: it is not there, there are more processes on this machine than GPUs, or all are told to share one.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) != "cuda":
        if str(device).startswith("cuda") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"device {device}: several processes cannot share a GPU; with `cuda` each has its own")
        return available_device(device)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
    return torch.device(f"cuda:{local}")


def refuse_while_starting() -> None:
    """Refuse work in a process that multiprocessing is still starting.

    A spawned process imports the script that started it. One without a guard would begin its own work there once
    more, workers and all.

    Raises:
        UserError: this is such a process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        script = Path(sys.argv[0]).name or "the script"
        raise UserError(
            f"{script} begins its work again in each worker process, which imports it: put the work into a function "
            'and call that under `if __name__ == "__main__":`'
        )


def join_processes(device: torch.device | str | None = None, *, timeout: timedelta | None = None) -> Processes:
    """Meet the other processes of a `torchrun`; without one, this process is alone.

    Args:
        device: see `own_device`.
        timeout: how long one waits for the others; None: TIMEOUT. Where it is given, they say for whom they wait.

    Raises:
        UserError: see `own_device` and `refuse_while_starting`.
    """
    refuse_while_starting()
    device = own_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    owner = "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if owner:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout or TIMEOUT)
    if not dist.is_initialized():
        return Processes(0, 1, device)
    store = None
    if timeout is not None and "MASTER_PORT" in os.environ:  # the one that they found each other through
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        whole = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        store = PrefixStore(f"mixar/{life}", whole)
    return Processes(dist.get_rank(), dist.get_world_size(), device, owner, store)


@contextmanager
def naming_lost_processes(processes: Processes) -> Iterator[None]:
    """What a collective raises where another process died or hangs, or NCCL fails, becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        lost = isinstance(error, dist.DistError) or "gloo" in text or "onnection closed by peer" in text
        if processes.world == 1 or not lost:
            raise
        timed_out = re.search(r"\btim(ed |e|ing )out\b", text, re.IGNORECASE)
        what = (
            "another process of this run does not answer" if timed_out else "lost the others, look for their messages"
        )
        reason = re.sub(r"^.*?\[/\S*\] ", "", text)  # Gloo puts a place in its source code before it
        raise UserError(f"process {processes.rank} of {processes.world}: {what} ({reason})") from error


#: Seconds in which a second signal is still the first request: a scheduler signals every process, and torchrun, which
#: it signals too, passes the signal on.
SAME_REQUEST = 2.0


class StopSignals:
    """While entered, SIGTERM or SIGINT sets `requested`; a later one (see SAME_REQUEST) acts as it would without us.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
        elif now - self._first > SAME_REQUEST:
            self.__exit__()
            signal.raise_signal(number)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """While entered, SIGTERM ends the process as an exception does, so that what minds Ctrl-C minds it, too.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)  # as a shell says that a signal ended a program

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
