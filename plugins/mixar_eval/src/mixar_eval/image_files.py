"""Images that are there already, taken as they are, to the pixel: PNG files in folders, and arrays.

What has another size is refused, not resized, and so are JPEGs, whose artefacts a feature extractor sees.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy
import torch
from PIL import Image
from torch import Tensor

from mixar.text import one_line
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.folders import list_images
from mixar_core.data.images import UNREADABLE, to_rgb
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS, Grid, ImageSize
from mixar_eval.npz import NpzArray, array_names

_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_JPEG, _OTHER = "JPEG changes pixels, and every distance with them", "only PNG is read here"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: labels of others are numbers below this one: a report counts every class up to the largest
_MOST_CLASSES = 100_000
#: what `mixar sample` writes into a folder besides its images
_BESIDE = ("grid.", "codes_grid.", "codes/")


class PngFolder(ImageDataset):
    """PNGs in a folder, or in a folder a class, all of one size; transparent ones over white, as a viewer shows them.

    Files are seen to be PNGs without decoding them. What is hidden or no image is left out, and told in `notes`.

    Args:
        drawn: the label of every image of a folder that `mixar sample` wrote: its numbered images and no others.
        image_size: pixels they must have; None: those of the first.

    Raises:
        UserError: there are none, or one is no 8-bit PNG or of another size.
    """

    def __init__(
        self, folder: Path, *, drawn: Sequence[int] | None = None, image_size: ImageSize | None = None
    ) -> None:
        listed = list_images(folder)
        files, note, self.class_names = listed.files, listed.note(), ()
        if drawn is not None:
            files = tuple(file for file in files if file.endswith(".png") and file.partition("_")[0].isdigit())
            if len(files) != len(drawn):
                raise UserError(f"{folder}: {len(files)} of {len(drawn)} images are there; finish sampling first")
            beside = [file for file in listed.files if file not in set(files) and not file.startswith(_BESIDE)]
            note = f"left out {len(beside):,} images of others, such as {beside[0]}" if beside else ""
        for file in files:
            if not file.lower().endswith(".png"):
                reason = _JPEG if file.lower().endswith(_LOSSY) else _OTHER
                raise UserError(f"{folder / file}: {reason}; give PNGs, or an .npz with arr_0")
        if not files:
            raise UserError(f"{folder}: no PNG images in it, nor in folders of it")
        self._labels = [NO_CLASS] * len(files) if drawn is None else list(drawn)
        inside = [file for file in files if os.sep in file]
        if drawn is None and inside:
            if alone := [file for file in files if os.sep not in file]:
                raise UserError(
                    f"{folder}: {len(alone):,} images ({alone[0]}) beside folders with {len(inside):,} ({inside[0]}); "
                    "give a folder that has either"
                )
            self.class_names = tuple(dict.fromkeys(normalize("NFC", name) for name in listed.folders))
            label_of = {name: label for label, name in enumerate(self.class_names)}
            self._labels = [label_of[normalize("NFC", file.split(os.sep)[0])] for file in files]
        self.folder, self._files, self.num_classes = folder, files, len(self.class_names)
        self.notes = [f"{folder}: {note}"] if note else []
        pixels = None if image_size is None else Grid.of_pixels(image_size)
        for file in files:
            pixels = _checked(folder / file, pixels)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.folder / self._files[index]
        try:
            with Image.open(path) as opened:
                pixels = numpy.array(to_rgb(opened))
        except UNREADABLE as error:
            raise UserError(f"{path}: unreadable PNG: {one_line(error)}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), self._labels[index]

    def labels(self) -> list[int]:
        return list(self._labels)


def _checked(path: Path, pixels: Grid | None) -> Grid:
    """The pixels of an 8-bit PNG of this size, from its header."""
    try:
        with path.open("rb") as file:
            header = file.read(25)  # signature, length and name of the first chunk, width, height, bits
        if not header.startswith(_SIGNATURE) or len(header) < 25:
            with Image.open(path) as opened:
                kind = opened.format
            raise UserError(f"{path}: a {kind} in spite of its name; {_JPEG if kind == 'JPEG' else _OTHER}")
    except UNREADABLE as error:
        raise UserError(f"{path}: not an image Pillow knows") from error
    width, height, bits = int.from_bytes(header[16:20]), int.from_bytes(header[20:24]), header[24]
    if bits > 8:
        raise UserError(f"{path}: a PNG of {bits} bits a channel; needed: 8")
    if pixels is not None and pixels != Grid(height, width):
        raise UserError(f"{path}: {width}x{height} pixels; needed: {pixels.width}x{pixels.height}")
    return Grid(height, width)


class ArrayImages(ImageDataset):
    """uint8 images (N, H, W, 3) in memory or in an `.npz`, with a label each if they are known."""

    def __init__(
        self,
        array: NpzArray | numpy.ndarray,
        labels: Sequence[int] | None,
        *,
        where: str,
        image_size: ImageSize | None,
    ) -> None:
        self._array = array
        count, height, width, _ = array.shape
        needed = Grid(height, width) if image_size is None else Grid.of_pixels(image_size)
        if needed != Grid(height, width):
            raise UserError(f"{where}: images of {width}x{height} pixels; needed: {needed.width}x{needed.height}")
        self._labels = [NO_CLASS] * count if labels is None else list(labels)
        self.num_classes = max([NO_CLASS, *self._labels]) + 1
        self.class_names = tuple(map(str, range(self.num_classes)))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        values = self._array.array if isinstance(self._array, NpzArray) else self._array
        pixels = numpy.array(values[index])  # a copy: a file is mapped, not read
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), self._labels[index]

    def labels(self) -> list[int]:
        return list(self._labels)


def npz_images(path: Path, *, image_size: ImageSize | None = None) -> ArrayImages:
    """Images in an `.npz` as ADM's evaluation suite has them: `arr_0` uint8 (N, H, W, 3), labels `arr_1` if known."""
    array, labels = NpzArray(path, "arr_0"), None
    if array.dtype != numpy.uint8:
        raise UserError(f"{path}: arr_0 is {array.dtype}; needed: uint8, 0 to 255")
    if len(array.shape) != 4 or array.shape[3] != 3:
        raise UserError(f"{path}: arr_0 has shape {array.shape}; needed: (N, H, W, 3)")
    if "arr_1" in array_names(path):
        stored = NpzArray(path, "arr_1")
        if stored.shape != array.shape[:1] or stored.dtype.kind not in "iu":
            needed = f"a whole number for each of {array.shape[0]} images"
            raise UserError(f"{path}: arr_1 is {stored.dtype} {stored.shape}; needed: {needed}")
        labels = stored.array.tolist()
        if wrong := [label for label in labels if not NO_CLASS <= label < _MOST_CLASSES]:
            allowed = f"{NO_CLASS} (no class) to {_MOST_CLASSES - 1:,}"
            raise UserError(f"{path}: arr_1 has the label {wrong[0]}; allowed: {allowed}")
    return ArrayImages(array, labels, where=f"{path}: arr_0", image_size=image_size)
