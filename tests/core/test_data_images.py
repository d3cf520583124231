"""Images of every mode, as a viewer shows them; damaged ones are one line that names them, whatever Pillow raises."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from mixar_core.data.images import Header, center_crop, open_rgb, read_header, read_image, to_rgb
from mixar_core.errors import UserError

PIXELS = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)


def encoded(kind: str, **settings: object) -> bytearray:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **settings)
    return bytearray(buffer.getvalue())


def assert_unreadable(data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^row 3: unreadable image: {reason}$") as caught:
        read_image(data, 16, where="row 3")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")
def test_a_webp_with_a_hole_is_unreadable() -> None:
    data = encoded("WEBP", lossless=True)
    assert read_image(bytes(data), 16, where="").shape == (3, 16, 16)
    data[21:400] = bytes(379)  # its bitstream's header and codes; libwebp does not see holes further on
    assert_unreadable(bytes(data), ".+")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_with_a_hole_is_unreadable() -> None:
    data = encoded("AVIF")
    middle = data.index(b"mdat") + 4
    data[middle:] = bytes(len(data) - middle)
    assert_unreadable(bytes(data), ".+")


@pytest.mark.parametrize("error", [EOFError, struct.error, RuntimeError, SyntaxError, OSError, ValueError])
def test_what_decoders_raise_is_unreadable(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def broken(*_: object) -> None:
        raise error("failed to decode next frame in WebP file")  # as older Pillows do, with EOFError

    monkeypatch.setattr(Image.Image, "convert", broken)
    assert_unreadable(bytes(encoded("PNG")), "failed to decode next frame in WebP file")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(depth: int, colour: int, rows: bytes, size: tuple[int, int], clear: bytes = b"") -> bytes:
    """A PNG that Pillow does not write itself; `rows` with a filter byte (0) before each."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    body = [chunk(b"IHDR", header), chunk(b"tRNS", clear) if clear else b"", chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str = "PNG", **settings: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return Image.open(io.BytesIO(buffer.getvalue()))


def shown(image: Image.Image) -> list[list[int]]:
    """The first row's pixels."""
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    return numpy.asarray(rgb)[0].tolist()


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


RAMP_16 = numpy.arange(65536, dtype=numpy.uint16).reshape(256, 256)


@pytest.mark.parametrize(("kind", "ending"), [("PNG", "png"), ("TIFF", "tif"), ("JPEG2000", "jp2"), ("PPM", "pgm")])
def test_16_bits_are_scaled_and_never_clipped(kind: str, ending: str) -> None:
    image = saved(Image.fromarray(RAMP_16), kind)
    assert image.mode[0] == "I"
    expected = numpy.round(RAMP_16 / 257).astype(numpy.uint8)
    assert numpy.array_equal(numpy.asarray(to_rgb(image)), expected[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_in_memory_are_scaled(mode: str) -> None:
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), 257 * 200)
    assert shown(image) == grey(0, 200)


def test_12_bits_and_white_as_zero_in_a_tiff() -> None:
    def tiff(bits: int, photometric: int, data: bytes) -> bytes:
        tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
        tags.append((279, len(data)))
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        directory = struct.pack("<H", len(tags)) + entries + bytes(4)
        return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory

    assert shown(Image.open(io.BytesIO(tiff(16, 1, struct.pack("<HH", 0, 257 * 9))))) == grey(0, 9)
    assert shown(Image.open(io.BytesIO(tiff(16, 0, struct.pack("<HH", 0, 257 * 9))))) == grey(255, 246)
    assert shown(Image.open(io.BytesIO(tiff(12, 1, bytes((0xFF, 0xF8, 0x00)))))) == grey(255, 128)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_unknown_range_are_refused_by_name_and_mode(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (4, 4), 1).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"x.tif: unreadable image: mode {mode}: which of its values is white"):
        read_image(tmp_path / "x.tif", 4, where=str(tmp_path / "x.tif"))


