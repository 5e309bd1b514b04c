"""The engine against a server on 127.0.0.1 that misbehaves: one test for each way."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import physionet_server as ps
import pytest

from ecggen.prepare.download import credentials
from ecggen.prepare.download import session as fetch
from ecggen.prepare.download.connection import Limits, Origin, Pace, TransferError, tidy
from ecggen.prepare.download.part import Part
from ecggen.prepare.download.progress import Progress, size_words, time_words
from ecggen.prepare.download.session import Job, MissingError, Session
from ecggen.prepare.download.source import SourceError

QUICK = Limits(
    attempts=4,
    backoff_s=0.01,
    retry_after_max_s=3,
    connect_s=2,
    idle_s=0.4,
    window_s=0.4,
    min_rate=20_000,
    file_bytes=10_000_000,
    unsized_bytes=1_000_000,
)
BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
NAME = "a/x.dat"
SECRET = "p4ss:word"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no credentials of whoever runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "PHYSIONET_USERNAME", "PHYSIONET_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ps.PhysionetServer]:
    path = tmp_path / "server" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    with ps.serve(tmp_path / "server") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def get(server: ps.PhysionetServer, folder: Path, limits: Limits = QUICK, sha256: str = SHA) -> Path:
    """Fetch NAME; the files that are left in the folder are the result, or the part of one."""
    session = Session(server.url, folder, limits)
    try:
        session.fetch(Job(f"{server.url}{NAME}", NAME, sha256, 5_000_000))
    finally:
        session.close()
        assert {path.name for path in folder.rglob("*") if path.is_file()} <= {
            "x.dat",
            "x.dat.part",
            "x.dat.part.etag",
        }
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["x.dat"]
    return folder / NAME


def fails(
    server: ps.PhysionetServer, folder: Path, match: str, limits: Limits = QUICK, sha256: str = SHA
) -> str:
    """The sentence that a download ends with; there is no file then."""
    started = time.monotonic()
    with pytest.raises(SourceError, match=match) as caught:
        get(server, folder, limits, sha256)
    assert time.monotonic() - started < 10
    assert not (folder / NAME).exists()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    return str(caught.value)


# ------------------------------------------------------------------ bodies that are not what they should be


def test_truncated_is_continued(server: ps.PhysionetServer, folder: Path) -> None:
    server.broken[NAME] = 120_000
    assert get(server, folder).read_bytes() == BODY
    assert server.sent_from[NAME] == [0, 120_000, 240_000]


def test_reset_in_the_middle_is_continued(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.reset(100_000), ps.well]
    assert get(server, folder).read_bytes() == BODY
    (start,) = server.sent_from[NAME]
    assert 0 < start <= 100_000


def test_progress_renews_the_attempts(server: ps.PhysionetServer, folder: Path) -> None:
    server.broken[NAME] = 30_000  # ten pieces, four attempts
    fails(server, folder, "broke off after 30000 of 210000 bytes, 4 attempts")
    assert (folder / f"{NAME}.part").read_bytes() == BODY[:120_000]
    server.broken[NAME] = 30_000
    assert get(server, folder, Limits(attempts=2, backoff_s=0.01, gain=20_000)).read_bytes() == BODY


def test_more_than_promised_is_left_unread(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [
        ps.forever(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY), b"more" * 1000),
    ]
    assert get(server, folder).read_bytes() == BODY


def test_more_than_promised_does_not_become_the_next_reply(server: ps.PhysionetServer, folder: Path) -> None:
    """A keep-alive connection with bytes left over is not used again."""

    def with_surplus(handler: ps.Handler, body: bytes) -> None:
        handler.file(body)
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")

    server.answers[NAME] = [with_surplus]
    session = Session(server.url, folder, QUICK)
    for name in ("a/1.dat", "a/2.dat"):
        session.fetch(Job(f"{server.url}{NAME}", name, SHA, 5_000_000))
        time.sleep(0.05)
    session.close()
    assert (folder / "a/2.dat").read_bytes() == BODY
    assert server.requests[NAME] == 2


def test_larger_than_allowed(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.forever(b"HTTP/1.1 200 OK\r\nContent-Length: 5000001\r\n\r\n", b"x" * 65536)]
    fails(server, folder, r"says that it has 5\.0 MB: more than 5\.0 MB is not accepted")
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ],
    ids=["until the end", "chunks"],
)
def test_endless_body(server: ps.PhysionetServer, folder: Path, head: bytes, again: bytes) -> None:
    server.answers[NAME] = [ps.forever(head, again)]
    fails(server, folder, r"does not end: more than 1\.0 MB is not accepted")
    assert not list(folder.rglob("*.part"))
    assert server.sent < 20_000_000


def test_drip(server: ps.PhysionetServer, folder: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
    server.answers[NAME] = [ps.forever(head, b"x", pause=0.05)]
    fails(server, folder, "fewer than 20000 bytes a second came, 4 attempts")


def test_silence(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [
        ps.forever(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", b"", pause=2, most=1)
    ]
    server.answers[NAME][0] = lambda handler, _: time.sleep(1.0)
    fails(server, folder, "nothing came for 0.4 s", Limits(**{**vars(QUICK), "attempts": 2}))


@pytest.mark.parametrize("drop", [b"H", b"HTTP/1.1 200 OK\r\nX-A: "], ids=["status line", "header"])
def test_drip_before_the_body(server: ps.PhysionetServer, folder: Path, drop: bytes) -> None:
    server.answers[NAME] = [ps.forever(drop, b"a", pause=0.05)]
    fails(server, folder, "fewer than 20000 bytes a second", Limits(**{**vars(QUICK), "attempts": 2}))


def test_framing_does_not_buy_time(server: ps.PhysionetServer, folder: Path) -> None:
    """Chunks of one byte with long extensions: much traffic, hardly any file."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.answers[NAME] = [ps.forever(head, b"1;" + b"e" * 60_000 + b"\r\nx\r\n", pause=0.01)]
    fails(server, folder, "fewer than 20000 bytes a second", Limits(**{**vars(QUICK), "attempts": 2}))


