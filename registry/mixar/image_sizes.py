"""Sizes of images as recipes have them; parts that know squares only are refused, in words, where images are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import torch

from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Grid, ImageSize


def as_size(value: Any) -> Any:
    """The side of a square, also where it is written as a pair; (height, width) of others; any other value itself."""
    return Grid(*value).image_size if isinstance(value, list | tuple) else value


def as_written(size: Any) -> Any:
    """A size as recipes write it, for messages: of a pair `[height, width]`; any other value itself."""
    return Grid(*size).written if isinstance(size, tuple) else size


def positive(_: Any, field: attrs.Attribute[Any], size: ImageSize) -> None:
    """Refuse a size with a side below 1."""
    pixels = Grid.of_pixels(size)
    if min(pixels.height, pixels.width) < 1:
        raise ValueError(f"'{field.name}' must be > 0: {pixels.written}")


@contextmanager
def seen_by(part: object, size: ImageSize) -> Iterator[None]:
    """Refuse a part that knows squares only where images are none, or to which a pair is a wrong type.

    Raises:
        UserError: as said.
    """
    if isinstance(size, int):
        yield
        return
    asked = f"it knows square images only, and image_size is {list(size)}"
    if getattr(part, "squares_only", False):
        raise UserError(asked)
    try:
        yield
    except TypeError as error:
        raise UserError(f"{asked} ({error})") from error


def check_size(
    tokenizer: ContinuousTokenizer | DiscreteTokenizer, size: ImageSize, discrete: DiscreteTokenizer | None = None
) -> None:
    """See that the stride divides the size; and on meta, where it is a pair, that an image goes through and back.

    What cannot run on meta is not known before it is trained.

    Args:
        discrete: whose codes latents may need.

    Raises:
        UserError: it does not.
    """
    pixels, stride = Grid.of_pixels(size), tokenizer.stride
    if pixels.height % stride or pixels.width % stride:
        raise UserError(f"stride {stride} against {pixels.written}")
    weights = [*tokenizer.parameters(), *tokenizer.buffers()]
    device = weights[0].device if weights else torch.get_default_device()
    if isinstance(size, int) or device.type != "meta":
        return
    with torch.no_grad(), seen_by(tokenizer, size), suppress(RuntimeError, NotImplementedError):
        images_B3HW = torch.zeros(1, 3, pixels.height, pixels.width, device=device)
        if discrete is not None and isinstance(tokenizer, ContinuousTokenizer):
            tokenizer = tokenizer.beside(discrete.encode(images_B3HW))
        decoded_B3HW = tokenizer.decode(tokenizer.encode(images_B3HW))
        if decoded_B3HW.shape != images_B3HW.shape:
            raise UserError(f"it makes {list(decoded_B3HW.shape[2:])} of images of {list(size)} pixels")


def check_images(data: ImageDataset, size: ImageSize) -> None:
    """Where images are not square, see that the first one comes in this size.

    Raises:
        UserError: it does not.
    """
    if isinstance(size, int) or data.stream is not None or not len(data):
        return
    with seen_by(data, size):
        try:
            shape = tuple(data[0][0].shape[1:])
        except UserError:  # an unreadable image; the others are met in training
            return
    if shape != size:
        raise UserError(f"its images have {list(shape)} pixels, and image_size is {list(size)}")