def test_signed_16_bits_are_refused() -> None:
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 2", "NAXIS2  = 1", "END"]
    data = "".join(card.ljust(80) for card in cards).encode().ljust(2880) + bytes(4)
    with pytest.raises(ValueError, match="mode I;16"):
        to_rgb(Image.open(io.BytesIO(data)))


def test_every_kind_of_transparency_is_over_white() -> None:
    red, clear = (255, 0, 0, 255), (255, 0, 0, 0)
    rgba = Image.new("RGBA", (3, 1), red)
    rgba.putpixel((1, 0), clear)
    rgba.putpixel((2, 0), (255, 0, 0, 51))
    over_white = [[255, 0, 0], [255, 255, 255], [255, 204, 204]]
    assert shown(rgba) == shown(saved(rgba)) == shown(saved(rgba, "WEBP", lossless=True)) == over_white
    assert shown(saved(rgba, "TIFF")) == over_white and shown(rgba.convert("RGBa")) == over_white
    la = Image.new("LA", (2, 1), (7, 255))
    la.putpixel((1, 0), (7, 0))
    assert shown(la) == shown(saved(la)) == shown(la.convert("La")) == grey(7, 255)
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for place in range(3):
        palette.putpixel((place, 0), place)
    for kind in ("PNG", "GIF"):  # one index
        assert shown(saved(palette, kind, transparency=1)) == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
    assert shown(saved(palette, transparency=bytes((255, 0, 51)))) == [[255, 0, 0], [255, 255, 255], [204, 204, 255]]
    pa = palette.convert("PA")
    pa.putalpha(Image.new("L", (3, 1), 0))
    assert shown(pa) == grey(255, 255, 255)
    with_alpha = Image.new("P", (1, 1))
    with_alpha.putpalette([1, 2, 3, 0], "RGBA")
    assert shown(with_alpha) == grey(255)


def test_one_transparent_colour_of_a_png_is_over_white() -> None:
    def read(depth: int, colour: int, row: bytes, clear: bytes, width: int) -> list[list[int]]:
        return shown(Image.open(io.BytesIO(raw_png(depth, colour, b"\0" + row, (width, 1), clear))))

    rgb = bytes((1, 2, 3, 9, 9, 9))
    assert read(8, 2, rgb, struct.pack(">HHH", 1, 2, 3), 2) == [[255, 255, 255], [9, 9, 9]]
    assert read(8, 0, bytes((7, 8)), struct.pack(">H", 7), 2) == grey(255, 8)
    assert read(4, 0, bytes((0x1F,)), struct.pack(">H", 1), 2) == grey(255, 255)
    assert read(4, 0, bytes((0x12,)), struct.pack(">H", 2), 2) == grey(17, 255)
    assert read(2, 0, bytes((0b01100000,)), struct.pack(">H", 1), 2) == grey(255, 170)
    assert read(1, 0, bytes((0b01000000,)), struct.pack(">H", 0), 2) == grey(255, 255)
    assert read(1, 0, bytes((0b01000000,)), struct.pack(">H", 1), 2) == grey(0, 255)
    assert read(16, 0, struct.pack(">HH", 0x0101, 0x0102), struct.pack(">H", 0x0102), 2) == grey(1, 255)
    with pytest.raises(ValueError, match="16 bits a channel with one transparent colour"):
        read(16, 2, struct.pack(">HHH", 0x1234, 0, 0), struct.pack(">HHH", 0x1234, 0, 0), 1)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
MODES += ["I;16", "I;16B", "I", "F"]


