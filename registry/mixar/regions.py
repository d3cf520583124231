"""What an edit is told in pixels: a picture on the model's canvas, a region of it, its tokens, the seam around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from mixar_core.data.images import center_crop, open_rgb
from mixar_core.errors import UserError
from mixar_core.storage import user_path
from mixar_core.types import Grid, ImageSize, TokenLayout

#: pixels from the region's edge that count as near it
NEAR = 4
#: from this value on a pixel of a mask is light
_LIGHT = 128


@attrs.frozen(eq=False)
class Canvas:
    """A picture in the model's size, and what of it is asked to be drawn anew.

    Args:
        image_3HW: uint8. mask_HW: bool, True where it is to be drawn anew.
        note: how the picture came into this size; empty where it had it.
    """

    image_3HW: Tensor
    mask_HW: Tensor
    note: str = ""


@attrs.frozen(eq=False)
class Seam:
    """How well images fit what they were made of: float32 (B,) of a channel's 256 levels, NaN where there is none.

    Args:
        kept: mean absolute difference from the input, of all pixels outside the region.
        near: the same, of those within NEAR pixels of it.
        across: mean absolute difference of neighbouring pixels, one in the region and one outside.
        beside: that of the pairs next to these, on either side. Where both are about equal no seam is seen.
    """

    kept: Tensor
    near: Tensor
    across: Tensor
    beside: Tensor


def make_canvas(
    image: Any, mask: Any, size: ImageSize, *, outside: bool = False, place: Sequence[int] | None = None
) -> Canvas:
    """A picture and a mask of it as the model sees them: the middle, cropped and scaled as training images are.

    A photo is turned as its EXIF entry says: a mask is drawn on what a viewer shows.

    Args:
        image: a file, a PIL image, a tensor uint8 (3, H, W) or an array uint8 (H, W), (H, W, 3) or (H, W, 4).
        mask: of the picture's own size, light where it is to be drawn anew: a file, a PIL image, or an array or tensor
            (H, W), bool or uint8; or a box (x, y, width, height) in its pixels. None: all of it.
        size: of the model's images, the side of a square or (height, width).
        outside: the mask says what stays instead.
        place: (x, y, width) on the model's canvas, to which the whole picture is scaled; the rest is to be drawn.

    Raises:
        UserError: something cannot be read, or lies outside, or the mask is of another size.
    """
    if outside and mask is None:
        raise UserError("outside: says that a mask is of what stays, and there is no mask")
    picture, name = _picture(image, "image")
    wanted = Grid.of_pixels(size)
    canvas = f"{wanted.width}x{wanted.height}"
    if place is not None:
        if mask is not None:
            raise UserError("mask and place: give one; what is outside of the placed picture is drawn")
        return _placed(picture, name, Grid.of_pixels(size), *_whole_numbers(place, 3, "place", "x, y and width"))
    if mask is None:
        region = Image.new("L", picture.size, 255)
    else:
        region = _box_mask(mask, picture.size) if _is_box(mask) else _picture(mask, "mask")[0].convert("L")
        if region.size != picture.size:
            sizes = " and ".join(f"{one.width}x{one.height}" for one in (region, picture))
            raise UserError(f"the mask and the image have different sizes: {sizes}")
    mask_HW = _tensor(center_crop(region, size)) >= _LIGHT
    mask_HW = ~mask_HW if outside else mask_HW
    if not mask_HW.any():
        raise UserError(f"the mask is empty at {canvas} pixels: light pixels ({_LIGHT} to 255) are drawn anew")
    middle = "middle square" if isinstance(size, int) else "middle"
    how = "scaled" if picture.width * wanted.height == picture.height * wanted.width else f"its {middle} scaled"
    note = f"{name}: {picture.width}x{picture.height} pixels, {how} to {canvas} as training images are"
    fits = picture.size == (wanted.width, wanted.height)
    return Canvas(_tensor(center_crop(picture, size)), mask_HW, "" if fits else note)


def tokens_in(mask_BHW: Tensor, layout: TokenLayout) -> Tensor:
    """Tokens any of whose pixels lies in the mask, bool (B, N); of a pyramid those of every scale.

    Raises:
        UserError: tokens of this layout have no place in the image.
    """
    if layout.kind == "sequence":
        raise UserError(f"a region has no tokens in a {layout}; editing needs tokens that have a place in the image")
    touched = [_touched(mask_BHW, grid).flatten(1) for grid in layout.scales]
    return torch.cat(touched, dim=1).repeat_interleave(layout.depth, dim=1)


def pixels_of(tokens_BN: Tensor, layout: TokenLayout, size: ImageSize) -> Tensor:
    """The pixels of these tokens, bool (B, H, W): a mask, grown to whole tokens; of a pyramid the finest."""
    grid = layout.scales[-1]
    places_BN = tokens_BN.unflatten(1, (-1, layout.depth)).any(dim=2)[:, -grid.tokens :]
    shown = places_BN.unflatten(1, (grid.height, grid.width))[:, None].float()
    pixels = Grid.of_pixels(size)
    return F.interpolate(shown, size=(pixels.height, pixels.width))[:, 0] > 0


def filled(images_B3HW: Tensor, hole_BHW: Tensor) -> Tensor:
    """Uint8 images with a hole filled smoothly: with coarser and coarser means of the pixels at its edge."""
    hole_B1HW = hole_BHW[:, None]
    rim_B1HW = _grown(hole_B1HW.float(), 1) * ~hole_B1HW
    smooth = _pulled(images_B3HW.float() * rim_B1HW, rim_B1HW)
    return torch.where(hole_B1HW, smooth.round().clamp(0, 255).to(torch.uint8), images_B3HW)


def paste_into(original_B3HW: Tensor, drawn_B3HW: Tensor, region_BHW: Tensor, feather: int) -> Tensor:
    """Uint8 images: as drawn in the region, as they were `feather` pixels outside of it, blended linearly between."""
    region_B1HW = region_BHW[:, None].float()
    share = sum(_grown(region_B1HW, by) for by in range(feather + 1)) / (feather + 1)
    return (share * drawn_B3HW.float() + (1 - share) * original_B3HW.float()).round().to(torch.uint8)


def measure_seam(original_B3HW: Tensor, images_B3HW: Tensor, region_BHW: Tensor) -> Seam:
    """Figures of uint8 images against what they were made of; `region_BHW` is what was drawn anew."""
    outside_BHW, images = ~region_BHW, images_B3HW.float()
    error_BHW = (images - original_B3HW.float()).abs().mean(dim=1)
    near_BHW = outside_BHW & (_grown(region_BHW[:, None].float(), NEAR)[:, 0] > 0)
    pairs = []
    for axis, window in ((1, (3, 1)), (2, (1, 3))):  # of pixels one above the other, and side by side
        step = images.diff(dim=axis + 1).abs().mean(dim=1)
        edge = region_BHW.diff(dim=axis)
        around = F.max_pool2d(edge[:, None].float(), window, stride=1, padding=(window[0] // 2, window[1] // 2))[:, 0]
        pairs.append([each.flatten(1) for each in (step, edge, (around > 0) & ~edge)])
    step_BR, edge_BR, beside_BR = (torch.cat(each, dim=1) for each in zip(*pairs, strict=True))
    return Seam(
        kept=_mean(error_BHW, outside_BHW),
        near=_mean(error_BHW, near_BHW),
        across=_mean(step_BR, edge_BR),
        beside=_mean(step_BR, beside_BR),
    )


def shaded(original_B3HW: Tensor, mask_BHW: Tensor, region_BHW: Tensor) -> Tensor:
    """Uint8 images with the region half covered in magenta, and what of it was asked for covered more."""
    cover = 0.45 * region_BHW[:, None].float() + 0.3 * (mask_BHW & region_BHW)[:, None].float()
    magenta = torch.tensor([255.0, 0.0, 255.0])[:, None, None]
    return (cover * magenta + (1 - cover) * original_B3HW.float()).round().to(torch.uint8)


def _picture(value: Any, what: str) -> tuple[Image.Image, str]:
    """An RGB image of a file, a PIL image, an array or a tensor; and what to call it."""
    if isinstance(value, str | Path):
        path = user_path(value)
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return open_rgb(path, where=str(path), orient=True), path.name
    if not isinstance(value, Image.Image):
        value = Image.fromarray(_array(value, what))
    return open_rgb(value, where=f"the {what}"), f"the {what}"


def _array(value: Any, what: str) -> numpy.ndarray:
    tensor = isinstance(value, Tensor)
    array = value.detach().cpu().numpy() if tensor else numpy.asarray(value)
    if array.dtype == bool:
        array = array * numpy.uint8(255)
    if tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    good = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != numpy.uint8 or not good or 0 in array.shape:
        shape = f"{array.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        allowed = (
            "bool or uint8 (H, W)"
            if what == "mask"
            else "a tensor uint8 (3, H, W) or an array uint8 (H, W), (H, W, 3) or (H, W, 4)"
        )
        raise UserError(f"the {what} is a {shape}; allowed: a file, a PIL image, or {allowed}")
    return numpy.ascontiguousarray(array)


def _is_box(mask: Any) -> bool:
    return isinstance(mask, tuple) and len(mask) == 4 and all(numpy.ndim(side) == 0 for side in mask)


def _box_mask(box: Sequence[Any], size: tuple[int, int]) -> Image.Image:
    x, y, width, height = _whole_numbers(box, 4, "region", "x, y, width and height")
    if x < 0 or y < 0 or width < 1 or height < 1 or x + width > size[0] or y + height > size[1]:
        raise UserError(f"region {x},{y},{width},{height}: not inside the image of {size[0]}x{size[1]} pixels")
    region = Image.new("L", size, 0)
    ImageDraw.Draw(region).rectangle((x, y, x + width - 1, y + height - 1), fill=255)
    return region


def _placed(picture: Image.Image, name: str, canvas: Grid, x: int, y: int, width: int) -> Canvas:
    height = max(1, round(picture.height * width / picture.width)) if width > 0 else 0
    size = f"{canvas.width}x{canvas.height}"
    if x < 0 or y < 0 or width < 1 or x + width > canvas.width or y + height > canvas.height:
        raise UserError(
            f"place {x},{y},{width}: the image becomes {width}x{height} pixels, not inside the canvas of {size}"
        )
    if (height, width) == (canvas.height, canvas.width):
        raise UserError(f"place {x},{y},{width}: the image covers the canvas of {size}; nothing is to be drawn")
    image_3HW = torch.zeros(3, canvas.height, canvas.width, dtype=torch.uint8)
    mask_HW = torch.ones(canvas.height, canvas.width, dtype=torch.bool)
    image_3HW[:, y : y + height, x : x + width] = _tensor(picture.resize((width, height), Image.Resampling.BICUBIC))
    mask_HW[y : y + height, x : x + width] = False
    note = f"{name}: {picture.width}x{picture.height} pixels, scaled to {width}x{height} at {x},{y}"
    return Canvas(filled(image_3HW[None], mask_HW[None])[0], mask_HW, note)


def _whole_numbers(values: Any, count: int, what: str, names: str) -> list[int]:
    found = list(values) if isinstance(values, Sequence) else []
    if len(found) != count or not all(isinstance(value, int | numpy.integer) for value in found):
        raise UserError(f"{what} {values}: not {count} whole numbers ({names})")
    return [int(value) for value in found]


def _tensor(picture: Image.Image) -> Tensor:
    """uint8 (3, H, W) of an RGB image, (H, W) of a grey one."""
    pixels = torch.from_numpy(numpy.array(picture))
    return pixels.permute(2, 0, 1).contiguous() if pixels.ndim == 3 else pixels


def _touched(mask_BHW: Tensor, grid: Grid) -> Tensor:
    return F.adaptive_max_pool2d(mask_BHW[:, None].float(), (grid.height, grid.width))[:, 0] > 0


def _pulled(sums_B3HW: Tensor, weights_B1HW: Tensor) -> Tensor:
    """Means sums / weights, and where there is no weight those of the next coarser grid."""
    means = sums_B3HW / weights_B1HW.clamp(min=1e-6)
    height, width = sums_B3HW.shape[-2:]
    if height * width == 1:
        return means
    coarser = [F.avg_pool2d(each, 2, ceil_mode=True) for each in (sums_B3HW, weights_B1HW)]
    beyond = F.interpolate(_pulled(*coarser), size=(height, width), mode="bilinear")
    return torch.where(weights_B1HW > 0, means, beyond)


def _grown(region_B1HW: Tensor, by: int) -> Tensor:
    return F.max_pool2d(region_B1HW, 2 * by + 1, stride=1, padding=by)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).flatten(1).sum(dim=1) / where.flatten(1).sum(dim=1)
