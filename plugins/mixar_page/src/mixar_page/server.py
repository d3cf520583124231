"""The server of the page: gradio behind the gate, on one port, until it is interrupted."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

from mixar_core.errors import UserError
from mixar_page.gate import Gate
from mixar_page.studio import Studio

#: requests that are answered at once; more are turned away, so that memory stays bounded
CONNECTIONS = 100


def serve(stage: Studio, host: str, port: int) -> None:
    """Serve the page; says where it is. Ends with the process.

    Raises:
        UserError: the address is not this machine's, or taken.
    """
    listening = _listen(host, port)
    with tempfile.TemporaryDirectory(prefix="mixar-page-") as scratch:
        # gradio asks for a newer version of itself and reports what is used when it is imported, unless told not to
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": scratch, "HF_HUB_DISABLE_TELEMETRY": "1"}
        import uvicorn

        print("drawing the first picture ...", file=sys.stderr)
        config = uvicorn.Config(application(stage, host), log_level="warning", limit_concurrency=CONNECTIONS)
        address = f"http://{host if ':' not in host else f'[{host}]'}:{listening.getsockname()[1]}"
        print(f"{', '.join(stage.own)} at {address} (Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def application(stage: Studio, host: str = "127.0.0.1") -> Gate:
    """The page as an ASGI application."""
    import fastapi
    import gradio as gr

    from mixar_page.page import build

    page = build(stage)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=(Path(__file__).parent / "static/page.css").read_text(encoding="utf-8"),
    )
    return Gate(app, frozenset(page.fns))


def _listen(host: str, port: int) -> socket.socket:
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(kind, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # who only binds does not hold the port: another may bind it until one of them listens
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; try another --port") from error
    return listening
