"""One HTTP GET at a time over a kept connection, every byte of the answer read under deadlines.

http.client keeps a timeout per read, which a server that sends one byte in time never exceeds. Here the
socket is wrapped, so that status line, headers, chunk framing and body all pass through one clock (`Pace`).
Standard library only; proxies are those of the environment (https_proxy, no_proxy ...), as in urllib.
"""

from __future__ import annotations

import base64
import contextlib
import io
import selectors
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any

from ecggen.prepare.download.source import SourceError

SLICE_S = 0.5  # how long a read may sleep before it looks whether it should stop
BLOCK = 1 << 16


@dataclass(frozen=True)
class Limits:
    """How long to wait, how often to try, how much to accept. Times in seconds, sizes in bytes."""

    connections: int = 4  # at once, all files together: PhysioNet asks for few
    attempts: int = 8  # in a row without progress; with the waits below they span about two minutes
    backoff_s: float = 1.0  # before the second attempt; doubled for each further one, shortened by up to half
    backoff_max_s: float = 60.0
    retry_after_max_s: float = 600.0  # a server that asks for more is left alone until the next run
    connect_s: float = 20.0
    idle_s: float = 30.0  # without a single byte
    window_s: float = 30.0  # headers arrive within one, and every one carries min_rate
    min_rate: int = 1024  # bytes of the file per second
    redirects: int = 5
    gain: int = 1 << 20  # a file that grew by this much starts its attempts anew
    file_bytes: int = 16 << 30
    unsized_bytes: int = 1 << 30  # where the server does not say beforehand how much it sends


class TransferError(Exception):
    """An attempt that may succeed when made again; wait: seconds the server asks for."""

    def __init__(self, cause: str, wait: float | None = None) -> None:
        super().__init__(cause)
        self.wait = wait


class Stopped(Exception):  # noqa: N818 - not an error: another file failed, or the user pressed Ctrl-C
    """The transfer is to end; what has arrived stays."""


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: what a connection and credentials belong to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises ValueError for anything but http and https, without a host, or with a user name."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("an address that starts with http:// or https:// is needed")
        if "@" in parts.netloc:
            raise ValueError("a user name or password in an address would be logged")
        if not parts.hostname:
            raise ValueError("an address without a host")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.scheme == "https" else 80)
        return f"{self.scheme}://{host}" if usual else f"{self.scheme}://{host}:{self.port}"


class Pace:
    """The clock of one answer. `useful` counts bytes of the file, so that framing cannot buy time."""

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.limits, self.stop = limits, stop
        self.begin()

    def begin(self) -> None:
        """A new request."""
        self.useful = self._marked = 0
        self._last = self._mark = time.monotonic()

    def receive(self, sock: socket.socket, buffer: Any) -> int:
        """recv_into under the clock. Raises TransferError where the server is too slow, Stopped."""
        while True:
            self._check()
            sock.settimeout(min(SLICE_S, self.limits.idle_s))
            try:
                count = sock.recv_into(buffer)
            except TimeoutError:
                continue
            self._last = time.monotonic()
            return count

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped
        now, limits = time.monotonic(), self.limits
        if now - self._last > limits.idle_s:
            raise TransferError(f"nothing came for {limits.idle_s:g} s")
        if now - self._mark >= limits.window_s:
            if self.useful - self._marked < limits.min_rate * (now - self._mark):
                raise TransferError(f"fewer than {limits.min_rate} bytes a second came")
            self._mark, self._marked = now, self.useful


class _Wire(io.RawIOBase):
    """The reading end of a socket, for one answer."""

    def __init__(self, sock: socket.socket, pace: Pace) -> None:
        super().__init__()
        self._sock, self._pace = sock, pace
        # http.client closes a connection while its last answer is still being read: a socket stays open for
        # as long as files made of it do.
        self._hold = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._pace.receive(self._sock, buffer)

    def close(self) -> None:
        self._hold.close()
        super().close()


class _Socket:
    """What http.client uses of a socket, with reads under the clock."""

    def __init__(self, sock: socket.socket, pace: Pace) -> None:
        self._sock, self._pace = sock, pace

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Wire(self._sock, self._pace), BLOCK)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._pace.limits.idle_s)
        self._sock.sendall(data)

    def close(self) -> None:
        self._sock.close()

    def has_input(self) -> bool:
        """Whether something waits to be read: between requests that is the end, or more than was promised."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            return bool(selector.select(0))


class _Paced:
    """Mix-in for http.client's connections."""

    pace: Pace
    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.sock = _Socket(self.sock, self.pace)


