"""Tensors to pictures a person looks at: grids with a name under each image, rows with a name beside each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mixar_core.storage import write_whole

_GAP = 4
_LINE = 18
_FONT = lru_cache(lambda: ImageFont.load_default(12))


def to_uint8(images_B3HW: Tensor) -> Tensor:
    """Float images in [-1, 1] (values outside are clipped) to uint8, rounded; same shape and device."""
    return ((images_B3HW.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


@lru_cache(maxsize=4096)
def legible(text: str) -> bool:
    """Whether the font of these pictures has a sign for every letter of it."""
    missing = _glyph("\U0010ffff")  # no character, so what stands for those it lacks
    return all(_glyph(letter) != missing for letter in text)


def _glyph(letter: str) -> tuple[tuple[int, int], bytes]:
    drawn = _FONT().getmask(letter)
    return drawn.size, bytes(drawn)


def strip(row_B3HW: Tensor) -> Tensor:
    """Float images in [-1, 1] side by side, as one uint8 image (3, H, B * W)."""
    return torch.cat([*to_uint8(row_B3HW)], dim=-1)


def to_pil(image_3HW: Tensor) -> Image.Image:
    """One uint8 image (3, H, W) as a PIL image."""
    return Image.fromarray(image_3HW.permute(1, 2, 0).contiguous().cpu().numpy())


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture whole."""
    write_whole(path, lambda unfinished: picture.save(unfinished, format="PNG"))


def labelled_grid(
    images_B3HW: Tensor,
    labels: Sequence[str],
    columns: int | None = None,
    title: str | None = None,
    scale: int = 1,
) -> Image.Image:
    """Images row by row, `columns` in a row, each with its label under it; labels too wide for it are cut short.

    Args:
        images_B3HW: uint8 images (B, 3, H, W).
        labels: B names.
        columns: images in a row; None makes the grid about as wide as high.
        title: one line above the grid.
        scale: how many pixels a side each pixel is shown as.
    """
    count, _, height, width = images_B3HW.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    right, down = width * scale + _GAP, height * scale + _LINE + _GAP
    picture, draw, top = _canvas(_GAP + columns * right, -(-count // columns) * down, title)
    for index, (image_3HW, label) in enumerate(zip(images_B3HW, labels, strict=True)):
        left, upper = _GAP + index % columns * right, top + index // columns * down
        picture.paste(_enlarged(image_3HW, scale), (left, upper))
        text = _cut(label, width * scale)
        draw.text((left + (width * scale - _FONT().getlength(text)) / 2, upper + height * scale + 1), text, "black")
    return picture


def rows_picture(rows: Mapping[str, Tensor], title: str | None = None, scale: int = 1) -> Image.Image:
    """One row of images a name, the names at the left; rows may differ in count and size.

    Args:
        rows: name -> uint8 images (B, 3, H, W).
        title: one line above the rows.
        scale: how many pixels a side each pixel is shown as.
    """
    margin = _GAP * 2 + max((int(_FONT().getlength(name)) + 1 for name in rows), default=0)
    heights = [max(images_B3HW.shape[2] * scale, _LINE) + _GAP for images_B3HW in rows.values()]
    widths = [images_B3HW.shape[0] * (images_B3HW.shape[3] * scale + _GAP) for images_B3HW in rows.values()]
    picture, draw, top = _canvas(margin + max(widths, default=0), sum(heights), title)
    for (name, images_B3HW), row_height in zip(rows.items(), heights, strict=True):
        draw.text((_GAP, top + (row_height - _LINE) / 2), name, "black")
        for index, image_3HW in enumerate(images_B3HW):
            picture.paste(_enlarged(image_3HW, scale), (margin + index * (images_B3HW.shape[3] * scale + _GAP), top))
        top += row_height
    return picture


def _canvas(width: int, height: int, title: str | None) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A white picture with a title, what draws on it, and where what is under the title begins."""
    top = _GAP + (_LINE if title else 0)
    wide = int(_FONT().getlength(title)) + 2 * _GAP if title else 0
    picture = Image.new("RGB", (max(width, wide), top + height), "white")
    draw = ImageDraw.Draw(picture)
    draw.font = _FONT()
    if title:
        draw.text((_GAP, _GAP), title, "black")
    return picture, draw, top


def _enlarged(image_3HW: Tensor, scale: int) -> Image.Image:
    picture = to_pil(image_3HW)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _cut(text: str, width: int) -> str:
    if _FONT().getlength(text) <= width:
        return text
    while text and _FONT().getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
