"""One run at a time in a folder: a scheduler may start a job again while its first life still writes."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from mixar_core.errors import UserError
from mixar_core.training.files import writing

LOCK = ".lock"
#: Seconds to wait for another's lock, well under distributed.TIMEOUT: a run's end may overlap its next life's start,
#: and a file server keeps the locks of a machine that died until their lease runs out.
PATIENCE = 120.0


class FolderLock:
    """Keeps a second run out of a folder, until it is closed or this process ends, however it ends.

    A POSIX lock: NFS knows it, and loader processes, which may outlive a killed run by seconds, do not inherit it. (It
    is freed as well when its process opens the file again and closes it.) Where a file system has no locks, nobody is
    kept out. Of several processes that share a run only the main one takes it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: TextIOWrapper | None = None

    def take(self) -> None:
        """Take it, if it is not taken already; wait up to PATIENCE seconds where another process has it.

        Raises:
            UserError: another process keeps it (says which), or the folder is not there, or cannot be written.
        """
        end, told = time.monotonic() + PATIENCE, False
        with writing(self.path):
            while self._file is None:
                file = self.path.open("a+")
                holder = _lock(file)
                if holder is None and _is_at(file, self.path):  # else its last owner removed it meanwhile
                    self._file = file
                    break
                file.close()
                if holder is None:
                    continue
                works = f"{self.path.parent}: {holder} works in it"
                if time.monotonic() >= end:
                    raise UserError(
                        f"{works}; wait for its end, or stop it; if its machine is gone, remove {self.path}"
                    )
                if not told:
                    print(f"{works}; waiting up to {PATIENCE:.0f} s for its end", file=sys.stderr, flush=True)
                    told = True
                time.sleep(1.0)
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def close(self) -> None:
        """Let others in. Nothing happens where it was not taken."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
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
