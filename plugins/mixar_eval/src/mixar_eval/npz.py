"""Reading `.npz` files of others: nothing is unpickled, and what is large is mapped instead of read."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from numpy.lib import format as npy

from mixar.text import choices, one_line
from mixar_core.errors import UserError

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name and extra field


def array_names(path: Path) -> tuple[str, ...]:
    """The names of an `.npz` file's arrays."""
    with _reading(path, "not an .npz file, or cut off"), zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


class NpzArray:
    """An array of an `.npz`: shape and dtype at once, values when they are first used, mapped where not compressed.

    So ten gigabytes of images need no memory. Pickles as where it lies, not as what it holds.

    Raises:
        UserError: it is not there, cut off, or holds Python objects.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        if name not in (names := array_names(path)):
            raise UserError(f"{path}: no array {name}; {choices(names, name)}")
        with self._reading(), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            self.shape, fortran, self.dtype = _HEADERS[npy.read_magic(file)](file)
            header, info = file.tell(), archive.getinfo(f"{name}.npy")
            with path.open("rb") as raw:
                raw.seek(info.header_offset)
                lengths = struct.unpack("<HH", raw.read(_LOCAL_HEADER)[26:30])  # of its name and extra field
        if self.dtype.hasobject:
            raise UserError(f"{path}: array {name} holds Python objects, which are not read")
        self.order: Any = "F" if fortran else "C"
        self.mapped = info.compress_type == zipfile.ZIP_STORED
        self.offset = info.header_offset + _LOCAL_HEADER + sum(lengths) + header

    @cached_property
    def array(self) -> numpy.ndarray:
        """The values, read-only where they are mapped."""
        with self._reading():
            if self.mapped:
                return numpy.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)
            with numpy.load(self.path, allow_pickle=False) as archive:
                found: numpy.ndarray = archive[self.name]
                return found

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "array"}

    def _reading(self) -> Any:
        return _reading(self.path, f"array {self.name} cannot be read")


@contextmanager
def _reading(path: Path, problem: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {problem}: {one_line(error)}") from error
