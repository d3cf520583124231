"""Images in a folder a class, as ImageNet is usually unpacked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from unicodedata import normalize

from attrs import Attribute, field, frozen
from attrs.validators import ge, lt, optional
from PIL import ImageColor
from torch import Tensor

from mixar_core.data.dataset import EncodedImage, ImageDataset, empty_classes
from mixar_core.data.folders import ImageFiles, data_folders, list_images
from mixar_core.data.images import is_enlarged, read_header
from mixar_core.errors import UserError
from mixar_core.storage import user_path
from mixar_core.types import NO_CLASS, Grid, ImageSize
from mixar_plugins.datasets.layout import Layout, find_layout, set_aside

#: images whose headers tell what a person should know of all
_LOOKED_AT = 32


def _colour(_: object, field: Attribute[str | None], value: str | None) -> None:
    try:
        opaque = value is None or len(ImageColor.getrgb(value)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        raise ValueError(f"'{field.name}' must be an opaque colour, such as white or #808080; {value!r} is none")


@frozen
class ImageFolderConfig:
    """Where the images are.

    Args:
        path: a folder of class folders, or of images without a class; or one with `train/` and `validation/` (or
            `val/`, `valid/`), each of which is such a folder.
        orient: turn photos as their EXIF entry says, as viewers do. The published systems do not.
        validation: the share of the images that is set aside for validation, chosen by a hash of their paths. None: a
            tenth where `path` has no `train/` in it.
        background: what is seen where an image is transparent: a CSS colour or #rrggbb. None: white.
    """

    path: str = field(metadata={"path": True})
    orient: bool = False
    validation: float | None = field(default=None, validator=optional([ge(0), lt(1)]))
    background: str | None = field(default=None, validator=_colour)


class ImageFolder(ImageDataset):
    """Images in PATH/train/CLASS/ and PATH/val/CLASS/, at any depth; or in PATH/CLASS/, of which a share is validation.

    Labels are the class folders (of train/) in sorted order. Names are compared, and given, in Unicode's composed form
    (NFC): disks of different systems spell é differently.

    Raises:
        UserError: a folder is missing or empty, or may be meant in two ways; validation has a class that train has not;
            there are images beside the class folders.
    """

    def __init__(self, config: ImageFolderConfig, *, split: str, image_size: ImageSize) -> None:
        self.config, self.image_size = config, image_size
        layout = find_layout(user_path(config.path).absolute(), split, config.validation)
        self._root, train = layout.root, layout.classes
        found = list_images(self._root)
        self.class_names = _class_names(train)
        self.num_classes = len(self.class_names)
        every = self._labelled(found, train)
        self._rows, share_note = _of_split(every, layout, split)
        notes = [f"{self._root}: {found.note()}"] if found.left_out else []
        notes += [*layout.notes, *share_note]
        if split != "train" and train != self._root and train.samefile(self._root):
            notes.append(f"{self._root}: is the same folder as {train}")
        where = str(self._root) if layout.share is None else f"{self._root}, {split}"
        notes += empty_classes(where, self.class_names, self.labels())
        self.notes = (*notes, *self._looked_at(every))

    def _labelled(self, found: ImageFiles, train: Path) -> list[tuple[int, str]]:
        """The label and file of every image, in order."""
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
            direct = "no folder train/ and " if self._root == user_path(self.config.path).absolute() else ""
            raise UserError(f"{self._root}: {direct}no images in it{'; ' if found.left_out else ''}{found.note()}")
        label_of |= {name: label_of[normalize("NFC", name)] for name in found.folders}
        return sorted((label_of.get(file.split(os.sep)[0], NO_CLASS), file) for file in found.files)

    def _looked_at(self, rows: Sequence[tuple[int, str]]) -> list[str]:
        """Notes on what is done to some of these images, as far as a few headers tell."""
        headers = []
        some = [file for _, file in rows[:: -(-len(rows) // _LOOKED_AT)]]
        for file in some:
            with suppress(UserError):
                headers.append(read_header(self._root / file, where=file))
        config, found = self.config, dict[str, int]()
        if not config.orient:
            turning = "are to be turned as their EXIF entry says, and are not; data.orient=true turns them"
            found[turning] = sum(header.turned for header in headers)
        found[f"have transparency, shown over {config.background or 'white'} (data.background)"] = sum(
            header.transparent for header in headers
        )
        found["hold several pictures, of which the first is taken"] = sum(header.animated for header in headers)
        found[f"are smaller than {Grid.of_pixels(self.image_size).written} pixels, and are enlarged"] = sum(
            is_enlarged(*header.size, self.image_size) for header in headers
        )
        where = f"of {len(some)} images that were looked at"
        return [f"{self._root}: {count} {where} {what}" for what, count in found.items() if count]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.encoded(index)
        return image.pixels(self.image_size), image.label

    def encoded(self, index: int) -> EncodedImage:
        """An image's file and label."""
        label, file = self._rows[index]
        path, config = self._root / file, self.config
        return EncodedImage(path, label, str(path), orient=config.orient, background=config.background or "white")

    def labels(self) -> list[int]:
        return [label for label, _ in self._rows]


def _of_split(every: Sequence[tuple[int, str]], layout: Layout, split: str) -> tuple[list[tuple[int, str]], list[str]]:
    """The split's images of all in a folder, in order, and a note on what is set aside."""
    if layout.share is None:
        return list(every), []
    aside = set_aside(every, layout.share)
    if not aside and split == "validation":
        raise UserError(
            f"{layout.root}: {len(every):,} images, no class of which has two, so none is set aside for validation; "
            "training.evaluate_every=0 does without"
        )
    rows = [row for row in every if (row[1] in aside) == (split == "validation")]
    how = f"by a hash of their names (data.validation={layout.share:g})"
    note = f"{layout.root}: {len(aside):,} of {len(every):,} images are set aside for validation, {how}"
    return rows, [note] if aside else []


def _class_names(folder: Path) -> tuple[str, ...]:
    """The class folders' names in label order, which is that of the names as they are on disk."""
    names: dict[str, str] = {}
    for name in data_folders(folder):
        if (other := names.setdefault(normalize("NFC", name), name)) != name:
            raise UserError(f"{folder}: two class folders {name!a} and {other!a}, which are the same text; join them")
    return tuple(names)
