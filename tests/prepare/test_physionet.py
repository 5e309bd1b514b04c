"""One database from a server on 127.0.0.1: lists that lie, runs that are killed, real layouts."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import physionet_server as ps
import pytest

from ecggen.io.header import header_lines, named_files
from ecggen.prepare.download import physionet, transfer
from ecggen.prepare.download.physionet import Physionet
from ecggen.prepare.download.source import SourceError
from ecggen.prepare.download.transfer import Limits
from ecggen.utils.config import ConfigError, config_from_dict
from ecggen.utils.files import locked, sha256_file

QUICK = Limits(attempts=3, backoff_s=0.01, idle_s=2, window_s=2)
DATABASE = "demo/1.0"


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in ("PHYSIONET_USERNAME", "PHYSIONET_PASSWORD", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(physionet, "LIMITS", QUICK)


@pytest.fixture
def database(tmp_path):
    folder = tmp_path / "server" / DATABASE
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(database):
    with ps.serve(database.parents[1]) as running:
        yield running


def record(folder: Path, name: str, size: int = 40, suffix: str = "dat") -> None:
    path = folder / f"{name}.hea"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{path.stem} 1 100 {size // 2}\n{path.stem}.{suffix} 16 200 16 0 0 0 0 I\n")
    path.with_suffix(f".{suffix}").write_bytes(np.random.default_rng(len(name)).bytes(size))


def run(server: ps.PhysionetServer, out: Path, *, fs: float = 100, limit: int = 0) -> tuple[list[str], int]:
    source = Physionet(DATABASE, server.url, out, fs=fs, limit=limit).run()
    assert source.root == out / "records" and source.name == DATABASE
    return source.records, source.absent


def publish(database: Path, records: str) -> None:
    (database / "RECORDS").write_text(records)
    ps.write_sums(database)


def fails(server: ps.PhysionetServer, tmp_path: Path, match: str) -> None:
    with pytest.raises(SourceError, match=match):
        run(server, tmp_path / "raw")


def small(database: Path) -> None:
    record(database, "r")
    publish(database, "r\n")


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------- layouts


def test_challenge_2021_names_folders(database, server, tmp_path):
    for name in ("cpsc_2018/g1/A0001", "cpsc_2018/g1/A0002", "georgia/g1/E00001"):
        record(database, f"training/{name}", suffix="mat")
    (database / "RECORDS").write_text("training/cpsc_2018/g1/\ntraining/georgia/g1/\n")
    (database / "training/cpsc_2018/g1/RECORDS").write_text("A0001\nA0002\nA0003\n")
    (database / "training/georgia/g1/RECORDS").write_text("E00001\n")
    ps.write_sums(database)
    names = [f"training/{name}" for name in ("cpsc_2018/g1/A0001", "cpsc_2018/g1/A0002", "georgia/g1/E00001")]
    assert run(server, tmp_path / "raw") == (names, 1)
    assert run(server, tmp_path / "few", limit=1)[0] == names[:1]
    assert "training/georgia/g1/RECORDS" not in files_of(tmp_path / "few/records")


def test_mit_bih_brings_its_annotations(database, server, tmp_path):
    for name in ("100", "101"):
        record(database, name)
        (database / f"{name}.atr").write_bytes(b"\x00\x01")
    (database / "100.xws").write_bytes(b"x")
    (database / "mitdbdir").mkdir()
    (database / "mitdbdir" / "intro.htm").write_text("<html>")
    (database / "RECORDS").write_text("100\n101\n")
    (database / "ANNOTATORS").write_text("atr\tbeats\n")
    ps.write_sums(database)
    assert run(server, tmp_path / "raw", limit=1) == (["100"], 0)
    assert files_of(tmp_path / "raw/records") == {
        *("100.hea", "100.dat", "100.atr", "100.xws", "RECORDS", "ANNOTATORS", "SHA256SUMS.txt"),
    }


@pytest.mark.parametrize(
    "table", [b"ecg_id\n\x00,\xff", b'filename_lr\n"' + b"x" * 200_000, b"filename_lr\n../x\n"]
)
def test_ptbxl_table_that_is_none(database, server, tmp_path, table):
    (database / "ptbxl_database.csv").write_bytes(table)
    ps.write_sums(database)
    with pytest.raises(SourceError):
        run(server, tmp_path / "raw")


def test_names_in_headers_agree_with_wfdb(shared_data):
    """Against wfdb's own reader, on real headers of several databases."""
    import wfdb

    headers = sorted(shared_data.rglob("*.hea"))[::97]
    assert len(headers) > 20
    for path in headers:
        names = wfdb.rdheader(str(path.with_suffix(""))).file_name
        assert named_files(header_lines(path.read_bytes())[0]) == ([], list(dict.fromkeys(names)))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ([], [])),
        ("# only a comment\n\n", ([], [])),
        ("s/3 1 100 20\n# note\ns_layout 0\ns_0001 10\n~ 10\n", (["s_layout", "s_0001"], [])),
        ("s 2 100\n\na.dat 16\na.dat 16\n# Age: 5\n", ([], ["a.dat"])),
        ("s 1\n~ 0 200\n../../etc/passwd 16\n", ([], ["../../etc/passwd"])),
    ],
)
def test_names_in_headers(text, names):
    assert named_files(header_lines(text.encode())[0]) == names


