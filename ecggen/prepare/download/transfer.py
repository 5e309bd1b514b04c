"""Files from one web server into one folder: resumable, verified, a few connections at a time.

Every file but a database's list of checksums has a SHA-256 that vouches for it. What the server says of
lengths, ranges and redirects is checked, and every wait and every size is bounded by `Limits`. Proxies are
those of the environment (https_proxy, no_proxy ...). Errors of the local disk are raised as OSError.
"""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from netrc import NetrcParseError
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from requests.exceptions import InvalidSchema, RequestException, TooManyRedirects
from requests.utils import get_netrc_auth
from tqdm import tqdm
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util.retry import Retry

from ecggen.prepare.download.specs import SourceError
from ecggen.utils.files import sha256_file

BY_HAND = "download it by hand and use data.source=wfdb with data.path set to its folder"
USERNAME, PASSWORD = "PHYSIONET_USERNAME", "PHYSIONET_PASSWORD"
SIGN_IN = (
    f"set {USERNAME} and {PASSWORD} in the environment, or give the host an entry in ~/.netrc "
    "(machine, login, password)"
)
PART = ".part"  # suffix of a file that has not arrived whole
BLOCK = 1 << 16  # bytes
QUEUED = 5  # files under way or waiting for a thread, per connection


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
    window_s: float = 30.0  # every one of these brings min_rate
    min_rate: int = 1024  # bytes of a file per second
    redirects: int = 5
    gain: int = 1 << 20  # a file that grew by this much starts its attempts anew


@dataclass(frozen=True)
class RemoteFile:
    """One file: its name below the folder, its SHA-256 (hexadecimal, "" = not known), its largest size."""

    url: str
    name: str
    sha256: str
    max_bytes: int


class MissingError(SourceError):
    """The server has no such file."""


class AttemptError(Exception):
    """An attempt that may succeed when it is made again; retry_after: seconds that the server asks for."""

    def __init__(self, cause: str, retry_after: float = 0.0) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class Stopped(Exception):  # noqa: N818 - not an error: another file failed, or the user pressed Ctrl-C
    """The transfer is to end; what has arrived stays."""


