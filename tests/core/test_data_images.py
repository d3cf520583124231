"""Damaged image files: each is one line that names it, whatever Pillow raises."""

from __future__ import annotations

import io
import struct

import numpy
import pytest
from PIL import Image, features

from mixar_core.data.images import read_image
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