def test_headers_cannot_name_what_the_database_does_not_have(database, server, tmp_path):
    record(database, "a/r")
    header = database / "a/r.hea"
    header.write_text("r/3 1 100 40\n../../../secret 20\n/etc/passwd 20\nr 20\n")
    publish(database, "a/r\n")
    assert run(server, tmp_path / "raw") == (["a/r"], 0)
    assert set(server.requests) == {
        f"{DATABASE}/{n}" for n in ("SHA256SUMS.txt", "RECORDS", "a/r.hea", "a/r.dat")
    }


# ------------------------------------------------------------------------------- lists that lie


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\\..\\x", "C:/x", "r\x00", "a/../../r"])
@pytest.mark.parametrize("where", ["SHA256SUMS.txt", "RECORDS"])
def test_names_that_leave_the_folder(database, server, tmp_path, where, name):
    record(database, "r")
    publish(database, f"r\n{name if where == 'RECORDS' else ''}\n")
    if where == "SHA256SUMS.txt":
        with (database / where).open("a") as stream:
            stream.write(f"{'0' * 64} {name}\n")
    before = files_of(tmp_path)
    with pytest.raises(SourceError, match=f"{where} names") as caught:
        run(server, tmp_path / "raw")
    assert len(str(caught.value)) < 400
    assert all(path.startswith("raw/") for path in files_of(tmp_path) - before)


def test_forms_of_the_list_of_checksums(database, server, tmp_path):
    small(database)
    lines = (database / "SHA256SUMS.txt").read_text().splitlines()
    forms = [
        "# note",
        f"{lines[0]}\r",
        lines[1].upper().replace(" R.DAT", " *r.dat"),
        "nonsense",
        lines[0],
        "",
    ]
    forms.append(lines[2].replace(" ", "\t./"))
    (database / "SHA256SUMS.txt").write_text("\n".join(forms))
    assert run(server, tmp_path / "raw") == (["r"], 0)


def test_lists_that_lead_back(database, server, tmp_path):
    record(database, "a/r")
    (database / "RECORDS").write_text("a/\n")
    (database / "a/RECORDS").write_text("r\n././\nr.hea\n")
    ps.write_sums(database)
    assert run(server, tmp_path / "raw") == (["a/r"], 0)


def test_folder_without_its_list_counts_as_absent(database, server, tmp_path):
    record(database, "r")
    publish(database, "gone/\nr\nalso_gone\n")
    assert run(server, tmp_path / "raw") == (["r"], 2)


def test_listed_but_not_there(database, server, tmp_path):
    small(database)
    (database / "r.dat").unlink()
    fails(server, tmp_path, r"r\.dat is not there.*SHA256SUMS\.txt lists it")


@pytest.mark.parametrize("sums", [b"", b"nothing\n", b"\x00\xff" * 100])
def test_sums_without_a_file(database, server, tmp_path, sums):
    (database / "SHA256SUMS.txt").write_bytes(sums)
    fails(server, tmp_path, "lists no file")


# ------------------------------------------------------------------------------- runs and their folder


def test_later_runs_fetch_what_changed_and_read_nothing_else(database, server, tmp_path, monkeypatch):
    """No signal is read again: the database may be large."""
    small(database)
    raw, sums, signal_file = tmp_path / "raw", f"{DATABASE}/SHA256SUMS.txt", f"{DATABASE}/r.dat"
    read = []
    monkeypatch.setattr(transfer, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))

    def requested():
        server.requests.clear()
        read.clear()
        assert run(server, raw) == (["r"], 0)
        return dict(server.requests)

    run(server, raw)
    assert requested() == {sums: 1} and read == ["SHA256SUMS.txt.part"]
    (raw / physionet.VERIFIED).unlink()
    assert requested() == {sums: 1} and "r.dat" in read
    (raw / "records/r.dat").write_bytes(b"damage")
    assert requested() == {sums: 1, signal_file: 1}
    (database / "r.dat").write_bytes(b"corrected")
    ps.write_sums(database)
    assert requested() == {sums: 1, signal_file: 1}
    assert (raw / "records/r.dat").read_bytes() == b"corrected"


