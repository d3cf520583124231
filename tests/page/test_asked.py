"""What a visitor sends is looked at before anything is computed."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixar_core.errors import UserError
from mixar_page import asked
from mixar_page.again import png, url
from mixar_page.gate import Gate

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())


@settings(max_examples=50)
@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_whatever_arrives_is_a_way_or_refused(model: Any, preset: Any, steps: Any, cfg: Any, temperature: Any) -> None:
    try:
        way = asked.way_of(model, preset, steps, cfg, temperature)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(way.model, str) and way.preset != ""
    assert way.steps is None or (isinstance(way.steps, int) and 1 <= way.steps <= asked.MOST_STEPS)
    assert way.cfg is None or 0 <= way.cfg <= asked.MOST_CFG
    assert way.temperature is None or 0 <= way.temperature <= asked.MOST_TEMPERATURE


@given(ANYTHING)
def test_a_seed_is_a_whole_number_in_its_range(value: Any) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if good and 0 <= value < asked.SEEDS and float(value).is_integer():
        assert asked.seed_of(value) == value
    else:
        with pytest.raises(UserError, match="seed"):
            asked.seed_of(value)


def test_levels() -> None:
    assert asked.level_of("redraw", "redraw") == "both"
    assert asked.level_of("redraw", "keep") == "latents"
    assert asked.level_of("keep", "redraw") == "codes"
    with pytest.raises(UserError, match="nothing would change"):
        asked.level_of("keep", "keep")
    with pytest.raises(UserError, match="each is"):
        asked.level_of(["redraw"], "keep")


def test_a_picture_travels_unchanged() -> None:
    picture = Image.effect_noise((16, 12), 80).convert("RGB")
    assert asked.picture_of(url(picture)).tobytes() == picture.tobytes()
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert asked.picture_of(url(clear)).getpixel((0, 0)) == (255, 255, 255)


def bomb(side: int) -> bytes:
    """A PNG that is small and unpacks to side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + side // 8)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def data_url(content: bytes) -> str:
    return asked.PREFIX + base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "none there"),
        ("file:///etc/passwd", "none there"),
        ("http://127.0.0.1/x.png", "none there"),
        ("data:image/svg+xml;base64,AAAA", "none there"),
        (asked.PREFIX + "!!", "not a PNG"),
        (data_url(b"GIF89a"), "not a PNG"),
        (data_url(png(Image.new("RGB", (64, 64)))[:60]), "not a PNG"),
        (data_url(bomb(4000)), "pixels are too many"),
        (asked.PREFIX + "A" * asked.MOST_BYTES, "MB are too many"),
    ],
)
def test_other_pictures_are_refused(value: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        asked.picture_of(value)


def test_nothing_painted_is_refused() -> None:
    grey, black = url(Image.new("RGB", (8, 8), "grey")), url(Image.new("RGB", (8, 8)))
    with pytest.raises(UserError, match="nothing is painted"):
        asked.painted(json.dumps({"picture": grey, "mask": black}))
    for nothing in (None, "", "[]", "[" * 100_000, 3):
        with pytest.raises(UserError, match="no picture to edit"):
            asked.painted(nothing)


def through(path: str, body: bytes = b"", method: str = "GET") -> int:
    """The status of a request behind whose gate everything is answered with 200."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if method == "POST":
            assert (await receive())["body"] == body
        await send({"type": "http.response.start", "status": 200, "headers": []})

    found: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        found.append(message)

    asyncio.run(Gate(app)({"type": "http", "path": path, "method": method, "headers": []}, receive, send))
    assert (b"content-security-policy" in dict(found[0]["headers"])) and "headers" in found[0]
    return int(found[0]["status"])


def test_the_gate_lets_in_what_the_page_needs() -> None:
    good = json.dumps(
        {"data": ["a", 1, None], "event_data": {"seed": 2}, "fn_index": 1, "session_hash": "ab1"}
    ).encode()
    assert through("/gradio_api/queue/join", good, "POST") == 200
    for path in ("/", "/config", "/theme.css", "/assets/index-a.js", "/gradio_api/queue/data"):
        assert through(path) == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/gradio_api/upload", b"x", 404),
        ("/gradio_api/call/draw", b"{}", 404),
        ("/gradio_api/queue/join", b"[" * 100_000, 400),
        ("/gradio_api/queue/join", b'{"data": [NaN]}', 400),
        ("/gradio_api/queue/join", b"\xff", 400),
        ("/gradio_api/queue/join", b"[]", 400),
        ("/gradio_api/queue/join", b'{"data": [{"path": "/etc/passwd"}]}', 422),
        ("/gradio_api/queue/join", b'{"data": [' + b"1," * 40 + b"1]}", 422),
        ("/gradio_api/queue/join", b'{"session_hash": "../x"}', 422),
        ("/gradio_api/queue/join", b" " * 4_000_000, 413),
    ],
)
def test_the_gate_refuses_the_rest(path: str, body: bytes, status: int) -> None:
    assert through(path, body, "POST") == status


@pytest.mark.parametrize(
    "path", ["/gradio_api/file=/etc/passwd", "/assets/../x", "/gradio_api/proxy=http://a", "/monitoring"]
)
def test_the_gate_reads_no_files(path: str) -> None:
    assert through(path) == 404


def test_a_png_keeps_what_its_picture_says() -> None:
    picture = Image.new("RGB", (2, 2))
    picture.info = {"mixar": "ä", "other": 3}  # type: ignore[dict-item]
    assert Image.open(io.BytesIO(png(picture))).info == {"mixar": "ä"}