def test_wrong_bytes(server: ps.PhysionetServer, folder: Path) -> None:
    server.spoilt[NAME] = bytes(300_000)
    fails(server, folder, r"Wrong checksum of a/x\.dat.*twice")
    assert server.requests[NAME] == 2
    assert not list(folder.rglob("*.part"))


def test_wrong_bytes_once(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.reply(200, bytes(300_000)), ps.well]
    assert get(server, folder).read_bytes() == BODY


@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<title>Sign in</title>", b"\xef\xbb\xbf <HTML lang=en>"])
def test_web_page_instead_of_the_file(server: ps.PhysionetServer, folder: Path, page: bytes) -> None:
    server.answers[NAME] = [ps.reset(100_000), ps.reply(200, page, Content_Type="text/html; charset=utf-8")]
    fails(server, folder, "web page instead of the file, perhaps one to sign in at.*PHYSIONET_USERNAME")
    assert (folder / f"{NAME}.part").stat().st_size > 0  # what had arrived is not spoilt by it


# --------------------------------------------------------------------------------- lengths and encodings


@pytest.mark.parametrize("length", [b"abc", b"-5", b"1, 2", b"9" * 5000, b"0x10", b"3\r\nContent-Length: 4"])
def test_length_that_is_none(server: ps.PhysionetServer, folder: Path, length: bytes) -> None:
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + BODY
    server.answers[NAME] = [ps.raw(reply), ps.well]
    assert get(server, folder).read_bytes() == BODY
    assert server.requests[NAME] == 2


def test_length_too_small(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + BODY)]
    fails(server, folder, "Wrong checksum")


def test_length_too_large(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n" + BODY)]
    assert get(server, folder).read_bytes() == BODY  # broken off, but what came has the right checksum


def test_chunks(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.chunked]
    assert get(server, folder).read_bytes() == BODY
    assert get_unverified(server, folder) == BODY


def get_unverified(server: ps.PhysionetServer, folder: Path) -> bytes:
    (folder / NAME).unlink()
    return get(server, folder, sha256="").read_bytes()


@pytest.mark.parametrize("size", [b"zz", b"-5", b"1" * 70_000, b""])
def test_chunk_size_that_is_none(server: ps.PhysionetServer, folder: Path, size: bytes) -> None:
    bad = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nabcdef\r\n"
    server.answers[NAME] = [ps.raw(bad), ps.raw(bad), ps.well]
    assert get(server, folder).read_bytes() == BODY


def test_chunks_that_break_off(server: ps.PhysionetServer, folder: Path) -> None:
    cut = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n" + BODY[:20_000] + b"\r\n"
    server.answers[NAME] = [ps.raw(cut), ps.well]
    assert get(server, folder).read_bytes() == BODY
    assert server.sent_from[NAME] == [20_000]


@pytest.mark.parametrize(
    "headers",
    [{"Content_Encoding": "gzip"}, {"Content_Encoding": "br"}, {"Transfer_Encoding": "gzip, chunked"}],
)
def test_encodings_are_refused(server: ps.PhysionetServer, folder: Path, headers: dict[str, str]) -> None:
    server.answers[NAME] = [ps.reply(200, b"\x1f\x8b" + BODY, **headers)]
    fails(server, folder, "is sent encoded")
    assert server.headers[NAME][0]["Accept-Encoding"] == "identity"


def test_list_of_unknown_length(server: ps.PhysionetServer, folder: Path) -> None:
    """Without a checksum nothing would tell a body that was cut off."""
    server.answers[NAME] = [ps.raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY[:1000])]
    fails(server, folder, "does not say how long it is", sha256="")
    assert get_after_sized(server, folder) == BODY