def test_one_process_at_a_time(database, server, tmp_path):
    small(database)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "keep").write_text("not ours to remove while another process works")
    with locked(raw), pytest.raises(SourceError, match="Another process downloads into"):
        run(server, raw)
    assert (raw / "keep").is_file() and not server.requests
    run(server, raw)


def test_links_in_the_folder(database, server, tmp_path):
    record(database, "x/r")
    publish(database, "x/r\n")
    raw, outside = tmp_path / "raw", tmp_path / "outside"
    run(server, raw, limit=1)
    outside.mkdir()
    (outside / "precious").write_text("1")
    shutil.rmtree(raw / "records/x")
    (raw / "records/x").symlink_to(outside)
    fails(server, tmp_path, "x is a link or a file")
    assert files_of(outside) == {"precious"}
    (raw / "records/x").unlink()
    (raw / "records/elsewhere").symlink_to(outside)
    (raw / "records/alias").symlink_to(outside / "precious")
    run(server, raw)  # what an earlier run left is removed: links, not what they point to
    assert files_of(outside) == {"precious"} and not (raw / "records/elsewhere").is_symlink()
    (raw / physionet.MARKER).write_text("{}")
    (raw / "link").symlink_to(outside)
    run(server, raw)  # of another download: emptied, likewise
    assert files_of(outside) == {"precious"} and not (raw / "link").is_symlink()
    (raw / "records").rename(tmp_path / "moved")
    (raw / "records").symlink_to(tmp_path / "moved")
    fails(server, tmp_path, "records is a link")


def test_restricted_database(database, server, tmp_path, monkeypatch, capfd):
    small(database)
    server.login = "Basic " + base64.b64encode(b"ann:s3cret").decode()
    fails(server, tmp_path, r"not open to everyone.*PHYSIONET_USERNAME and PHYSIONET_PASSWORD")
    monkeypatch.setenv("PHYSIONET_USERNAME", "ann")
    monkeypatch.setenv("PHYSIONET_PASSWORD", "s3cret")
    assert run(server, tmp_path / "raw") == (["r"], 0)
    written = b"".join(path.read_bytes() for path in (tmp_path / "raw").rglob("*") if path.is_file())
    shown = "".join(capfd.readouterr())
    for secret in ("s3cret", server.login.split()[1]):
        assert secret.encode() not in written and secret not in shown


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:s3cret@physionet.org/files/",
        "ftp://ann:s3cret@x/",
        "https://ann:s3cret@[x/",
        "https://h/?a",
    ],
)
def test_addresses_that_are_refused(tmp_path, url):
    with pytest.raises(SourceError, match=r"data\.url is") as caught:
        Physionet(DATABASE, url, tmp_path, fs=100, limit=0)
    assert "s3cret" not in str(caught.value)


def test_secret_in_the_configuration_is_refused_before_it_is_logged():
    with pytest.raises(ConfigError, match=r"data\.url holds a user name or password") as caught:
        config_from_dict({"data": {"url": "https://ann:s3cret@physionet.org/files/"}})
    assert "s3cret" not in str(caught.value)
    config_from_dict({"data": {"url": "https://physionet.org/files/@x/"}})


# ------------------------------------------------------------------------------- kill -9

KILLED = """
import sys
from pathlib import Path
from ecggen.prepare.download.physionet import Physionet
Physionet("demo/1.0", sys.argv[1], Path(sys.argv[2]), fs=100, limit=0).run()
"""


def start(server: ps.PhysionetServer, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(out)], stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_random_bytes(database, server, tmp_path, seed):
    """Killed four times anywhere, then left to finish: the bytes are right, and few were sent twice."""
    sizes = {"a/r1": 1_500_000, "a/r2": 400_000, "b/r3": 90_000}
    for name, size in sizes.items():
        record(database, name, size)
    publish(database, "\n".join(sizes))
    server.rate = 3_000_000
    out, random_ = tmp_path / "raw", random.Random(seed)
    whole = sum(path.stat().st_size for path in database.rglob("*") if path.is_file())
    for _ in range(4):
        target = server.sent + random_.randrange(1000, whole // 5)
        process = start(server, out)
        wait_for(lambda target=target: server.sent >= target, process)  # type: ignore[misc]
        assert process.poll() is None, process.stderr and process.stderr.read()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (out / "source.json").exists()
    server.rate = 0
    process = start(server, out)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    for path in database.rglob("*"):
        if path.is_file():
            arrived = out / "records" / path.relative_to(database)
            assert hashlib.sha256(arrived.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
    assert not [name for name in files_of(out) if ".part" in name]
    assert server.sent < 1.5 * whole
