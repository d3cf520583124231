"""Images in a folder a class, as ImageNet is usually unpacked."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen
from torch import Tensor

from mixar_core.data.dataset import ImageDataset
from mixar_core.data.images import read_image
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid")}


@frozen
class ImageFolderConfig:
    """Where the images are.

    Args:
        path: a folder with `train/` and `validation/` (or `val/`, `valid/`), each with one folder a class, or, for
            an unlabelled set, with images.
    """

    path: str


class ImageFolder(ImageDataset):
    """Images in PATH/train/CLASS/ and PATH/val/CLASS/; labels are the class folders of train/ in sorted order.

    Raises:
        UserError: a folder is missing or empty; validation has a class that train has not, or images outside of
            classes where train has classes.
    """

    def __init__(self, config: ImageFolderConfig, *, split: str, image_size: int) -> None:
        if split not in SPLIT_FOLDERS:
            raise UserError(f"split {split!r}: must be one of {', '.join(SPLIT_FOLDERS)}")
        self.image_size = image_size
        self._root = _split_folder(Path(config.path).expanduser(), split)
        # The labels of both splits come from train/, where there is one: validation may lack a class.
        train = self._root.parent / "train"
        self.class_names = _class_folders(train if train.is_dir() else self._root)
        self.num_classes = len(self.class_names)
        unknown = set(_class_folders(self._root)) - set(self.class_names)
        if unknown:
            raise UserError(f"{self._root / min(unknown)}: a class that {train} does not have")
        found = [(file, label) for label, name in enumerate(self.class_names) for file in self._images(name)]
        if not found:
            found = [(file, NO_CLASS) for file in self._images("")]
            if found and self.class_names:  # ImageNet's validation images come so
                raise UserError(
                    f"{self._root}: {len(found):,} images in no class folder, and {train} has classes; "
                    f"sort them into {self._root / self.class_names[0]}/ and so on"
                )
        if not found:
            raise UserError(f"{self._root}: no images ({', '.join(SUFFIXES)}) in it")
        self._files = [file for file, _ in found]
        self._labels = [label for _, label in found]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file = self._root / self._files[index]
        return read_image(file, self.image_size, where=str(file)), self._labels[index]

    def labels(self) -> list[int]:
        return list(self._labels)

    def _images(self, folder: str) -> list[str]:
        """Paths of the images below a folder of the split, relative to the split, sorted."""
        paths = [
            os.path.relpath(os.path.join(where, file), self._root)
            for where, _, files in os.walk(self._root / folder, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
        return sorted(paths)


def _split_folder(path: Path, split: str) -> Path:
    for name in SPLIT_FOLDERS[split]:
        if (path / name).is_dir():
            return path / name
    raise UserError(f"{path}: no folder {' or '.join(f'{name}/' for name in SPLIT_FOLDERS[split])} in it")


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    )
