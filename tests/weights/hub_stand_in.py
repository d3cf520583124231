"""A hub of one repository on this machine, speaking as much of the protocol as a download of a file needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repository: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the requests made so far. The repository has one commit, and `main` is that."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, *, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            at, _, rest = self.path.removeprefix("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            if at != repository:
                self.refuse("RepoNotFound")
            elif revision not in ("main", COMMIT):
                self.refuse("RevisionNotFound")
            elif file not in files:
                self.refuse("EntryNotFound")
            else:
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(files[file]).hexdigest()}"')
                self.send_header("Content-Length", str(len(files[file])))
                self.end_headers()
                if body:
                    self.wfile.write(files[file])

        def refuse(self, reason: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
