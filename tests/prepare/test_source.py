"""Which records a folder holds, in every layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ecggen.prepare.download.names import PassingNames
from ecggen.prepare.download.source import (
    Source,
    SourceError,
    list_source,
    read_source,
    safe_name,
    write_source,
)


def _header(folder: Path, name: str, text: str = "") -> None:
    path = folder / f"{name}.hea"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or f"{path.stem} 1 100 10\n{path.stem}.dat 16 200 16 0 0 0 0 I\n")
    path.with_suffix(".dat").write_bytes(b"\x00" * 20)


def test_headers_found_below_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2", "a/10", "a/deep/er/1", ".hidden/9"):
        _header(tmp_path, name)
    assert list_source(tmp_path).records == ["a/10", "a/deep/er/1", "b/2"]
    assert list_source(tmp_path, limit=2).records == ["a/10", "a/deep/er/1"]


def test_names_come_as_if_they_had_been_sorted_together(tmp_path: Path) -> None:
    """Sorted by Python's list of all of them, at once; the walk never holds more than a folder."""
    rng = np.random.default_rng(3)
    for _ in range(150):
        parts = ["".join(rng.choice(list("ab-.+ 0_\u00e4"), rng.integers(1, 4))) for _ in range(3)]
        name = "/".join(part.strip(". ") or "x" for part in parts[: rng.integers(1, 4)])
        if not (tmp_path / f"{name}.hea").is_dir():
            _header(tmp_path, name, "x 1 100 10\n")
    found = [path.relative_to(tmp_path).as_posix()[:-4] for path in tmp_path.rglob("*.hea")]
    assert list(list_source(tmp_path).records) == sorted(found) and len(found) > 100


def test_links_are_followed_once(tmp_path: Path) -> None:
    _header(tmp_path, "own/deep/1")
    _header(tmp_path.parent / "elsewhere", "2")
    (tmp_path / "link").symlink_to(tmp_path.parent / "elsewhere")
    (tmp_path / "twice").symlink_to(tmp_path.parent / "elsewhere")
    (tmp_path / "own" / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert list_source(tmp_path).records == ["link/2", "own/deep/1"]


def test_segments_are_not_records(tmp_path: Path) -> None:
    for name in ("s_0001", "s_layout", "single"):
        _header(tmp_path, f"x/{name}")
    (tmp_path / "x" / "s.hea").write_text("# comment\ns/3 1 100 20\ns_layout 0\ns_0001 10\n~ 10\n")
    assert list_source(tmp_path).records == ["x/s", "x/single"]
    (tmp_path / "r.hea").write_text("r/1 1 100 10\nx/single 10\n")
    assert list_source(tmp_path).records == ["r", "x/s"]


def test_records_file_keeps_its_order_and_counts_what_is_absent(tmp_path: Path) -> None:
    for name in ("r1", "r2", "unlisted", "p/q1"):
        _header(tmp_path, name)
    (tmp_path / "RECORDS").write_text("r2\r\nr1.hea\ngone\np/\n\n")
    (tmp_path / "p" / "RECORDS").write_text("q1\nq2\n")
    source = list_source(tmp_path)
    assert source.records == ["r2", "r1", "p/q1"] and source.absent == 2


def test_a_record_that_is_listed_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "p/q"):
        _header(tmp_path, name)
    (tmp_path / "RECORDS").write_text("c\na\nc\ngone\np/\na\nb\n\np/q\ngone\n")
    (tmp_path / "p" / "RECORDS").write_text("q\n")
    source = list_source(tmp_path)
    assert source.records == ["c", "a", "p/q", "b"] and source.absent == 2


def test_names_may_be_read_by_several_in_turn(tmp_path: Path) -> None:
    wanted = [f"{i:05d}/record" for i in range(20_000)]  # more than a block
    names = PassingNames(iter(wanted))
    assert list(names) == wanted and all(a == b for a, b in zip(names, names, strict=True))
    assert (names[0], names[-1], len(names), names.absent) == (wanted[0], wanted[-1], len(wanted), 0)


