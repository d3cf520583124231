"""From an encoded image to pixels, cropped as the published systems crop, so that reconstruction FIDs compare."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.types import Grid, ImageSize

# Every loader process would say again that a palette has transparency or an EXIF entry is odd. What cannot be read is
# an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

#: What Pillow raises for damaged files, and `to_rgb` for what it refuses. SyntaxError: PNG; EOFError: WebP;
#: RuntimeError: AVIF; struct.error: headers; MemoryError: too large here; ImportError: LAB without littlecms.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
    MemoryError,
    ImportError,
    Image.DecompressionBombError,
)

#: Formats whose 16-bit grey values fill their range; None: an image that comes from no file. (FITS's are signed.)
_FULL_RANGE = (None, "IM", "JPEG2000", "PNG", "PPM", "TIFF")
#: How many times as long as wide an image may be to be scaled as a whole.
_LONGEST = 8

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


@frozen
class Header:
    """What an image file says of itself before it is decoded.

    Args:
        size: width and height in pixels, turned as it says.
        turned: whether its EXIF entry says that it lies on its side, on its head or mirrored.
        transparent: whether it has an alpha channel or a transparent colour. Every pixel may still be opaque.
        animated: whether it holds several pictures, of which the first is read.
    """

    size: tuple[int, int]
    mode: str
    format: str
    turned: bool
    transparent: bool
    animated: bool


def read_header(source: Path | bytes, *, where: str) -> Header:
    """What a file, or its content, says of itself.

    Raises:
        UserError: it is no image; names `where`.
    """
    with _reading(where), Image.open(_file(source)) as opened:
        # a PNG's EXIF entry may come after its pixels, and getexif would read all of them to see
        turn = opened.getexif().get(_ORIENTATION, 1) if "exif" in opened.info else 1
        frames = getattr(opened, "is_animated", False) and opened.format != "MPO"  # a photo, with a small one beside it
        size = opened.size[::-1] if turn in _ON_ITS_SIDE else opened.size
        kind = opened.format or "unknown"
        return Header(size, opened.mode, kind, turn in _TURNS, opened.has_transparency_data, frames)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """An image of any mode as a viewer shows it on a white page, with 8 bits a channel.

    Transparency of every kind (an alpha channel, a palette's, one colour of a PNG) is composed over white, or another
    `background` by its CSS name or #rrggbb; 16-bit grey is scaled by 1/257. Give an image as `Image.open` returns it:
    what PNG and TIFF say of their depth is gone later.

    Raises:
        ValueError: nobody knows which value is white (modes `I` and `F`), or what is transparent; names the mode.
    """
    tiles, clear = getattr(image, "tile", None), image.info.get("transparency")
    raw = tiles[0][3] if tiles else None
    if clear is not None and raw == "RGB;16B":  # Pillow keeps 8 bits of each, too few to find it
        raise ValueError("16 bits a channel with one transparent colour; save it with an alpha channel")
    if isinstance(clear, int) and raw in ("L;2", "L;4"):  # Pillow scales the pixels and not this
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    is_16_bit = image.mode.startswith("I;16") and image.format in _FULL_RANGE
    if is_16_bit or (image.mode == "I" and image.format in ("PNG", "PPM")):  # as older Pillows read 16 bits
        image = _eight_bits(image)
    elif image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}: which of its values is white is not known; save it with 8 or 16 bits")
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, background), over).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (or 12, in a TIFF) as mode L; LA where one value is transparent."""
    tags, clear = getattr(image, "tag_v2", {}), image.info.get("transparency")
    values, top = numpy.array(image), 2 ** tags.get(258, (16,))[0] - 1  # BitsPerSample
    grey = ((values.astype(numpy.uint32) * 255 + top // 2) // top).astype(numpy.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white. Pillow sees to that for 8 bits only
        grey = 255 - grey
    done = Image.fromarray(grey)
    if clear is not None:
        done.putalpha(Image.fromarray(numpy.where(values == clear, 0, 255).astype(numpy.uint8)))
    return done


def is_enlarged(width: int, height: int, size: ImageSize) -> bool:
    """Whether `center_crop` enlarges an image of so many pixels."""
    wanted = Grid.of_pixels(size)
    return width < wanted.width or height < wanted.height


def center_crop(image: Image.Image, size: ImageSize) -> Image.Image:
    """The middle of the image in the proportion of `size`, as large as it fits, scaled to `size`.

    The protocol of ADM, which LightningDiT, MAR and MaskBit follow for squares: halve with a box filter while both
    sides are at least twice the size's, then scale bicubically so that the image just covers the size, then crop.
    Images smaller than `size` are enlarged. What is far outside is cut off first, so that a strip of 65000 x 1 needs no
    more memory than others.
    """
    wanted = Grid.of_pixels(size)
    while image.width >= 2 * wanted.width and image.height >= 2 * wanted.height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(wanted.width / image.width, wanted.height / image.height)
    width, height = round(image.width * scale), round(image.height * scale)
    left, upper = (width - wanted.width) // 2, (height - wanted.height) // 2
    right, lower = left + wanted.width, upper + wanted.height
    if width <= _LONGEST * wanted.width and height <= _LONGEST * wanted.height:
        return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, upper, right, lower))
    across, down = image.width / width, image.height / height
    box = (left * across, upper * down, right * across, lower * down)
    return image.resize((wanted.width, wanted.height), Image.Resampling.BICUBIC, box)


def read_image(
    source: Path | bytes, size: ImageSize, *, where: str, orient: bool = False, background: str = "white"
) -> Tensor:
    """Decode an image and crop it: uint8 (3, H, W), RGB, transparency over the background.

    Args:
        source: a file or its content.
        size: side of a square, or (height, width).
        where: the row or file as the error is to name it.
        orient: turn the image as its EXIF entry says. The published systems do not; TIFFs are turned in any case.
        background: a colour by its CSS name or #rrggbb.

    Raises:
        UserError: the image cannot be read.
    """
    with _reading(where):
        pixels = numpy.array(center_crop(_opened(source, orient, background), size))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def open_rgb(
    source: Path | bytes | Image.Image, *, where: str, orient: bool = False, background: str = "white", least: int = 0
) -> Image.Image:
    """Decode an image, or take one that is open, as `read_image` does, and leave it whole.

    With `least` a JPEG may come scaled down, its sides no shorter than that: all of the file is read, but faster.

    Raises:
        UserError: the image cannot be read.
    """
    with _reading(where):
        if isinstance(source, Image.Image):
            return to_rgb(source, background)
        return _opened(source, orient, background, least)


def _file(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _opened(source: Path | bytes, orient: bool, background: str, least: int = 0) -> Image.Image:
    with Image.open(_file(source)) as opened:
        if least:
            opened.draft(None, (least, least))
        image = to_rgb(opened, background)
        turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1)) if orient else None
    return image if turn is None else image.transpose(turn)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        # Pillow's message may name an object's address: keep it short.
        reason = "not an image Pillow knows" if "cannot identify" in str(error) else str(error)
        raise UserError(f"{where}: unreadable image: {reason or 'not enough memory for it'}") from error
