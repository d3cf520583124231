"""What a data set of labelled images must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from attrs import frozen
from torch import Tensor


@frozen(eq=False)
class EncodedImage:
    """An image file's content, its label (NO_CLASS if unlabelled), and how an error is to name it."""

    data: bytes
    label: int
    where: str


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

    #: Set where there is no random access: the methods below then raise UserError.
    stream: ImageStream | None = None

    #: Number of classes, 0 for an unlabelled set.
    num_classes: int
    #: One name a class, in label order.
    class_names: tuple[str, ...]

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
