"""Whatever is sent to a running page: no crash, no file read, nobody else asked, memory bounded, and it still draws."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mixar
from mixar_core.pictures import to_pil
from mixar_page.asked import PREFIX, picture_of
from tests.page.hostile import DRAW, INPUTS, Hostile, values
from tests.page.serving import Server

pytestmark = pytest.mark.slow

#: bytes that hostile inputs may add to what the server holds
MORE_MEMORY = 300_000_000


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and who has called there."""
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def listen() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                calls.append(connection.recv(100).decode(errors="replace"))
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", calls


@pytest.fixture(scope="module")
def memory(server: Server) -> int:
    """What the server holds once it has drawn something."""
    assert server.call("draw-go", values(server, DRAW), "before")[1]["success"]
    return server.memory


@pytest.mark.parametrize("hostile", INPUTS, ids=lambda each: each.name.replace("/", "_"))
def test_an_input(hostile: Hostile, server: Server, memory: int, elsewhere: tuple[str, list[str]]) -> None:
    address, calls = elsewhere
    try:
        status, answer = hostile.send(server, address)
    except OSError:  # the connection was cut while we were still sending
        status, answer = 413, b""
    said = answer.decode(errors="replace") if isinstance(answer, bytes) else json.dumps(answer)
    refused = 400 <= status < 500 or (isinstance(answer, dict) and answer.get("success") is False)
    if status == 200 and isinstance(answer, bytes) and "event_id" in said:  # taken into the queue: then it fails there
        refused = server.result("inf")["success"] is False
    assert refused, (status, said[:500])
    assert "root:" not in said and "Traceback" not in said
    assert calls == []
    assert server.process.poll() is None
    assert server.memory < memory + MORE_MEMORY
    assert not Path("/tmp/evil").exists()


def test_a_thousand_presses(server: Server, memory: int) -> None:
    """All at once: some wait, the rest is turned away, and afterwards it draws as before."""
    body = {"data": values(server, DRAW), "fn_index": server.functions["draw-go"]}

    def press(number: int) -> int:
        content = json.dumps({**body, "session_hash": f"many{number}"}).encode()
        try:
            return server.ask("/gradio_api/queue/join", content)[0]
        except OSError:  # the connection was not taken
            return 503

    with ThreadPoolExecutor(64) as many:
        found = Counter(many.map(press, range(1000)))
    assert found.keys() <= {200, 503} and found[503] > 100, found
    assert server.memory < memory + MORE_MEMORY
    drawn = next(
        answer
        for _ in range(100)
        for status, answer in [server.call("draw-go", values(server, DRAW, seed=4))]
        if status == 200
    )
    page = drawn["output"]["data"][0]
    picture = picture_of(PREFIX + page.split("class='main'><img")[1].split(PREFIX)[1].split("'")[0])
    model = mixar.load(server.models[0])
    assert picture.tobytes() == to_pil(model.generate(0, seed=4).images[0]).tobytes()


def test_they_are_listed() -> None:
    text = (Path(__file__).parents[2] / "docs/page.md").read_text(encoding="utf-8")
    assert len(INPUTS) >= 50
    assert [each.name for each in INPUTS if each.name not in text] == []
