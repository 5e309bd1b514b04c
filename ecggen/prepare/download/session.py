"""Files from a server that may break off, stall, lie or be under attack: polite, resumable, verified.

What it relies on: a SHA-256 for every file but the list of them. What it does not trust: status, headers,
lengths, ranges, redirects, names, speed, and that there is an end. Every wait and every size is bounded by
`Limits`. RFC 9110 (HTTP semantics) throughout.
"""

from __future__ import annotations

import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from ecggen.prepare.download.connection import Connection, Limits, Origin, Stopped, TransferError, tidy
from ecggen.prepare.download.credentials import HOW, Login, find_login, is_local, is_private
from ecggen.prepare.download.part import Part, holds, real_folder
from ecggen.prepare.download.progress import Progress, size_words
from ecggen.prepare.download.source import SourceError

USER_AGENT = "ecggen"
BY_HAND = "download it by hand and use data.source=wfdb with data.path set to its folder"
REDIRECTS = (301, 302, 303, 307, 308)
TRY_AGAIN = (408, 425, 429)  # besides 5xx
WAITING = 4  # files handed to the workers beforehand, per connection: a database may have millions


class MissingError(SourceError):
    """The server has no such file."""


@dataclass(frozen=True)
class Job:
    """One file: url, name below the folder, SHA-256 (empty: nothing vouches for it), limit in bytes."""

    url: str
    name: str
    sha256: str
    limit: int