def get_after_sized(server: ps.PhysionetServer, folder: Path) -> bytes:
    server.answers.clear()
    return get(server, folder, sha256="").read_bytes()


# ---------------------------------------------------------------------------------------- status codes


@pytest.mark.parametrize(("code", "kind"), [(429, "seconds"), (503, "date")])
def test_retry_after(server: ps.PhysionetServer, folder: Path, code: int, kind: str) -> None:
    when = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
    server.answers[NAME] = [ps.reply(code, Retry_After="1" if kind == "seconds" else when), ps.well]
    started = time.monotonic()
    assert get(server, folder).read_bytes() == BODY
    assert 0.9 < time.monotonic() - started < 3


def test_retry_after_holds_for_all_files(server: ps.PhysionetServer, folder: Path) -> None:
    times: list[float] = []

    def noted(handler: ps.Handler, body: bytes) -> None:
        times.append(time.monotonic())
        handler.file(body)

    server.answers[NAME] = [ps.reply(429, Retry_After="1"), noted]
    session = Session(server.url, folder, Limits(**{**vars(QUICK), "connections": 1}))
    started = time.monotonic()
    jobs = [Job(f"{server.url}{NAME}", f"a/{i}.dat", SHA, 10**6) for i in range(3)]
    session.fetch_all(jobs, Progress("x", 3, io.StringIO()), lambda job: None)
    assert min(times) - started > 0.9


def test_retry_after_beyond_patience(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.reply(503, Retry_After="86400")]
    fails(server, folder, "asks to wait 86400 s: run again after that")
    assert server.requests[NAME] == 1


@pytest.mark.parametrize("text", ["soon", "-1", "9" * 400, "Wed, 99 Foo 2026 99:99:99 GMT", ""])
def test_retry_after_that_says_nothing(server: ps.PhysionetServer, folder: Path, text: str) -> None:
    server.answers[NAME] = [ps.reply(503, Retry_After=text), ps.well]
    assert get(server, folder).read_bytes() == BODY


def test_server_errors_then_well(server: ps.PhysionetServer, folder: Path) -> None:
    server.refused[NAME] = [500, 502, 504]
    assert get(server, folder).read_bytes() == BODY
    server.refused[NAME] = [500] * 9
    (folder / NAME).unlink()
    fails(server, folder, r"HTTP 500, 4 attempts")


def test_back_off_doubles_is_bounded_and_random(server: ps.PhysionetServer, folder: Path) -> None:
    session = Session(server.url, folder, Limits(backoff_s=1, backoff_max_s=8))
    waits: list[float] = []
    session._stop.wait = lambda seconds: bool(waits.append(seconds))  # type: ignore[method-assign, assignment]
    for _ in range(20):
        for failed in range(1, 7):
            session._back_off(failed, None)
    for failed, most in enumerate([1, 2, 4, 8, 8, 8]):
        column = waits[failed::6]
        assert most / 2 <= min(column) < max(column) <= most
        assert len(set(column)) > 15


@pytest.mark.parametrize(("code", "kind"), [(404, MissingError), (410, MissingError), (400, SourceError)])
def test_refusals_are_final(server: ps.PhysionetServer, folder: Path, code: int, kind: type) -> None:
    server.answers[NAME] = [ps.reply(code)]
    with pytest.raises(kind, match=f"HTTP {code}"):
        get(server, folder)
    assert server.requests[NAME] == 1


