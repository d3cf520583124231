"""Discriminators: what tells images from reconstructions while a tokenizer is trained, and is thrown away after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Discriminator(nn.Module, ABC):
    """Images to logits, high for real ones. It is trained beside a tokenizer, and neither averaged nor written.

    Registered as a Part, it is built as `Class(config, image_size=...)`, and raises UserError where such images are too
    small for it. It is run three times a step, on images, on reconstructions, and on these for the tokenizer's sake; in
    each pass by itself, so that what batch norm knows of a batch is all real or all reconstructed.
    """

    meta_safe: ClassVar[bool] = True
    """Whether it runs on torch's `meta` device, where recipes are checked without values; False: it is not tried."""
    squares_only: ClassVar[bool] = False
    """Whether it is refused where a recipe's `image_size` is (height, width) and no one number."""

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits (B, ...) of images float (B, 3, H, W) in about [-1, 1] (reconstructions are not clamped).

        One an image or one for each patch of it: the losses average over them.
        """
