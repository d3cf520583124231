"""One run at a time in a folder: a scheduler may start a job again while its first life still writes."""

from __future__ import annotations

import fcntl
import os
import socket
from io import TextIOWrapper
from pathlib import Path

from mixar_core.errors import UserError
from mixar_core.training.files import writing

LOCK = ".lock"


class FolderLock:
    """Keeps a second run out of a folder, until it is closed or this process ends, however it ends.

    A POSIX lock: NFS knows it, and loader processes, which may outlive a killed run by seconds, do not inherit it. (It
    is freed as well when its process opens the file again and closes it.) Where a file system has no locks, nobody is
    kept out.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: TextIOWrapper | None = None

    def take(self) -> None:
        """Take it, if it is not taken already.

        Raises:
            UserError: another process has it (says which), or the folder is not there, or cannot be written.
        """
        with writing(self.path):
            while self._file is None:
                file = self.path.open("a+")
                self._lock(file)
                if _is_at(file, self.path):  # else its last owner removed it meanwhile
                    self._file = file
                else:
                    file.close()
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def close(self) -> None:
        """Let others in. Nothing happens where it was not taken."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _lock(self, file: TextIOWrapper) -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise UserError(f"{self.path.parent}: {holder} works in it; wait for its end, or stop it") from error
        except OSError:
            pass  # no locks here


def _is_at(file: TextIOWrapper, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
