"""Images in a folder a class, as ImageNet is usually unpacked."""

from __future__ import annotations

import os
from pathlib import Path
from unicodedata import normalize

from attrs import field, frozen
from torch import Tensor

from mixar_core.data.dataset import ImageDataset, empty_classes, names_of_split
from mixar_core.data.folders import data_folders, list_images
from mixar_core.data.images import count_turned, read_image
from mixar_core.errors import UserError
from mixar_core.storage import user_path
from mixar_core.types import NO_CLASS

#: images whose headers tell whether photos lie on their side
_LOOKED_AT = 32


@frozen
class ImageFolderConfig:
    """Where the images are.

    Args:
        path: a folder with `train/` and `validation/` (or `val/`, `valid/`), each with one folder a class, or, for
            an unlabelled set, with images.
        orient: turn photos as their EXIF entry says, as viewers do. The published systems do not.
    """

    path: str = field(metadata={"path": True})
    orient: bool = False


class ImageFolder(ImageDataset):
    """Images in PATH/train/CLASS/ and PATH/val/CLASS/, at any depth; labels are the folders of train/ in sorted order.

    Names are compared, and given, in Unicode's composed form (NFC): disks of different systems spell é differently.

    Raises:
        UserError: a folder is missing or empty; validation has a class that train has not; there are images beside the
            class folders.
    """

    def __init__(self, config: ImageFolderConfig, *, split: str, image_size: int) -> None:
        self.config, self.image_size = config, image_size
        path = user_path(config.path).absolute()
        there = [path / name for name in names_of_split(split) if (path / name).is_dir()]
        if not there:
            names = " or ".join(f"{name}/" for name in names_of_split(split))
            without = "; training.evaluate_every=0 does without" if split == "validation" else ""
            raise UserError(f"{path}: no folder {names} in it{without}")
        self._root = there[0]
        # The labels of both splits come from train/, where there is one: validation may lack a class.
        train = path / "train" if (path / "train").is_dir() else self._root
        found = list_images(self._root)
        self.class_names = _class_names(train)
        self.num_classes = len(self.class_names)
        label_of = {name: label for label, name in enumerate(self.class_names)}
        if unknown := [name for name in found.folders if normalize("NFC", name) not in label_of]:
            raise UserError(f"{self._root / unknown[0]}: a class that {train} does not have")
        loose = [file for file in found.files if os.sep not in file]
        if loose and label_of:  # ImageNet's validation images come so
            raise UserError(
                f"{self._root}: {len(loose):,} images in no class folder ({loose[0]}), "
                f"{len(found.files) - len(loose):,} in class folders, of which {train} has {self.num_classes:,} "
                f"({self.class_names[0]}); move away what is no class, or sort them into "
                f"{self._root / self.class_names[0]}/ and so on"
            )
        if not found.files:
            raise UserError(f"{self._root}: no images in it{'; ' if found.left_out else ''}{found.note()}")
        label_of |= {name: label_of[normalize("NFC", name)] for name in found.folders}
        self._rows = sorted((label_of.get(file.split(os.sep)[0], NO_CLASS), file) for file in found.files)
        notes = [f"{self._root}: {found.note()}"] if found.left_out else []
        notes += [f"{other}: not read, because {self._root} is there" for other in there[1:]]
        if split != "train" and train != self._root and train.samefile(self._root):
            notes.append(f"{self._root}: is the same folder as {train}")
        notes += empty_classes(str(self._root), self.class_names, self.labels())
        self.notes = (*notes, *([] if config.orient else self._turned()))

    def _turned(self) -> list[str]:
        """A note where photos are to be turned and are not."""
        some = [self._root / file for _, file in self._rows[:: -(-len(self._rows) // _LOOKED_AT)]]
        turned = count_turned(some)
        where = f"{self._root}: {turned} of {len(some)} images that were looked at"
        how = "are to be turned as their EXIF entry says, and are not; data.orient=true turns them"
        return [f"{where} {how}"] if turned else []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, file = self._rows[index]
        path = self._root / file
        return read_image(path, self.image_size, where=str(path), orient=self.config.orient), label

    def labels(self) -> list[int]:
        return [label for label, _ in self._rows]


def _class_names(folder: Path) -> tuple[str, ...]:
    """The class folders' names in label order, which is that of the names as they are on disk."""
    names: dict[str, str] = {}
    for name in data_folders(folder):
        if (other := names.setdefault(normalize("NFC", name), name)) != name:
            raise UserError(f"{folder}: two class folders {name!a} and {other!a}, which are the same text; join them")
    return tuple(names)