def test_records_file_that_names_nothing_present(tmp_path: Path) -> None:
    _header(tmp_path, "here")
    (tmp_path / "RECORDS").write_text("elsewhere/1\n")
    assert list_source(tmp_path).records == ["here"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\x"])
def test_names_stay_below(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="only paths below"):
        safe_name(name, "RECORDS")
    (tmp_path / "RECORDS").write_text(f"{name}\n")
    with pytest.raises(SourceError, match="only paths below"):
        list_source(tmp_path)


def test_ptbxl_table_chooses_the_rate(tmp_path: Path) -> None:
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


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="at least one header"):
        list_source(tmp_path)
    with pytest.raises(SourceError, match="No folder of records"):
        list_source(tmp_path / "no")


def test_written_and_read_back(tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "mine"
    _header(folder, "a")
    _header(raw / "records", "b")
    said = write_source(raw, list_source(folder))
    assert said["files"] == 2 and said["bytes"] == 20 + (folder / "a.hea").stat().st_size
    assert read_source(raw) == Source("wfdb", "mine", folder, ["a"])
    write_source(raw, Source("physionet", "demo/1.0", raw / "records", ["b"], absent=3))
    assert json.loads((raw / "source.json").read_text())["root"] == "records"
    moved = raw.rename(tmp_path / "elsewhere")
    assert read_source(moved) == Source("physionet", "demo/1.0", moved / "records", ["b"], absent=3)


def test_names_are_read_from_their_file_when_asked(tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / "mine"
    names = ["10", "9", "\u00e4 b", "d/1", "d/e/2"]
    for name in names:
        _header(folder, name)
    assert write_source(raw, list_source(folder))["records"] == 5
    records = read_source(raw).records
    wanted = sorted(names)
    assert records == wanted and list(records) == wanted and list(records) == wanted and len(records) == 5
    assert (records[0], records[-1], records[1:4], records[::-2]) == (
        *(wanted[0], wanted[-1], wanted[1:4], wanted[::-2]),
    )
    assert records != wanted[:4] and records != [*wanted[:4], "x"]
    place = raw / "records.txt"
    assert place.read_text(encoding="utf-8").splitlines() == wanted
    place.write_text("10\n9\n")
    with pytest.raises(SourceError, match="2 records, 5 were listed: run the download stage"):
        list(read_source(raw).records)
    place.unlink()
    with pytest.raises(SourceError, match=r"No records\.txt in .*: run the download stage"):
        read_source(raw)


def test_a_list_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    said = {"source": "wfdb", "name": "mine", "root": str(tmp_path), "inside": False, "records": ["a", "b/c"]}
    (tmp_path / "source.json").write_text(json.dumps(said))
    assert read_source(tmp_path).records == ["a", "b/c"]


def test_a_line_break_in_a_name_is_refused(tmp_path: Path) -> None:
    _header(tmp_path / "mine", "a\nb", "x 1 100 10\n")
    with pytest.raises(SourceError, match="line break in its name"):
        list_source(tmp_path / "mine")
    with pytest.raises(SourceError, match="line break in its name"):
        write_source(tmp_path / "raw", Source("wfdb", "mine", tmp_path / "mine", ["a\nb"]))
    assert not list((tmp_path / "raw").iterdir())


def test_files_of_a_record_are_its_name_and_one_suffix(tmp_path: Path) -> None:
    """Counted by a glob, which knows nothing of sorted lists."""
    for name in ("a", "a1", "a.b", "ab", "d/a"):
        _header(tmp_path / "mine", name)
    for name in ("a", "a.atr", "a-x.dat", ".a.hea", "a.b.c.dat", "d/a.xyz", "a."):
        (tmp_path / "mine" / name).write_bytes(b"123")
    source = Source("wfdb", "mine", tmp_path / "mine", ["a", "a.b", "d/a"])
    own = [path for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    wanted = [
        path
        for path in own
        if path.relative_to(tmp_path / "mine").with_suffix("" if path.suffix else path.suffix).as_posix()
        in source.records
    ]
    said = write_source(tmp_path / "raw", source)
    assert said["files"] == len(wanted) == 9
    assert said["bytes"] == sum(path.stat().st_size for path in wanted)


def test_fingerprint_follows_the_files_not_their_place(tmp_path: Path) -> None:
    prints = []
    for place in ("one", "two"):
        _header(tmp_path / place, "a")
        prints.append(write_source(tmp_path / "raw", list_source(tmp_path / place))["fingerprint"])
    assert prints[0] == prints[1]
    (tmp_path / "two" / "a.hea").write_text("a 1 200 10\na.dat 16 200 16 0 0 0 0 I\n")
    changed = write_source(tmp_path / "raw", list_source(tmp_path / "two"))["fingerprint"]
    (tmp_path / "two" / "a.dat").write_bytes(b"\x00" * 22)
    assert (
        len(
            {prints[0], changed, write_source(tmp_path / "raw", list_source(tmp_path / "two"))["fingerprint"]}
        )
        == 3
    )


def test_relative_path_from_a_copy_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, copy = tmp_path / "main", tmp_path / "copy"
    _header(main / "recordings", "a")
    copy.mkdir()
    monkeypatch.chdir(copy)
    with pytest.raises(SourceError, match="No folder"):
        list_source("recordings")
    monkeypatch.setenv("DVC_ROOT", str(main))
    said = write_source(copy / "raw", list_source("recordings"))
    assert said["root"] == "recordings" and read_source(copy / "raw").root == main / "recordings"


def test_unusable_source_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="run the download stage"):
        read_source(tmp_path)
    (tmp_path / "source.json").write_text('{"source": "wfdb"}')
    with pytest.raises(SourceError, match="not a list of records"):
        read_source(tmp_path)
    (tmp_path / "source.json").write_text(
        json.dumps({"source": "wfdb", "name": "x", "root": str(tmp_path / "gone"), "records": ["a"]})
    )
    with pytest.raises(SourceError, match="not there"):
        read_source(tmp_path)


def test_real_folders(shared_data: Path) -> None:
    ptbxl = list_source(shared_data / "ptbxl", fs=100)
    assert len(ptbxl.records) == 2677 and ptbxl.absent == 0
    assert (
        sum(name.startswith("records500") for name in list_source(shared_data / "ptbxl", fs=500).records)
        == 200
    )
    assert list_source(shared_data / "ptbdb").records == ["patient001/s0010_re", "patient001/s0014lre"]
    assert len(list_source(shared_data / "challenge").records) == 64


@pytest.mark.parametrize("line", ["/", "//", "b/", "b/b/b/", "b/\nb/"])
def test_a_records_file_that_leads_back_to_itself(tmp_path, line):
    """Within a/RECORDS, `/` names the folder it lies in; b is a link to it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.hea").write_text("x 0\n")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "a")
    (tmp_path / "RECORDS").write_text("a/\na/\n")
    (tmp_path / "a" / "RECORDS").write_text(f"{line}\nx\n")
    assert list_source(tmp_path).records == ["a/x"]


def test_a_records_file_with_names_that_no_file_has(tmp_path):
    (tmp_path / "x.hea").write_text("x 0\n")
    (tmp_path / "RECORDS").write_text(f"x\n{'a' * 5000}\n{'b' * 5000}/\n")
    found = list_source(tmp_path)
    assert found.records == ["x"] and found.absent == 1
    (tmp_path / "RECORDS").write_text("x\nb\0/\n")
    with pytest.raises(SourceError, match="only paths below its own folder"):
        list_source(tmp_path)