class Session:
    """Transfers from one server into one folder, a few at a time.

    Credentials, if there are any for the server, are sent once it has refused a request without.
    """

    def __init__(self, url: str, root: Path, limits: Limits | None = None) -> None:
        self.root, self.limits = root, limits or Limits()
        self.origin = Origin.of(url)
        self._stop = threading.Event()
        self._own = threading.local()  # one connection per worker
        self._connections: list[Connection] = []
        self._answered = False
        self._not_before = 0.0  # monotonic; what one worker was asked to wait holds for all
        self._login: Login | None = None
        self._random = random.Random()

    def fetch(self, job: Job, progress: Progress | None = None, tag: str = "") -> str | None:
        """Fetch one file to root/name. Returns its ETag (empty: none); None if it still has the given `tag`.

        A part that an earlier attempt or run left is continued. Raises MissingError, SourceError; then the
        part stays if it may be continued.
        """
        with Part(self.root, job.name) as part:
            failed, best, wrong = 0, part.size, 0
            while True:
                try:
                    whole = bool(job.sha256) and part.size > 0 and part.digest.hexdigest() == job.sha256
                    if not whole and not self._attempt(job, part, progress, tag):
                        return None
                    found = part.digest.hexdigest()
                    if found == (job.sha256 or found):
                        part.finish()
                        return part.tag
                    wrong += 1
                    part.discard()
                    if wrong > 1:
                        raise SourceError(
                            f"Wrong checksum of {job.name} from {job.url}: SHA-256 {found[:12]}... instead "
                            f"of {job.sha256[:12]}..., twice; it was removed, try again later, or {BY_HAND}."
                        )
                    raise TransferError("wrong checksum")
                except TransferError as error:
                    self._connection().drop()
                    if part.size >= best + self.limits.gain:
                        failed, best = 0, part.size
                    failed += 1
                    # A name that is wrong or a network that is not there shows at once, and nothing is lost.
                    if failed >= (self.limits.attempts if self._answered else min(4, self.limits.attempts)):
                        raise SourceError(
                            f"Cannot fetch {job.url} ({error}, {failed} attempts): check the network and run "
                            f"again, what has arrived is kept, or {BY_HAND}."
                        ) from error
                    self._back_off(failed, error.wait)

    def fetch_all(self, jobs: Iterable[Job], progress: Progress, done: Callable[[Job], None]) -> None:
        """Fetch files, a few at a time, and call `done` (from this thread) for each that is there.

        A file that is there with the right checksum is kept. `jobs` is read as workers get free. The first
        failure ends the others, whose parts stay, and is raised.
        """
        ended: queue.SimpleQueue[Future[tuple[Job, bool]]] = queue.SimpleQueue()
        waiting = 0

        def take() -> None:
            nonlocal waiting
            while True:
                progress.draw()
                try:
                    future = ended.get(timeout=0.2)
                except queue.Empty:
                    continue
                break
            waiting -= 1
            job, kept = future.result()
            progress.file(kept=kept)
            done(job)

        pool = ThreadPoolExecutor(self.limits.connections)
        try:
            for job in jobs:
                while waiting >= WAITING * self.limits.connections:
                    take()
                pool.submit(self._ensure, job, progress).add_done_callback(ended.put)
                waiting += 1
            while waiting:
                take()
        except BaseException:
            self._stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self.close()
            progress.draw(last=True)

    def close(self) -> None:
        """Close the connections. No transfer may be under way."""
        for connection in self._connections:
            connection.drop()
        self._connections.clear()
        self._own = threading.local()

    def _ensure(self, job: Job, progress: Progress) -> tuple[Job, bool]:
        """(job, whether the file was there)."""
        if self._stop.is_set():
            raise Stopped
        try:
            real_folder(self.root, job.name)
            if job.sha256 and holds(self.root / job.name, job.sha256):
                return job, True
            self.fetch(job, progress)
            return job, False
        finally:
            progress.idle()

    def _connection(self) -> Connection:
        if not hasattr(self._own, "connection"):
            self._own.connection = Connection(self.limits, self._stop)
            self._connections.append(self._own.connection)
        return self._own.connection

    def _attempt(self, job: Job, part: Part, progress: Progress | None, tag: str) -> bool:
        """Bring `part` to the length of the file; False if the file has not changed since `tag`."""
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Accept": "*/*"}
        if part.size and not part.tag and not job.sha256:
            part.discard()  # nothing would tell whether it belongs to the same file
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if part.tag:
                headers["If-Range"] = part.tag
        elif tag:
            headers["If-None-Match"] = tag
        reply, asked = self._exchange(job.url, headers)
        if reply.status == 304 and tag and "If-None-Match" in headers:
            self._connection().finish(reply)
            return False
        _judge(reply, part, job, asked, self.limits)
        length = _length(reply)
        if reply.status == 206:
            _check_range(reply, part, length)
        sized = length is not None or reply.chunked
        if not sized and not job.sha256:
            raise SourceError(
                f"{asked} does not say how long it is, so that nobody could tell whether all of it arrived: "
                f"{BY_HAND}."
            )
        limit = min(job.limit, self.limits.file_bytes if length is not None else self.limits.unsized_bytes)
        start = part.size if reply.status == 206 else 0
        if length is not None and start + length > limit:
            raise SourceError(f"{asked} says that it has {size_words(start + length)}: {_too_large(limit)}.")
        part.need(length or 0)
        self._receive(job, part, reply, start, length, limit, progress)
        return True

    def _receive(
        self,
        job: Job,
        part: Part,
        reply: HTTPResponse,
        start: int,
        length: int | None,
        limit: int,
        progress: Progress | None,
    ) -> None:
        """Append the body of a reply to `part`, from `start` on."""
        connection, received = self._connection(), 0
        while block := connection.read(reply):
            if self._stop.is_set():
                raise Stopped
            if received == 0 and start == 0:
                if _is_web_page(reply, block, job.name):
                    raise SourceError(
                        f"{job.url} is answered with a web page instead of the file, perhaps one to sign in "
                        f"at: {HOW}, check that the network needs no sign-in of its own, or {BY_HAND}."
                    )
                part.begin(_strong_tag(reply), length)
            received += len(block)
            if start + received > limit:
                part.discard()
                raise SourceError(f"{job.url} does not end: {_too_large(limit)}; what came was removed.")
            part.write(block)
            if progress is not None:
                progress.add(len(block), (start + received) / (start + length) if length else 0.0)
        if length is not None and received < length:
            raise TransferError(f"the transfer broke off after {received} of {length} bytes")
        if received == 0 and start == 0:
            part.begin(_strong_tag(reply), length)
        connection.finish(reply)

    def _exchange(self, url: str, headers: dict[str, str]) -> tuple[HTTPResponse, str]:
        """(the reply to a GET, its address); redirects are followed, credentials given when asked for."""
        connection, asked = self._connection(), url
        for _ in range(self.limits.redirects + 2):
            self._wait_turn()
            origin = Origin.of(asked)
            secret = self._login.header(origin) if self._login else {}
            reply = connection.get(asked, headers | secret)
            self._answered = True
            if reply.status in REDIRECTS:
                target = reply.getheader("Location", "")
                connection.drop()
                asked = _follow(asked, target)
            elif reply.status in (401, 403):
                connection.drop()
                self._sign_in(asked, reply.status, sent=bool(secret))
            else:
                return reply, asked
        raise SourceError(f"{url} is redirected more than {self.limits.redirects} times: {BY_HAND}.")

    def _sign_in(self, url: str, status: int, *, sent: bool) -> None:
        """After a refusal: have credentials ready for the next request. Raises SourceError without any."""
        origin = Origin.of(url)
        if sent and self._login is not None:
            raise SourceError(
                f"{url} is refused (HTTP {status}) to the user of {self._login.came_from}: check user name "
                "and password, and at PhysioNet that you signed the database's agreement. Its server takes "
                f"passwords from few programs (wget is one): {BY_HAND}."
            )
        upgraded = Origin("https", self.origin.host, 443)  # the same host, from http
        if origin not in (self.origin, upgraded):
            raise SourceError(
                f"{url} is not open to everyone (HTTP {status}), and credentials are not sent to a server "
                f"that another one points to: {BY_HAND}."
            )
        self._login = self._login or find_login(origin)
        if self._login is None:
            how = HOW
            if origin.scheme != "https" and not is_local(origin.host):
                how = "credentials go over https only, so set data.url to an https address"
            raise SourceError(
                f"{url} is not open to everyone (HTTP {status}): get access at its web page, {how}, "
                f"or {BY_HAND}."
            )

    def _wait_turn(self) -> None:
        """Until the time that the server asked for, for whichever file."""
        while (left := self._not_before - time.monotonic()) > 0:
            if self._stop.wait(left):
                raise Stopped

    def _back_off(self, failed: int, asked: float | None) -> None:
        """Wait after the failed-th attempt: doubled each time, bounded, at random so that workers spread."""
        if asked is not None:
            if asked > self.limits.retry_after_max_s:
                raise SourceError(
                    f"{self.origin} asks to wait {asked:.0f} s: run again after that, what has arrived "
                    "is kept."
                )
            self._not_before = max(self._not_before, time.monotonic() + asked)
        wait = min(self.limits.backoff_max_s, self.limits.backoff_s * 2.0 ** (failed - 1))
        if self._stop.wait(wait * self._random.uniform(0.5, 1)):
            raise Stopped


def _judge(reply: HTTPResponse, part: Part, job: Job, asked: str, limits: Limits) -> None:
    """Raise for every reply whose body is not (a part of) the file."""
    status = reply.status
    if status in (404, 410):
        raise MissingError(f"{asked} is not there (HTTP {status}).")
    if status == 416 and part.size:  # the part is longer than the file, or of another one
        part.discard()
        raise TransferError("HTTP 416")
    if status in TRY_AGAIN or status >= 500:
        raise TransferError(f"HTTP {status}", _retry_after(reply))
    if status not in (200, 206) or (status == 206 and not part.size):
        raise SourceError(f"{asked} is refused (HTTP {status}): {BY_HAND}.")
    encodings = [reply.getheader("Content-Encoding", ""), reply.getheader("Transfer-Encoding", "")]
    if encodings[0].lower() not in ("", "identity") or encodings[1].lower() not in ("", "chunked"):
        raise SourceError(
            f"{asked} is sent encoded ({tidy(' '.join(encodings).strip(), 40)}) although it was asked for "
            f"as it is: {BY_HAND}."
        )


def _length(reply: HTTPResponse) -> int | None:
    """Content-Length, None where there is none or chunks say it."""
    values = set(reply.headers.get_all("Content-Length") or [])
    if not values or reply.chunked:
        return None
    text = values.pop()
    if values or not re.fullmatch(r"[0-9]{1,18}", text):
        raise TransferError("the server gives a Content-Length that is no length")
    return int(text)


def _check_range(reply: HTTPResponse, part: Part, length: int | None) -> None:
    """Whether a 206 goes on where the part ends. Raises TransferError; then the part is begun anew."""
    text = reply.getheader("Content-Range", "")
    match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(\*|[0-9]{1,18})", text.strip())
    if match:
        first, last = int(match[1]), int(match[2])
        whole = match[3] == "*" or last + 1 == int(match[3])
        fits = length is None or last - first + 1 == length
        same = not part.tag or reply.getheader("ETag", part.tag).strip() == part.tag
        if first == part.size and last >= first and whole and fits and same:
            return
    part.discard()
    raise TransferError("the server continues at another place than was asked for")


def _retry_after(reply: HTTPResponse) -> float | None:
    """Seconds that a reply asks to wait, given as a number or as a date; None without or beyond reading."""
    text = (reply.getheader("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())


def _follow(url: str, target: str) -> str:
    """The address that a redirect points to. Raises SourceError for one that no file may come from."""
    try:
        found = urljoin(url, target.strip())
        before, origin = Origin.of(url), Origin.of(found)
        if "\\" in found or not found.isprintable() or not target.strip():
            raise ValueError("an address that is none")
        if before.scheme == "https" and origin.scheme == "http":
            raise ValueError("from https to http")
        if is_private(origin.host) and not is_private(before.host):
            raise ValueError("to an address inside the local network")
    except ValueError as error:
        raise SourceError(
            f"{url} is redirected to {tidy(_hide(target), 80)!r}, which is not followed "
            f"({tidy(error)}): {BY_HAND}."
        ) from None
    return urlsplit(found)._replace(fragment="").geturl()


def _hide(url: str) -> str:
    """An address without user name and password."""
    return re.sub(r"//[^/?#]*@", "//", url)


def _strong_tag(reply: HTTPResponse) -> str:
    """The ETag if a part may be continued by it (RFC 9110, 13.1.5), else empty."""
    tag = reply.getheader("ETag", "").strip()
    return tag if re.fullmatch(r'"[\x21\x23-\x7e]{0,200}"', tag) else ""


def _is_web_page(reply: HTTPResponse, block: bytes, name: str) -> bool:
    if name.lower().endswith((".html", ".htm", ".xml", ".svg")):
        return False
    start = block[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = reply.getheader("Content-Type", "").lower()
    return start.startswith((b"<!doctype html", b"<html")) or ("text/html" in kind and start.startswith(b"<"))


def _too_large(limit: int) -> str:
    return f"more than {size_words(limit)} is not accepted for this file"