class Downloader:
    """Fetches files from one server into one folder.

    Credentials, if there are any for the server, are sent once it has refused a request without them.
    """

    def __init__(self, url: str, root: Path, limits: Limits | None = None) -> None:
        self.url, self.root, self.limits = url, root, limits or Limits()
        self.received = 0  # bytes of files, about
        self._stop = threading.Event()
        self._answered = False
        self._login: HTTPBasicAuth | None = None
        self._session = Session()
        self._session.max_redirects = self.limits.redirects
        self._session.headers.update({"User-Agent": "ecggen", "Accept-Encoding": "identity"})
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=self.limits.connections, pool_block=True))

    def fetch_all(
        self, files: Iterable[RemoteFile], total: int, title: str, done: Callable[[RemoteFile], None]
    ) -> None:
        """Fetch files, a few at a time; `done(file)` is called in this thread for each that is there.

        total, title: of the progress bar. The first failure ends the others; unfinished files stay.
        """
        files, before = iter(files), self.received
        pending: set[Future[RemoteFile]] = set()
        most = QUEUED * self.limits.connections
        interval = 0.2 if sys.stderr.isatty() else 60.0  # a line a minute in a log, none for what is quicker
        pace = {"mininterval": interval, "maxinterval": max(interval, 10.0), "delay": interval}
        with (
            tqdm(total=total, desc=title, unit=" files", **pace) as bar,
            ThreadPoolExecutor(self.limits.connections) as pool,
        ):
            try:
                while True:
                    pending |= {pool.submit(self.fetch, file) for file in islice(files, most - len(pending))}
                    if not pending:
                        return
                    finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done(future.result())
                    bar.set_postfix_str(f"{(self.received - before) / 1e6:.1f} MB", refresh=False)
                    bar.update(len(finished))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def fetch(self, file: RemoteFile) -> RemoteFile:
        """Fetch one file, unless it is there with the right checksum, and return `file`.

        What an earlier attempt or run left of a file with a checksum is continued. Raises SourceError.
        """
        self._pause(0)
        target = real_path(self.root, file.name)
        if file.sha256 and is_regular(target) and sha256_file(target) == file.sha256:
            return file
        part = target.with_name(f"{target.name}{PART}")
        if part.is_symlink() or not file.sha256:
            part.unlink(missing_ok=True)
        failures, best, mismatches = 0, _size(part), 0
        while True:
            try:
                self._attempt(file, part)
                digest = sha256_file(part)
                if file.sha256 in ("", digest):
                    part.replace(target)
                    return file
                part.unlink()
                mismatches += 1
                if mismatches == 2:
                    raise SourceError(
                        f"Wrong checksum of {file.url}: SHA-256 {digest[:12]}... instead of "
                        f"{file.sha256[:12]}..., twice; it was removed, try again later, or {BY_HAND}."
                    )
                raise AttemptError("wrong checksum")
            except AttemptError as error:
                if _size(part) >= best + self.limits.gain:
                    failures, best = 0, _size(part)
                failures += 1
                # A wrong address or a network that is not there shows at once, and nothing is lost.
                attempts = self.limits.attempts if self._answered else min(4, self.limits.attempts)
                if failures >= attempts:
                    raise SourceError(
                        f"Cannot fetch {file.url} ({error}, {failures} attempts): check the network and run "
                        f"again, what has arrived is kept, or {BY_HAND}."
                    ) from error
                seconds = min(self.limits.backoff_max_s, self.limits.backoff_s * 2.0 ** (failures - 1))
                # At random, so that threads do not coincide.
                self._pause(max(error.retry_after, seconds * random.uniform(0.5, 1)))

    def _pause(self, seconds: float) -> None:
        """Wait. Raises Stopped where the transfers are to end."""
        if self._stop.wait(seconds):
            raise Stopped

    def _attempt(self, file: RemoteFile, part: Path) -> None:
        """Bring `part` to the length of the file. Raises AttemptError, SourceError."""
        start = _size(part)
        with self._get(file.url, start) as reply:
            if reply.status_code == 416 and start:
                return  # there is no more of it; the checksum tells whether it is whole
            self._check_status(reply, file.url)
            if reply.status_code != 206:
                start = 0
            elif not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                part.unlink(missing_ok=True)
                raise AttemptError("the server continues at another place than was asked for")
            length = reply.raw.length_remaining  # None = not stated
            if length is None and not file.sha256 and "Transfer-Encoding" not in reply.headers:
                raise SourceError(
                    f"{file.url} does not say how long it is, so that nobody could tell whether all of it "
                    f"arrived: {BY_HAND}."
                )
            if start + (length or 0) > file.max_bytes:
                raise _too_large(file)
            blocks = self._blocks(reply, start)
            first = next(blocks, b"")
            if start == 0 and _is_page(first) and not file.name.lower().endswith((".html", ".htm")):
                raise SourceError(
                    f"{file.url} is answered with a web page instead of the file, perhaps one to sign in at: "
                    f"{SIGN_IN}, check that the network needs no sign-in of its own, or {BY_HAND}."
                )
            with part.open("ab" if start else "wb") as stream:
                for block in chain((first,), blocks):
                    if stream.tell() + len(block) > file.max_bytes:
                        stream.truncate(0)
                        raise _too_large(file)
                    stream.write(block)

    def _blocks(self, reply: requests.Response, start: int) -> Iterator[bytes]:
        """The body of a reply, which begins at byte `start` of the file. Raises AttemptError, Stopped."""
        size, since, recent = start, time.monotonic(), 0
        while True:
            self._pause(0)
            try:
                block = reply.raw.read1(BLOCK, decode_content=False)  # what is there: a slow server shows
            except (HTTPError, OSError) as error:
                raise AttemptError(f"the transfer broke off after {size} bytes, {one_line(error)}") from error
            if not block:
                return
            yield block
            size, recent, self.received = size + len(block), recent + len(block), self.received + len(block)
            seconds = time.monotonic() - since
            if seconds >= self.limits.window_s:
                if recent < self.limits.min_rate * seconds:
                    raise AttemptError(f"fewer than {self.limits.min_rate} bytes a second came")
                since, recent = time.monotonic(), 0

    def _get(self, url: str, start: int) -> requests.Response:
        """The reply to a GET from byte `start` on; credentials are given where they are asked for."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        timeout = (self.limits.connect_s, self.limits.idle_s)
        while True:
            self._pause(0)
            # Without an `auth`, requests would take the netrc file's for any host, http included.
            auth = self._login or (lambda request: request)
            try:
                reply = self._session.get(url, headers=headers, auth=auth, stream=True, timeout=timeout)
            except (ValueError, TooManyRedirects) as error:  # for a wrong address in a redirect
                raise SourceError(f"The answer to {url} is no use ({one_line(error)}): {BY_HAND}.") from None
            except (RequestException, HTTPError) as error:
                raise AttemptError(one_line(error)) from error
            self._answered = True
            if reply.status_code not in (401, 403):
                return reply
            reply.close()
            self._sign_in(url, reply)

    def _check_status(self, reply: requests.Response, url: str) -> None:
        """Raise for every reply whose body is not (a part of) the file."""
        status, retry_after = reply.status_code, reply.headers.get("Retry-After", "")
        if status in (404, 410):
            raise MissingError(f"{url} is not there (HTTP {status}).")
        if status in (408, 425, 429) or status >= 500:
            seconds = 0.0
            with suppress(InvalidHeader, ValueError, OverflowError):
                seconds = Retry().parse_retry_after(retry_after)
            if seconds > self.limits.retry_after_max_s:
                raise SourceError(
                    f"{url} asks to be left alone (HTTP {status}, Retry-After: {one_line(retry_after)}): "
                    "run again after that, what has arrived is kept."
                )
            raise AttemptError(f"HTTP {status}", seconds)
        if status not in (200, 206):
            raise SourceError(f"{url} is refused (HTTP {status}): {BY_HAND}.")

    def _sign_in(self, url: str, reply: requests.Response) -> None:
        """After a refusal: have credentials ready for the next request. Raises SourceError without any."""
        status = f"HTTP {reply.status_code}"
        if "Authorization" in reply.request.headers:
            raise SourceError(
                f"{url} is refused ({status}) to the user of the environment or of the netrc file: check "
                "user name and password, and at PhysioNet that you signed the database's agreement. Its "
                f"server takes passwords from few programs (wget is one): {BY_HAND}."
            )
        is_own = urlsplit(reply.url).netloc == urlsplit(self.url).netloc
        self._login = find_login(self.url) if is_own else None
        if self._login is None:
            raise SourceError(
                f"{url} is not open to everyone ({status}): get access at its web page, {SIGN_IN} "
                f"(they are sent to the server of data.url alone, and over https), or {BY_HAND}."
            )


class Session(requests.Session):
    """Follows redirects, but not from https to http, and takes no credentials along."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Called for each redirect; requests would look up those of a netrc file."""
        url, old = str(prepared_request.url), str(response.request.url)
        if old.startswith("https:") and not url.startswith("https:"):
            raise InvalidSchema("from https to http")
        if self.should_strip_auth(old, url):
            prepared_request.headers.pop("Authorization", None)