@pytest.mark.parametrize(
    "reply", [b"garbage\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"\x00" * 200_000, b"HTTP/1.1 abc\r\n"]
)
def test_garbage_status_line(server: ps.PhysionetServer, folder: Path, reply: bytes) -> None:
    server.answers[NAME] = [ps.raw(reply), ps.raw(reply), ps.well]
    assert get(server, folder).read_bytes() == BODY
    server.answers[NAME] = [ps.raw(reply)]
    (folder / NAME).unlink()
    fails(server, folder, "4 attempts")


@pytest.mark.parametrize(
    "again", [b"X-H: 1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"X" * 65536], ids=["many", "continue", "long"]
)
def test_header_floods(server: ps.PhysionetServer, folder: Path, again: bytes) -> None:
    head = b"" if again.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n"
    server.answers[NAME] = [ps.forever(head, again * (65536 // len(again)), pause=0.01)]
    fails(server, folder, "2 attempts", Limits(**{**vars(QUICK), "attempts": 2}))
    assert server.sent < 100_000_000


# ---------------------------------------------------------------------------------------- going on


def leave_part(folder: Path, data: bytes, tag: str = "") -> None:
    (folder / "a").mkdir(exist_ok=True)
    (folder / f"{NAME}.part").write_bytes(data)
    if tag:
        (folder / f"{NAME}.part.etag").write_text(tag)


def test_only_missing_bytes_are_asked_for(server: ps.PhysionetServer, folder: Path) -> None:
    leave_part(folder, BODY[:299_990])
    assert get(server, folder).read_bytes() == BODY
    assert server.sent_from[NAME] == [299_990] and server.sent == 10


def test_whole_part_needs_no_request(server: ps.PhysionetServer, folder: Path) -> None:
    leave_part(folder, BODY)
    assert get(server, folder).read_bytes() == BODY
    assert not server.requests


@pytest.mark.parametrize("part", [BODY + b"x", b"x" * 400_000, b"\x00" * 300_000])
def test_part_longer_than_the_file(server: ps.PhysionetServer, folder: Path, part: bytes) -> None:
    leave_part(folder, part)
    assert get(server, folder).read_bytes() == BODY
    assert server.sent_from[NAME] == [0]


def test_part_of_something_else(server: ps.PhysionetServer, folder: Path) -> None:
    leave_part(folder, b"x" * 1000)
    assert get(server, folder).read_bytes() == BODY
    assert server.sent_from[NAME] == [1000, 0]


def test_file_that_changed_between_attempts(server: ps.PhysionetServer, folder: Path) -> None:
    """The ETag stored beside the part goes along, so the server sends the new file whole, once."""
    server.broken[NAME] = 100_000
    server.spoilt[NAME] = bytes(300_000)
    fails(server, folder, "broke off", Limits(**{**vars(QUICK), "attempts": 1}))
    assert (folder / f"{NAME}.part.etag").is_file()
    server.broken.clear()
    server.spoilt.clear()
    server.sent_from.clear()
    assert get(server, folder).read_bytes() == BODY
    assert "If-Range" in server.headers[NAME][-1] and server.sent_from[NAME] == [0]


def test_changed_file_without_a_checksum(server: ps.PhysionetServer, folder: Path) -> None:
    """The one file that nothing vouches for is continued only by its ETag, else begun anew."""
    old = bytes(300_000)
    leave_part(folder, old[:1000], f'"{hashlib.md5(old).hexdigest()}"')
    assert get(server, folder, sha256="").read_bytes() == BODY
    leave_part(folder, BODY[:1000], f'"{hashlib.md5(BODY).hexdigest()}"')
    assert get(server, folder, sha256="").read_bytes() == BODY
    leave_part(folder, old[:1000])
    assert get(server, folder, sha256="").read_bytes() == BODY
    assert server.sent_from[NAME] == [0, 1000, 0]


def test_server_without_ranges(server: ps.PhysionetServer, folder: Path) -> None:
    server.ranges = False
    leave_part(folder, BODY[:1000])
    assert get(server, folder).read_bytes() == BODY


@pytest.mark.parametrize(
    "said",
    [
        "bytes 0-299999/300000",
        "bytes 1001-299999/300000",
        "bytes 1000-299999/999999",
        "bytes 1000-5/300000",
        "bytes */300000",
        "lines 1000-299999/300000",
        "",
    ],
)
def test_bogus_206(server: ps.PhysionetServer, folder: Path, said: str) -> None:
    leave_part(folder, BODY[:1000])
    server.answers[NAME] = [ps.reply(206, bytes(299_000), Content_Range=said), ps.well]
    assert get(server, folder).read_bytes() == BODY
    assert server.sent_from[NAME] == [0]
    # ... and where no checksum would tell
    leave_part(folder, BODY[:1000], '"x"')
    server.answers[NAME] = [ps.reply(206, bytes(299_000), Content_Range=said, ETag='"x"'), ps.well]
    assert get(server, folder, sha256="").read_bytes() == BODY


def test_206_of_another_version(server: ps.PhysionetServer, folder: Path) -> None:
    leave_part(folder, BODY[:1000], '"one"')
    headers = {"Content_Range": "bytes 1000-299999/300000", "ETag": '"two"'}
    server.answers[NAME] = [ps.reply(206, bytes(299_000), **headers), ps.well]
    assert get(server, folder).read_bytes() == BODY


def test_206_that_nobody_asked_for(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.reply(206, BODY[:100], Content_Range="bytes 0-99/300000")]
    fails(server, folder, "HTTP 206")


def test_connection_is_kept(server: ps.PhysionetServer, folder: Path) -> None:
    session = Session(server.url, folder, QUICK)
    jobs = [Job(f"{server.url}{NAME}", f"a/{i}.dat", SHA, 10**6) for i in range(40)]
    session.fetch_all(jobs, Progress("x", 40, io.StringIO()), lambda job: None)
    assert server.connections <= 4 and server.busiest <= 4
    assert sum(server.requests.values()) == 40


def test_kept_connection_that_the_server_closed(server: ps.PhysionetServer, folder: Path) -> None:
    def and_close(handler: ps.Handler, body: bytes) -> None:
        handler.file(body)
        handler.close_connection = True

    server.answers[NAME] = [and_close]
    session = Session(server.url, folder, Limits(**{**vars(QUICK), "attempts": 1}))
    for i in range(3):
        session.fetch(Job(f"{server.url}{NAME}", f"a/{i}.dat", SHA, 10**6))
    session.close()


# ---------------------------------------------------------------------------------------- redirects


def test_redirect_on_the_same_server(server: ps.PhysionetServer, folder: Path) -> None:
    (server.root / "b").mkdir()
    (server.root / "b" / "y z.dat").write_bytes(BODY)
    server.answers[NAME] = [ps.reply(302, Location="../b/y%20z.dat")]
    (server.root / "b" / "y%20z.dat").write_bytes(BODY)
    assert get(server, folder).read_bytes() == BODY


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("file:///etc/passwd", "http:// or https://"),
        ("ftp://127.0.0.1/x", "http:// or https://"),
        ("javascript:alert(1)", "http:// or https://"),
        ("//user:secret@127.0.0.1/x", "would be logged"),
        ("http://[::1", "Invalid IPv6"),
        ("http://127.0.0.1:99999/", "out of range"),
        ("", "an address that is none"),
    ],
)
def test_redirects_that_are_not_followed(
    server: ps.PhysionetServer, folder: Path, target: str, why: str
) -> None:
    server.answers[NAME] = [ps.reply(302, Location=target)]
    said = fails(server, folder, "not followed")
    assert why in said and "secret" not in said


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("https://a.org/x", "https://b.org/y", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("http://a.org/x", "https://a.org/x", True),
        ("https://a.org/x", "https://127.0.0.1/x", False),
        ("https://a.org/x", "https://localhost/x", False),
        ("https://a.org/x", "https://2130706433/x", False),
        ("https://a.org/x", "https://[::1]/x", False),
        ("https://a.org/x", "https://169.254.169.254/meta", False),
        ("https://a.org/x", "https://10.0.0.1/x", False),
        ("http://10.0.0.1/x", "http://10.0.0.2/x", True),
        ("https://a.org/x", "/y?z=1", True),
    ],
)
def test_where_redirects_may_lead(source: str, target: str, allowed: bool) -> None:
    if allowed:
        assert Origin.of(fetch._follow(source, target)).scheme in ("http", "https")
    else:
        with pytest.raises(SourceError, match="not followed"):
            fetch._follow(source, target)


def test_redirect_loop(server: ps.PhysionetServer, folder: Path) -> None:
    server.answers[NAME] = [ps.reply(301, Location=f"/files/{NAME}")]
    fails(server, folder, "redirected more than 5 times")
    assert server.requests[NAME] == 7


# ---------------------------------------------------------------------------------------- credentials


@pytest.fixture
def closed(server: ps.PhysionetServer, monkeypatch: pytest.MonkeyPatch) -> ps.PhysionetServer:
    server.login = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()
    return server


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHYSIONET_USERNAME", "ann")
    monkeypatch.setenv("PHYSIONET_PASSWORD", SECRET)


@pytest.mark.parametrize("code", [401, 403])
def test_closed_without_credentials(server: ps.PhysionetServer, folder: Path, code: int) -> None:
    server.answers[NAME] = [ps.reply(code)]
    fails(server, folder, rf"not open to everyone \(HTTP {code}\).*PHYSIONET_USERNAME.*netrc")
    assert server.requests[NAME] == 1


@pytest.mark.usefixtures("known")
def test_credentials_of_the_environment(closed: ps.PhysionetServer, folder: Path) -> None:
    session = Session(closed.url, folder, QUICK)
    for name in ("1", "2"):
        session.fetch(Job(f"{closed.url}{NAME}", name, SHA, 10**6))
    sent = ["Authorization" in headers for headers in closed.headers[NAME]]
    assert sent == [False, True, True]  # asked once without, then known
    assert SECRET not in repr(session.__dict__) and "cDRzcz" not in repr(session.__dict__)
    session.close()


@pytest.mark.usefixtures("known")
def test_an_open_database_never_sees_credentials(server: ps.PhysionetServer, folder: Path) -> None:
    get(server, folder)
    assert "Authorization" not in server.headers[NAME][0]


def test_credentials_of_a_netrc(
    closed: ps.PhysionetServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "netrc"
    path.write_text(f"machine other.org login x password y\nmachine 127.0.0.1 login ann password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(path))
    assert get(closed, folder).read_bytes() == BODY


def test_unreadable_netrc_is_not_quoted(
    closed: ps.PhysionetServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(f"machin 127.0.0.1 login ann {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert SECRET not in fails(closed, folder, "cannot be read as a netrc file")


def test_wrong_credentials(
    closed: ps.PhysionetServer, folder: Path, monkeypatch: pytest.MonkeyPatch, known: None
) -> None:
    monkeypatch.setenv("PHYSIONET_PASSWORD", "another-secret")
    said = fails(
        closed, folder, "refused .HTTP 401. to the user of the environment: check user name and password"
    )
    assert "another-secret" not in said and "ann" not in said.split("environment")[1].split("check")[0]
    assert closed.requests[NAME] == 2


@pytest.mark.usefixtures("known")
def test_credentials_stay_with_their_server(closed: ps.PhysionetServer, folder: Path, tmp_path: Path) -> None:
    """After a redirect to another server they are neither sent along nor on its demand."""
    with ps.serve(tmp_path / "server") as other:
        closed.answers[NAME] = [ps.reply(302, Location=f"{other.url}{NAME}")]
        assert get(closed, folder).read_bytes() == BODY
        assert "Authorization" in closed.headers[NAME][-1]
        other.refused[NAME] = [401]
        (folder / NAME).unlink()
        fails(closed, folder, "not sent to a server that another one points to")
        assert len(other.headers[NAME]) == 2
        assert not any("Authorization" in headers for headers in other.headers[NAME])


@pytest.mark.usefixtures("known")
def test_where_credentials_may_go() -> None:
    assert credentials.find_login(Origin.of("https://physionet.org/files/")) is not None
    assert credentials.find_login(Origin.of("https://alpha.physionet.org/")) is not None
    assert credentials.find_login(Origin.of("http://localhost:8000/")) is not None
    for url in ("http://physionet.org/", "https://notphysionet.org/", "https://physionet.org.evil.com/"):
        assert credentials.find_login(Origin.of(url)) is None
    login = credentials.find_login(Origin.of("https://physionet.org/"))
    assert login is not None and login.header(Origin.of("https://physionet.org:8443/")) == {}
    assert "ann" not in f"{login} {login!r}" and SECRET not in f"{login!r}"


# ---------------------------------------------------------------------------------------- anything at all


def mutated(rng: np.random.Generator) -> bytes:
    """A reply with some of its bytes changed, left out, doubled, or moved."""
    small = BODY[:2000]
    replies = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + small,
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\nContent-Range: bytes 1000-1999/2000\r\n\r\n"
        + small[1000:],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + small + b"\r\n0\r\n\r\n",
        b'HTTP/1.1 302 Found\r\nLocation: /files/a/x.dat\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 503 No\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
    ]
    data = bytearray(replies[rng.integers(len(replies))])
    head = data.index(b"\r\n\r\n") + 12
    for _ in range(rng.integers(1, 6)):
        at, count = int(rng.integers(head)), int(rng.integers(1, 20))
        piece = (
            rng.bytes(count)
            if rng.random() < 0.5
            else bytes(rng.choice(list(b"0123456789 :/-\r\n,*"), count))
        )
        data[at : at + (count if rng.random() < 0.5 else 0)] = piece
    return bytes(data[: rng.integers(len(data)) if rng.random() < 0.2 else None])


def test_mutated_replies(server: ps.PhysionetServer, folder: Path) -> None:
    """Whatever comes: in the end the file, or one sentence; never another file, never another exception."""
    rng = np.random.default_rng(int(os.environ.get("ECGGEN_FUZZ_SEED", "0")))
    sha256 = hashlib.sha256(BODY[:2000]).hexdigest()
    (server.root / NAME).write_bytes(BODY[:2000])
    limits = Limits(attempts=4, backoff_s=0.001, retry_after_max_s=0, idle_s=0.2, window_s=0.2)
    ends = {"file": 0, "sentence": 0}
    for trial in range(int(os.environ.get("ECGGEN_FUZZ", "60"))):
        server.answers[NAME] = [*(ps.raw(mutated(rng)) for _ in range(rng.integers(1, 4))), ps.well]
        if trial % 2:
            leave_part(folder, BODY[: rng.integers(1, 2000)])
        try:
            assert get(server, folder, limits, sha256).read_bytes() == BODY[:2000]
            ends["file"] += 1
        except SourceError as error:
            assert str(error).isprintable() and not (folder / NAME).exists()
            ends["sentence"] += 1
        for path in (folder / "a").iterdir():
            path.unlink()
    assert min(ends.values()) > 0, ends


# ---------------------------------------------------------------------------------------- the disk


def test_links_are_not_followed(server: ps.PhysionetServer, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "a").symlink_to(outside)
    with pytest.raises(SourceError, match="is a link: remove it"):
        get(server, folder)
    assert not list(outside.iterdir())
    (folder / "a").unlink()
    (folder / "a").mkdir()
    victim = outside / "victim"
    victim.write_text("precious")
    for name in (NAME, f"{NAME}.part", f"{NAME}.part.etag"):
        (folder / name).symlink_to(victim)
    assert get(server, folder).read_bytes() == BODY
    assert not (folder / NAME).is_symlink() and victim.read_text() == "precious"
    os.link(victim, folder / f"{NAME}.part")
    (folder / NAME).unlink()
    assert get(server, folder).read_bytes() == BODY
    assert victim.read_text() == "precious"


def test_folder_where_a_file_belongs(server: ps.PhysionetServer, folder: Path) -> None:
    (folder / NAME).mkdir(parents=True)
    with pytest.raises(SourceError, match="is a folder where a file"):
        Session(server.url, folder, QUICK).fetch(Job(f"{server.url}{NAME}", NAME, SHA, 10**6))
    (folder / NAME).rmdir()
    (folder / f"{NAME}.part").unlink()
    (folder / f"{NAME}.part.etag").unlink()
    (folder / "a").rmdir()
    (folder / "a").write_text("")
    with pytest.raises(SourceError, match="is a file where a folder belongs"):
        Session(server.url, folder, QUICK).fetch(Job(f"{server.url}{NAME}", NAME, SHA, 10**6))


def test_disk_without_room(server: ps.PhysionetServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers[NAME] = [ps.forever(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n", b"x" * 65536)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 9, 9, 9, 0, 0, 0, 0, 255)))
        fails(server, folder, "The disk is full: there is no room for a/x.dat")


def test_disk_that_fills_up() -> None:
    """/dev/full answers every write with 'no space left'."""
    part = Part(Path("/dev"), "x")
    part._file = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115
    with part._file, pytest.raises(SourceError, match=r"The disk is full.*what has arrived is kept"):
        part.write(b"x")


# ---------------------------------------------------------------------------------------- many files


def test_first_failure_ends_the_others_and_keeps_their_parts(
    server: ps.PhysionetServer, folder: Path
) -> None:
    (server.root / "slow.dat").write_bytes(BODY)
    server.rate = 150_000
    jobs = [
        Job(f"{server.url}slow.dat", "slow.dat", SHA, 10**6),
        Job(f"{server.url}gone.dat", "gone.dat", SHA, 10**6),
    ]
    server.answers["gone.dat"] = [lambda handler, body: (time.sleep(0.6), handler.status(404))[1]]
    with pytest.raises(MissingError):
        Session(server.url, folder, Limits(**{**vars(QUICK), "idle_s": 5, "window_s": 5})).fetch_all(
            jobs, Progress("x", 2, io.StringIO()), lambda job: None
        )
    assert 0 < (folder / "slow.dat.part").stat().st_size < len(BODY)
    assert threading.active_count() < 12


def test_jobs_are_taken_as_workers_get_free(server: ps.PhysionetServer, folder: Path) -> None:
    taken, done = 0, []

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for i in range(100):
            taken += 1
            assert taken - len(done) <= fetch.WAITING * 4 + 1
            yield Job(f"{server.url}{NAME}", f"{i}.dat", SHA, 10**6)

    Session(server.url, folder, QUICK).fetch_all(jobs(), Progress("x", 100, io.StringIO()), done.append)
    assert len(done) == 100


def test_ctrl_c_ends_quickly_and_can_be_continued(server: ps.PhysionetServer, folder: Path) -> None:
    server.rate = 200_000
    progress = Progress("x", 1, io.StringIO())

    def interrupted() -> None:
        if progress.bytes:
            raise KeyboardInterrupt

    progress.draw = lambda *, last=False: None if last else interrupted()  # type: ignore[method-assign]
    job = Job(f"{server.url}{NAME}", NAME, SHA, 10**6)
    slow = Limits(**{**vars(QUICK), "idle_s": 30, "window_s": 30})
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Session(server.url, folder, slow).fetch_all([job], progress, lambda job: None)
    assert time.monotonic() - started < 2
    assert 0 < (folder / f"{NAME}.part").stat().st_size < len(BODY)
    server.rate = 0
    assert get(server, folder).read_bytes() == BODY
    assert server.sent_from[NAME][-1] > 0


# ---------------------------------------------------------------------------------------- small parts


def test_progress_tells_files_bytes_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    progress = Progress("demo/1.0 signals", 2000, stream)
    for _ in range(500):
        progress.file(kept=True)
    for _ in range(99):
        progress.add(100_000, 1.0)
        progress.file(kept=False)
        progress.idle()
    progress.add(50_000, 0.5)
    now += 10
    assert progress.words() == "demo/1.0 signals: 599 of 2,000 files, 9.9 MB, 995 kB/s, 2:21 left"
    progress.draw()
    assert stream.getvalue() == ""  # not a terminal: a line a minute
    now += 60
    progress.draw()
    assert stream.getvalue().count("\n") == 1


def test_words_of_sizes_and_times() -> None:
    sizes = [0, 999, 1000, 99_949, 999_499, 999_500, 16 << 30, 5e15]
    assert [size_words(n) for n in sizes] == [
        *("0 B", "999 B", "1.0 kB", "99.9 kB", "999 kB", "1.0 MB", "17.2 GB", "5000.0 TB"),
    ]
    assert [time_words(s) for s in (0, 59.6, 3599, 3600, 1e6)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "277:46:40",
    ]


def test_pace_forgives_a_slow_moment_not_a_slow_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(Limits(idle_s=30, window_s=30, min_rate=1000), threading.Event())
    for _ in range(10):
        now += 29
        pace._check()
        pace._last = now
        pace.useful += 60_000
        now += 1
    with pytest.raises(TransferError, match="fewer than 1000"):
        while now < 1000:  # much before does not pay for little now
            now += 1
            pace._last = now
            pace.useful += 900
            pace._check()
    assert now < 300 + 2 * 31


def test_words_of_a_server_fit_one_line() -> None:
    assert tidy(ValueError("a\r\n\x1b[2Jb" + "c" * 500)) == "a???[2Jb" + "c" * 112 + "..."


def test_proxy_of_the_environment(
    server: ps.PhysionetServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for another host goes to the proxy, with its whole address and the proxy's credentials."""
    host, port = server.server_address[:2]
    monkeypatch.setenv("http_proxy", f"http://me:pw@{host}:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    url = "http://data.example.org/x.dat"
    server.answers[url] = [ps.reply(200, BODY)]
    session = Session(url, folder, QUICK)
    session.fetch(Job(url, "x.dat", SHA, 10**6))
    (headers,) = server.headers[url]
    assert headers["Host"] == "data.example.org"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:pw").decode()
    monkeypatch.setenv("https_proxy", f"http://{host}:{port}")
    with pytest.raises(SourceError, match=r"Tunnel connection failed: 501"):
        Session("https://data.example.org/", folder, QUICK).fetch(
            Job("https://data.example.org/x", "y.dat", SHA, 10**6)
        )


def test_name_that_does_not_resolve_is_told_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceError, match="Name or service not known, 4 attempts"):
        Session("http://nowhere.invalid/", folder, Limits(attempts=9, backoff_s=0.01)).fetch(
            Job("http://nowhere.invalid/x", "x", SHA, 10**6)
        )
