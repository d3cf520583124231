"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixar_core.errors import UserError


def user_path(text: str | Path) -> Path:
    """A path as a person wrote it, in a recipe, an option or a call: `~` is the home folder, everywhere.

    Raises:
        UserError: it is empty, `~name` of nobody known here, too long for this system, or no path.
    """
    if text == "":
        raise UserError("an empty path; that of the working directory is .")
    try:
        path = Path(text).expanduser() if str(text)[:1] == "~" else Path(text)  # ./~ is a folder called so
        path.exists()  # says whether the system can look for it at all
        return path
    except TypeError as error:
        raise UserError(f"{text!r}: not a path") from error
    except OSError as error:
        raise UserError(f"{str(text)[:100]}: {error.strerror}") from error
    except RuntimeError as error:
        raise UserError(f"{text}: {error}; write the folder out") from error


def is_url(text: str) -> bool:
    """Whether a text begins as a URL: `hf://...`, `simplecache::s3://...`; paths may hold :// later."""
    return re.match(r"(\w+::)*[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def is_free(folder: Path, *beside: Path) -> bool:
    """Whether a folder is not there yet, or empty but for these files."""
    return not folder.exists() or (folder.is_dir() and all(path in beside for path in folder.iterdir()))


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


def state_sha256(module: nn.Module) -> str:
    """The digest of a module's state dict, in hex: of all names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A hidden folder to write into, which is renamed to `folder` in the end; after an error nothing is left of it.

    Args:
        replace: a folder that is there goes; without, only an empty one may be there.

    Raises:
        UserError: it cannot be written.
    """
    with writing(folder):
        target = folder.absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".unfinished") as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            yield new
            if replace and target.exists():
                os.rename(target, Path(scratch) / "old")
            os.rename(new, target)


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
    """The tensors of a safetensors file, on the CPU; they lie in the file, and are read where they are touched.

    Raises:
        UserError: it is missing, truncated or no safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error


LOCK = ".lock"
#: Seconds to wait for another's lock, well under distributed.TIMEOUT: a run's end may overlap its next life's start,
#: and a file server keeps the locks of a machine that died until their lease runs out.
PATIENCE = 120.0


class FolderLock:
    """Keeps a second run out of a folder, until it is closed or this process ends, however it ends.

    A POSIX lock: NFS knows it, and loader processes, which may outlive a killed run by seconds, do not inherit it.
    Where a file system has no locks, nobody is kept out. Of processes that share a run only the main one takes it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: TextIOWrapper | None = None

    def take(self) -> None:
        """Take it, if it is not taken already; wait up to PATIENCE seconds where another process has it.

        Raises:
            UserError: another process keeps it (says which), or the folder is not there, or cannot be written.
        """
        end, announced = time.monotonic() + PATIENCE, False
        while self._file is None:
            with writing(self.path):
                file = self.path.open("a+")
                holder = _lock(file)
                if holder is None and _is_at(file, self.path):
                    self._file = file
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}")
                    file.flush()
                    return
                file.close()
            if holder is None:  # its last owner removed it meanwhile
                continue
            works = f"{self.path.parent}: {holder} works in it"
            if time.monotonic() >= end:
                raise UserError(f"{works}; wait for its end, or stop it; if its machine is gone, remove {self.path}")
            if not announced:
                print(f"{works}; waiting up to {PATIENCE:.0f} s for its end", file=sys.stderr, flush=True)
                announced = True
            time.sleep(1.0)

    def close(self) -> None:
        """Let others in, where it was taken."""
        if self._file is not None:
            with suppress(OSError):  # where nothing can be written any more, the end of the file's lock is enough
                self.path.unlink()
            self._file.close()
            self._file = None


def _lock(file: TextIOWrapper) -> str | None:
    """Lock the file, and return None; or, where that cannot be, say who has the lock."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        return file.read() or "another process"
    except OSError:
        pass  # no locks here
    return None


def _is_at(file: TextIOWrapper, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