class _Http(_Paced, HTTPConnection):
    pass


class _Https(_Paced, HTTPSConnection):
    pass


class Connection:
    """The connection of one worker, kept as long as the next request goes to the same origin."""

    def __init__(self, limits: Limits, stop: threading.Event) -> None:
        self.pace = Pace(limits, stop)
        self._origin: Origin | None = None
        self._http: HTTPConnection | None = None
        self._by_proxy = False

    def get(self, url: str, headers: Mapping[str, str]) -> HTTPResponse:
        """Send a request and read the answer's headers. Raises TransferError, Stopped, SourceError.

        After the body was read to its end call `finish`, else `drop`.
        """
        origin = Origin.of(url)
        kept = self._http is not None and self._origin == origin and not self._stale()
        if not kept:
            self.drop()
        try:
            return self._send(origin, url, headers)
        except ssl.SSLCertVerificationError as error:
            self.drop()
            raise SourceError(
                f"The certificate of {origin.host} is not valid ({tidy(error)}): check the computer's clock "
                "and whether a proxy stands in between."
            ) from error
        except (OSError, HTTPException) as error:
            self.drop()
            if kept and isinstance(error, ConnectionError):
                return self.get(url, headers)  # closed by the server between two requests: no failure
            raise TransferError(tidy(error)) from error
        except BaseException:
            self.drop()
            raise

    def read(self, reply: HTTPResponse) -> bytes:
        """The next bytes of the body, empty at its end. Raises TransferError, Stopped."""
        try:
            block = reply.read1(BLOCK)
        except (OSError, HTTPException) as error:
            raise TransferError(f"the transfer broke off ({tidy(error)})") from error
        self.pace.useful += len(block)
        return block

    def finish(self, reply: HTTPResponse) -> None:
        """The body was read to its end: the connection may serve again."""
        reply.close()
        if reply.will_close:
            self.drop()

    def drop(self) -> None:
        """Close, whatever is under way."""
        http, self._http, self._origin = self._http, None, None
        if http is not None:
            with contextlib.suppress(OSError):
                http.close()

    def _stale(self) -> bool:
        sock = getattr(self._http, "sock", None)
        return sock is None or sock.has_input()

    def _send(self, origin: Origin, url: str, headers: Mapping[str, str]) -> HTTPResponse:
        self.pace.begin()
        if self._http is None:
            self._http, self._by_proxy = _connection(origin, self.pace)
            self._origin = origin
            self._http.connect()
            self.pace.begin()
        parts = urllib.parse.urlsplit(url)
        path = urllib.parse.quote(parts.path or "/", safe="/%:=&?~#+!$,;'@()*[]")
        query = "?" + urllib.parse.quote(parts.query, safe="/%:=&?~+!$,;'@()*[]") if parts.query else ""
        target = f"{origin}{path}{query}" if self._by_proxy else f"{path}{query}"
        self._http.request("GET", target, headers=dict(headers) | _proxy_headers(origin, self._by_proxy))
        return self._http.getresponse()


def tidy(error: BaseException | str, length: int = 120) -> str:
    """Words on one line: a server may have chosen them, or their length."""
    text = str(error) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= length else f"{text[:length]}..."


def _connection(origin: Origin, pace: Pace) -> tuple[HTTPConnection, bool]:
    """(connection, whether requests name the whole address, as for a plain proxy)."""
    proxy = _proxy(origin)
    host, port = (origin.host, origin.port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
    kind: Any = _Https if origin.scheme == "https" else _Http
    connection = kind(host, port, timeout=pace.limits.connect_s)
    connection.pace = pace
    if proxy is None or origin.scheme == "http":
        return connection, proxy is not None
    connection.set_tunnel(origin.host, origin.port, _proxy_headers(origin, True))
    return connection, False


def _proxy(origin: Origin) -> urllib.parse.SplitResult | None:
    """The proxy that the environment names for an origin."""
    address = urllib.request.getproxies().get(origin.scheme)
    if not address or urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    parts = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http":
        raise SourceError(
            f"{origin.scheme}_proxy in the environment is of kind {parts.scheme!r}: one that starts with "
            "http:// is needed."
        )
    return parts


def _proxy_headers(origin: Origin, by_proxy: bool) -> dict[str, str]:
    proxy = _proxy(origin) if by_proxy else None
    if proxy is None or proxy.username is None:
        return {}
    words = (urllib.parse.unquote(word or "") for word in (proxy.username, proxy.password))
    return {"Proxy-Authorization": "Basic " + base64.b64encode(":".join(words).encode()).decode("ascii")}
