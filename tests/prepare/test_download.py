"""The download stage: one source of each kind, and what it must not touch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import physionet_server as ps
import pytest

from ecggen.io.records import read_record, write_record
from ecggen.prepare.download import physionet
from ecggen.prepare.download.source import SourceError, read_sources
from ecggen.prepare.download.specs import STAGE_FOLDERS
from ecggen.prepare.download.stage import download
from ecggen.prepare.download.transfer import Limits
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import sha256_file

NAMES = ["a/r1", "a/r2", "b/r3"]
SYNTHETIC = {"synthetic": {"patients": 6, "seconds": 2}, "data": {"limit": 2}}


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(physionet, "LIMITS", Limits(attempts=4, backoff_s=0.01))


@pytest.fixture
def root(tmp_path):
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
def server(root):
    with ps.serve(root) as running:
        yield running


def _config(url: str, database: str = "demo/1.0", **data: object) -> Config:
    return config_from_dict({"data": {"source": "physionet", "database": database, "url": url, **data}})


def test_whole_database(server, root, tmp_path):
    content = download(_config(server.url), tmp_path / "raw")
    source = read_sources(tmp_path / "raw")[0]
    assert source.records == NAMES and source.kind == "physionet" and source.name == "demo/1.0"
    assert content["root"] == "records" and content["absent"] == 0
    for name in ("a/r1.dat", "a/r1.atr", "b/r3.hea", "labels.csv", "RECORDS", "a/RECORDS"):
        assert sha256_file(source.root / name) == sha256_file(root / "demo/1.0" / name)
    assert not (source.root / "huge.zip").exists()
    assert read_record(source.root / "a/r2").ecg.shape[0] == 12


def test_resumes_after_an_interruption(server, root, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    broken = "demo/1.0/b/r3.dat"
    server.broken[broken] = 30_000
    monkeypatch.setattr(physionet, "LIMITS", Limits(attempts=1))
    with pytest.raises(SourceError, match=r"b/r3\.dat.*broke off after 30000 bytes"):
        download(_config(server.url), raw)
    assert not (raw / "source.json").exists() and not (raw / "records/b/r3.dat").exists()
    assert (raw / "records/b/r3.dat.part").stat().st_size == 30_000
    for log in (server.broken, server.requests, server.sent_from):
        log.clear()
    download(_config(server.url), raw)
    assert server.sent_from[broken] == [30_000]
    assert server.requests["demo/1.0/a/r1.hea"] == 0
    assert sha256_file(raw / "records/b/r3.dat") == sha256_file(root / broken)
    assert not list(raw.rglob("*.part"))


def test_limit_and_what_an_earlier_run_left(server, tmp_path):
    raw = tmp_path / "raw"
    download(_config(server.url, limit=1), raw)
    assert read_sources(raw)[0].records == ["a/r1"]
    assert (raw / "records/labels.csv").is_file() and (raw / "records/RECORDS").is_file()
    assert server.requests["demo/1.0/b/r3.dat"] == 0
    download(_config(server.url), raw)
    assert read_sources(raw)[0].records == NAMES
    download(_config(server.url, limit=2), raw)
    assert read_sources(raw)[0].records == NAMES[:2]
    assert not (raw / "records/b").exists()


def test_other_source_starts_empty(server, root, tmp_path):
    raw, other = tmp_path / "raw", root / "other" / "2.0"
    shutil.copytree(root / "demo/1.0/b", other)
    (other / "RECORDS").write_text("r3\n")
    ps.write_sums(other)
    download(_config(server.url), raw)
    download(_config(server.url, "other/2.0"), raw)
    assert read_sources(raw)[0].records == ["r3"]
    assert not (raw / "records/labels.csv").exists()
    download(config_from_dict(SYNTHETIC), raw)
    assert read_sources(raw)[0].kind == "synthetic" and not (raw / ".download.json").exists()


def test_ptbxl_needs_one_rate_only(root, tmp_path):
    database = root / "ptb-xl" / "1.0.3"
    for rate, folder, suffix in ((100, "records100", "lr"), (500, "records500", "hr")):
        for i in (1, 2):
            x = np.zeros((rate, 2)) + np.arange(rate)[:, None] * i / 1000
            write_record(database / folder / "00000", f"0000{i}_{suffix}", rate, x, ["I", "II"])
    rows = "".join(f"{i},records100/00000/0000{i}_lr,records500/00000/0000{i}_hr\n" for i in (1, 2))
    (database / "ptbxl_database.csv").write_text("ecg_id,filename_lr,filename_hr\n" + rows)
    (database / "RECORDS").write_text("records100/00000/00001_lr\n")
    ps.write_sums(database)
    with ps.serve(root) as server:
        download(_config(server.url, "ptb-xl/1.0.3", fs=100), tmp_path / "raw")
        assert read_sources(tmp_path / "raw")[0].records == [f"records100/00000/0000{i}_lr" for i in (1, 2)]
        assert not any("records500" in name for name in server.requests)
        download(_config(server.url, "ptb-xl/1.0.3", fs=250, limit=1), tmp_path / "raw")
        assert read_sources(tmp_path / "raw")[0].records == ["records500/00000/00001_hr"]


def test_signal_files_under_other_names(root, tmp_path):
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
def test_unknown_database_or_version(server, tmp_path, database):
    slug, version = database.split("/")
    with pytest.raises(SourceError, match=f"No database '{slug}' in version '{version}'"):
        download(_config(server.url, database), tmp_path / "raw")
    assert server.requests == {f"{database}/SHA256SUMS.txt": 1}


@pytest.mark.parametrize("database", ["nowhere", "../x/1.0", "a/b/c", "demo/..", "demo/1.0?x"])
def test_malformed_database(tmp_path, database):
    with pytest.raises(EcggenError, match="slug/version"):
        download(_config("http://127.0.0.1:1/", database), tmp_path / "raw")


def test_local_folder_is_listed_not_copied(root, tmp_path):
    raw = tmp_path / "raw"
    folder = root / "demo" / "1.0"
    content = download(config_from_dict({"data": {"source": "wfdb", "path": str(folder)}}), raw)
    assert content["root"] == str(folder) and read_sources(raw)[0].records == NAMES
    assert sorted(p.name for p in raw.iterdir()) == ["records.txt", "source.json"]
    with pytest.raises(SourceError, match="No folder of records"):
        download(config_from_dict({"data": {"source": "wfdb", "path": str(folder / "no")}}), raw)
    assert read_sources(raw)[0].records == NAMES, "as it was"


def test_synthetic_is_the_same_twice(tmp_path):
    first, second = (download(config_from_dict(SYNTHETIC), tmp_path / name) for name in "ab")
    assert json.dumps(first) == json.dumps(second)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


# ------------------------------------------------------------------------------------- what is not touched


def _records(folder: Path, seed: int = 0, count: int = 3) -> Path:
    for i in range(count):
        x = np.random.default_rng([seed, i]).normal(0, 0.3, (500, 2))
        write_record(folder, f"r{i}", 250, x, ["I", "II"])
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with an earlier result in data/raw, and records outside."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    _records(tmp_path / "mine")
    download(config_from_dict({"data": {"source": "wfdb", "path": str(tmp_path / "mine")}}), Path("data/raw"))
    return folder


@pytest.mark.parametrize("kind", ["wfdb", "sources", "table", "transfer"])
@pytest.mark.parametrize(
    "place",
    [
        *(f"{folder}/mydb" for folder in STAGE_FOLDERS),
        *("data/raw", ".", "data", "link", "data/raw/to_mine", "../project/data/raw/x/../mydb"),
    ],
)
def test_no_source_lies_in_a_folder_that_a_stage_replaces(project, tmp_path, kind, place):
    folder = Path(place)
    if place == "link":
        _records(Path("data/raw/mydb"), 1)
        folder.symlink_to(Path("data/raw/mydb").absolute())
    elif place == "data/raw/to_mine":
        folder.symlink_to(tmp_path / "mine")
    else:
        Path("data/raw/x").mkdir()
        _records(folder, 1)
    (folder / "t.csv").write_text("path,fs,leads,unit\nr0,,,\n")
    before = _contents(tmp_path)
    data = {
        "wfdb": {"data": {"source": "wfdb", "path": place}},
        "sources": {"data": {"sources": [f"wfdb:{tmp_path}/mine", f"wfdb:{place}"]}},
        "table": {"data": {"source": "table", "path": f"{place}/t.csv"}},
        "transfer": {"transfer": {"sources": [f"wfdb:{place}"]}},
    }[kind]
    if kind == "table" and place in (".", "data"):  # beside the folders
        shutil.rmtree("data/raw/x")
        assert download(config_from_dict(data), Path("data/raw"))["records"] == 1
        return
    with pytest.raises(SourceError, match=r"replaced as a whole.*move the records elsewhere"):
        download(config_from_dict(data), Path("data/raw"))
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("linked", ["file", "folder", "signal"])
def test_no_record_is_a_link_into_such_a_folder(project, tmp_path, linked):
    inside, outside = _records(Path("data/windows/mydb"), 1).absolute(), tmp_path / "links"
    outside.mkdir()
    if linked == "folder":
        (outside / "sub").symlink_to(inside)
    for name in ("r0.hea", "r0.dat") if linked != "folder" else ():
        if linked == "signal" and name == "r0.hea":
            shutil.copy(inside / name, outside)
        else:
            (outside / name).symlink_to(inside / name)
    before = _contents(tmp_path)
    for data in ({"source": "wfdb", "path": str(outside)}, {"sources": [f"wfdb:{outside}", "synthetic"]}):
        with pytest.raises(SourceError, match=r"perhaps by links.*replaced as a whole"):
            download(config_from_dict({"data": data}), Path("data/raw"))
        assert _contents(tmp_path) == before


@pytest.mark.parametrize("name", ["mydb", "records/mine", "notes.txt"])
def test_what_the_stage_did_not_write_is_not_removed(tmp_path, name):
    """Records that somebody copied to data/raw without naming them as the source."""
    raw = tmp_path / "raw"
    _records(raw / name) if name != "notes.txt" else (raw.mkdir(), (raw / name).write_text("mine"))
    before = _contents(raw)
    for config in (config_from_dict(SYNTHETIC), _config("http://127.0.0.1:1/", "ludb")):
        with pytest.raises(SourceError, match=f"holds {name.split('/')[0]}, which this stage did not write"):
            download(config, raw)
    assert _contents(raw) == before
    shutil.rmtree(raw)
    config = config_from_dict(SYNTHETIC)
    assert download(config, raw) == download(config, raw)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nonsense", "Source 'nonsense' has no place: write physionet:NAME"),
        ("wfdb:/none/here", "No folder of records at /none/here"),
        ("table:/none/here.csv", "No table of records at /none/here.csv"),
        ("table:{}/bad.csv", "bad.csv lacks the column 'leads'"),
        ("ludb:{}/mine", "is said to be ludb but has no ludb.csv"),
        ("wfdb:{}/mine", "the model is trained on its recordings"),
        ("wfdb:{}/mine/sub", "the model is trained on its recordings"),
        ("physionet:ptb-xl/9.9.9", ""),
    ],
)
def test_a_wrong_transfer_source_is_found_in_the_first_stage(project, tmp_path, source, words):
    (tmp_path / "bad.csv").write_text("path,fs\nx.npy,5\n")
    (tmp_path / "mine" / "sub").mkdir()
    before = _contents(tmp_path)
    data = {"source": "wfdb", "path": str(tmp_path / "mine"), "limit": 1}
    transfer = {"sources": ["synthetic:other", source.format(tmp_path)]}
    config = config_from_dict({"data": data, "transfer": transfer})
    if not words:
        download(config, Path("data/raw"))
        return
    with pytest.raises(SourceError, match=r"transfer\.sources names") as caught:
        download(config, Path("data/raw"))
    assert words in str(caught.value) and _contents(tmp_path) == before


@pytest.mark.parametrize("second", ["backup", "mine/sub", "link"])
def test_two_sources_with_one_recording_are_refused(project, tmp_path, second):
    """A copy of the folder, a folder in the other, a folder of links: else one person is in two splits."""
    other = _records(tmp_path / second, seed=5, count=1)
    for suffix in (".hea", ".dat") if second != "mine/sub" else ():
        path = tmp_path / "mine" / f"r1{suffix}"
        if second == "link":
            (other / path.name).symlink_to(path)
        else:
            (other / f"x{suffix}").write_bytes(path.read_bytes().replace(b"r1.dat", b"x.dat"))
    sources = [f"wfdb:{tmp_path}/mine", f"wfdb:{other}"]
    with pytest.raises(SourceError, match=r"both hold the recording .*the same people .* in two splits"):
        download(config_from_dict({"data": {"sources": sources}}), tmp_path / "several")
