"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixar_core.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong while writing `path` (full disk, no permission) becomes a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path} cannot be written: {reason}") from error


def file_sha256(path: Path) -> str:
    """A file's digest, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a hidden file beside `path`, then rename it to `path`.

    Raises:
        UserError: it cannot be written; nothing is left behind.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    with writing(path):
        try:
            write(unfinished)
            sync(unfinished)
            os.replace(unfinished, path)
            sync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole (see write_whole)."""
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_weights(path: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Write a state dict as safetensors, whole; with `dtype`, floating-point tensors are cast to it.

    Tensors that share memory (tied weights) are written under each of their names.

    Raises:
        UserError: it cannot be written; nothing is left behind.
    """
    ready: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        cast = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        storage = cast.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != cast.numel() * cast.element_size():
            cast = cast.clone()
        taken.add(cast.untyped_storage().data_ptr())
        ready[name] = cast

    def save(unfinished: Path) -> None:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(ready, unfinished)
        unfinished.chmod(mode)  # safetensors lets nobody but the owner read its files

    write_whole(path, save)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        UserError: it is missing, truncated or no safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error
