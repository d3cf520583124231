"""Sets of images to measure, from what a command line says: a recipe's data, a data set part, a PNG folder, an `.npz`.

Folders and `.npz` files are taken as they are, to the pixel: what has another size is refused, not resized, and so are
JPEGs, whose artefacts a feature extractor sees.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

from mixar import strict_yaml
from mixar.assembly import open_data
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar.sampling import MANIFEST, plan_of
from mixar.structure import Invalid, structure
from mixar.text import choices, one_line
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.images import UNREADABLE
from mixar_core.data.loader import load_batches
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS
from mixar_eval.archives import opened_arrays

SPLITS = ("train", "validation")
#: what `data` alone stands for
DATA = "data"
_LOSSY = (".jpg", ".jpeg", ".jfif")
_PICTURES = (*_LOSSY, ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1")


@frozen(eq=False)
class ImageSet:
    """Images of one size with what a report says of them; `split` is None where they are not known to be one."""

    data: ImageDataset
    description: str
    height: int
    width: int
    split: str | None = None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def labels(self) -> list[int] | None:
        """One a image; None where they are not known."""
        labels = self.data.labels()
        return None if all(label == NO_CLASS for label in labels) else labels

    def batches(self, indices: Tensor | None = None, *, batch_size: int = 64, workers: int = 0) -> Iterator[Tensor]:
        """Images uint8 (B, 3, H, W) at `indices`, in that order; all of them by default.

        Raises:
            UserError: one cannot be read.
        """
        wanted = torch.arange(len(self)) if indices is None else indices
        lists = [part.tolist() for part in wanted.split(batch_size) if len(part)]
        for loaded in load_batches(self.data, lists, workers=workers):
            for reason in loaded.unreadable.values():  # training goes on with another image, a measurement must not
                raise UserError(reason)
            yield loaded.pixels_B3HW


def open_images(
    text: str,
    registry: Registry,
    *,
    recipe: Recipe | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    option: str = "--data",
) -> ImageSet:
    """The images that `text` names.

    Args:
        text: `data:validation` (the recipe's; `data` alone is `data:train`), `PART:SPLIT` or `PART:SPLIT,setting=value`
            (a data set part, such as `image-folder:validation,path=/data/imagenet`), a folder of PNGs or of class
            folders of PNGs, or an `.npz` with `arr_0` uint8 (N, H, W, 3) and perhaps labels `arr_1`.
        recipe: the evaluated model's, if there is one.
        image_size: side that the images must have; None: that of the first one of a folder or file.
        num_classes: labels must be below it; None: any.
        class_names: of the class folders, in label order; empty: the folders in sorted order.
        option: how an error names where `text` came from.

    Raises:
        UserError: there is no such set, it is not as described above, a stream, or of fewer than 2 images.
    """
    image_size = recipe.image_size if image_size is None and recipe is not None else image_size
    where = f"{option} {text}"
    head, colon, rest = text.partition(":")
    if head == DATA:
        split = _split(rest if colon else "train", where)
        if recipe is None:
            raise UserError(f"{where}: a model's recipe names its data, and there is no model here; give a folder")
        found = _of_data(open_data(recipe, registry, split), split, _named(recipe), recipe.image_size)
    elif colon and head in {part.name for part in registry.parts("dataset")}:
        if image_size is None:
            raise UserError(f"{where}: at which size is not known without a model; give a folder or an .npz")
        found = _of_part(head, rest, registry, image_size, where)
    else:
        path = Path(text).expanduser()
        if path.is_dir():
            data: ImageDataset = PNGFolder(path, class_names=class_names, image_size=image_size)
        elif path.suffix == ".npz" and path.is_file():
            data = NpzImages(path, image_size=image_size)
        else:
            known = ", ".join(f"{part.name}:SPLIT" for part in registry.parts("dataset"))
            raise UserError(
                f"{where}: no such folder or .npz file; allowed: {DATA}:train, {DATA}:validation, {known}, a folder of "
                f"PNGs, an .npz of images"
            )
        _check_count(data, where)
        height, width = data[0][0].shape[-2:]
        kind = "PNG images" if path.is_dir() else "images (arr_0)"
        found = ImageSet(data, f"{path}: {len(data):,} {kind} of {width}x{height}", height, width)
    _check_count(found.data, where)
    _check_labels(found.data, num_classes, where)
    return found


def _check_count(data: ImageDataset, where: str) -> None:
    if len(data) < 2:
        raise UserError(f"{where}: too few images: {len(data)}; a set to measure has at least 2")


def other_split(text: str) -> str | None:
    """The same data's other split; None where `text` names no split."""
    head, _, rest = text.partition(":")
    split, comma, settings = rest.partition(",")
    split = split or ("train" if head == DATA else "")
    if split not in SPLITS:
        return None
    return f"{head}:{SPLITS[1 - SPLITS.index(split)]}{comma}{settings}"


def _of_data(data: ImageDataset, split: str, name: str, size: int) -> ImageSet:
    return ImageSet(data, f"{split} split of {name}: {len(data):,} images at {size}x{size}", size, size, split)


def _of_part(name: str, rest: str, registry: Registry, image_size: int, where: str) -> ImageSet:
    split, *settings = rest.split(",")
    split = _split(split, where)
    plain: dict[str, Any] = {}
    for item in settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"{where}: {item!r} is not of the form setting=value")
        plain[key.strip()] = strict_yaml.load(value, where=where)
    part = registry.part("dataset", name)
    try:
        config = structure(plain, part.config)
    except Invalid as invalid:
        raise UserError(f"{where}: {'; '.join(invalid.problems)}") from invalid
    return _of_data(part.component(config, split=split, image_size=image_size), split, name, image_size)


