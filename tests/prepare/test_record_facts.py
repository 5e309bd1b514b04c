"""What is known of records, and what is not: patients, leads, annotations. Nothing of it vanishes."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import made_databases as made
import numpy as np
import pytest

from ecggen.io.records import write_record
from ecggen.leads import LEADS
from ecggen.prepare.download.array_table import list_table
from ecggen.prepare.download.source import list_source
from ecggen.prepare.labels.headers import patient_in_name
from ecggen.prepare.labels.record_info import LabelError, iso
from ecggen.prepare.labels.records import patient_notes
from ecggen.utils.config import ConfigError, DataConfig, config_from_dict
from ecggen.utils.files import read_csv


def write(folder: Path, *names: str, leads: tuple[str, ...] = LEADS, comments: tuple[str, ...] = ()) -> None:
    for name in names:  # each another recording
        x = made.ecg(LEADS, 250, seed=zlib.crc32(name.encode()))
        write_record(folder, name, 250, x[:, : len(leads)], leads, comments)


def run(folder: Path, data: DataConfig | None = None, table: str = "") -> dict[str, Any]:
    return made.preprocess_folder(folder, data, list_table(folder / table) if table else None)


def patients(folder: Path) -> list[str]:
    return [row["patient"] for row in read_csv(folder.parent / "records" / "records.csv")]


def test_patients_in_the_names_of_records(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder, "S01_rest", "S01_stress", "S02_rest")
    write(folder, "S03_rest", comments=("Patient: anna",))
    counts = run(folder)
    assert patients(folder) == ["S01_rest", "S01_stress", "S02_rest", "anna"]
    assert counts["by_database"]["mine"]["patients_from"] == {"header": 1, "record": 3}
    (note,) = patient_notes(counts["by_database"])
    assert note.startswith("mine: nothing says whose 3 of 4 records are") and "data.patient" in note
    for pattern in (r"^(S\d+)_", r"S\d+"):
        counts = run(folder, DataConfig(patient=pattern))
        assert patients(folder) == ["S01", "S01", "S02", "anna"] and counts["patients"] == 3
        assert counts["by_database"]["mine"]["patients_from"] == {"header": 1, "pattern": 3}
        assert patient_notes(counts["by_database"]) == []
    words = "finds no patient in the names of 2 records, the first of them 'S01_"
    with pytest.raises(LabelError, match=words):
        run(folder, DataConfig(patient="^S0[23]"))


def test_patterns() -> None:
    assert patient_in_name("a/x12_3", r"x(\d+)_|y(\d+)") == "12"
    assert patient_in_name("y7", r"x(\d+)|y(\d+)") == "7"
    assert patient_in_name("b", "") == patient_in_name("b", "c") == ""
    with pytest.raises(ConfigError, match=r"data\.patient is '\(S': this is no regular expression"):
        config_from_dict({"data": {"patient": "(S"}})


def test_patients_of_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder, "S01_a", "S01_b", "S02_a")
    (folder / "list.csv").write_text("path,fs,leads,unit,patient\nS01_a,,,,p\nS01_b,,,,\nS02_a,,,,\n")
    counts = run(folder, table="list.csv")["by_database"]["list"]
    assert patients(folder) == ["p", "S01_b", "S02_a"]
    assert counts["patients_from"] == {"record": 2, "table": 1}
    run(folder, DataConfig(patient=r"^S\d+"), table="list.csv")
    assert patients(folder) == ["p", "S01", "S02"]
    with pytest.raises(ValueError, match=r"list\.csv, line 3: patient is '': data\.patient '\^T' finds none"):
        run(folder, DataConfig(patient="^T"), table="list.csv")


def test_channels_that_are_not_understood_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder, "a", leads=("DI", "DII", "-aVR", "RESP"))
    write(folder, "b", leads=("I", "-aVR", "lead 7"))
    write(folder, "c", leads=("ch1", "ch2"))
    counts = run(folder)
    rows = read_csv(tmp_path / "records" / "unknown_leads.csv")
    listed = [" ".join((row["example"], row["records"], row["name"])) for row in rows]
    assert listed == ["a 2 -aVR", "c 1 ch1", "c 1 ch2", "b 1 lead 7"]
    assert (counts["records"], counts["rejected"]) == (2, 1)
    assert counts["by_database"]["mine"]["unknown_leads"] == 3


def test_annotations_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write(folder, "whole", "cut", "late", "none")
    for name in ("whole", "cut"):
        made.annotate(folder / name, [250, 500, 1200], ["N", "V", "N"], 250)
    made.annotate(folder / "late", [250, 250_000], ["N", "N"], 250)
    path = folder / "cut.atr"
    path.write_bytes(path.read_bytes()[:-4])
    counts = run(folder)
    assert counts["by_database"]["mine"]["annotations_unreadable"] == 2
    rows = {row["record"]: row for row in read_csv(tmp_path / "records" / "rejected_labels.csv")}
    assert {name: row["file"] for name, row in rows.items()} == {"cut": "cut.atr", "late": "late.atr"}
    assert "are cut off" in rows["cut"]["reason"] and "belong to another one" in rows["late"]["reason"]
    assert {row["record"] for row in read_csv(tmp_path / "records" / "beats.csv")} == {"whole"}
    labels = {row["record"]: row["all_labels"] for row in read_csv(tmp_path / "records" / "records.csv")}
    assert labels == {"whole": "beats/N;beats/V", "cut": "", "late": "", "none": ""}


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1984-11-09 09:17:34", "1984-11-09T09:17:34"),
        ("1984-11-09T09:17:34+02:00", "1984-11-09T09:17:34"),
        ("1984-11-09T09:17:34Z", "1984-11-09T09:17:34"),
        ("1984-11-09", "1984-11-09T00:00:00"),
        ("last week", ""),
    ],
)
def test_times_have_no_zone(text: str, time: str) -> None:
    """So that they can be compared whoever wrote them: the clock of the place counts."""
    assert iso(text) == time


def test_tables_of_databases_in_any_encoding(tmp_path: Path) -> None:
    root = tmp_path / "ptbxl"
    made.make("ptb-xl", root)
    tables = {path: read_csv(path) for path in root.glob("*.csv")}
    results = []
    for encoding, separator in (("utf-8", ","), ("utf-8-sig", ","), ("utf-16", "\t"), ("latin-1", ";")):
        for path, rows in tables.items():
            lines = [rows[0].keys(), *(row.values() for row in rows)]
            text = "\n".join(separator.join(f'"{cell}"' for cell in line) for line in lines)
            path.write_text(text, encoding=encoding)
        assert list_source(root).database == "ptb-xl"
        run(root)
        rows = read_csv(tmp_path / "records" / "records.csv")
        results.append([(row["patient"], row["fold"], row["all_labels"]) for row in rows])
    assert results[1:] == results[:1] * 3 and results[0][0][0] == "0"


def test_records_in_an_array_have_their_own_unit(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "a.npy", made.ecg(LEADS, 250).T * 1000)
    (folder / "list.csv").write_text(
        f'path;fs;leads;unit\na.npy;250;"{";".join(LEADS)}";uV\n', encoding="utf-16"
    )
    run(folder, table="list.csv")
    assert 0.5 < np.abs(np.load(tmp_path / "records" / "signals.npy")).max() < 2
