"""What a data set of labelled images must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar
from unicodedata import normalize

from attrs import frozen
from PIL import Image
from torch import Tensor

from mixar_core.data.images import Header, open_rgb, read_header, read_image
from mixar_core.errors import UserError
from mixar_core.types import ImageSize

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid")}
#: classes that a note names
_SHOWN = 5


@frozen(eq=False)
class EncodedImage:
    """An image file or its content, its label (NO_CLASS if unlabelled), and how an error is to name it.

    `problem` says why there is no content; `orient` and `background` are those of `read_image`.
    """

    data: bytes | Path
    label: int
    where: str
    problem: str = ""
    orient: bool = False
    background: str = "white"

    def header(self) -> Header:
        """What the file says of itself; nothing is decoded.

        Raises:
            UserError: it cannot be read.
        """
        return read_header(self._data(), where=self.where)

    def picture(self, least: int = 0) -> Image.Image:
        """The whole image decoded, RGB; `least` as of `open_rgb`.

        Raises:
            UserError: it cannot be read.
        """
        how = {"where": self.where, "background": self.background}
        return open_rgb(self._data(), orient=self.orient, least=least, **how)

    def pixels(self, size: ImageSize) -> Tensor:
        """The image decoded and cropped to `size`: uint8 (3, H, W).

        Raises:
            UserError: it cannot be read.
        """
        return read_image(self._data(), size, where=self.where, orient=self.orient, background=self.background)

    def _data(self) -> bytes | Path:
        if self.problem:
            raise UserError(f"{self.where}: {self.problem}")
        return self.data


class ImageStream(ABC):
    """Images that can only be read from front to back: `mixar cache` can use them, training cannot."""

    @abstractmethod
    def __iter__(self) -> Iterator[EncodedImage]:
        """All images, in the same order every time.

        Raises:
            UserError: the source breaks off, or a row holds no image or no label.
        """


class ImageDataset(ABC):
    """A split of labelled images, random access.

    Registered as a Part, it is built as `Class(config, split="train" | "validation", image_size=...)`. Opening must be
    cheap (no image is decoded) and the object must survive pickling into loader workers.
    """

    squares_only: ClassVar[bool] = False
    """Whether it is refused where a recipe's `image_size` is (height, width) and no one number."""

    stream: ImageStream | None = None
    """Set where there is no random access: the methods below then raise UserError."""

    notes: Sequence[str] = ()
    """What a person should read once before the set is used: what was left out and why, which classes are empty."""

    num_classes: int
    """Number of classes, 0 for an unlabelled set."""
    class_names: tuple[str, ...]
    """One name a class, in label order."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W) cropped to `image_size`, and its label (NO_CLASS if unlabelled).

        Raises:
            UserError: the image cannot be read; names the file or row.
        """

    @abstractmethod
    def labels(self) -> list[int]:
        """All labels in order, without decoding images."""

    def encoded(self, index: int) -> EncodedImage | None:
        """The image as it is stored; None where a set holds pixels. `mixar data` tells sizes and modes by it."""
        return None


def names_of_split(split: str) -> tuple[str, ...]:
    """What a split, train or validation, may be called in a folder's or a file's name and in a column.

    Raises:
        UserError: it is neither.
    """
    if split not in SPLIT_NAMES:
        raise UserError(f"split {split!r}: must be one of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[split]


def has_names(classes: Sequence[str]) -> bool:
    """Whether classes are known by name: their own label numbers (0 .. n-1) in place of names say nothing."""
    return list(classes) != [str(label) for label in range(len(classes))]


def class_misfit(names: Sequence[str], others: Sequence[str]) -> str | None:
    """Where two lists of class names part, in words; None where they agree, or where either says mere numbers.

    Unicode's forms of a name are one name.
    """
    if not (has_names(names) and has_names(others)):
        return None
    if len(names) != len(others):
        return f"{len(names)} classes against {len(others)}"
    pairs = enumerate(zip(*([normalize("NFC", name) for name in each] for each in (names, others)), strict=True))
    return next((f'class {label} is "{a}" against "{b}"' for label, (a, b) in pairs if a != b), None)


def empty_classes(where: str, names: Sequence[str], labels: Iterable[int]) -> list[str]:
    """A note on the classes that keep their numbers and have no image here; no note where every class has some."""
    there = set(labels)
    empty = [f'{label} "{name}"' for label, name in enumerate(names) if label not in there]
    more = f" and {len(empty) - _SHOWN:,} more" if len(empty) > _SHOWN else ""
    return [f"{where}: no image of class {', '.join(empty[:_SHOWN])}{more}, of {len(names):,}"] if empty else []
