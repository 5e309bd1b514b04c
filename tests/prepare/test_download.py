"""Downloads against a PhysioNet-shaped server on 127.0.0.1."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import physionet_server as ps
import pytest

from ecggen.io.records import read_record, write_record
from ecggen.prepare.download import physionet
from ecggen.prepare.download.connection import Limits
from ecggen.prepare.download.source import SourceError, read_source
from ecggen.prepare.download.stage import download
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.files import sha256_file

NAMES = ["a/r1", "a/r2", "b/r3"]


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(physionet, "LIMITS", Limits(attempts=4, backoff_s=0.01))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Server root with database `demo/1.0`: nested RECORDS, a label table and a file nobody asked for."""
    database = tmp_path / "server" / "demo" / "1.0"
    for i, name in enumerate(NAMES):
        x = np.random.default_rng(i).normal(0, 0.3, (5000, 12))
        leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
        write_record(database / name.split("/")[0], name.split("/")[1], 500, x, leads, ["Age: 50"])
    (database / "a" / "r1.atr").write_bytes(b"\x00\x01")
    (database / "RECORDS").write_text("a/\nb/r3\n")
    (database / "a" / "RECORDS").write_text("r1\nr2\n")
    (database / "labels.csv").write_text("record,label\na/r1,x\n")
    (database / "huge.zip").write_bytes(b"0" * 1000)
    ps.write_sums(database)
    return tmp_path / "server"


@pytest.fixture
def server(root: Path) -> Iterator[ps.PhysionetServer]:
    with ps.serve(root) as running:
        yield running


def _config(url: str, database: str = "demo/1.0", **data: object) -> Config:
    return config_from_dict({"data": {"source": "physionet", "database": database, "url": url, **data}})


def test_whole_database(server: ps.PhysionetServer, root: Path, tmp_path: Path) -> None:
    said = download(_config(server.url), tmp_path / "raw")
    source = read_source(tmp_path / "raw")
    assert source.records == NAMES and source.kind == "physionet" and source.name == "demo/1.0"
    assert said["root"] == "records" and said["absent"] == 0
    for name in ("a/r1.dat", "a/r1.atr", "b/r3.hea", "labels.csv", "RECORDS", "a/RECORDS"):
        assert sha256_file(source.root / name) == sha256_file(root / "demo/1.0" / name)
    assert not (source.root / "huge.zip").exists()
    assert read_record(source.root / "a/r2").ecg.shape[0] == 12


def test_second_run_fetches_nothing_again(server: ps.PhysionetServer, tmp_path: Path) -> None:
    first = download(_config(server.url), tmp_path / "raw")
    server.requests.clear()
    assert download(_config(server.url), tmp_path / "raw") == first
    assert dict(server.requests) == {"demo/1.0/SHA256SUMS.txt": 1}