def _split(name: str, where: str) -> Any:
    if name not in SPLITS:
        raise UserError(f"{where}: no split {name!r}; {choices(SPLITS, name)}")
    return name


def _named(recipe: Recipe) -> str:
    return recipe.data.type if recipe.data is not None else recipe.name


def _check_labels(data: ImageDataset, num_classes: int | None, where: str) -> None:
    if num_classes is None:
        return
    wrong = sorted({label for label in data.labels() if label != NO_CLASS and not 0 <= label < num_classes})
    if wrong:
        allowed = f"0 to {num_classes - 1}" if num_classes else "none, the model has no classes"
        raise UserError(f"{where}: label {wrong[0]} is out of range; allowed: {allowed}")


class PNGFolder(ImageDataset):
    """PNGs in a folder, or in a folder a class, all of one size. Files are seen to be PNGs without decoding them.

    In a folder that `mixar sample` wrote, the numbered images with the labels they were drawn for.

    Raises:
        UserError: there are none, or one is no 8-bit PNG or of another size.
    """

    def __init__(self, folder: Path, *, class_names: Sequence[str] = (), image_size: int | None = None) -> None:
        self.folder = folder
        self.class_names = tuple(class_names)
        self._files, self._labels = self._found()
        self.num_classes = len(self.class_names)
        self._shape = (image_size, image_size) if image_size else None
        for file in self._files:
            self._shape = self._checked(folder / file, self._shape)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.folder / self._files[index]
        try:
            with Image.open(path) as opened:
                pixels = numpy.array(opened.convert("RGB"))
        except UNREADABLE as error:
            raise UserError(f"{path}: unreadable PNG: {one_line(error)}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), self._labels[index]

    def labels(self) -> list[int]:
        return list(self._labels)

    def _found(self) -> tuple[list[str], list[int]]:
        """Files relative to the folder, and their labels."""
        entries = sorted(entry.name for entry in os.scandir(self.folder) if not entry.name.startswith("."))
        if MANIFEST in entries:
            files = [name for name in entries if name.endswith(".png") and name.partition("_")[0].isdigit()]
            labels = plan_of(self.folder)[1].labels_N().tolist()
            if len(files) != len(labels):
                raise UserError(f"{self.folder}: {len(files)} of {len(labels)} images are there; finish sampling first")
            return files, labels
        files = self._pngs("", entries)
        if files:
            return files, [NO_CLASS] * len(files)
        folders = [name for name in entries if (self.folder / name).is_dir()]
        names = self.class_names or tuple(folders)
        if unknown := sorted(set(folders) - set(names)):
            raise UserError(f"{self.folder / unknown[0]}: no class of the model; {choices(names, unknown[0])}")
        labels = []
        for label, name in enumerate(names):
            if name in folders:
                inside = self._pngs(name, sorted(os.listdir(self.folder / name)))
                files += inside
                labels += [label] * len(inside)
        if not files:
            raise UserError(f"{self.folder}: no PNG images in it, nor in folders of it")
        self.class_names = names
        return files, labels

    def _pngs(self, folder: str, names: Sequence[str]) -> list[str]:
        for name in names:
            if name.lower().endswith(_PICTURES):
                lossy = name.lower().endswith(_LOSSY)
                reason = "JPEG changes pixels, and every distance with them" if lossy else "only PNG is read here"
                raise UserError(f"{self.folder / folder / name}: {reason}; give PNGs, or an .npz with arr_0")
        return [os.path.join(folder, name) for name in names if name.lower().endswith(".png")]

    @staticmethod
    def _checked(path: Path, shape: tuple[int, int] | None) -> tuple[int, int]:
        """The image's height and width, from its header."""
        try:
            with Image.open(path) as opened:
                kind, mode, found = opened.format, opened.mode, (opened.height, opened.width)
        except UNREADABLE as error:
            raise UserError(f"{path}: not an image Pillow knows") from error
        if kind != "PNG":
            reason = "JPEG changes pixels, and every distance with them" if kind == "JPEG" else "only PNG is read here"
            raise UserError(f"{path}: a {kind} in spite of its name; {reason}")
        if mode not in _MODES:
            raise UserError(f"{path}: a PNG of mode {mode}; needed: 8 bits a channel")
        if shape is not None and found != shape:
            raise UserError(f"{path}: {found[1]}x{found[0]} pixels; needed: {shape[1]}x{shape[0]}")
        return found


class NpzImages(ImageDataset):
    """Images in an `.npz`, as ADM's evaluation suite has them: `arr_0` uint8 (N, H, W, 3), labels `arr_1` if known.

    Raises:
        UserError: it is no such file, or the images are of another size.
    """

    def __init__(self, path: Path, *, image_size: int | None = None) -> None:
        with opened_arrays(path) as archive:
            self._array = archive.stored("arr_0")
            labels = archive.load("arr_1") if "arr_1" in archive.names else None
        shape, dtype = self._array.shape, self._array.dtype
        if dtype != numpy.uint8:
            raise UserError(f"{path}: arr_0 is {dtype}; needed: uint8, 0 to 255")
        if len(shape) != 4 or shape[3] != 3:
            raise UserError(f"{path}: arr_0 has shape {shape}; needed: (N, H, W, 3)")
        if image_size is not None and shape[1:3] != (image_size, image_size):
            raise UserError(f"{path}: images of {shape[2]}x{shape[1]} pixels; needed: {image_size}x{image_size}")
        if labels is not None and (labels.shape != shape[:1] or labels.dtype.kind not in "iu"):
            raise UserError(
                f"{path}: arr_1 is {labels.dtype} {labels.shape}; needed: a whole number for each of {shape[0]} images"
            )
        self._labels = [NO_CLASS] * shape[0] if labels is None else labels.astype(numpy.int64).tolist()
        self.num_classes = 0 if labels is None or not len(labels) else max(0, int(labels.max()) + 1)
        self.class_names = tuple(map(str, range(self.num_classes)))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = self._labels[index]  # raises IndexError behind the end
        pixels = numpy.array(self._array.array[index])  # a copy: the file is mapped, not read
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), label

    def labels(self) -> list[int]:
        return list(self._labels)
