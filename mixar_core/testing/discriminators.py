"""The contract of discriminators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mixar_core.discriminator import Discriminator
from mixar_core.testing.common import BATCH, check_gradients, check_module, expect, expect_tensor, normal
from mixar_core.types import Grid, ImageSize


def check_discriminator(make: Callable[[], Discriminator], *, image_size: ImageSize) -> None:
    """The contract of `Discriminator`, whose `make` builds one for images of this size.

    Logits are finite and one or several an image, also of pixels beyond [-1, 1]; they change with the image, and give
    it, and every weight, a gradient. What a batch's other images are may matter: batch norm is common.
    """

    pixels = Grid.of_pixels(image_size)
    shape = (BATCH, 3, pixels.height, pixels.width)

    def exercise(discriminator: Discriminator, device: str) -> Mapping[str, Tensor]:
        return {"logits": discriminator(2.0 * normal(*shape, device=device))}

    discriminator, found = check_module(make, exercise)
    logits = found["logits"]
    expect(logits.ndim > 0 and len(logits) == BATCH, f"logits have shape {tuple(logits.shape)}, not (B, ...)")
    expect(logits.numel() > 0, "there are no logits: the images are too small for it, and it does not refuse them")
    expect_tensor("logits", logits, logits.shape)
    discriminator.train()
    images_B3HW = normal(*shape).requires_grad_()
    other_B3HW = normal(*shape, seed=1)
    with torch.no_grad():
        changed = not torch.equal(discriminator(images_B3HW), discriminator(other_B3HW))
    expect(changed, "logits do not depend on the images")
    check_gradients(discriminator, discriminator(images_B3HW).square().mean(), images_B3HW)
