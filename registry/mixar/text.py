"""Small helpers for what is said."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def choices(names: Iterable[str], wanted: str = "") -> str:
    """What could have been meant: close matches of `wanted` first, then the names there are, on one line."""
    known = sorted(names)
    if not known:
        return "there are none"
    listed = ", ".join(known[:24]) + (f", ... ({len(known)} in all)" if len(known) > 24 else "")
    return f"{nearest(known, wanted)} allowed: {listed}".lstrip()


def nearest(names: Iterable[str], wanted: str) -> str:
    """The close matches of `wanted` as a question, or nothing."""
    close = get_close_matches(wanted, sorted(names), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""


def comes_with(package: str) -> str:
    """Where something of a package of this repository is had from."""
    folders = ("mixar_eval", package) if package == "mixar_zoo" else (package,)
    return f"it comes with {package}, in a checkout: pip install {' '.join(f'./plugins/{each}' for each in folders)}"


def tell(*lines: str) -> None:
    """Lines on stderr, of one process of a run."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            print(line, file=sys.stderr)


def one_line(error: BaseException) -> str:
    """An exception's message on one line, with its class where the message alone says little."""
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def first_of(items: Sequence[str]) -> str:
    """The first four, and how many more there are."""
    return ", ".join(items[:4]) + (f" and {len(items) - 4} more" if len(items) > 4 else "")


def shortened(value: object, *, limit: int = 40) -> str:
    """A value as text on one line, cut where it is long; of a digest twelve digits say enough."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: 12 if text.isalnum() else limit - 3]}..."


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute:02d} min"
    return f"{minute} min {second:02d} s" if minute else f"{second} s"