@settings(deadline=None, max_examples=80)
@given(mode=st.sampled_from(MODES), colour=st.tuples(*[st.integers(0, 255)] * 3), alpha=st.sampled_from([0, 255]))
def test_any_mode_gives_what_a_viewer_shows_or_is_refused(mode: str, colour: tuple[int, int, int], alpha: int) -> None:
    assert set(Image.MODES) - {"I;16L", "I;16N"} <= set(MODES) | {"BGR;15", "BGR;16", "BGR;24"}
    shade = colour[0]
    image = {
        "1": lambda: Image.new("1", (2, 2), shade > 127),
        "L": lambda: Image.new("L", (2, 2), shade),
        "LA": lambda: Image.new("LA", (2, 2), (shade, alpha)),
        "La": lambda: Image.new("LA", (2, 2), (shade, alpha)).convert("La"),
        "P": lambda: Image.new("RGB", (2, 2), colour).convert("P", palette=Image.Palette.ADAPTIVE),
        "PA": lambda: Image.new("RGBA", (2, 2), (*colour, alpha)).convert("PA"),
        "RGBA": lambda: Image.new("RGBA", (2, 2), (*colour, alpha)),
        "RGBa": lambda: Image.new("RGBA", (2, 2), (*colour, alpha)).convert("RGBa"),
        "I;16": lambda: Image.fromarray(numpy.full((2, 2), 257 * shade, numpy.uint16)),
        "I;16B": lambda: Image.new("I;16B", (2, 2), 257 * shade),
        "I": lambda: Image.new("I", (2, 2), shade),
        "F": lambda: Image.new("F", (2, 2), shade),
    }.get(mode, lambda: Image.new("RGB", (2, 2), colour).convert(mode))()
    if mode in "IF":
        with pytest.raises(ValueError, match=f"mode {mode}"):
            to_rgb(image)
        return
    expected = {"1": grey(255 * (shade > 127))[0]}.get(mode, grey(shade)[0] if mode[0] in "LI" else list(colour))
    if mode == "LAB":
        expected = list(colour)
    if alpha == 0 and mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        expected = [255] * 3
    near = {"YCbCr": 4, "LAB": 40, "HSV": 8}.get(mode, 0)
    assert numpy.abs(numpy.asarray(to_rgb(image), dtype=int) - expected).max() <= near


def test_ordinary_images_are_cropped_as_before_and_strips_cost_nothing() -> None:
    def whole(image: Image.Image, size: int) -> Image.Image:
        """The protocol as ADM has it: everything is scaled, then cropped."""
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, upper = (image.width - size) // 2, (image.height - size) // 2
        return image.crop((left, upper, left + size, upper + size))

    draw = numpy.random.default_rng(0)
    for width, height in ((50, 40), (33, 100), (131, 33), (64, 64), (200, 50), (15, 61)):
        image = Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=numpy.uint8))
        assert center_crop(image, 32).tobytes() == whole(image, 32).tobytes()
    for width, height in ((301, 3), (1001, 1), (1000, 70), (70, 1000)):
        image = Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=numpy.uint8))
        cropped, expected = (numpy.asarray(crop(image, 32), dtype=int) for crop in (center_crop, whole))
        assert numpy.abs(cropped - expected).max() <= 2
    tracemalloc.start()
    strip = io.BytesIO()
    Image.new("RGB", (65000, 1), (200, 10, 10)).save(strip, "PNG")
    for size in (256, 1024):
        assert read_image(strip.getvalue(), size, where="strip").unique().tolist() == [10, 200]
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@settings(max_examples=40)
@given(st.tuples(*4 * [st.integers(1, 70)]))
def test_the_middle_of_any_proportion_is_cropped_as_large_as_it_fits(sides: tuple[int, int, int, int]) -> None:
    """Columns and rows say where they come from: the crop is centred, and one side of it is whole."""
    width, height, across, down = sides
    grid = numpy.meshgrid(numpy.linspace(0, 255, width), numpy.linspace(0, 255, height))
    image = Image.fromarray(numpy.stack([*grid, 0 * grid[0]], axis=2).round().astype(numpy.uint8))
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    cropped = numpy.asarray(center_crop(image, (down, across)), dtype=int)
    assert cropped.shape == (down, across, 3)
    other = numpy.asarray(center_crop(turned, (across, down)), dtype=int).transpose(1, 0, 2)
    assert numpy.abs(cropped - other).max() <= 2  # rounding after each of two passes, in the other order
    if across == down:
        assert (numpy.asarray(center_crop(image, across), dtype=int) == cropped).all()
    if width * down == height * across and width >= across:  # of the same proportion: nothing is cut off
        whole = numpy.asarray(image.resize((across, down), Image.Resampling.BOX), dtype=int)
        assert numpy.abs(cropped - whole).max() <= 255 / min(width, height) * 2 + 2


