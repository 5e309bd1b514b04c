"""Several sources in one run: names, people, counts, and one source as it always was."""

from __future__ import annotations

import shutil
from pathlib import Path

import made_databases as made
import numpy as np
import pytest
from physionet_server import serve, write_sums

from ecggen.prepare.download.source import SourceError, read_sources
from ecggen.prepare.download.stage import download
from ecggen.prepare.preprocess.stage import notes, preprocess
from ecggen.prepare.window.stage import window
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.files import read_csv, read_json

# The databases that are made here hold the same signals.
pytestmark = pytest.mark.filterwarnings("ignore:.*have the same samples as a window of another split")


def config(labels: str = "auto", **data: object) -> Config:
    return config_from_dict(
        {
            "data": {"time_len": 200, "fs": 100} | data,
            "window": {"stride": 200, "min_label_count": 1, "split": "auto", "labels": labels},
            "model": {"beat_len": 40, "channels": [8]},
            "synthetic": {"patients": 6},
        }
    )


def run(out: Path, settings: Config) -> Path:
    download(settings, out / "raw")
    preprocess(out / "raw", out / "records", settings.data, settings.preprocess)
    window(out / "records", out / "windows", settings.data, settings.window)
    return out


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of three databases, a folder of plain records and a table of arrays."""
    root = tmp_path_factory.mktemp("originals")
    for key in ("ptb-xl", "georgia", "ecg-arrhythmia"):
        made.make(key, root / key)
    for i in range(4):
        comments = (f"Patient: {1 + i}", "Dx: 426783006")  # PTB-XL has patients 0 and 1 as well
        made.write("georgia", root / "My records", f"r{i}", comments, seed=100 + i)
    table, leads = root / "mine", made.get("georgia").leads
    table.mkdir()
    np.save(table / "r0.npy", made.ecg(leads, 250))
    row = f"r0.npy,250,{';'.join(leads)},mV,snomed/NSR,1"
    (table / "t.csv").write_text(f"path,fs,leads,unit,labels,patient\n{row}\n")
    return root


@pytest.fixture
def folders(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals, tmp_path / "folders")


def test_records_and_people_of_several_sources_stay_apart(folders: Path) -> None:
    sources = [f"ptb-xl:{folders}/ptb-xl", f"wfdb:{folders}/My records", f"table:{folders}/mine/t.csv"]
    out = run(folders / "out", config("snomed", sources=[*sources, "synthetic"], source="several"))
    listed = read_json(out / "raw" / "source.json")
    assert listed["source"] == "several"
    assert [part["key"] for part in listed["parts"]] == ["ptb-xl", "my-records", "t", "synthetic"]
    rows = read_csv(out / "records" / "records.csv")
    patients = {row["record"]: row["patient"] for row in rows}
    assert len(patients) == len(rows) == 3 + 4 + 1 + len(read_sources(out / "raw")[3].records)
    assert patients["ptb-xl/records500/00000/00002_hr"] == "ptb-xl:1"
    assert (patients["my-records/r0"], patients["t/r0"]) == ("my-records:1", "t:1")
    index = read_csv(out / "windows" / "index.csv")
    assert {row["database"] for row in index} == {"ptb-xl", "my-records", "t", "synthetic"}
    splits: dict[str, set[str]] = {}
    for row in index:
        splits.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(names) == 1 for names in splits.values())


def test_counts_by_database_add_up(folders: Path) -> None:
    (folders / "My records" / "r3.dat").write_bytes(b"")
    out = run(folders / "out", config(sources=[f"georgia:{folders}/georgia", f"wfdb:{folders}/My records"]))
    read, cut = (read_json(out / name / "meta.json")["counts"] for name in ("records", "windows"))
    names = ("listed", "records", "rejected")
    by_database = {key: [counts[name] for name in names] for key, counts in read["by_database"].items()}
    assert by_database == {"georgia": [2, 2, 0], "my-records": [4, 3, 1]}
    assert [read[name] for name in names] == [6, 5, 1]
    index = read_csv(out / "windows" / "index.csv")
    for key, counts in cut["by_database"].items():
        rows = [row for row in index if row["database"] == key]
        assert counts["windows"] == len(rows) == sum(counts["windows_by_split"].values())
        assert counts["patients"] == len({row["patient"] for row in rows})
    assert sum(counts["windows"] for counts in cut["by_database"].values()) == cut["windows"] == len(index)


def test_a_database_of_which_nothing_is_usable_is_named(folders: Path) -> None:
    for path in (folders / "georgia").rglob("E*.dat"):
        path.write_bytes(b"")
    out = run(folders / "out", config(sources=[f"georgia:{folders}/georgia", f"wfdb:{folders}/My records"]))
    assert notes(read_json(out / "records" / "meta.json")["counts"])[:2] == [
        "2 of 6 records are left out, see data/records/rejected.csv.",
        "georgia: none of its 2 records is usable, so it is not in the data set.",
    ]


def test_labels_and_splits_of_several_databases(folders: Path) -> None:
    sources = [f"ptb-xl:{folders}/ptb-xl", f"wfdb:{folders}/My records", f"georgia:{folders}/georgia"]
    meta = read_json(run(folders / "out", config(sources=sources)) / "windows" / "meta.json")
    assert meta["label_system"] == "snomed" and meta["source"]["name"] == "ptb-xl + my-records + georgia"
    assert meta["split_rule"] == (
        "georgia: all 2 in train, too few to be split; my-records: by patient, drawn with seed 1; "
        "ptb-xl: all 2 in train, too few to be split"
    )


def test_one_source_in_the_list_is_as_alone_and_has_the_same_signals_among_several(folders: Path) -> None:
    place = str(folders / "My records")
    one = run(folders / "one", config(source="wfdb", path=place))
    two = run(folders / "two", config(sources=[f"wfdb:{place}"]))
    for name in ("raw/source.json", "records/records.csv", "records/signals.npy", "windows/index.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    rows = read_csv(one / "records" / "records.csv")
    assert (rows[0]["record"], rows[0]["database"]) == ("r0", "my-records")
    both = run(folders / "both", config(sources=[f"georgia:{folders}/georgia", f"wfdb:{place}"]))
    among = {row["record"]: row for row in read_csv(both / "records" / "records.csv")}
    alone, several = (np.load(out / "records" / "signals.npy") for out in (one, both))
    for row in rows:
        a, b = int(row["offset"]), int(among[f"my-records/{row['record']}"]["offset"])
        n = int(row["n_samples"])
        np.testing.assert_array_equal(alone[a : a + n], several[b : b + n])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("ecg-arrhythmia:{}/ecg-arrhythmia", "wfdb:{}/challenge", "recordings of ningbo"),
        ("ptb-xl:{}/ptb-xl", "challenge-2021:{}/challenge", "recordings of ptb-xl"),
        ("georgia:{}/georgia", "georgia:{}/georgia", "georgia and georgia-2 both hold"),
        ("wfdb:{}/My records", "wfdb:{}/My records/.", "the recording r0"),
        ("synthetic", "synthetic", "synthetic and synthetic-2"),
    ],
)
def test_the_same_recordings_twice_are_refused(folders: Path, first: str, second: str, words: str) -> None:
    made.make("challenge-2021", folders / "challenge")
    lines = [line.format(folders) for line in (first, second)]
    with pytest.raises(SourceError, match=words):
        download(config(sources=lines, limit=1 if first == "synthetic" else 0), folders / "raw")
    assert not (folders / "raw" / "source.json").exists()


def test_parts_of_the_challenge_go_together(folders: Path) -> None:
    """Georgia and Ningbo are in the Challenge, but not in each other."""
    made.make("ningbo", folders / "ningbo")
    for path in (folders / "ningbo").rglob("*.dat"):  # else they would be copies of the signals of georgia
        path.write_bytes(path.read_bytes()[::-1])
    listed = download(
        config(sources=[f"georgia:{folders}/georgia", f"wfdb:{folders}/ningbo"]), folders / "raw"
    )
    assert [part["database"] for part in listed["parts"]] == ["georgia", "ningbo"]


def test_a_download_among_several_goes_on_where_it_stopped(folders: Path, tmp_path: Path) -> None:
    made.make("ptbdb", tmp_path / "server" / "ptbdb" / "1.0.0")
    root = tmp_path / "server" / "ptbdb" / "1.0.0"
    names = ["patient001/s0010_re", "patient001/s0014lre", "patient002/s0015lre"]
    (root / "RECORDS").write_text("\n".join(names) + "\n")
    write_sums(root)
    with serve(tmp_path / "server") as server:
        lines = ["physionet:ptbdb", f"georgia:{folders}/georgia"]
        listed = download(config(sources=lines, url=server.url), folders / "raw")
        parts = [(p["key"], p["source"], p["records"]) for p in listed["parts"]]
        assert parts == [("ptbdb", "physionet", 3), ("georgia", "wfdb", 2)]
        requests = sum(server.requests.values())
        download(config(sources=[lines[0], f"wfdb:{folders}/My records"], url=server.url), folders / "raw")
        assert sum(server.requests.values()) == requests + 1  # the list of checksums alone
        assert {path.name for path in (folders / "raw" / "parts").iterdir()} == {"ptbdb", "my-records"}
        sources = [(s.key, s.database, s.root.is_dir()) for s in read_sources(folders / "raw")]
        assert sources == [("ptbdb", "ptbdb", True), ("my-records", "", True)]
    # Back to a single source: nothing of the others is left.
    download(config(source="wfdb", path=str(folders / "georgia")), folders / "raw")
    assert sorted(path.name for path in (folders / "raw").iterdir()) == ["records.txt", "source.json"]
    assert read_sources(folders / "raw")[0].database == "georgia"
    # A part that fails leaves no list.
    shutil.rmtree(folders / "georgia")
    with pytest.raises(SourceError, match="No folder of records"):
        download(config(sources=["synthetic", f"georgia:{folders}/georgia"]), folders / "new")
    assert not (folders / "new" / "source.json").exists()


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
