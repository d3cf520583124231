"""The gate before gradio: what the page itself needs passes, and nothing else is let in, or told to load elsewhere.

gradio serves and fetches files, runs functions by name, keeps what is uploaded. The page uses none of that: pictures
travel as text inside its own requests. So those routes are closed, and a request is looked at before gradio reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any

import attrs
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixar_page.asked import MOST_BYTES

#: what may be read, and what may be sent to
_GET = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(static|assets|svelte)/[\w@.+/-]+"
    r"|/gradio_api/(queue/data|startup-events|heartbeat/\w{1,64}|info/?)"
)
_POST = re.compile(r"/gradio_api/(queue/join|run/predict|cancel|reset)/?")
#: bytes of a request: a picture and its mask
_MOST = MOST_BYTES + 200_000
#: values of a request, characters of those that are names
_VALUES, _NAME = 32, 64
#: what the browser may load for the page: from this server, or what is in the page already
_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; base-uri 'self'"
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class _Refused(Exception):
    """A request that is not let in: the status and one line."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@attrs.frozen(eq=False)
class Gate:
    """An ASGI application before another one; `functions` are the numbers of those that the page may call."""

    app: ASGIApp
    functions: Container[int] = range(1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no socket
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            path, method = scope["path"], scope["method"]
            if method == "POST" and _POST.fullmatch(path):
                receive = _again(await _body(receive, self.functions))
            elif method not in ("GET", "HEAD") or not _GET.fullmatch(path) or ".." in path:
                raise _Refused(404, "not a part of this page")
        except _Refused as error:
            await JSONResponse({"detail": str(error)}, error.status)(scope, receive, sending)
            return
        await self.app(scope, receive, sending)


async def _body(receive: Receive, functions: Container[int]) -> bytes:
    """The body of a request, once it is known to be what the page sends."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "the request ended early")
        body += message.get("body", b"")
        if len(body) > _MOST:
            raise _Refused(413, f"more than {_MOST / 1e6:.1f} MB in one request")
        if not message.get("more_body"):
            break
    try:
        found = json.loads(bytes(body) or b"{}", parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _Refused(400, "not JSON that this page sends") from error
    _check(found)
    if found.get("fn_index", 0) not in functions:
        raise _Refused(422, "fn_index: no function of this page")
    return bytes(body)


def _check(found: Any) -> None:
    """Refuse all but an object of names and numbers, with a list of plain values: no value of the page holds others."""
    if not isinstance(found, dict):
        raise _Refused(400, "not what this page sends")
    for key, value in found.items():
        values = [value]
        if key == "data" and isinstance(value, list):
            values = value
        elif key == "event_data" and isinstance(value, dict):
            values = list(value.values())
        if len(values) > _VALUES or not all(
            each is None or isinstance(each, bool | int | float | str) for each in values
        ):
            raise _Refused(422, f"{key[:_NAME]}: holds something else than plain values")
        if (
            key not in ("data", "event_data")
            and isinstance(value, str)
            and not re.fullmatch(rf"[\w-]{{0,{_NAME}}}", value)
        ):
            raise _Refused(422, f"{key[:_NAME]}: not a name")


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _again(body: bytes) -> Receive:
    """What hands a body out once, and then says that nothing follows."""
    left = [body]

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return {"type": "http.disconnect"}

    return receive
