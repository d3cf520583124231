"""Image files below a folder: what counts as one, and what was left out."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from functools import cache
from pathlib import Path

from attrs import frozen
from PIL import Image

from mixar_core.errors import UserError

#: Folders that systems leave among people's files, in lower case; hidden ones are left out anyway.
_SYSTEM_FOLDERS = {
    *("@eadir", "#recycle", "@recycle", "#snapshot", "__macosx", "lost+found", "$recycle.bin", "__pycache__"),
    "system volume information",
}
#: Formats that Pillow recognises and cannot decode.
_NEVER_DECODED = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")


@frozen
class ImageFiles:
    """The image files below a folder, each once, and what else is there.

    Args:
        files: paths relative to the folder, sorted.
        folders: names of the folders directly in it, sorted; without those that are hidden or a system's.
        left_out: what it is (".txt", "hidden") -> paths relative to the folder, sorted. A folder that is left out
            stands for all that is in it.
    """

    files: tuple[str, ...]
    folders: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]

    def note(self) -> str:
        """What was left out, in one line: how many of each kind, with an example; "" where all was taken."""
        kinds = [f"{len(paths):,} {kind} ({paths[0]})" for kind, paths in self.left_out.items()]
        return as_line(f"left out: {', '.join(kinds)}" if kinds else "")


def as_line(names: str) -> str:
    """Text with names of files in it, on one line that can be written: a name may be any bytes."""
    return " ".join(names.encode("utf-8", "backslashreplace").decode().splitlines())


@cache
def image_endings() -> frozenset[str]:
    """The endings of files that Pillow reads here, in lower case with the dot; what extends Pillow may add some."""
    Image.init()
    reads = {*Image.OPEN, "MPO"}.difference(_NEVER_DECODED)  # it opens MPO as JPEG
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in reads)


def is_hidden(name: str) -> bool:
    """Whether what has this name is not a person's data: it is hidden, or a folder that systems leave."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def data_folders(folder: str | Path) -> tuple[str, ...]:
    """Names of the folders, or links to some, directly in a folder, sorted; without those that are hidden.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:  # a link that leads nowhere, or to itself, is none
            return tuple(sorted(each.name for each in entries if os.path.isdir(each) and not is_hidden(each.name)))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error


def list_images(folder: Path) -> ImageFiles:
    """The image files below a folder, at any depth. Their endings decide: no file is opened.

    Links are followed, but every file and folder (device and inode) counts once: where it is, if that is below the
    folder, or else at the first link to it. Links to the folder itself or one above it are not followed.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        return _walk(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error


def _walk(root: Path) -> ImageFiles:
    """Real files and folders first and links after them, so that what is there wins over links to it."""
    seen = {_identity(os.stat(each)) for each in (root, *root.resolve().parents)}
    files, left_out = list[str](), defaultdict[str, list[str]](list)
    folders, links = deque([""]), deque[str]()

    def take(path: str, identity: tuple[int, int] | None = None) -> None:
        """A path; `identity` is that of a file which is known to be one, and to be new."""
        whole = os.path.join(root, path)
        if identity is None:
            if not os.path.exists(whole):
                return left_out["link to nothing"].append(path)
            identity = _identity(os.stat(whole))
            if identity in seen:
                return left_out["linked a second time"].append(path)
            if os.path.isdir(whole):
                seen.add(identity)
                return folders.append(path)
            if not os.path.isfile(whole):
                return left_out["neither file nor folder"].append(path)
        ending = os.path.splitext(path)[1].lower()
        if ending not in image_endings():
            return left_out[ending or "without an ending"].append(path)
        seen.add(identity)
        files.append(path)

    while folders or links:
        if not folders:
            take(links.popleft())
            continue
        folder = folders.popleft()
        device = os.stat(root / folder).st_dev
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(folder, entry.name)
                if is_hidden(entry.name):
                    left_out["hidden" if entry.name.startswith(".") else "folder of a system"].append(path)
                elif entry.is_symlink():
                    links.append(path)
                else:  # without another look at the disk, file by file; some file systems give all the same number
                    new = entry.is_file() and (device, entry.inode()) not in seen
                    take(path, (device, entry.inode()) if new else None)
    kinds = {kind: tuple(sorted(paths)) for kind, paths in sorted(left_out.items())}
    return ImageFiles(tuple(sorted(files)), data_folders(root), kinds)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
