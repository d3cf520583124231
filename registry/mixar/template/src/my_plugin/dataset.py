"""A data set: images with labels, by their number."""

from __future__ import annotations

from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import ge
from mixar_core import Grid, ImageDataset, ImageSize
from torch import Tensor


@frozen
class MyPluginDatasetConfig:
    """How many images there are.

    Args:
        images: of the training split.
        validation_images: of the validation split.
    """

    images: int = field(default=600, validator=ge(1))
    validation_images: int = field(default=60, validator=ge(1))


class MyPluginDataset(ImageDataset):
    """Discs of three colours on grey, each at a place and of a size of its own."""

    num_classes = 3
    class_names = ("red", "green", "blue")

    def __init__(
        self, config: MyPluginDatasetConfig, *, split: Literal["train", "validation"], image_size: ImageSize
    ) -> None:
        self.pixels = Grid.of_pixels(image_size)
        training = split == "train"
        self.first = 0 if training else config.images
        self.size = config.images if training else config.validation_images

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image uint8 (3, H, W), and its label."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        label = index % self.num_classes
        row, column, radius = torch.rand(3, generator=torch.Generator().manual_seed(self.first + index))
        height, width = self.pixels.height, self.pixels.width
        down_H, across_W = torch.arange(height) + 0.5 - row * height, torch.arange(width) + 0.5 - column * width
        distance_HW = (down_H[:, None].square() + across_W.square()).sqrt()
        disc_HW = distance_HW < (0.1 + 0.3 * radius) * min(height, width)
        image_3HW = torch.full((3, height, width), 128, dtype=torch.uint8)
        for channel in range(3):
            image_3HW[channel][disc_HW] = 230 if channel == label else 30
        return image_3HW, label

    def labels(self) -> list[int]:
        """All labels, in order."""
        return [index % self.num_classes for index in range(self.size)]
