"""A server with PhysioNet's layout on 127.0.0.1, which can misbehave on request."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class PhysionetServer(ThreadingHTTPServer):
    """Serves root/<slug>/<version>/... under /files/ and counts what it was asked for.

    broken[path]: bytes sent before the line goes dead, once per request; spoilt[path]: bytes sent instead;
    refused[path]: status codes sent first, one per request. Paths are relative to root.
    """

    daemon_threads = True

    def __init__(self, root: Path, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.ranges = root, ranges
        self.requests: Counter[str] = Counter()
        self.sent_from: dict[str, list[int]] = {}
        self.broken: dict[str, int] = {}
        self.spoilt: dict[str, bytes] = {}
        self.refused: dict[str, list[int]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/"


class _Handler(BaseHTTPRequestHandler):
    server: PhysionetServer

    def do_GET(self) -> None:
        server = self.server
        name = self.path.removeprefix("/files/")
        server.requests[name] += 1
        if server.refused.get(name):
            self.send_error(server.refused[name].pop(0))
            return
        path = server.root / name
        if not self.path.startswith("/files/") or not path.is_file():
            self.send_error(404)
            return
        body = server.spoilt.get(name, path.read_bytes())
        start = 0
        asked = self.headers.get("Range", "")
        if server.ranges and asked.startswith("bytes="):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
        server.sent_from.setdefault(name, []).append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = server.broken.get(name, len(body) - start)
        self.wfile.write(body[start : start + stop])
        if stop < len(body) - start:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def write_sums(database: Path) -> None:
    """SHA256SUMS.txt over every file of a database folder."""
    files = sorted(p for p in database.rglob("*") if p.is_file() and p.name != "SHA256SUMS.txt")
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(database).as_posix()}" for p in files
    ]
    (database / "SHA256SUMS.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def serve(root: Path, ranges: bool = True) -> Iterator[PhysionetServer]:
    """A running server; it stops with the block."""
    server = PhysionetServer(root, ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