def find_login(url: str) -> HTTPBasicAuth | None:
    """The credentials for the server of an address; None if there are none that may be sent there.

    They go over https alone, but for this machine. Those of the environment are meant for PhysioNet and go to
    physionet.org and this machine; a netrc file ($NETRC, else ~/.netrc) names its hosts itself. Raises
    SourceError for one that cannot be read.
    """
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    is_local = host in ("localhost", "127.0.0.1", "::1")
    if scheme != "https" and not is_local:
        return None
    username, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
    if username and password and (is_local or f".{host}".endswith(".physionet.org")):
        return HTTPBasicAuth(username, password)
    try:
        entry = get_netrc_auth(url, raise_errors=True)
    except (NetrcParseError, ValueError, OSError):  # their messages may quote the file
        raise SourceError("The netrc file cannot be read: check its form and its mode.") from None
    return HTTPBasicAuth(*entry) if entry else None


def real_path(root: Path, name: str) -> Path:
    """root/name with its folder made. Raises SourceError where a folder on the way is a link or a file."""
    folder = root
    for word in name.split("/")[:-1]:
        folder = folder / word
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise SourceError(f"{folder} is a link or a file where a folder of {root} belongs: remove it.")
        folder.mkdir(exist_ok=True)
    return root / name


def is_regular(path: Path) -> bool:
    """Whether there is a file of its own, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def one_line(error: BaseException | str, most: int = 120) -> str:
    """What went wrong, on one line: the innermost reason of a library's error, or a server's words."""
    while isinstance(error, BaseException):
        inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = "".join(c if c.isprintable() else "?" for c in str(error) or type(error).__name__)
    return text if len(text) <= most else f"{text[:most]}..."


def _is_page(start: bytes) -> bool:
    """Whether a body is a web page."""
    return start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def _size(path: Path) -> int:
    return path.stat().st_size if is_regular(path) else 0


def _too_large(file: RemoteFile) -> SourceError:
    most = f"{file.max_bytes / 1e6:,.1f} MB"
    return SourceError(f"{file.url} is larger than the {most} that are accepted for it: {BY_HAND}.")
