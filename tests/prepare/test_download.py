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

SYNTHETIC = {"synthetic": {"patients": 6, "seconds": 2}, "data": {"limit": 2}}


def _records(folder: Path, seed: int = 0, count: int = 3) -> Path:
    for i in range(count):
        x = np.random.default_rng([seed, i]).normal(0, 0.3, (500, 2))
        write_record(folder, f"r{i}", 250, x, ["I", "II"])
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def server(tmp_path):
    """Databases demo/1.0, whose RECORDS names a folder, and other/2.0."""
    root = tmp_path / "server"
    for name, below in (("demo/1.0", "a"), ("other/2.0", "b")):
        _records(root / name / below)
        (root / name / "RECORDS").write_text(f"{below}/\n")
        (root / name / below / "RECORDS").write_text("r0\nr1\n")
        ps.write_sums(root / name)
    with ps.serve(root) as running:
        yield running


def _config(server: ps.PhysionetServer, database: str = "demo/1.0") -> Config:
    return config_from_dict({"data": {"source": "physionet", "database": database, "url": server.url}})


def test_a_database_is_resumed_after_an_interruption(server, tmp_path, monkeypatch):
    raw, broken = tmp_path / "raw", "demo/1.0/a/r1.dat"
    server.broken[broken] = 1000
    monkeypatch.setattr(physionet, "LIMITS", Limits(attempts=1))
    with pytest.raises(SourceError, match=r"a/r1\.dat.*broke off after 1000 bytes"):
        download(_config(server), raw)
    assert not (raw / "source.json").exists() and not (raw / "records/a/r1.dat").exists()
    assert (raw / "records/a/r1.dat.part").stat().st_size == 1000
    for log in (server.broken, server.requests, server.sent_from):
        log.clear()
    content = download(_config(server), raw)
    assert server.sent_from[broken] == [1000] and server.requests["demo/1.0/a/r1.hea"] == 0
    assert (content["root"], content["records"], content["absent"]) == ("records", 2, 0)
    (source,) = read_sources(raw)
    assert (source.kind, source.name, source.records) == ("physionet", "demo/1.0", ["a/r0", "a/r1"])
    assert read_record(source.root / "a/r1").ecg.shape == (12, 500)
    assert not list(raw.rglob("*.part"))


def test_another_source_starts_empty(server, tmp_path):
    raw = tmp_path / "raw"
    for name, below in (("demo/1.0", "a"), ("other/2.0", "b")):
        download(_config(server, name), raw)
        assert [path.name for path in (raw / "records").iterdir() if path.is_dir()] == [below]
    download(config_from_dict(SYNTHETIC), raw)
    assert read_sources(raw)[0].kind == "synthetic" and not (raw / ".download.json").exists()


def test_a_local_folder_is_listed_not_copied(tmp_path):
    raw, folder = tmp_path / "raw", _records(tmp_path / "mine")
    content = download(config_from_dict({"data": {"source": "wfdb", "path": str(folder)}}), raw)
    assert content["root"] == str(folder) and read_sources(raw)[0].records == ["r0", "r1", "r2"]
    assert sorted(p.name for p in raw.iterdir()) == ["records.txt", "source.json"]
    before = _contents(raw)
    with pytest.raises(SourceError, match="No folder of records"):
        download(config_from_dict({"data": {"source": "wfdb", "path": str(folder / "no")}}), raw)
    assert _contents(raw) == before


def test_synthetic_is_the_same_twice(tmp_path):
    first, second = (download(config_from_dict(SYNTHETIC), tmp_path / name) for name in "ab")
    assert json.dumps(first) == json.dumps(second)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


# ------------------------------------------------------------------------------------- what is not touched


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with an earlier result in data/raw, and records outside."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    _records(tmp_path / "mine")
    download(config_from_dict({"data": {"source": "wfdb", "path": str(tmp_path / "mine")}}), Path("data/raw"))
    return folder


PLACES = [f"{folder}/mydb" for folder in STAGE_FOLDERS]
PLACES += ["data/raw", ".", "data", "link", "data/raw/to_mine", "../project/data/raw/x/../mydb"]


@pytest.mark.parametrize(
    ("kind", "place"),
    [("wfdb", place) for place in PLACES]
    + [
        (kind, place)
        for kind in ("sources", "table", "transfer")
        for place in ("results/mydb", "link", "data")
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
    physionet_config = config_from_dict({"data": {"source": "physionet", "database": "ludb"}})
    for config in (config_from_dict(SYNTHETIC), physionet_config):
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
