"""What a contract says: it stops at the first thing that does not hold, or notes it and goes on, asked for findings."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from attrs import Factory, define, frozen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixar_core.errors import UserError

T = TypeVar("T")
#: the topic of what happens before a component stands
BUILT = "it is built"


@frozen
class Finding:
    """What a contract found on one topic.

    Args:
        topic: what it is about.
        problems: what does not hold; none: all does.
        remarks: what was measured, or why it was not checked.
    """

    topic: str
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@define
class _Notes:
    """What is noted while a contract runs; the topic is the last one."""

    topic: str
    problems: dict[str, list[str]]
    tell: Callable[[Finding], object]
    remarks: dict[str, list[str]] = Factory(dict)
    told: dict[str, int] = Factory(dict)

    def tell_of(self, name: str) -> None:
        """Tell of a topic, or of what is new there."""
        before = self.told.get(name, 0)
        new = [said for said in self.problems[name][before:] if said not in self.problems[name][:before]]
        if new or name not in self.told:
            self.tell(Finding(name, tuple(new), tuple(self.remarks.get(name, ()))))
        self.told[name] = len(self.problems[name])


_NOTES: ContextVar[_Notes | None] = ContextVar("notes", default=None)


def findings(
    check: Callable[[], object], *, begins: str = BUILT, tell: Callable[[Finding], object] = lambda _: None
) -> list[Finding]:
    """Run a contract as far as it goes and give what it found, topic by topic, in order.

    Args:
        begins: the first topic.
        tell: called with each finding when the next topic begins; where one is returned to, of what is new.

    Raises:
        UserError: the component refuses its settings or what it stands beside, so that there is nothing to check.
    """
    notes = _Notes(begins, {begins: []}, tell)
    token = _NOTES.set(notes)
    try:
        check()
    except Exception as error:
        if isinstance(error, UserError) and notes.topic == BUILT:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        problems = notes.problems[notes.topic]
        problems.append(f"{'after that ' if problems else ''}{said}; what follows was not checked")
    finally:
        _NOTES.reset(token)
    for name in notes.problems:
        notes.tell_of(name)
    return [Finding(name, tuple(said), tuple(notes.remarks.get(name, ()))) for name, said in notes.problems.items()]


def topic(name: str) -> None:
    """What is checked from here on is about this."""
    if (notes := _NOTES.get()) is not None:
        if name != notes.topic:
            notes.tell_of(notes.topic)
        notes.topic = name
        notes.problems.setdefault(name, [])


def expect(fact: bool, message: str) -> None:
    """Raise AssertionError with the message unless the fact holds; where findings are asked for, note it instead."""
    if not fact:
        notes = _NOTES.get()
        if notes is None:
            raise AssertionError(message)
        notes.problems[notes.topic].append(message)


def measured(what: str, call: Callable[[], T]) -> T:
    """What `call` returns; where findings are asked for, time and memory of the first are noted, by the name `what`."""
    notes, name = _NOTES.get(), "speed and memory"
    if notes is None or name in notes.remarks:
        return call()
    started = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - started
    with _Memory() as memory:
        call()
    remark(name, f"{what}: {1e3 * seconds:,.2f} ms, {memory.most / 1e6:,.3f} MB")
    return found


def remark(name: str, said: str) -> None:
    """What is not checked on a topic but to be known; the next `expect` is not about it."""
    if (notes := _NOTES.get()) is not None:
        notes.problems.setdefault(name, [])
        notes.remarks.setdefault(name, []).append(said)
        notes.tell_of(name)


class _Memory(TorchDispatchMode):
    """The most bytes of tensors that were there at one time, of those that operators made or looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.there: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self.there.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.there:
                    self.there.add(key)
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._free, key, size)
        return out
