"""What hostile or clumsy visitors send: each with a name, for the tests and for docs/page.md.

python -m tests.page.hostile    # prints the list
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from typing import Any

import attrs
from PIL import Image

from mixar_page.again import url
from tests.page.serving import Server
from tests.page.test_asked import bomb, data_url

#: what the first tab sends: seed, model, class, preset, steps, guidance, temperature
DRAW = ("seed", "model", "label", "preset", "steps", "cfg", "temperature")
#: what the second tab sends
EDIT = ("canvas", "seed", "latents", "codes", "peek", "model", "label", "preset", "steps", "cfg", "temperature")
#: status, and what was answered
Answer = tuple[int, Any]


@attrs.frozen
class Hostile:
    """One input: how it is sent to a server, where `elsewhere` is an address that nobody may be sent to."""

    name: str
    send: Callable[[Server, str], Answer]


def values(server: Server, keys: tuple[str, ...], **changes: Any) -> list[Any]:
    """What a button sends, changed."""
    grey, white = Image.new("RGB", (16, 16), "grey"), Image.new("RGB", (16, 16))
    white.paste("white", (4, 4, 8, 8))
    plain = {
        "canvas": json.dumps({"picture": url(grey), "mask": url(white)}),
        "seed": 1,
        "model": server.models[0],
        "label": 0,
        "preset": "",
        "latents": "redraw",
        "codes": "redraw",
        "peek": False,
        "steps": None,
        "cfg": None,
        "temperature": None,
    }
    return [{**plain, **changes}[key] for key in keys]


def draw(**changes: Any) -> Callable[[Server, str], Answer]:
    return lambda server, _: server.call("draw-go", values(server, DRAW, **changes), "hostile")


def edit(**changes: Any) -> Callable[[Server, str], Answer]:
    return lambda server, _: server.call("edit-go", values(server, EDIT, **changes), "hostile")


def canvas(picture: str, mask: str | None = None) -> Callable[[Server, str], Answer]:
    return edit(
        canvas=json.dumps(
            {"picture": picture, "mask": url(Image.new("RGB", (16, 16), "white")) if mask is None else mask}
        )
    )


def join(body: bytes | dict[str, Any]) -> Callable[[Server, str], Answer]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda server, _: server.ask("/gradio_api/queue/join", content)


def get(path: str) -> Callable[[Server, str], Answer]:
    return lambda server, elsewhere: server.ask(path.replace("ELSEWHERE", elsewhere))


def post(path: str, body: bytes, kind: str = "application/json") -> Callable[[Server, str], Answer]:
    return lambda server, _: server.ask(path, body, kind)


def directly(server: Server, _: str) -> Answer:
    body = {"data": values(server, DRAW), "fn_index": server.functions["draw-go"], "session_hash": "past"}
    return server.ask("/gradio_api/run/predict", json.dumps(body).encode())


def file_object(path: str) -> Callable[[Server, str], Answer]:
    def send(server: Server, elsewhere: str) -> Answer:
        file = {"path": path.replace("ELSEWHERE", elsewhere), "meta": {"_type": "gradio.FileData"}}
        return server.call("edit-go", values(server, EDIT, canvas=file), "hostile")

    return send


def elsewhere_on_canvas(server: Server, elsewhere: str) -> Answer:
    return canvas(f"{elsewhere}/x.png")(server, elsewhere)


def with_text(size: int) -> str:
    """A PNG whose compressed remark unpacks to so many bytes."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("remark", "a" * size, zip=True)
    packed = io.BytesIO()
    Image.new("RGB", (16, 16)).save(packed, format="PNG", pnginfo=info)
    return data_url(packed.getvalue())