def test_what_is_cut_off_a_wide_image() -> None:
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (14, 0, 46, 20))  # what a crop of 3 : 2 leaves, and a pixel more
    assert numpy.asarray(center_crop(image, (20, 30))).min() == 255
    assert numpy.asarray(center_crop(image, (10, 15))).min() == 255  # halved first
    assert numpy.asarray(center_crop(image, (20, 40)))[0, :, 0].tolist() == [0] * 4 + [255] * 32 + [0] * 4


def test_what_does_not_fit_into_memory_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", full)
    assert_unreadable(bytes(encoded("PNG")), "not enough memory for it")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_followed_where_it_is_asked_for(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = bytes(encoded("PNG", exif=exif))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    as_it_lies = read_image(data, 64, where="").permute(1, 2, 0).numpy()
    assert numpy.array_equal(as_it_lies, PIXELS)
    assert numpy.array_equal(read_image(data, 64, where="", orient=True).permute(1, 2, 0), numpy.asarray(turned))
    tiff = bytes(encoded("TIFF", exif=exif))  # Pillow turns these itself, once
    assert numpy.array_equal(read_image(tiff, 64, where="", orient=True), read_image(tiff, 64, where=""))


def test_a_header_says_what_is_done_to_an_image() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    data = bytes(encoded("JPEG", exif=exif))
    wide = io.BytesIO()
    Image.fromarray(PIXELS[:40]).save(wide, "JPEG", exif=exif)
    assert read_header(data, where="") == Header((64, 64), "RGB", "JPEG", True, False, False)
    assert read_header(wide.getvalue(), where="").size == (40, 64)  # upright
    still, moving = io.BytesIO(), io.BytesIO()
    Image.new("LA", (4, 4)).save(still, "PNG")
    frames = [Image.new("RGBA", (4, 4), colour) for colour in ("red", "#00000000", "blue")]
    frames[0].putpixel((0, 0), (0, 0, 0, 0))
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    assert read_header(still.getvalue(), where="") == Header((4, 4), "LA", "PNG", False, True, False)
    header = read_header(moving.getvalue(), where="")
    assert (header.format, header.transparent, header.animated) == ("GIF", True, True)
    with pytest.raises(UserError, match=r"^row 3: unreadable image: not an image Pillow knows$"):
        read_header(b"torn", where="row 3")


def test_transparency_is_over_the_background_that_is_asked_for(tmp_path: Path) -> None:
    Image.new("LA", (4, 4), (7, 0)).save(tmp_path / "x.png")
    for colour, expected in (("white", [255] * 3), ("#102030", [16, 32, 48])):
        pixels = read_image(tmp_path / "x.png", 4, where="", background=colour)
        assert pixels[:, 0, 0].tolist() == expected
        assert numpy.asarray(open_rgb(tmp_path / "x.png", where="", background=colour))[0, 0].tolist() == expected


def test_a_jpeg_may_be_decoded_smaller_and_is_read_to_its_end() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).resize((1600, 1200)).save(buffer, "JPEG")
    data = buffer.getvalue()
    assert open_rgb(data, where="").size == (1600, 1200) and open_rgb(data, where="", least=256).size == (400, 300)
    with pytest.raises(UserError, match="truncated"):
        open_rgb(data[: len(data) * 9 // 10], where="", least=256)