def test_resumes_after_an_interruption(
    server: ps.PhysionetServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    broken = "demo/1.0/b/r3.dat"
    server.broken[broken] = 30_000
    monkeypatch.setattr(physionet, "LIMITS", Limits(attempts=1))
    with pytest.raises(SourceError, match=r"b/r3\.dat.*broke off after 30000 of 120000 bytes"):
        download(_config(server.url), raw)
    assert not (raw / "source.json").exists() and not (raw / "records/b/r3.dat").exists()
    assert (raw / "records/b/r3.dat.part").stat().st_size == 30_000
    server.broken.clear()
    server.requests.clear()
    server.sent_from.clear()
    download(_config(server.url), raw)
    assert server.sent_from[broken] == [30_000]
    assert server.requests["demo/1.0/a/r1.hea"] == 0
    assert sha256_file(raw / "records/b/r3.dat") == sha256_file(root / broken)
    assert not list(raw.rglob("*.part"))


def test_truncated_transfers_are_continued_within_a_run(
    server: ps.PhysionetServer, root: Path, tmp_path: Path
) -> None:
    server.broken["demo/1.0/a/r2.dat"] = 50_000
    server.refused["demo/1.0/a/r1.dat"] = [503, 429]
    download(_config(server.url), tmp_path / "raw")
    assert server.sent_from["demo/1.0/a/r2.dat"] == [0, 50_000, 100_000]
    assert server.requests["demo/1.0/a/r1.dat"] == 3
    assert sha256_file(tmp_path / "raw/records/a/r2.dat") == sha256_file(root / "demo/1.0/a/r2.dat")


def test_server_that_cannot_continue_starts_again(root: Path, tmp_path: Path) -> None:
    with ps.serve(root, ranges=False) as server:
        part = tmp_path / "raw/records/b/r3.dat.part"
        download(_config(server.url, limit=1), tmp_path / "raw")
        part.parent.mkdir()
        part.write_bytes(b"something else")
        download(_config(server.url), tmp_path / "raw")
    assert sha256_file(tmp_path / "raw/records/b/r3.dat") == sha256_file(root / "demo/1.0/b/r3.dat")


def test_part_of_another_file_is_not_trusted(server: ps.PhysionetServer, root: Path, tmp_path: Path) -> None:
    download(_config(server.url, limit=1), tmp_path / "raw")
    part = tmp_path / "raw/records/b/r3.dat.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 500)
    download(_config(server.url), tmp_path / "raw")
    assert server.sent_from["demo/1.0/b/r3.dat"] == [500, 0]
    assert sha256_file(tmp_path / "raw/records/b/r3.dat") == sha256_file(root / "demo/1.0/b/r3.dat")


def test_wrong_checksum(server: ps.PhysionetServer, tmp_path: Path) -> None:
    server.spoilt["demo/1.0/a/r2.dat"] = b"\x00" * 120_000
    with pytest.raises(SourceError, match=r"Wrong checksum of a/r2\.dat") as caught:
        download(_config(server.url), tmp_path / "raw")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "raw").rglob("r2.dat*"))
    assert not (tmp_path / "raw" / "source.json").exists()