FORM = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../../tmp/evil"\r\n\r\nevil\r\n--x--\r\n'
INPUTS = [
    Hostile("a seed that is a word", draw(seed="seven")),
    Hostile("no seed", draw(seed=None)),
    Hostile("a seed below zero", draw(seed=-1)),
    Hostile("a seed of 2^200", draw(seed=2**200)),
    Hostile("a seed of 1e308", draw(seed=1e308)),
    Hostile("a seed of 0.5", draw(seed=0.5)),
    Hostile("a seed that is true", draw(seed=True)),
    Hostile("a seed that is a list", draw(seed=[1, 2])),
    Hostile("a seed that is an object", draw(seed={"a": 1})),
    Hostile("no steps at all (0)", draw(steps=0)),
    Hostile("a thousand million steps", draw(steps=10**9)),
    Hostile("steps that are the word Infinity", draw(steps="Infinity")),
    Hostile("guidance below zero", draw(cfg=-3)),
    Hostile("guidance of 1e300", draw(cfg=1e300)),
    Hostile("a temperature below zero", draw(temperature=-1)),
    Hostile("a temperature of a million", draw(temperature=1e6)),
    Hostile("class 1,000,000", draw(label=10**6)),
    Hostile("class -7", draw(label=-7)),
    Hostile("a class that is a script", draw(label="<script>alert(1)</script>")),
    Hostile("a model that is ../../etc/passwd", draw(model="../../etc/passwd")),
    Hostile("a model that is /etc", draw(model="/etc")),
    Hostile("a model that is hf://someone/else", draw(model="hf://someone/else")),
    Hostile("a preset that is ../../../etc/passwd", draw(preset="../../../etc/passwd")),
    Hostile("too few values", lambda server, _: server.call("draw-go", [1], "hostile")),
    Hostile("forty values", lambda server, _: server.call("draw-go", [1] * 40, "hostile")),
    Hostile("values that are no list", lambda server, _: server.call("draw-go", "all", "hostile")),
    Hostile("NaN in the JSON", join(b'{"data": [NaN], "fn_index": 1, "session_hash": "a"}')),
    Hostile(
        "1e999 for every value",
        lambda server, _: server.ask(
            "/gradio_api/queue/join",
            b'{"data": ['
            + b"1e999, " * 6
            + b'1e999], "fn_index": %d, "session_hash": "inf"}' % server.functions["draw-go"],
        ),
    ),
    Hostile("100,000 lists within each other", join(b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    Hostile("JSON that breaks off", join(b'{"data": [1, 2')),
    Hostile("bytes that are no JSON", join(bytes(range(256)))),
    Hostile("10 MB in one request", join(b'{"data": ["' + b"a" * 10_000_000 + b'"]}')),
    Hostile("a session's name of 10,000 letters", join({"data": [], "fn_index": 1, "session_hash": "a" * 10_000})),
    Hostile("a session's name that is a path", join({"data": [], "fn_index": 1, "session_hash": "../../x"})),
    Hostile("function 1,000,000,000", join({"data": [], "fn_index": 10**9, "session_hash": "a"})),
    Hostile("function -1", join({"data": [], "fn_index": -1, "session_hash": "a"})),
    Hostile("a function that is a word", join({"data": [], "fn_index": "draw", "session_hash": "a"})),
    Hostile("a press past the queue", directly),
    Hostile("a canvas that is a word", edit(canvas="picture")),
    Hostile("a picture that is a GIF", canvas(data_url(b"GIF89a" + bytes(100)))),
    Hostile("a picture of 20,000 x 20,000 pixels in 50 kB", canvas(data_url(bomb(20_000)))),
    Hostile("a mask of 20,000 x 20,000 pixels", canvas(url(Image.new("RGB", (16, 16))), data_url(bomb(20_000)))),
    Hostile("a picture whose remark unpacks to 200 MB", canvas(with_text(200_000_000))),
    Hostile("a picture that breaks off", canvas(url(Image.effect_noise((64, 64), 9))[:400])),
    Hostile("a picture at http://", elsewhere_on_canvas),
    Hostile("a picture at file:///etc/passwd", canvas("file:///etc/passwd")),
    Hostile("an SVG that loads another file", canvas("data:image/svg+xml;base64,PHN2Zy8+")),
    Hostile("a mask of another size", canvas(url(Image.new("RGB", (16, 16))), url(Image.new("RGB", (9, 30), "white")))),
    Hostile("an empty mask", canvas(url(Image.new("RGB", (16, 16))), url(Image.new("RGB", (16, 16))))),
    Hostile("codes and latents both kept", edit(latents="keep", codes="keep")),
    Hostile("a file object with the path /etc/passwd", file_object("/etc/passwd")),
    Hostile("a file object with an address", file_object("ELSEWHERE/x.png")),
    Hostile("an upload to ../../../tmp", post("/gradio_api/upload", FORM, "multipart/form-data; boundary=x")),
    Hostile("file=/etc/passwd", get("/gradio_api/file=/etc/passwd")),
    Hostile("file= with dots, escaped", get("/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/etc/passwd")),
    Hostile("static/ with dots, escaped", get("/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd")),
    Hostile("assets/ with a second slash", get("/assets//etc/passwd")),
    Hostile("proxy= of another address", get("/gradio_api/proxy=ELSEWHERE/x")),
    Hostile("a function called by name", post("/gradio_api/call/on_draw", b'{"data": []}')),
    Hostile("a component's own function", post("/gradio_api/component_server", b'{"data": "/etc", "component_id": 1}')),
    Hostile("how the server is doing", get("/monitoring")),
    Hostile("gradio's editor of the page's code", post("/gradio_api/vibe-edit", b'{"prompt": "x"}')),
    Hostile("100 kB that unpack to 100 MB", post("/gradio_api/queue/join", zlib.compress(bytes(100_000_000)))),
]


if __name__ == "__main__":
    for number, each in enumerate(INPUTS, 1):
        print(f"{number}. {each.name}")
