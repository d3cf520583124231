"""A server of the page in a process of its own, as `mixar serve` starts it, and what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

#: seconds to wait for a start, or an answer
PATIENCE = 60


@attrs.define(slots=False)
class Server:
    """A running page."""

    address: str
    process: subprocess.Popen[str]
    log: Path
    models: tuple[str, ...]

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """Status and content of an answer."""
        request = urllib.request.Request(self.address + path, data=body, headers={"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    @cached_property
    def functions(self) -> dict[str, int]:
        """The functions behind the buttons, by the buttons' names."""
        config = json.loads(self.ask("/config")[1])
        names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
        return {
            names[target]: each["id"]
            for each in config["dependencies"]
            for target, _ in each["targets"]
            if names.get(target) and each["queue"] is not False
        }

    def call(self, button: str, data: Any, session: str = "test") -> tuple[int, dict[str, Any]]:
        """Press a button with these values: a status, and what came of it."""
        body = json.dumps({"data": data, "fn_index": self.functions[button], "session_hash": session}).encode()
        status, answer = self.ask("/gradio_api/queue/join", body)
        return (status, json.loads(answer)) if status != 200 else (status, self.result(session))

    def result(self, session: str) -> dict[str, Any]:
        """What the last computation of a session came to."""
        lines = self.ask(f"/gradio_api/queue/data?session_hash={session}")[1].decode().splitlines()
        found = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        return next(each for each in reversed(found) if each["msg"] == "process_completed")

    @property
    def memory(self) -> int:
        """Bytes that it holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


@contextmanager
def serving(*models: object, folder: Path, program: Sequence[str] = ("-m", "mixar")) -> Iterator[Server]:
    """`mixar serve` on a free port; ended at the end, as by Ctrl-C."""
    log = folder / "stderr"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *program, "serve", *map(str, models), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert "http://" in said, log.read_text()
        server = Server(said.split(" at ")[1].split()[0], process, log, tuple(map(str, models)))
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                server.ask("/config")
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)
