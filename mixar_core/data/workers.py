"""Work done ahead by loader processes, which end with the run, whatever they are at."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mixar_core.errors import UserError

Wanted = TypeVar("Wanted")
Loaded = TypeVar("Loaded")


def read_ahead(
    load: Callable[[Wanted], Loaded], wanted: Iterable[Wanted], *, workers: int = 0, pin: bool = False
) -> Iterator[Loaded]:
    """What `load` gives for each of `wanted`, in order; `workers` processes work ahead, 0: this one does it when asked.

    Args:
        load: can be pickled, where there are workers.
        pin: whether results come in pinned memory, from where a GPU fetches them while it computes.

    Raises:
        UserError: `load` did, or no worker can start.
    """
    if workers and multiprocessing.get_start_method() != "fork":
        check_start()
    loader = DataLoader(
        _Loading(load),
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it draws from the run's
    )
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    ours = set(multiprocessing.active_children()) - others
    end = partial(_end, ours)
    atexit.register(end)  # before what the standard library does at exit: it waits for ever
    try:
        for found in batches:
            if isinstance(found, UserError):
                raise found
            yield found
    finally:
        del batches  # torch asks them to end, and waits for 5 seconds
        end()
        atexit.unregister(end)


class _Loading(Dataset):
    """A UserError travels as a value: raised in a worker, it would reach the user wrapped in a traceback's text."""

    def __init__(self, load: Callable[[Any], Any]) -> None:
        self.load = load

    def __getitem__(self, wanted: Any) -> Any:
        try:
            return self.load(wanted)
        except UserError as error:
            return error


def _begin_worker(worker: int) -> None:
    """Signals for the run reach the workers too; the run must still finish its step, and ends them itself.

    torch's workers watch whether the process that they began under is there. One whose run was killed before that would
    wait for work for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    run = multiprocessing.parent_process()
    if run is not None and run.pid != os.getppid() and multiprocessing.get_start_method() != "forkserver":
        os._exit(1)


def _end(workers: Iterable[BaseProcess]) -> None:
    """End those that hang, in a read for one."""
    for worker in workers:
        with suppress(RuntimeError):  # torch's word on workers that were killed
            if worker.is_alive():
                worker.kill()
                worker.join(1.0)


@cache
def check_start() -> None:
    """See that a process can start where it runs the main script again; else the first worker would be waited for."""
    process = multiprocessing.Process(target=bool)  # does nothing
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(
            "training.workers: a loader process ended before it began; each runs the script again on this system: put "
            'what starts training under `if __name__ == "__main__":`'
        )
