"""A server with PhysioNet's layout on 127.0.0.1, which can misbehave on request."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Answers a request in its own way: (handler, the file's bytes).
Answer = Callable[["Handler", bytes], None]


class PhysionetServer(ThreadingHTTPServer):
    """Serves root/<slug>/<version>/... under /files/ and counts what it was asked for.

    broken[path]: bytes sent before the line goes dead, once per request; answers[path]: one `Answer` per
    request, the last one for all further ones. Paths are relative to root. ranges: whether a part can be
    requested; rate: bytes per second and connection; login: Authorization without which all is refused.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.ranges = root, True
        self.requests: Counter[str] = Counter()
        self.sent_from: dict[str, list[int]] = {}
        self.headers: dict[str, list[dict[str, str]]] = {}
        self.broken: dict[str, int] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.rate, self.login = 0.0, ""
        self.sent = 0  # bytes of files
        self.connections = self.busy = self.busiest = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/"

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: PhysionetServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self._get()
        finally:
            with server.lock:
                server.busy -= 1

    def _get(self) -> None:
        server = self.server
        name = self.path.removeprefix("/files/")
        with server.lock:
            server.requests[name] += 1
            server.headers.setdefault(name, []).append(dict(self.headers))
        path = server.root / name
        body = path.read_bytes() if path.is_file() else b""
        answers = server.answers.get(name)
        if server.login and self.headers.get("Authorization") != server.login:
            self.status(401)
        elif answers:
            (answers.pop(0) if len(answers) > 1 else answers[0])(self, body)
        elif not self.path.startswith("/files/") or not path.is_file():
            self.status(404)
        else:
            self.file(body, name)

    def file(self, body: bytes, name: str = "") -> None:
        """The file as it should be sent."""
        server = self.server
        name = name or self.path.removeprefix("/files/")
        start = 0
        asked = self.headers.get("Range", "")
        if server.ranges and asked.startswith("bytes="):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.status(416)
                return
        server.sent_from.setdefault(name, []).append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        stop = server.broken.get(name, len(body) - start)
        self.send(body[start : start + stop])
        if stop < len(body) - start:
            self.close_connection = True

    def send(self, data: bytes) -> None:
        """Bytes of a file, at the server's rate."""
        step = 1 << 15
        for at in range(0, len(data), step):
            with self.server.lock:  # before, so that a client never knows more than the count
                self.server.sent += len(data[at : at + step])
            self.wfile.write(data[at : at + step])
            if self.server.rate:
                time.sleep(step / self.server.rate)

    def status(self, code: int, body: bytes = b"", **headers: str) -> None:
        """A whole reply."""
        self.send_response(code)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def raw(self, data: bytes) -> None:
        """Bytes instead of a reply, and the end."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def well(handler: Handler, body: bytes) -> None:
    """As it should be."""
    handler.file(body)


def reply(code: int, body: bytes = b"", **headers: str) -> Answer:
    """A fixed reply; underscores in header names stand for hyphens."""
    return lambda handler, _: handler.status(code, body, **headers)


def raw(data: bytes) -> Answer:
    """These bytes instead of a reply."""
    return lambda handler, _: handler.raw(data)


def reset(count: int) -> Answer:
    """`count` bytes of the body, then a reset of the connection."""

    def answer(handler: Handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:count])
        time.sleep(0.05)  # the reset would overtake the bytes
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return answer


def chunked(handler: Handler, body: bytes) -> None:
    """The file in chunks of uneven sizes, with an extension and a trailer."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for at in range(0, len(body), 7001):
        part = body[at : at + 7001]
        handler.wfile.write(b"%x;note=1\r\n%s\r\n" % (len(part), part))
    handler.wfile.write(b"0\r\nX-Trailer: 1\r\n\r\n")


def forever(head: bytes, again: bytes, pause: float = 0.0, most: int = 1 << 28) -> Answer:
    """`head`, then `again` until the client hangs up (or `most` bytes, so that a test ends)."""

    def answer(handler: Handler, _: bytes) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(head)
            sent = 0
            while sent < most:
                handler.wfile.write(again)
                sent += len(again)
                handler.server.sent += len(again)
                if pause:
                    time.sleep(pause)

    return answer


def write_sums(database: Path) -> None:
    """SHA256SUMS.txt over every file of a database folder."""
    files = sorted(p for p in database.rglob("*") if p.is_file() and p.name != "SHA256SUMS.txt")
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.relative_to(database).as_posix()}" for p in files
    ]
    (database / "SHA256SUMS.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def serve(root: Path) -> Iterator[PhysionetServer]:
    """A running server; it stops with the block."""
    server = PhysionetServer(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
