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
    """The names of an `.npz` file's arrays.

    Raises:
        UserError: it is none, or cut off.
    """
    with _opened(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


class NpzArray:
    """An array of an `.npz`: shape and dtype at once, values when they are first used, mapped where not compressed.

    So ten gigabytes of images need no memory. Pickles as where it lies, not as what it holds.

    Raises:
        UserError: it is not there, cut off, or holds Python objects.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with _opened(path) as archive, self._reading():
            if f"{name}.npy" not in archive.namelist():
                raise UserError(f"{path}: no array {name}; {choices(array_names(path), name)}")
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as file:
                self.shape, fortran, self.dtype = _HEADERS[npy.read_magic(file)](file)
                header = file.tell()
            with path.open("rb") as raw:
                raw.seek(info.header_offset)
                lengths = struct.unpack("<HH", raw.read(_LOCAL_HEADER)[26:30])  # of its name and extra field
        if self.dtype.hasobject:
            raise UserError(f"{path}: array {name} holds Python objects, which are not read")
        self.order: Any = "F" if fortran else "C"
        self.offset: int | None = None
        if info.compress_type == zipfile.ZIP_STORED:
            self.offset = info.header_offset + _LOCAL_HEADER + sum(lengths) + header
            if self.offset + self.dtype.itemsize * int(numpy.prod(self.shape, dtype=numpy.int64)) > path.stat().st_size:
                raise UserError(f"{path}: array {name} is cut off")

    @cached_property
    def array(self) -> numpy.ndarray:
        """The values, read-only where they are mapped."""
        if self.offset is not None:
            return numpy.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)
        with _opened(self.path) as archive, self._reading(), archive.open(f"{self.name}.npy") as file:
            found: numpy.ndarray = npy.read_array(file, allow_pickle=False)
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "array"}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, OSError, EOFError, struct.error, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: array {self.name} cannot be read: {one_line(error)}") from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{path}: not a readable .npz file: {one_line(error)}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an .npz file, or cut off") from error
    with archive:
        yield archive
