"""Transfers from a server on 127.0.0.1 that misbehaves: one test for each way."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import physionet_server as ps
import pytest
import requests

from ecggen.prepare.download import transfer
from ecggen.prepare.download.source import SourceError
from ecggen.prepare.download.transfer import Downloader, Limits, MissingError, RemoteFile

QUICK = {"attempts": 4, "backoff_s": 0.01, "retry_after_max_s": 3, "connect_s": 2}
QUICK |= {"idle_s": 0.3, "window_s": 0.2, "min_rate": 20_000}
BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
NAME = "a/x.dat"
SECRET = "p4ss:word"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def server(tmp_path):
    path = tmp_path / "server" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    with ps.serve(tmp_path / "server") as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    return path


def remote(server: ps.PhysionetServer, name: str = NAME, sha256: str = SHA) -> RemoteFile:
    return RemoteFile(f"{server.url}{NAME}", name, sha256, 5_000_000)


def get(server: ps.PhysionetServer, folder: Path, sha256: str = SHA, **limits: float) -> bytes:
    """The bytes of NAME; it is all that is left in the folder."""
    Downloader(server.url, folder, Limits(**QUICK | limits)).fetch(remote(server, sha256=sha256))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["x.dat"]
    return (folder / NAME).read_bytes()


def fails(server: ps.PhysionetServer, folder: Path, match: str, sha256: str = SHA, **limits: float) -> str:
    """The sentence that a download ends with, soon; there is no file then."""
    started = time.monotonic()
    with pytest.raises(SourceError, match=match) as caught:
        get(server, folder, sha256, **limits)
    assert time.monotonic() - started < 20
    assert not (folder / NAME).exists()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    return str(caught.value)


def leave_part(folder: Path, data: bytes) -> Path:
    path = folder / f"{NAME}.part"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------- what is tried again


def test_what_breaks_off_is_continued(server, folder):
    server.broken[NAME] = 120_000
    assert get(server, folder) == BODY
    assert server.sent_from[NAME] == [0, 120_000, 240_000]


def test_progress_renews_the_attempts(server, folder):
    server.broken[NAME] = 30_000  # ten pieces, four attempts
    fails(server, folder, "broke off after 120000 bytes.*4 attempts.*what has arrived is kept")
    assert (folder / f"{NAME}.part").read_bytes() == BODY[:120_000]
    assert get(server, folder, attempts=2, gain=20_000) == BODY


@pytest.mark.parametrize(
    "replies",
    [
        [ps.raw(b"garbage\r\n\r\n")] * 2,
        [ps.raw(b"\x00" * 200_000)] * 2,
        [ps.raw(CHUNKED + b"zz\r\nabcdef\r\n")] * 2,
        [ps.chunked],
        [ps.reply(200, bytes(300_000))],
        [ps.reply(500), ps.reply(502), ps.reply(504)],
        *([ps.reply(503, Retry_After=text)] for text in ("soon", "-1", "Wed, 99 Foo 2026 99:99:99 GMT", "")),
    ],
    ids=[
        *("status line", "zeros", "chunk size", "chunks", "wrong bytes once", "server errors"),
        *("Retry-After word", "Retry-After negative", "Retry-After no date", "Retry-After empty"),
    ],
)
def test_what_is_tried_again_or_read_as_it_is(server, folder, replies):
    server.answers[NAME] = [*replies, ps.well]
    assert get(server, folder) == BODY


def test_a_server_may_ask_for_a_pause(server, folder):
    times = []
    server.answers[NAME] = [ps.reply(429, Retry_After="1"), lambda handler, _: times.append(time.monotonic())]
    started = time.monotonic()
    fails(server, folder, "2 attempts", attempts=2)
    assert times[0] - started > 0.9


# ------------------------------------------------------------------------------- what ends in a sentence


def _stall(data: bytes) -> ps.Answer:
    return lambda handler, _: (handler.raw(data), time.sleep(0.6))[0]


TOO_LARGE, TOO_SLOW = (
    r"larger than the 5\.0 MB that are accepted",
    "fewer than 20000 bytes a second came, 2 att",
)
BLOCK = b"x" * 65536


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ps.forever(LENGTH.replace(b"300000", b"5000001"), BLOCK), TOO_LARGE),
        (ps.forever(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", BLOCK), TOO_LARGE),
        (ps.forever(CHUNKED, b"10000\r\n" + BLOCK + b"\r\n"), TOO_LARGE),
        (ps.forever(LENGTH, b"x", pause=0.02), TOO_SLOW),
        (ps.forever(CHUNKED, b"1\r\nx\r\n", pause=0.02), TOO_SLOW),
        (_stall(b""), "timed out.*2 attempts"),
        (_stall(LENGTH + BODY[:1000]), "broke off after 1000 bytes.*timed out.*2 attempts"),
        (ps.reply(200, bytes(300_000)), r"Wrong checksum of .*a/x\.dat.*twice"),
    ],
    ids=["large", "no end", "chunks without end", "slow", "slow chunks", "silent", "stalls", "wrong bytes"],
)
def test_what_ends_in_a_sentence(server, folder, answer, words):
    server.answers[NAME] = [answer]
    fails(server, folder, words, attempts=2)
    assert server.sent < 40_000_000 and server.requests[NAME] <= 2
    if "larger" in words or "Wrong" in words:
        assert not any(path.stat().st_size for path in folder.rglob("*.part"))


@pytest.mark.parametrize("page", [b"<!DOCTYPE html>\n<title>Sign in</title>", b"\xef\xbb\xbf <HTML lang=en>"])
def test_a_web_page_instead_of_the_file(server, folder, page):
    server.answers[NAME] = [ps.reset(100_000), ps.reply(200, page, Content_Type="text/html; charset=utf-8")]
    fails(server, folder, "web page instead of the file, perhaps one to sign in at.*PHYSIONET_USERNAME")
    assert (folder / f"{NAME}.part").stat().st_size > 0  # what had arrived is not spoilt by it


def test_a_list_of_unknown_length(server, folder):
    """Without a checksum nothing would tell a body that was cut off, unless it comes in chunks."""
    server.answers[NAME] = [ps.raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY[:1000])]
    fails(server, folder, "does not say how long it is", sha256="")
    server.answers[NAME] = [ps.chunked]
    assert get(server, folder, sha256="") == BODY


@pytest.mark.parametrize(
    ("code", "headers", "words"),
    [
        (404, {}, "is not there .HTTP 404"),
        (410, {}, "is not there .HTTP 410"),
        (400, {}, "is refused .HTTP 400"),
        (401, {}, r"not open to everyone \(HTTP 401\).*PHYSIONET_USERNAME.*netrc"),
        (403, {}, r"not open to everyone \(HTTP 403\).*PHYSIONET_USERNAME.*netrc"),
        (503, {"Retry_After": "86400"}, "left alone .HTTP 503, Retry-After: 86400.: run again after that"),
        (503, {"Retry_After": "9" * 400}, "left alone"),
        *(
            (302, {"Location": target}, "answer to .* is no use")
            for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "http://a:99999/")
        ),
    ],
)
def test_refusals_are_final(server, folder, code, headers, words):
    server.answers[NAME] = [ps.reply(code, **headers)]
    fails(server, folder, words)
    assert server.requests[NAME] == 1


def test_no_network_is_told_soon(folder):
    url = "http://127.0.0.1:1/"
    with pytest.raises(SourceError, match=r"refused, 4 attempts.*check the network"):
        Downloader(url, folder, Limits(attempts=9, backoff_s=0.01)).fetch(RemoteFile(url, "x", SHA, 9))


# ------------------------------------------------------------------------------- what is there already


@pytest.mark.parametrize(("size", "starts"), [(299_990, [299_990]), (300_000, [])])
def test_only_missing_bytes_are_fetched(server, folder, size, starts):
    leave_part(folder, BODY[:size])
    assert get(server, folder) == BODY
    assert server.sent_from.get(NAME, []) == starts and server.sent == 300_000 - size


@pytest.mark.parametrize(
    "part", [BODY + b"x", b"x" * 1000, bytes(300_000)], ids=["long", "other", "same size"]
)
def test_a_part_of_something_else_is_begun_anew(server, folder, part):
    """Also what is left of a file that changed on the server meanwhile."""
    leave_part(folder, part)
    assert get(server, folder) == BODY
    assert server.sent_from[NAME][-1] == 0


def test_a_server_without_ranges(server, folder):
    server.ranges = False
    leave_part(folder, BODY[:1000])
    assert get(server, folder) == BODY
    leave_part(folder, bytes(1000))  # without a checksum nothing is continued
    assert get(server, folder, sha256="") == BODY


@pytest.mark.parametrize("text", ["bytes 0-299999/300000", "bytes 1001-299999/300000", "bytes */300000", ""])
def test_a_part_from_another_place(server, folder, text):
    leave_part(folder, BODY[:1000])
    server.answers[NAME] = [ps.reply(206, bytes(299_000), Content_Range=text), ps.well]
    assert get(server, folder) == BODY


# ------------------------------------------------------------------------------- redirects


def test_a_redirect_is_followed_but_not_in_a_loop(server, folder):
    (server.root / "b").mkdir()
    (server.root / "b" / "y%20z.dat").write_bytes(BODY)
    server.answers[NAME] = [ps.reply(302, Location="../b/y%20z.dat")]
    assert get(server, folder) == BODY
    (folder / NAME).unlink()
    server.requests.clear()
    server.answers[NAME] = [ps.reply(301, Location=f"/files/{NAME}")]
    fails(server, folder, "Exceeded 5 redirects")
    assert server.requests[NAME] == 6


def test_from_https_to_http_is_not_followed():
    reply = requests.Response()
    reply.request = requests.Request("GET", "https://a.org/x").prepare()
    with pytest.raises(ValueError, match="from https to http"):
        transfer.Session().rebuild_auth(requests.Request("GET", "http://a.org/x").prepare(), reply)


# ------------------------------------------------------------------------------- credentials


@pytest.fixture
def closed(server):
    server.login = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()
    return server


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("PHYSIONET_USERNAME", "ann")
    monkeypatch.setenv("PHYSIONET_PASSWORD", SECRET)


@pytest.mark.usefixtures("login")
def test_credentials_of_the_environment(closed, folder):
    downloader = Downloader(closed.url, folder, Limits(**QUICK))
    for name in ("1", "2"):
        downloader.fetch(remote(closed, name))
    sent = ["Authorization" in headers for headers in closed.headers[NAME]]
    assert sent == [False, True, True]  # an open database never sees them
    assert SECRET not in repr(vars(downloader)) and closed.login[6:] not in repr(vars(downloader))


def test_credentials_of_a_netrc(closed, folder, tmp_path, monkeypatch):
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    path.write_text(f"machine other.org login x password y\nmachine 127.0.0.1 login ann password {SECRET}\n")
    assert get(closed, folder) == BODY
    assert "Authorization" not in closed.headers[NAME][0]
    (folder / NAME).unlink()
    path.write_text(f"machin 127.0.0.1 login ann {SECRET}\n")
    assert SECRET not in fails(closed, folder, "netrc file cannot be read")


def test_wrong_credentials(closed, folder, monkeypatch, login):
    monkeypatch.setenv("PHYSIONET_PASSWORD", "another-secret")
    words = fails(closed, folder, "refused .HTTP 401. to the user of the environment or of the netrc file")
    assert "another-secret" not in words and closed.requests[NAME] == 2


@pytest.mark.usefixtures("login")
def test_credentials_stay_with_their_server(closed, folder, tmp_path):
    """After a redirect to another server they are neither sent along nor on its demand."""
    with ps.serve(tmp_path / "server") as other:
        closed.answers[NAME] = [ps.reply(302, Location=f"{other.url}{NAME}")]
        assert get(closed, folder) == BODY
        assert "Authorization" in closed.headers[NAME][-1]
        other.answers[NAME] = [ps.reply(401)]
        (folder / NAME).unlink()
        fails(closed, folder, "sent to the server of data.url alone")
        assert len(other.headers[NAME]) == 2
        assert not any("Authorization" in headers for headers in other.headers[NAME])


@pytest.mark.parametrize(
    ("url", "environment", "netrc"),
    [
        ("https://physionet.org/files/", True, True),
        ("https://alpha.physionet.org/files/", True, True),
        ("http://localhost:8000/files/", True, True),
        ("http://physionet.org/files/", False, False),
        ("https://notphysionet.org/files/", False, True),
        ("https://physionet.org.evil.com/files/", False, True),
    ],
)
def test_where_credentials_may_go(tmp_path, monkeypatch, login, url, environment, netrc):
    """Those of the environment to PhysioNet, those of a netrc to the host that it names; never over http."""

    assert (transfer.find_login(url) is not None) == environment
    monkeypatch.delenv("PHYSIONET_USERNAME")
    (tmp_path / "netrc").write_text("default login ann password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert (transfer.find_login(url) is not None) == netrc


# ---------------------------------------------------------------------------------------- the disk


def test_links_are_not_followed(server, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    (folder / "a").symlink_to(outside)
    with pytest.raises(SourceError, match="is a link or a file where a folder"):
        get(server, folder)
    assert not list(outside.iterdir())
    (folder / "a").unlink()
    (folder / "a").mkdir()
    victim.write_text("precious")
    for name in (NAME, f"{NAME}.part"):
        (folder / name).symlink_to(victim)
    assert get(server, folder) == BODY
    assert not (folder / NAME).is_symlink() and victim.read_text() == "precious"


# ---------------------------------------------------------------------------------------- many files


def test_few_connections_serve_many_files(server, folder):
    taken, done = 0, []

    def files() -> Iterator[RemoteFile]:
        nonlocal taken
        for i in range(100):
            taken += 1
            assert taken - len(done) <= transfer.QUEUED * 4 + 2  # taken from the list as threads get free
            yield remote(server, f"a/{i}.dat")

    Downloader(server.url, folder, Limits(**QUICK)).fetch_all(files(), 100, "x", done.append)
    assert len(done) == 100 and sum(server.requests.values()) == 100
    assert server.connections <= 4 and server.busiest <= 4


def test_the_first_failure_ends_the_others_and_keeps_their_parts(server, folder):
    (server.root / "slow.dat").write_bytes(BODY)
    server.rate = 150_000
    files = [RemoteFile(f"{server.url}{name}", name, SHA, 10**6) for name in ("slow.dat", "gone.dat")]
    server.answers["gone.dat"] = [lambda handler, body: (time.sleep(0.4), handler.status(404))[1]]
    with pytest.raises(MissingError):
        Downloader(server.url, folder, Limits(**QUICK | {"idle_s": 5, "window_s": 5})).fetch_all(
            files, 2, "x", lambda file: None
        )
    assert 0 < (folder / "slow.dat.part").stat().st_size < len(BODY)
    assert threading.active_count() < 12


def test_ctrl_c_ends_soon_and_can_be_continued(server, folder, monkeypatch):
    server.rate = 200_000
    downloader = Downloader(server.url, folder, Limits())

    def interrupted(pending: set, **_: object) -> None:
        while not downloader.received:
            time.sleep(0.01)
        raise KeyboardInterrupt

    started = time.monotonic()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transfer, "wait", interrupted)
        downloader.fetch_all([remote(server)], 1, "x", lambda file: None)
    assert time.monotonic() - started < 5
    assert 0 < (folder / f"{NAME}.part").stat().st_size < len(BODY)
    server.rate = 0
    assert get(server, folder) == BODY
    assert server.sent_from[NAME][-1] > 0
