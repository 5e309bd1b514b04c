"""Which records a folder holds, in every layout, and what is said of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecggen.prepare.download.source import (
    Source,
    SourceError,
    list_source,
    read_sources,
    write_source,
)


def _header(folder: Path, name: str, text: str = "", suffix: str = ".hea") -> Path:
    """A record of its own: no two have the same signal."""
    path = folder / f"{name}.dat"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(list(name.encode())).bytes(20))
    header = path.with_suffix(suffix)
    header.write_text(text or f"{path.stem} 1 100 10\n{path.name} 16 200 16 0 0 0 0 I\n")
    return header


# ------------------------------------------------------------------------------------------- what there is


@pytest.mark.parametrize(
    ("records", "files", "listed", "absent"),
    [
        ("b/2 a/10 a/deep/er/1 .hidden/9", {}, "a/10 a/deep/er/1 b/2", 0),
        (
            "r1 r2 unlisted p/q1",
            {"RECORDS": "r2\r\nr1.hea\ngone\np/\nr2\n\nno_folder/\np/q1\n", "p/RECORDS": "q1\nq2\n"},
            "r2 r1 p/q1",
            3,
        ),
        ("r1 p/q1", {"RECORDS": "elsewhere/1\n"}, "p/q1 r1", 0),
        (
            "x/s_0001 x/s_layout x/single",
            {"x/s.hea": "# comment\ns/3 1 100 20\ns_layout 0\ns_0001 10\n~ 10\n"},
            "x/s x/single",
            0,
        ),
        ("x/s x/single", {"r.hea": "r/1 1 100 10\nx/single 10\n"}, "r x/s", 0),
        *(
            ("a/x", {"RECORDS": "a/\na/\n", "a/RECORDS": f"{line}\nx\n"}, "a/x", 0)
            for line in ("/", "//", "b/", "b/b/b/", "b/\nb/")  # ways back to a/RECORDS; b is a link to a
        ),
    ],
)
def test_what_a_folder_holds(tmp_path, records, files, listed, absent):
    for name in records.split():
        _header(tmp_path, name)
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    if "a/RECORDS" in files:
        (tmp_path / "a" / "b").symlink_to(tmp_path / "a")
    source = list_source(tmp_path)
    assert (source.records, source.absent, source.rejected) == (listed.split(), absent, {})
    assert list_source(tmp_path, limit=1).records == listed.split()[:1]


@pytest.mark.parametrize("suffix", [".HEA", ".hea"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_suffix_in_upper_case(tmp_path, suffix, listed):
    _header(tmp_path, "A", suffix=suffix)
    if listed:
        (tmp_path / "RECORDS").write_text("A\n")
    assert list_source(tmp_path).records == ["A"]


def test_links_are_followed_once(tmp_path):
    _header(tmp_path, "own/deep/1")
    _header(tmp_path.parent / "elsewhere", "2")
    (tmp_path / "link").symlink_to(tmp_path.parent / "elsewhere")
    (tmp_path / "twice").symlink_to(tmp_path.parent / "elsewhere")
    (tmp_path / "own" / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert list_source(tmp_path).records == ["link/2", "own/deep/1"]


def test_entries_that_are_no_files_do_not_end_the_run(tmp_path):
    """They are listed, so that reading them gives a reason; nothing but a regular file is opened."""
    _header(tmp_path, "good")
    _header(tmp_path, "unreadable").chmod(0)
    (tmp_path / "broken.hea").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.hea").mkdir()
    (tmp_path / "garbage.hea").write_bytes(b"\xff\xfe\x00 \x80")
    os.mkfifo(tmp_path / "z.hea")
    source = list_source(tmp_path)
    assert source.records == ["broken", "garbage", "good", "unreadable", "z"]
    assert write_source(tmp_path.parent / "raw", source)["records"] == 5
    (tmp_path / "RECORDS").write_text("good\nz\nbroken\n")
    assert list_source(tmp_path).records == ["good", "z", "broken"]


def test_a_folder_that_cannot_be_read_is_rejected(tmp_path, monkeypatch):
    _header(tmp_path, "a")
    _header(tmp_path, "locked/b")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    source = list_source(tmp_path)
    assert source.records == ["a"]
    assert source.rejected == {"locked": "The folder locked cannot be read: Permission denied."}


def test_names_that_are_no_line_of_text_are_rejected(tmp_path):
    _header(tmp_path, "a")
    for name in ("b\nc", "d\u2028e", os.fsdecode(b"f\xff")):
        (tmp_path / f"{name}.hea").write_text("x 1 100 10\n")
    source = list_source(tmp_path)
    assert source.records == ["a"]
    assert set(source.rejected) == {"'b\\nc'", "'d\\u2028e'", "'f\\udcff'"}
    assert write_source(tmp_path.parent / "raw", source)["records"] == 1


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\x", "C:/x", "b\0/"])
def test_names_stay_below(tmp_path, name):
    (tmp_path / "RECORDS").write_text(f"{name}\n")
    with pytest.raises(SourceError, match="only paths below"):
        list_source(tmp_path)


def test_ptbxl_table_chooses_the_rate(tmp_path):
    for name in ("records100/1_lr", "records100/2_lr", "records500/1_hr"):
        _header(tmp_path, name)
    (tmp_path / "ptbxl_database.csv").write_text(
        "ecg_id,filename_lr,filename_hr\n1,records100/1_lr,records500/1_hr\n"
        "2,records100/2_lr,records500/2_hr\n3,records100/3_lr,records500/3_hr\n"
    )
    low, high = list_source(tmp_path, fs=100), list_source(tmp_path, fs=250)
    assert low.records == ["records100/1_lr", "records100/2_lr"]
    assert high.records == ["records500/1_hr", "records100/2_lr"]
    assert low.absent == high.absent == 1


def test_nothing_to_read(tmp_path):
    with pytest.raises(SourceError, match="at least one header"):
        list_source(tmp_path)
    with pytest.raises(SourceError, match="No folder of records"):
        list_source(tmp_path / "no")


# --------------------------------------------------------------------------- one recording, one record


@pytest.mark.parametrize(
    "copy", ["JS20001 (1)", "JS20001 - Copy", "Copy of JS20001", "0", "deeper/JS20001", "other/x"]
)
@pytest.mark.parametrize(
    "how", ["header alone", "header and link", "both files", "both, with other comments"]
)
def test_a_copied_header_is_no_second_recording(tmp_path, copy, how):
    header = _header(tmp_path, "JS20001")
    other = tmp_path / f"{copy}.hea"
    other.parent.mkdir(exist_ok=True)
    text = header.read_text()
    if how == "header and link":
        text = text.replace("JS20001.dat", "link.dat")
        (other.parent / "link.dat").symlink_to(tmp_path / "JS20001.dat")
    elif how != "header alone" or other.parent != tmp_path:
        text = text.replace("JS20001.dat", "x.dat")
        shutil.copy(tmp_path / "JS20001.dat", other.parent / "x.dat")
    other.write_text(text + ("# Dx: AF\n" if how == "both, with other comments" else ""))
    source = list_source(tmp_path)
    kept = sorted([*source.records, *source.rejected])
    assert kept == sorted(["JS20001", copy]) and source.records == ["JS20001"]
    assert source.rejected[copy] == f"Record {copy} is a copy of JS20001: a recording counts once."
    raw = tmp_path.parent / "raw"
    assert write_source(raw, source)["records"] == 1
    assert (read_sources(raw)[0].records, read_sources(raw)[0].rejected) == (["JS20001"], source.rejected)


def test_recordings_that_look_alike_are_not_copies(tmp_path):
    """The same header but for the names; flat lines, too, tell nobody apart."""
    for name in ("a", "b", "flat1", "flat2", "gone1", "gone2"):
        _header(tmp_path, name)
    for name in ("flat1", "flat2"):
        (tmp_path / f"{name}.dat").write_bytes(bytes(20))
    for name in ("gone1", "gone2"):
        (tmp_path / f"{name}.dat").unlink()
    assert list_source(tmp_path).rejected == {}


def test_signals_are_read_only_where_headers_agree(tmp_path, monkeypatch):
    for i in range(5):
        _header(tmp_path, f"r{i}", f"r{i} 1 100 10\nr{i}.dat 16 200 16 0 {i} {i * 7} 0 I\n")
    monkeypatch.setattr(
        "ecggen.prepare.download.survey._contents", lambda *_: pytest.fail("a signal is read")
    )
    assert len(list_source(tmp_path).records) == 5


def test_a_segment_that_is_listed_as_well(tmp_path):
    _header(tmp_path, "s_1")
    (tmp_path / "s.hea").write_text("s/1 1 100 10\ns_1 10\n")
    (tmp_path / "RECORDS").write_text("s\ns_1\n")
    source = list_source(tmp_path)
    assert source.records == ["s"] and list(source.rejected) == ["s_1"]


def test_copies_and_broken_entries_do_not_hide_which_database_it_is(tmp_path):
    for number in (20001, 20002):
        header = _header(tmp_path / "WFDBRecords", f"JS{number}")
        header.write_text(header.read_text() + "#Dx: 426783006\n")
    assert list_source(tmp_path).database == "ecg-arrhythmia"
    shutil.copy(header, header.with_name("JS20002 (1).hea"))
    header.with_name("JS19999.hea").symlink_to("nowhere")
    source = list_source(tmp_path)
    assert source.database == "ecg-arrhythmia" and list(source.rejected) == ["WFDBRecords/JS20002 (1)"]
    assert source.records[0] == "WFDBRecords/JS19999"


# --------------------------------------------------------------------------------------- written and read


def test_written_and_read_back(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "mine"
    names = sorted(["10", "9", "\u00e4 b", "d/1", "d/e/2"])
    for name in names:
        _header(folder, name)
    _header(raw / "records", "b")
    content = write_source(raw, list_source(folder))
    assert content["records"] == 5 and content["files"] == 10
    assert content["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (raw / "records.txt").read_text(encoding="utf-8").splitlines() == names
    assert read_sources(raw)[0] == Source("wfdb", "mine", folder, names)
    write_source(raw, Source("physionet", "demo/1.0", raw / "records", ["b"], absent=3))
    assert json.loads((raw / "source.json").read_text())["root"] == "records"
    moved = raw.rename(tmp_path / "elsewhere")
    assert read_sources(moved)[0] == Source("physionet", "demo/1.0", moved / "records", ["b"], absent=3)


def test_files_of_a_record_have_its_name_and_one_suffix(tmp_path):
    folder = tmp_path / "mine"
    for name in ("a", "a1", "a.b", "ab", "d/a"):
        _header(folder, name)
    for name in ("a.atr", "a-x.dat", ".a.hea", "a.b.c.dat", "d/a.xyz"):
        (folder / name).write_bytes(b"123")
    content = write_source(tmp_path / "raw", Source("wfdb", "mine", folder, ["a", "a.b", "d/a"]))
    files = ["a.hea", "a.dat", "a.atr", "a.b.hea", "a.b.dat", "d/a.hea", "d/a.dat", "d/a.xyz"]
    assert content["files"] == len(files)
    assert content["bytes"] == sum((folder / name).stat().st_size for name in files)


def test_the_fingerprint_follows_the_files_not_their_place(tmp_path):
    def fingerprint(place: str) -> str:
        return write_source(tmp_path / "raw", list_source(tmp_path / place))["fingerprint"]

    for place in ("one", "two"):
        _header(tmp_path / place, "a")
    first = fingerprint("one")
    assert fingerprint("two") == first
    (tmp_path / "two" / "a.hea").write_text("a 1 200 10\na.dat 16 200 16 0 0 0 0 I\n")
    second = fingerprint("two")
    (tmp_path / "two" / "a.dat").write_bytes(b"\x01" * 22)
    third = fingerprint("two")
    (tmp_path / "two" / "a.atr").write_bytes(b"\x01")
    assert len({first, second, third, fingerprint("two")}) == 4


def test_a_relative_path_from_a_copy_of_the_repository(tmp_path, monkeypatch):
    main, copy = tmp_path / "main", tmp_path / "copy"
    _header(main / "recordings", "a")
    copy.mkdir()
    monkeypatch.chdir(copy)
    with pytest.raises(SourceError, match="No folder"):
        list_source("recordings")
    monkeypatch.setenv("DVC_ROOT", str(main))
    content = write_source(copy / "raw", list_source("recordings"))
    assert content["root"] == "recordings" and read_sources(copy / "raw")[0].root == main / "recordings"


def test_a_source_file_that_cannot_be_used(tmp_path):
    with pytest.raises(SourceError, match="run the download stage"):
        read_sources(tmp_path)[0]
    (tmp_path / "source.json").write_text('{"source": "wfdb"}')
    with pytest.raises(SourceError, match="not a list of records"):
        read_sources(tmp_path)[0]
    folder = tmp_path / "mine"
    for name in "abc":
        _header(folder, name)
    write_source(tmp_path, list_source(folder))
    (tmp_path / "records.txt").write_text("a\nb\n")
    with pytest.raises(SourceError, match=r"has 2 records, not 3.*run the download stage"):
        read_sources(tmp_path)[0]
    write_source(tmp_path, list_source(folder))
    shutil.rmtree(folder)
    with pytest.raises(SourceError, match="not there"):
        read_sources(tmp_path)[0]


def test_real_folders(shared_data):
    source = list_source(shared_data / "challenge")
    assert len(source.records) == 64 and source.rejected == {}
    assert list_source(shared_data / "ptbdb").records == ["patient001/s0010_re", "patient001/s0014lre"]
    ptbxl = list_source(shared_data / "ptbxl", fs=100, limit=300)
    assert len(ptbxl.records) == 300 and ptbxl.rejected == {} and ptbxl.database == "ptb-xl"
