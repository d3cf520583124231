"""From an encoded image to pixels, cropped as the published systems crop, so that reconstruction FIDs compare."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from mixar_core.errors import UserError

#: What Pillow raises for damaged files. SyntaxError: PNG; EOFError: WebP; RuntimeError: AVIF; struct.error: headers.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central `size` x `size` square of the image, scaled so that its shorter side is `size`.

    The protocol of ADM, which LightningDiT, MAR and MaskBit follow: halve with a box filter while the shorter side is
    at least twice the size, then scale the rest bicubically, then crop. Images smaller than `size` are enlarged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, upper = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, upper, left + size, upper + size))


def read_image(source: Path | bytes, size: int, *, where: str) -> Tensor:
    """Decode an image and crop it: uint8 (3, size, size), RGB.

    Args:
        source: a file or its content.
        size: side of the square.
        where: the row or file as the error is to name it.

    Raises:
        UserError: the image cannot be read.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = center_crop(opened.convert("RGB"), size)
    except UNREADABLE as error:
        # Pillow's message may name an object's address: keep it short.
        reason = "not an image Pillow knows" if "cannot identify" in str(error) else str(error)
        raise UserError(f"{where}: unreadable image: {reason}") from error
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()
