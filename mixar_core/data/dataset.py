"""What a data set of labelled images must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class ImageDataset(ABC):
    """A split of labelled images, random access.

    Registered as a Part, it is built as `Class(config, split="train" | "validation", image_size=...)`. Opening must be
    cheap (no image is decoded) and the object must survive pickling into loader workers.
    """

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
