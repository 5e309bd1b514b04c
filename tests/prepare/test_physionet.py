"""One database from a server on 127.0.0.1: lists that lie, runs that are killed, real layouts."""

from __future__ import annotations

import base64
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

DATABASE = "demo/1.0"
SUMS = f"{DATABASE}/SHA256SUMS.txt"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(physionet, "LIMITS", Limits(attempts=3, backoff_s=0.01, idle_s=2, window_s=2))


@pytest.fixture
def database(tmp_path):
    folder = tmp_path / "server" / DATABASE
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(database):
    with ps.serve(database.parents[1]) as running:
        yield running


def publish(folder: Path, lists: dict[str, str], *names: str, size: int = 40, suffix: str = "dat") -> None:
    """Records of these names, RECORDS files (by folder), and the list of checksums."""
    for name in names:
        path = folder / f"{name}.hea"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.stem} 1 100 {size // 2}\n{path.stem}.{suffix} 16 200 16 0 0 0 0 I\n")
        path.with_suffix(f".{suffix}").write_bytes(np.random.default_rng(list(name.encode())).bytes(size))
    for below, text in lists.items():
        (folder / below / "RECORDS").write_text(text)
    ps.write_sums(folder)


def run(
    server: ps.PhysionetServer, out: Path, *, fs: float = 100, limit: int = 0, name: str = DATABASE
) -> tuple[list[str], int]:
    source = Physionet(name, server.url, out, fs=fs, limit=limit).run()
    assert (source.root, source.name, source.kind) == (out / "records", name, "physionet")
    return source.records, source.absent


def fails(server: ps.PhysionetServer, tmp_path: Path, match: str) -> str:
    with pytest.raises(SourceError, match=match) as caught:
        run(server, tmp_path / "raw")
    assert len(str(caught.value)) < 400
    return str(caught.value)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------- layouts


def test_lists_that_name_folders_and_what_lies_beside_a_record(database, server, tmp_path):
    names = ["a/r1", "a/r2", "b/r3"]
    for name in ("a/r1.atr", "a/r1.x.dat", "labels.csv", "ANNOTATORS", "huge.zip", "docs/intro.htm"):
        (database / name).parent.mkdir(exist_ok=True)
        (database / name).write_bytes(b"x")
    lists = {".": "a/\nb/\ngone/\nalso_gone\n", "a": "r1\nr2\nr3\n", "b": "././\nr3.hea\n"}
    (database / "b").mkdir()
    publish(database, lists, *names)
    raw = tmp_path / "raw"
    assert run(server, raw, limit=1)[0] == names[:1]
    few = {"RECORDS", "a/RECORDS", "labels.csv", "ANNOTATORS", "a/r1.hea", "a/r1.dat", "a/r1.atr"}
    assert files_of(raw / "records") == few | {"SHA256SUMS.txt"}
    assert run(server, raw) == (names, 3)
    for path in files_of(raw / "records") - {"SHA256SUMS.txt"}:
        assert sha256_file(raw / "records" / path) == sha256_file(database / path)
    assert run(server, raw, limit=2)[0] == names[:2]
    assert not (raw / "records/b").exists()  # removed again


def test_ptbxl_needs_one_rate_only(database, server, tmp_path):
    folder = database.parents[1] / "ptb-xl" / "1.0.3"
    names = [f"records{rate}/0000{i}_{end}" for rate, end in ((100, "lr"), (500, "hr")) for i in (1, 2)]
    folder.mkdir(parents=True)
    rows = "".join(f"{i},{names[i - 1]},{names[i + 1]}\n" for i in (1, 2))
    (folder / "ptbxl_database.csv").write_text("ecg_id,filename_lr,filename_hr\n" + rows)
    publish(folder, {".": "records100/00001_lr\n"}, *names)
    assert run(server, tmp_path / "raw", name="ptb-xl/1.0.3") == (names[:2], 0)
    assert not any("records500" in name for name in server.requests)
    assert run(server, tmp_path / "raw", name="ptb-xl/1.0.3", fs=250, limit=1) == (names[2:3], 0)


@pytest.mark.parametrize(
    "table", [b"ecg_id\n\x00,\xff", b'filename_lr\n"' + b"x" * 200_000, b"filename_lr\n../x\n"]
)
def test_ptbxl_table_that_is_none(database, server, tmp_path, table):
    (database / "ptbxl_database.csv").write_bytes(table)
    publish(database, {})
    fails(server, tmp_path, "is not a table|names")


def test_signal_files_and_segments_under_other_names(database, server, tmp_path):
    publish(database, {".": "m\n"}, "x", suffix="mat")
    (database / "x.hea").write_text("x 1 100 50\ndata_of_x.mat 16 200 16 0 0 0 0 I\n")
    (database / "x.mat").rename(database / "data_of_x.mat")
    (database / "m.hea").write_text("m/2 1 100 100\nx 50\n~ 50\n")
    publish(database, {})
    assert run(server, tmp_path / "raw") == (["m"], 0)
    assert files_of(tmp_path / "raw/records") >= {"m.hea", "x.hea", "data_of_x.mat"}


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
    publish(database, {".": "a/r\n"}, "a/r")
    (database / "a/r.hea").write_text("r/3 1 100 40\n../../../secret 20\n/etc/passwd 20\nr 20\n")
    publish(database, {})
    assert run(server, tmp_path / "raw") == (["a/r"], 0)
    assert set(server.requests) == {
        SUMS,
        *(f"{DATABASE}/{name}" for name in ("RECORDS", "a/r.hea", "a/r.dat")),
    }


# ------------------------------------------------------------------------------- lists that lie


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\\..\\x", "C:/x", "r\x00", "a/../../r"])
@pytest.mark.parametrize("where", ["SHA256SUMS.txt", "RECORDS"])
def test_names_that_leave_the_folder(database, server, tmp_path, where, name):
    publish(database, {".": f"r\n{name if where == 'RECORDS' else ''}\n"}, "r")
    if where == "SHA256SUMS.txt":
        with (database / where).open("a") as stream:
            stream.write(f"{'0' * 64} {name}\n")
    before = files_of(tmp_path)
    fails(server, tmp_path, f"{where} names")
    assert all(path.startswith("raw/") for path in files_of(tmp_path) - before)


def test_forms_of_the_list_of_checksums(database, server, tmp_path):
    publish(database, {".": "r\n"}, "r")
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


@pytest.mark.parametrize("sums", [b"", b"nothing\n", b"\x00\xff" * 100])
def test_sums_without_a_file(database, server, tmp_path, sums):
    (database / "SHA256SUMS.txt").write_bytes(sums)
    fails(server, tmp_path, "lists no file")


def test_listed_but_not_there(database, server, tmp_path):
    publish(database, {".": "r\n"}, "r")
    (database / "r.dat").unlink()
    fails(server, tmp_path, r"r\.dat is not there.*SHA256SUMS\.txt lists it")


@pytest.mark.parametrize("name", ["demo/9.9", "nothing/1.0"])
def test_unknown_database_or_version(server, tmp_path, name):
    slug, version = name.split("/")
    with pytest.raises(SourceError, match=f"No database '{slug}' in version '{version}'"):
        run(server, tmp_path / "raw", name=name)
    assert server.requests == {f"{name}/SHA256SUMS.txt": 1}


@pytest.mark.parametrize("name", ["nowhere", "../x/1.0", "a/b/c", "demo/..", "demo/1.0?x"])
def test_malformed_database(tmp_path, name):
    with pytest.raises(SourceError, match="slug/version"):
        Physionet(name, "http://127.0.0.1:1/", tmp_path, fs=100, limit=0)


# ------------------------------------------------------------------------------- runs and their folder


def test_later_runs_fetch_what_changed_and_read_nothing_else(database, server, tmp_path, monkeypatch):
    """No signal is read again: the database may be large."""
    publish(database, {".": "r\n"}, "r")
    raw, signal_file = tmp_path / "raw", f"{DATABASE}/r.dat"
    read = []
    monkeypatch.setattr(transfer, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))

    def requested():
        server.requests.clear()
        read.clear()
        assert run(server, raw) == (["r"], 0)
        return dict(server.requests)

    requested()
    assert requested() == {SUMS: 1} and read == ["SHA256SUMS.txt.part"]
    (raw / physionet.VERIFIED).unlink()
    assert requested() == {SUMS: 1} and "r.dat" in read
    (raw / "records/r.dat").write_bytes(b"damage")
    assert requested() == {SUMS: 1, signal_file: 1}
    (database / "r.dat").write_bytes(b"corrected")
    ps.write_sums(database)
    assert requested() == {SUMS: 1, signal_file: 1}
    assert (raw / "records/r.dat").read_bytes() == b"corrected"


def test_one_process_at_a_time(server, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "keep").write_text("not ours to remove while another process works")
    with locked(raw):
        fails(server, tmp_path, "Another process downloads into")
    assert (raw / "keep").is_file() and not server.requests


def test_links_in_the_folder(database, server, tmp_path):
    publish(database, {".": "x/r\n"}, "x/r")
    raw, outside = tmp_path / "raw", tmp_path / "outside"
    run(server, raw)
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
    publish(database, {".": "r\n"}, "r")
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
    "url", ["https://ann:s3cret@physionet.org/files/", "ftp://ann:s3cret@x/", "https://h/?a"]
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
        publish(database, {".": "\n".join(sizes)}, name, size=size)
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
    for name in files_of(database):
        assert sha256_file(out / "records" / name) == sha256_file(database / name)
    assert not [name for name in files_of(out) if ".part" in name]
    assert server.sent < 1.5 * whole
