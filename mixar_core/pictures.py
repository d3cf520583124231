"""Tensors to pictures a person looks at: grids with a name under each image, rows with a name beside each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP = 4
_FONT_SIZE = 12
_LINE = 18
_BACKGROUND = "white"
_INK = "black"


def to_uint8(images_B3HW: Tensor) -> Tensor:
    """Float images in [-1, 1] (values outside are clipped) to uint8, rounded; same shape and device."""
    return ((images_B3HW.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


@lru_cache(maxsize=4096)
def legible(text: str) -> bool:
    """Whether the font of these pictures has a sign for every letter of it."""
    missing = _glyph("\U0010ffff")  # no character, so what stands for those it lacks
    return all(_glyph(letter) != missing for letter in text)


def _glyph(letter: str) -> tuple[tuple[int, int], bytes]:
    drawn = ImageFont.load_default(_FONT_SIZE).getmask(letter)
    return drawn.size, bytes(drawn)


def strip(row_B3HW: Tensor) -> Tensor:
    """Float images in [-1, 1] side by side, as one uint8 image (3, H, B * W)."""
    return torch.cat([*to_uint8(row_B3HW)], dim=-1)


def to_pil(image_3HW: Tensor) -> Image.Image:
    """One uint8 image (3, H, W) as a PIL image."""
    return Image.fromarray(image_3HW.permute(1, 2, 0).contiguous().cpu().numpy())


def labelled_grid(
    images_B3HW: Tensor,
    labels: Sequence[str] | None,
    columns: int | None = None,
    title: str | None = None,
    scale: int = 1,
) -> Image.Image:
    """Images row by row, `columns` in a row, each with its label under it; labels too wide for it are cut short.

    Args:
        images_B3HW: uint8 images (B, 3, H, W).
        labels: B names, or None for a grid without.
        columns: images in a row; None makes the grid about as wide as high.
        title: one line above the grid.
        scale: how many pixels a side each pixel is shown as.
    """
    count, _, height, width = images_B3HW.shape
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    columns = max(1, min(columns or math.ceil(math.sqrt(count)), count))
    rows = -(-count // columns)
    cell_width, cell_height = width * scale, height * scale + (_LINE if labels is not None else 0)
    top = _GAP + (_LINE if title else 0)
    font = ImageFont.load_default(_FONT_SIZE)
    total_width = _GAP + columns * (cell_width + _GAP)
    if title:
        total_width = max(total_width, int(font.getlength(title)) + 2 * _GAP)
    picture = Image.new("RGB", (total_width, top + rows * (cell_height + _GAP)), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((_GAP, _GAP), title, fill=_INK, font=font)
    for index in range(count):
        left = _GAP + index % columns * (cell_width + _GAP)
        upper = top + index // columns * (cell_height + _GAP)
        picture.paste(_enlarged(images_B3HW[index], scale), (left, upper))
        if labels is not None:
            text = _cut(labels[index], font, cell_width)
            place = (left + (cell_width - font.getlength(text)) / 2, upper + height * scale + 1)
            draw.text(place, text, fill=_INK, font=font)
    return picture


def rows_picture(rows: Mapping[str, Tensor], title: str | None = None, scale: int = 1) -> Image.Image:
    """One row of images a name, the names at the left; rows may differ in count and size.

    Args:
        rows: name -> uint8 images (B, 3, H, W).
        title: one line above the rows.
        scale: how many pixels a side each pixel is shown as.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    margin = _GAP * 2 + max((int(font.getlength(name)) + 1 for name in rows), default=0)
    heights = [max(images_B3HW.shape[2] * scale, _LINE) + _GAP for images_B3HW in rows.values()]
    widths = [images_B3HW.shape[0] * (images_B3HW.shape[3] * scale + _GAP) for images_B3HW in rows.values()]
    top = _GAP + (_LINE if title else 0)
    total_width = margin + max(widths, default=0)
    if title:
        total_width = max(total_width, int(font.getlength(title)) + 2 * _GAP)
    picture = Image.new("RGB", (total_width, top + sum(heights)), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((_GAP, _GAP), title, fill=_INK, font=font)
    for (name, images_B3HW), row_height in zip(rows.items(), heights, strict=True):
        draw.text((_GAP, top + (row_height - _LINE) / 2), name, fill=_INK, font=font)
        for index, image_3HW in enumerate(images_B3HW):
            picture.paste(_enlarged(image_3HW, scale), (margin + index * (images_B3HW.shape[3] * scale + _GAP), top))
        top += row_height
    return picture


def _enlarged(image_3HW: Tensor, scale: int) -> Image.Image:
    picture = to_pil(image_3HW)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
