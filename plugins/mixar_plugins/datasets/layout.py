"""How class folders may lie, and which images of a folder without a validation split are set aside for one."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from unicodedata import normalize

from attrs import frozen

from mixar_core.data.dataset import SPLIT_NAMES, names_of_split
from mixar_core.data.folders import data_folders, image_endings
from mixar_core.errors import UserError

#: share that is set aside where a folder has no train/ in it
SHARE = 0.1
UNDERSTOOD = (
    "understood are CLASS/IMAGE, IMAGE (no classes), and both in train/, with or without another in validation/"
)
#: names of folders that say what they are for, and no class
_SPLITS = {*(name for names in SPLIT_NAMES.values() for name in names), "training", "test", "testing", "dev", "eval"}


@frozen
class Layout:
    """Where a split's images are.

    Args:
        root: the folder that they are in.
        classes: the folder whose folders are the classes.
        share: of the images in `root`, what is set aside for validation; None: all are the split's.
        notes: what else is there and not read.
    """

    root: Path
    classes: Path
    share: float | None
    notes: tuple[str, ...] = ()


def find_layout(path: Path, split: str, validation: float | None) -> Layout:
    """How a folder's images are laid out.

    Args:
        validation: the share that is to be set aside; None: `SHARE` where there is no train/.

    Raises:
        UserError: there is no such split, or it may be meant in two ways.
    """
    names_of_split(split)
    there = {each: [path / name for name in names if (path / name).is_dir()] for each, names in SPLIT_NAMES.items()}
    mine, train = there[split], path / "train"
    if validation and there["validation"]:
        raise UserError(f"data.validation: {validation:g} is to be set aside, and {there['validation'][0]} is there")
    if split == "validation" and there["train"] and validation:
        mine = there["train"]
    if mine:
        unread = [f"{other}: not read, because {mine[0]} is there" for other in mine[1:]]
        beside = [name for name in data_folders(path) if name not in _SPLITS and _images_in(path / name)]
        if beside and not there["validation"] and _images_in(train):
            one = f"train/ may be a class like {beside[0]}/, or hold all images"
            raise UserError(f"{path}: {one}; move the class folders into one folder train/, or {beside[0]}/ away")
        if beside:
            unread.append(f"{path}: not read, because train/ is there: {_shown(beside)}")
        # The labels of both splits come from train/, where there is one: validation may lack a class.
        classes = train if there["train"] else mine[0]
        return Layout(mine[0], classes, validation or None if classes == mine[0] else None, tuple(unread))
    if there["train"]:
        none = "no share is set aside (data.validation=0.1 would), and no folder validation/ or val/ or valid/ in it"
        raise UserError(f"{path}: {none}; training.evaluate_every=0 does without")
    _check_direct(path, bool(there["validation"]))
    if validation == 0 and split == "validation":
        raise UserError(f"{path}: data.validation is 0: no image is set aside; training.evaluate_every=0 does without")
    return Layout(path, path, SHARE if validation is None else validation)


def _check_direct(path: Path, has_validation: bool) -> None:
    """See that the folders directly in `path`, if there are any, can be meant as classes."""
    if not path.is_dir() or has_validation:
        what = "no folder train/ in it" if path.is_dir() else "no folder train/, nor any other: it is not there"
        raise UserError(f"{path}: {what}; {UNDERSTOOD}")
    folders = data_folders(path)
    if splits := [name for name in folders if name.casefold() in _SPLITS]:
        raise UserError(
            f"{path}: no folder train/ in it, and {splits[0]}/ is no name of a class; {UNDERSTOOD}; rename it"
        )
    only = path / folders[0] if len(folders) == 1 else None
    if only and not _images_in(path) and not _images_in(only) and (inner := data_folders(only)):
        raise UserError(f"{path}: holds one folder, {only.name}/, and that holds {_shown(inner)}; give {only}")


def _shown(folders: Sequence[str]) -> str:
    more = f" and {len(folders) - 4:,} more" if len(folders) > 4 else ""
    return ", ".join(f"{name}/" for name in folders[:4]) + more


def _images_in(folder: Path) -> bool:
    """Whether there is an image directly in a folder."""
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in image_endings() for entry in entries)
    except OSError:
        return False


def set_aside(rows: Iterable[tuple[int, str]], share: float) -> set[str]:
    """The files of a folder that are for validation, of all in it, given as (label, path relative to the folder).

    Every file has a place in [0, 1), which is a hash of its path, and is set aside where that is below `share`. So each
    stays where it is when others come, on every machine. Two exceptions make the split usable; a file that comes may
    end them: of a class all of whose files are below, the last is kept for training, and where none at all is below,
    the first is set aside whose class has another.
    """
    places: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for label, file in rows:
        places[label][file] = _place(file)
    chosen = set[str]()
    for files in places.values():
        below = {file for file, place in files.items() if place < share}
        chosen |= below - {max(files, key=lambda file: (files[file], file))} if len(below) == len(files) else below
    if not chosen and share:
        left = {file: place for files in places.values() if len(files) > 1 for file, place in files.items()}
        chosen |= set(sorted(left, key=lambda file: (left[file], file))[:1])
    return chosen


def _place(file: str) -> float:
    """A number in [0, 1) of a path, however this system writes it."""
    name = normalize("NFC", file.replace(os.sep, "/")).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:6]) / 2**48
