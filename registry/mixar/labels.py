"""What a caller asks for, looked at before it is used: classes by number or name, codes, numbers of a setting."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any

import numpy
import torch
from torch import Tensor

from mixar.text import choices, shortened
from mixar.written import plain_values
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS

#: one class by number or name, or several: a list, a range, a generator, a 1-D array or tensor of whole numbers
Labels = int | str | Iterable[Any]


def class_numbers(labels: Labels, count: int, names: Sequence[str]) -> list[int]:
    """Class numbers, of numbers (NO_CLASS for none) or names, one or several; nothing else is taken.

    Args:
        count: of the model's classes. names: theirs, in label order; empty where they are not known.
    """
    if isinstance(labels, bytes | bytearray | memoryview | Mapping | Set):
        raise UserError(f"labels are a {type(labels).__name__}; give a list: one image is drawn for each, in its order")
    values = plain_values(labels, "labels")
    several = [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not several:
        raise UserError("no labels given; one image is drawn for each")
    return [_class_number(_plain(label), count, names) for label in several]


def _class_number(label: Any, count: int, names: Sequence[str]) -> int:
    if isinstance(label, str):
        same = [number for number, known in enumerate(names) if known == label]
        found = same or [number for number, known in enumerate(names) if _composed(known) == _composed(label)]
        if len(found) > 1:
            numbers = ", ".join(map(str, found))
            raise UserError(f'class "{label}" is there more than once; give one of its numbers: {numbers}')
        if not found:
            known = choices(names, label) if names else "the names are not known; give numbers"
            raise UserError(f'unknown class "{label}"; {known}')
        return found[0]
    if not isinstance(label, Integral) or isinstance(label, bool):
        raise UserError(
            f"label {shortened(repr(label))}: neither a whole number nor a name; labels are one or several of these"
        )
    number = int(label)
    if number != NO_CLASS and not 0 <= number < count:
        allowed = f"0 to {count - 1}, or " if count else ""
        raise UserError(f"unknown label {number}; allowed: {allowed}{NO_CLASS} for no class")
    return number


def split_names(text: str, names: Sequence[str]) -> list[str]:
    """The class names in a text that separates them by commas, which may be in names too.

    The whole text is a name where there is such a class. Else it is cut at commas so that each piece is one; a text
    that can be cut in several ways is refused.
    """
    known = {*map(_composed, names)}
    if _composed(text) in known:
        return [text]
    items = text.split(",")
    ways: list[list[list[str]]] = [[[]]]  # how the first n items can be read, up to two or so of them
    for end in range(1, len(items) + 1):
        pieces = [(start, ",".join(items[start:end])) for start in range(end)]
        names_ending = [(start, name) for start, piece in pieces for name in dict.fromkeys((piece, piece.strip()))]
        ways.append(
            [[*way, name] for start, name in names_ending if _composed(name) in known for way in ways[start][:2]]
        )
    if len(ways[-1]) > 1:
        one, other = (" | ".join(way) for way in ways[-1][:2])
        raise UserError(f"classes {text}: can be read as {one} or as {other}; give --classes once for each name")
    return ways[-1][0] if ways[-1] else [item.strip() for item in items]


def checked_number(value: object, what: str, *, low: int, whole: bool = False, needed: bool = False) -> Any:
    """A finite number, at least `low`, as a plain int or float; None stays None unless it is `needed`."""
    if value is None and not needed:
        return None
    number = _plain(value)
    good = isinstance(number, Integral if whole else Real) and not isinstance(number, bool)
    if not good or not (whole or abs(number) <= sys.float_info.max) or number < low:
        raise UserError(
            f"{what}: {shortened(repr(value))}; allowed: a {'whole ' if whole else ''}number, {low} or more"
        )
    return int(number) if whole else float(number)


def code_tensor(codes: object, images: int | None, tokens: int, codebook_size: int) -> Tensor:
    """Codes int64 (B, N) of an array or tensor of whole numbers; `images` is what B must be, None: any."""
    try:
        found = codes if isinstance(codes, Tensor) else torch.from_numpy(_native(numpy.asanyarray(codes)))
        if found.layout != torch.strided or found.is_meta:
            raise ValueError("sparse, or on the meta device")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"codes are a {type(codes).__name__}; needed: whole numbers (B, {tokens})") from error
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if not whole or found.ndim != 2 or found.shape[1] != tokens or images not in (None, len(found)):
        needed = f"({'B' if images is None else images}, {tokens})"
        raise UserError(f"codes are {found.dtype} {tuple(found.shape)}; needed: whole numbers {needed}")
    found = found.to(torch.int64)
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < codebook_size:
        raise UserError(f"codes lie outside 0 to {codebook_size - 1}")
    return found


def _native(array: numpy.ndarray) -> numpy.ndarray:
    """A copy in this machine's order of bytes.

    Raises:
        ValueError: some values are masked.
    """
    if numpy.ma.is_masked(array):
        raise ValueError("masked values")
    return numpy.array(array, dtype=array.dtype.newbyteorder("="))


def _plain(value: object) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
