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


class Mapped:
    """An array in a file, mapped when it is first used; pickles as where it lies, not as what it holds."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: numpy.dtype, order: Any, offset: int) -> None:
        self.path, self.shape, self.dtype, self.order, self.offset = path, shape, dtype, order, offset

    @cached_property
    def array(self) -> numpy.ndarray:
        """The array, read-only."""
        return numpy.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "array"}


class Whole:
    """An array in memory, with what `Mapped` has."""

    def __init__(self, array: numpy.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype


class Archive:
    """An opened `.npz`."""

    def __init__(self, path: Path, arrays: Any) -> None:
        self.path, self._arrays = path, arrays
        self.names: tuple[str, ...] = tuple(arrays.files)

    def load(self, name: str) -> numpy.ndarray:
        """An array, read.

        Raises:
            UserError: it is not there, or holds Python objects.
        """
        if name not in self.names:
            raise UserError(f"{self.path}: no array {name}; {choices(self.names, name)}")
        try:
            return self._arrays[name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: array {name} cannot be read: {one_line(error)}") from error

    def stored(self, name: str) -> Mapped | Whole:
        """An array, mapped where the file has it uncompressed, so that ten gigabytes of images need no memory."""
        member = f"{name}.npy"
        if member not in self._arrays.zip.namelist():
            return Whole(self.load(name))
        info = self._arrays.zip.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return Whole(self.load(name))
        try:
            with self._arrays.zip.open(info) as file:
                read_header = _HEADERS.get(npy.read_magic(file))
                if read_header is None:
                    return Whole(self.load(name))
                shape, fortran, dtype = read_header(file)
                header = file.tell()
            with self.path.open("rb") as raw:
                raw.seek(info.header_offset)
                name_length, extra_length = struct.unpack("<HH", raw.read(_LOCAL_HEADER)[26:30])
        except (ValueError, OSError, EOFError, struct.error, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path}: array {name} cannot be read: {one_line(error)}") from error
        if dtype.hasobject:
            raise UserError(f"{self.path}: array {name} holds Python objects, which are not read")
        offset = info.header_offset + _LOCAL_HEADER + name_length + extra_length + header
        if offset + dtype.itemsize * int(numpy.prod(shape, dtype=numpy.int64)) > self.path.stat().st_size:
            raise UserError(f"{self.path}: array {name} is cut off")
        return Mapped(self.path, shape, dtype, "F" if fortran else "C", offset)


@contextmanager
def opened_arrays(path: Path) -> Iterator[Archive]:
    """Open an `.npz`.

    Raises:
        UserError: it is none, or cut off.
    """
    try:
        if not zipfile.is_zipfile(path):  # numpy would offer to unpickle it
            raise UserError(f"{path}: not an .npz file, or cut off")
        opened = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file: {one_line(error)}") from error
    with opened:
        yield Archive(path, opened)
