"""A hub of one repository on this machine.

It speaks as much of the protocol as downloads of a file and of a whole repository, and an upload need; it takes every
file into the commit itself, large ones too.
"""

from __future__ import annotations

import base64
import hashlib
import json
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

        def say(self, answer: object) -> None:
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def refuse(self, reason: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            about = f"/api/models/{repository}"
            if self.path.startswith(f"{about}/tree/"):
                asked.append(f"GET {self.path}")
                self.say([{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files])
            elif self.path.startswith(about):
                asked.append(f"GET {self.path}")
                self.say({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            else:
                self.answer(body=True)

        def do_POST(self) -> None:
            asked.append(f"POST {self.path}")
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/preupload/main"):
                paths = [file["path"] for file in json.loads(content)["files"]]
                known = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self.say({"files": known})
            elif self.path.endswith("/commit/main"):
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.say(
                    {"commitUrl": f"http://{self.headers['Host']}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
                )
            else:  # a repository is made; a card's header is looked at
                self.say({"url": f"http://{self.headers['Host']}/{repository}", "warnings": [], "errors": []})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
