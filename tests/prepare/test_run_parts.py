"""Several sources in one run: names, people, counts, and one source as it always was."""

from __future__ import annotations

import shutil
from pathlib import Path

import made_databases as made
import numpy as np
import pytest
from physionet_server import serve, write_sums

from ecggen.prepare.download.source import SourceError, read_source, read_sources
from ecggen.prepare.download.stage import download
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.prepare.window.stage import window
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.files import read_csv, read_json

# The databases that are made here hold the same signals.
pytestmark = pytest.mark.filterwarnings("ignore:.*have the same samples as a window of another split")

WINDOW = {"stride": 200, "min_label_count": 1, "split": "auto"}


def config(labels: str = "auto", **data: object) -> Config:
    rest = {"time_len": 200, "fs": 100} | data
    return config_from_dict(
        {
            "data": rest,
            "window": WINDOW | {"labels": labels},
            "model": {"beat_len": 40, "channels": [8]},
            "synthetic": {"patients": 6},
        }
    )


def run(out: Path, settings: Config) -> Path:
    download(settings, out / "raw")
    preprocess(out / "raw", out / "records", settings.data, settings.preprocess)
    window(out / "records", out / "windows", settings.data, settings.window)
    return out


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Copies of three databases, a folder of plain records and a table of arrays."""
    for key in ("ptb-xl", "georgia", "ecg-arrhythmia"):
        made.make(key, tmp_path / key)
    for i in range(4):
        comments = (f"Patient: {1 + i}", "Dx: 426783006")  # PTB-XL has patients 0 and 1 as well
        made.write("georgia", tmp_path / "My records", f"r{i}", comments, seed=i)
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "r0.npy", made.ecg(made.get("georgia").leads, 250))
    leads = ";".join(made.get("georgia").leads)
    (tmp_path / "mine" / "t.csv").write_text(
        f"path,fs,leads,unit,labels,patient\nr0.npy,250,{leads},mV,snomed/NSR,1\n"
    )
    return tmp_path


def test_records_and_people_of_several_sources_stay_apart(folders: Path) -> None:
    sources = [
        f"ptb-xl:{folders}/ptb-xl",
        f"wfdb:{folders}/My records",
        f"table:{folders}/mine/t.csv",
        "synthetic",
    ]
    out = run(folders / "out", config("snomed", sources=sources, source="several"))
    said = read_json(out / "raw" / "source.json")
    assert said["source"] == "several" and [part["key"] for part in said["parts"]] == [
        *("ptb-xl", "my-records", "t", "synthetic"),
    ]
    rows = read_csv(out / "records" / "records.csv")
    by_record = {row["record"]: row for row in rows}
    assert len(by_record) == len(rows) == 3 + 4 + 1 + len(read_sources(out / "raw")[3].records)
    assert by_record["ptb-xl/records500/00000/00002_hr"]["patient"] == "ptb-xl:1"
    assert by_record["my-records/r0"]["patient"] == "my-records:1" and by_record["t/r0"]["patient"] == "t:1"
    index = read_csv(out / "windows" / "index.csv")
    assert {row["database"] for row in index} == {"ptb-xl", "my-records", "t", "synthetic"}
    splits: dict[str, set[str]] = {}
    for row in index:
        splits.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_counts_by_database_add_up(folders: Path) -> None:
    (folders / "My records" / "r3.dat").write_bytes(b"")
    sources = [f"georgia:{folders}/georgia", f"wfdb:{folders}/My records"]
    out = run(folders / "out", config(sources=sources))
    read, cut = (read_json(out / name / "meta.json")["counts"] for name in ("records", "windows"))
    assert {key: (c["listed"], c["records"], c["rejected"]) for key, c in read["by_database"].items()} == {
        "georgia": (2, 2, 0),
        "my-records": (4, 3, 1),
    }
    assert (read["listed"], read["records"], read["rejected"]) == (6, 5, 1)
    index = read_csv(out / "windows" / "index.csv")
    for key, counts in cut["by_database"].items():
        own = [row for row in index if row["database"] == key]
        assert counts["windows"] == len(own) == sum(counts["windows_by_split"].values())
        assert counts["patients"] == len({row["patient"] for row in own})
    assert sum(counts["windows"] for counts in cut["by_database"].values()) == cut["windows"] == len(index)
    assert [row["record"] for row in read_csv(out / "windows" / "rejected.csv")] == ["my-records/r3"]


def test_each_database_is_split_by_its_own_rule(folders: Path) -> None:
    sources = [f"ptb-xl:{folders}/ptb-xl", f"wfdb:{folders}/My records", f"georgia:{folders}/georgia"]
    out = run(folders / "out", config(sources=sources))
    meta = read_json(out / "windows" / "meta.json")
    assert meta["label_system"] == "snomed" and meta["source"]["name"] == "ptb-xl + my-records + georgia"
    assert meta["split_rule"] == (
        "georgia: all 2 in train, too few to be split; my-records: by patient, drawn with seed 1; "
        "ptb-xl: all 2 in train, too few to be split"
    )


def test_one_source_in_the_list_is_as_alone(folders: Path) -> None:
    """The same bytes, named the same."""
    place = str(folders / "My records")
    one = run(folders / "one", config(source="wfdb", path=place))
    two = run(folders / "two", config(sources=[f"wfdb:{place}"]))
    for name in (
        "raw/source.json",
        "records/records.csv",
        "records/signals.npy",
        "windows/index.csv",
        "windows/meta.json",
    ):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert read_csv(one / "records" / "records.csv")[0]["record"] == "r0"
    assert read_csv(one / "records" / "records.csv")[0]["database"] == "my-records"


def test_several_have_the_signals_of_each_alone(folders: Path) -> None:
    places = [f"georgia:{folders}/georgia", f"wfdb:{folders}/My records"]
    both = run(folders / "both", config(sources=places))
    found = np.load(both / "records" / "signals.npy")
    rows = {row["record"]: row for row in read_csv(both / "records" / "records.csv")}
    for key, place in zip(("georgia", "my-records"), places, strict=True):
        out = folders / key / "alone"
        download(config(sources=[place]), out / "raw")
        preprocess(out / "raw", out / "records", config().data, config().preprocess)
        alone = np.load(out / "records" / "signals.npy")
        for row in read_csv(out / "records" / "records.csv"):
            other = rows[f"{key}/{row['record']}"]
            a, b, n = int(row["offset"]), int(other["offset"]), int(row["n_samples"])
            np.testing.assert_array_equal(alone[a : a + n], found[b : b + n])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("ecg-arrhythmia:{}/ecg-arrhythmia", "wfdb:{}/challenge", "recordings of ningbo"),
        ("ptb-xl:{}/ptb-xl", "challenge-2021:{}/challenge", "recordings of ptb-xl"),
        ("georgia:{}/georgia", "georgia:{}/georgia", "georgia and georgia-2 both hold"),
        ("wfdb:{}/My records", "wfdb:{}/My records/.", "that folder"),
        ("synthetic", "synthetic", "synthetic and synthetic-2"),
    ],
)
def test_the_same_recordings_twice_are_refused(folders: Path, first: str, second: str, words: str) -> None:
    made.make("challenge-2021", folders / "challenge")
    lines = [line.format(folders) for line in (first, second)]
    with pytest.raises(SourceError, match=words):
        download(config(sources=lines), folders / "raw")
    assert not (folders / "raw" / "source.json").exists()


def test_parts_of_the_challenge_go_together(folders: Path) -> None:
    """Georgia and Ningbo are in the Challenge, but not in each other."""
    made.make("ningbo", folders / "ningbo")
    lines = [f"georgia:{folders}/georgia", f"wfdb:{folders}/ningbo"]
    said = download(config(sources=lines), folders / "raw")
    assert [part["database"] for part in said["parts"]] == ["georgia", "ningbo"]


def test_a_download_among_several_goes_on_where_it_stopped(folders: Path, tmp_path: Path) -> None:
    made.make("ptbdb", tmp_path / "server" / "ptbdb" / "1.0.0")
    root = tmp_path / "server" / "ptbdb" / "1.0.0"
    names = ["patient001/s0010_re", "patient001/s0014lre", "patient002/s0015lre"]
    (root / "RECORDS").write_text("\n".join(names) + "\n")
    write_sums(root)
    with serve(tmp_path / "server") as server:
        lines = ["physionet:ptbdb", f"georgia:{folders}/georgia"]
        settings = config(sources=lines, url=server.url)
        said = download(settings, folders / "raw")
        assert [(p["key"], p["source"], p["records"]) for p in said["parts"]] == [
            ("ptbdb", "physionet", 3),
            ("georgia", "wfdb", 2),
        ]
        asked = sum(server.requests.values())
        download(config(sources=[lines[0], f"wfdb:{folders}/My records"], url=server.url), folders / "raw")
        assert sum(server.requests.values()) == asked + 1  # the list of checksums alone
        assert {path.name for path in (folders / "raw" / "parts").iterdir()} == {"ptbdb", "my-records"}
        kept = read_sources(folders / "raw")
        assert [(s.key, s.database, s.root.is_dir()) for s in kept] == [
            ("ptbdb", "ptbdb", True),
            ("my-records", "", True),
        ]
    # Back to a single source: nothing of the others is left.
    download(config(source="wfdb", path=str(folders / "georgia")), folders / "raw")
    assert sorted(path.name for path in (folders / "raw").iterdir()) == ["records.txt", "source.json"]
    assert read_source(folders / "raw").database == "georgia"


def test_a_part_that_fails_leaves_no_list(folders: Path) -> None:
    shutil.rmtree(folders / "georgia")
    with pytest.raises(SourceError, match="No folder of records"):
        download(config(sources=["synthetic", f"georgia:{folders}/georgia"]), folders / "raw")
    assert not (folders / "raw" / "source.json").exists()


def test_annotations_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    made.make("mitdb", tmp_path / "mitdb")
    (tmp_path / "mitdb" / "201.atr").write_bytes(b"\xff" * 41)
    settings = config(source="wfdb", path=str(tmp_path / "mitdb"))
    download(settings, tmp_path / "raw")
    counts = preprocess(tmp_path / "raw", tmp_path / "records", settings.data, settings.preprocess)
    said = counts["by_database"]["mitdb"]
    assert (
        said["records"] == 3
        and said["records_by_label_system"]["beats"] + said["annotations_unreadable"] == 3
    )


def test_real_ptbxl_with_real_challenge_records(shared_data: Path, tmp_path: Path) -> None:
    sources = [f"ptb-xl:{shared_data}/ptbxl", f"georgia:{shared_data}/challenge/georgia"]
    sources += [f"wfdb:{shared_data}/challenge/cpsc2018", f"wfdb:{shared_data}/challenge/chapman_ningbo"]
    out = run(tmp_path, config(sources=sources, source="several", limit=12))
    meta = read_json(out / "windows" / "meta.json")
    assert meta["label_system"] == "snomed" and "NSR" in meta["label_classes"]
    index = read_csv(out / "windows" / "index.csv")
    assert {row["database"] for row in index} == {"ptb-xl", "georgia", "cpsc2018", "ningbo"}
    folds = {row["record"]: row["fold"] for row in read_csv(out / "records" / "records.csv")}
    for row in index:
        if row["database"] == "ptb-xl":
            assert row["split"] == {"10": "test", "9": "validation"}.get(folds[row["record"]], "train")