def test_damaged_file_is_fetched_again(server: ps.PhysionetServer, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    first = download(_config(server.url), raw)
    (raw / "records/a/r1.dat").write_bytes(b"damage")
    assert download(_config(server.url), raw) == first
    assert server.requests["demo/1.0/a/r1.dat"] == 2


def test_limit_and_what_an_earlier_run_left(server: ps.PhysionetServer, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    download(_config(server.url, limit=1), raw)
    assert read_source(raw).records == ["a/r1"]
    assert (raw / "records/labels.csv").is_file() and (raw / "records/RECORDS").is_file()
    assert server.requests["demo/1.0/b/r3.dat"] == 0
    download(_config(server.url), raw)
    assert read_source(raw).records == NAMES
    download(_config(server.url, limit=2), raw)
    assert read_source(raw).records == NAMES[:2]
    assert not (raw / "records/b").exists()


def test_other_source_starts_empty(server: ps.PhysionetServer, root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    other = root / "other" / "2.0"
    other.mkdir(parents=True)
    for name in ("a/r1.hea", "a/r1.dat"):
        (other / Path(name).name).write_bytes((root / "demo/1.0" / name).read_bytes())
    (other / "RECORDS").write_text("r1\n")
    ps.write_sums(other)
    download(_config(server.url), raw)
    download(_config(server.url, "other/2.0"), raw)
    assert read_source(raw).records == ["r1"]
    assert not (raw / "records/labels.csv").exists()
    download(config_from_dict({"synthetic": {"patients": 6, "seconds": 2}, "data": {"limit": 2}}), raw)
    assert read_source(raw).kind == "synthetic" and not (raw / ".download.json").exists()


def test_ptbxl_needs_one_rate_only(root: Path, tmp_path: Path) -> None:
    database = root / "ptb-xl" / "1.0.3"
    for rate, folder, suffix in ((100, "records100", "lr"), (500, "records500", "hr")):
        for i in (1, 2):
            x = np.zeros((rate, 2)) + np.arange(rate)[:, None] / 1000
            write_record(database / folder / "00000", f"0000{i}_{suffix}", rate, x, ["I", "II"])
    rows = "".join(f"{i},records100/00000/0000{i}_lr,records500/00000/0000{i}_hr\n" for i in (1, 2))
    (database / "ptbxl_database.csv").write_text("ecg_id,filename_lr,filename_hr\n" + rows)
    (database / "RECORDS").write_text("records100/00000/00001_lr\n")
    ps.write_sums(database)
    with ps.serve(root) as server:
        download(_config(server.url, "ptb-xl/1.0.3", fs=100), tmp_path / "raw")
        assert read_source(tmp_path / "raw").records == [f"records100/00000/0000{i}_lr" for i in (1, 2)]
        assert not any("records500" in name for name in server.requests)
        download(_config(server.url, "ptb-xl/1.0.3", fs=250, limit=1), tmp_path / "raw")
        assert read_source(tmp_path / "raw").records == ["records500/00000/00001_hr"]


def test_signal_files_under_other_names(root: Path, tmp_path: Path) -> None:
    database = root / "named" / "1.0"
    database.mkdir(parents=True)
    (database / "x.hea").write_text("x 1 100 50\ndata_of_x.dat 16 200 16 0 0 0 0 I\n")
    np.zeros(50, dtype="<i2").tofile(database / "data_of_x.dat")
    (database / "m.hea").write_text("m/2 1 100 100\nx 50\n~ 50\n")
    (database / "RECORDS").write_text("m\n")
    ps.write_sums(database)
    with ps.serve(root) as server:
        download(_config(server.url, "named/1.0"), tmp_path / "raw")
    assert {p.name for p in (tmp_path / "raw/records").iterdir()} >= {"m.hea", "x.hea", "data_of_x.dat"}


@pytest.mark.parametrize("database", ["demo/9.9", "nothing/1.0"])
def test_unknown_database_or_version(server: ps.PhysionetServer, tmp_path: Path, database: str) -> None:
    slug, version = database.split("/")
    with pytest.raises(SourceError, match=f"No database '{slug}' in version '{version}'"):
        download(_config(server.url, database), tmp_path / "raw")
    assert server.requests == {f"{database}/SHA256SUMS.txt": 1}


@pytest.mark.parametrize("database", ["nowhere", "../x/1.0", "a/b/c", "demo/..", "demo/1.0?x"])
def test_malformed_database(tmp_path: Path, database: str) -> None:
    with pytest.raises(SourceError, match=r"slug/version"):
        download(_config("http://127.0.0.1:1/", database), tmp_path / "raw")


def test_paths_that_leave_the_folder(server: ps.PhysionetServer, root: Path, tmp_path: Path) -> None:
    with (root / "demo/1.0/SHA256SUMS.txt").open("a") as stream:
        stream.write("0" * 64 + " ../../evil.csv\n")
    with pytest.raises(SourceError, match=r"evil\.csv"):
        download(_config(server.url), tmp_path / "raw")


def test_closed_database(server: ps.PhysionetServer, tmp_path: Path) -> None:
    server.refused["demo/1.0/SHA256SUMS.txt"] = [403]
    with pytest.raises(SourceError, match="not open to everyone"):
        download(_config(server.url), tmp_path / "raw")


def test_no_network(tmp_path: Path) -> None:
    with socket.socket() as taken:  # a port that nobody listens on
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(SourceError, match=r"4 attempts.*check the network.*or download it by hand"):
        download(_config(f"http://127.0.0.1:{port}/files/"), tmp_path / "raw")
    with pytest.raises(SourceError, match="http://"):
        download(_config("file:///etc/"), tmp_path / "raw")


def test_local_folder_is_listed_not_copied(root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    folder = root / "demo" / "1.0"
    said = download(config_from_dict({"data": {"source": "wfdb", "path": str(folder)}}), raw)
    assert said["root"] == str(folder) and read_source(raw).records == NAMES
    assert sorted(p.name for p in raw.iterdir()) == ["records.txt", "source.json"]
    with pytest.raises(SourceError, match="No folder of records"):
        download(config_from_dict({"data": {"source": "wfdb", "path": str(folder / "no")}}), raw)
    assert not (raw / "source.json").exists()


def test_synthetic_is_the_same_twice(tmp_path: Path) -> None:
    config = config_from_dict({"synthetic": {"patients": 6, "seconds": 2}})
    first, second = (download(config, tmp_path / name) for name in "ab")
    assert json.dumps(first) == json.dumps(second)
    for name in read_source(tmp_path / "a").records:
        for suffix in (".hea", ".dat"):
            a, b = (tmp_path / x / "records" / f"{name}{suffix}" for x in "ab")
            assert a.read_bytes() == b.read_bytes()
