"""Tables of arrays and records: what they say is taken, and what they do not say is asked for."""

from __future__ import annotations

from pathlib import Path

import made_databases as made
import numpy as np
import pytest

from ecggen.io.records import RecordError
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.download.array_table import ArrayTable, list_table, statements_of
from ecggen.prepare.download.source import SourceError, read_sources, write_source
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.prepare.window.stage import window
from ecggen.utils.config import DataConfig, PreprocessConfig, WindowConfig
from ecggen.utils.files import read_csv, read_json

ALL = ";".join(LEADS)


def table(folder: Path, *lines: str, header: str = "path,fs,leads,unit") -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


ECG = made.ecg(LEADS, 250, 6, 0)  # [n, 12] mV


@pytest.mark.parametrize(
    ("name", "array", "unit", "row", "tolerance"),
    [
        ("a.npy", ECG.T, "mV", "", 1e-6),
        ("a.npy", ECG.astype(np.float32), "mV", "", 1e-6),
        ("sub/a.npz", ECG / 1000, "V", "", 1e-6),
        ("a.npy", np.stack([ECG * 0, ECG, ECG * 2]), "mV", "1", 1e-6),
        ("a.npy", np.rint(ECG.T * 1000).astype(np.int16), "µV", "", 1e-3),
    ],
    ids=["leads first", "time first", "npz", "row", "int16"],
)
def test_arrays_in_every_form(tmp_path, name, array, unit, row, tolerance):
    (tmp_path / "sub").mkdir()
    np.savez(tmp_path / name, ecg=array) if "npz" in name else np.save(tmp_path / name, array)
    listed = ArrayTable(table(tmp_path, f"{name},250,{ALL},{unit},{row}", header="path,fs,leads,unit,row"))
    (record,) = listed.entries
    assert record == name.rpartition(".")[0] + ("/1" if row else "")
    opened = listed.entries[record].open(record)
    assert (opened.fs, opened.n_samples, opened.observed.all()) == (250, len(ECG), True)
    whole, part = opened.read(), opened.read(100, 300)
    np.testing.assert_allclose(whole.ecg, ECG.T, atol=tolerance)
    np.testing.assert_array_equal(part.ecg, whole.ecg[:, 100:300])
    assert part.fs == 250 and part.frank is None


def test_large_arrays_are_mapped_not_read(tmp_path):
    """2 GB on a sparse file: reading it whole would take seconds and the memory."""
    shape = (12, 20_000_000)
    np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.float64, shape=shape).flush()
    opened = ArrayTable(table(tmp_path, f"big.npy,500,{ALL},mV")).entries["big"].open("big")
    assert opened.n_samples == shape[1] and isinstance(opened.samples, np.memmap)
    assert opened.read(10**7, 10**7 + 50).ecg.shape == (12, 50)


def test_leads_by_name_frank_and_missing_samples(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 40))
    x[0, 3] = np.inf
    np.save(tmp_path / "a.npy", x)
    opened = ArrayTable(table(tmp_path, "a.npy,100,v2;resp;AVL;vx;vy;vz,mV")).entries["a"].open("a")
    read = opened.read()
    assert [LEADS[i] for i in np.flatnonzero(read.observed)] == ["aVL", "V2"]
    np.testing.assert_array_equal(read.ecg[LEADS.index("aVL")], x[2])
    assert np.isnan(read.ecg[LEADS.index("V2"), 3]) and np.isfinite(read.ecg[LEADS.index("V2")]).sum() == 39
    assert read.frank is not None and len(read.frank) == len(FRANK)
    np.testing.assert_array_equal(read.frank, x[3:])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gone.npy,250,I,mV,,,,,,,,", r"line 2: path is 'gone\.npy': there is no such file"),
        (",250,I,mV,,,,,,,,", "path is '': a file is needed"),
        ("a.npy,,I,mV,,,,,,,,", "fs is '': the sampling rate in Hz is needed"),
        ("a.npy,nan,I,mV,,,,,,,,", "fs is 'nan'"),
        ("a.npy,250,,mV,,,,,,,,", "leads is '': names in the array's order are needed"),
        ("a.npy,250,I;ii;I,mV,,,,,,,,", "I is named twice"),
        ("a.npy,250,I (uV);II (uV),mV,,,,,,,,", "a name says another unit than the column unit, 'mV'"),
        ("a.npy,250,I,,,,,,,,,", "unit is '': mV, uV, V or nV is needed"),
        ("a.npy,250,I,mV,1.5,,,,,,,", "row is '1.5': a whole number"),
        ("a.npy,250,I,mV,,p,,later,,,,", "split is 'later': train, validation, test"),
        ("a.npy,250,I,mV,,p,,,one,,,", "fold is 'one': a whole number"),
        ("a.npy,250,I,mV,,p,,test,3,,,", "fold is '3': leave it empty"),
        ("a.npy,250,I,mV,,p,,,,old,,", "age is 'old': years"),
        ("a.npy,250,I,mV,,p,,,,,x,", "sex is 'x': male, female"),
        ("a.npy,250,I,mV,,p,,,,,,yesterday", "recorded is 'yesterday': a date"),
        ("r,250,,,,,,,,,,", "fs is '250': a WFDB record says it itself"),
        ("other,,,,,,,,,,,", "no WFDB header of that name"),
    ],
)
def test_wrong_cells_are_named(tmp_path, line, words):
    np.save(tmp_path / "a.npy", ECG)
    made.write("georgia", tmp_path, "r")
    header = "path,fs,leads,unit,row,patient,labels,split,fold,age,sex,recorded"
    with pytest.raises(SourceError, match=words) as error:
        ArrayTable(table(tmp_path, line, header=header))
    assert "mine.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "lines", "words"),
    [
        ("path,fs,leads,unit", [], "lists no record"),
        ("path,fs,leads", ["a.npy,250,I"], "lacks the column 'unit'"),
        ("path,fs,leads,unit,lead", ["a.npy,250,I,mV,I"], "has a column 'lead'"),
        ("path,fs,leads,unit", ["a.npy,250,I,mV"] * 2, r"line 3: path is 'a\.npy': already in line 2"),
    ],
)
def test_wrong_tables(tmp_path, header, lines, words):
    np.save(tmp_path / "a.npy", ECG)
    with pytest.raises(SourceError, match=words):
        ArrayTable(table(tmp_path, *lines, header=header))
    with pytest.raises(SourceError, match="No table of records"):
        ArrayTable(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("array", "leads", "words"),
    [
        (np.zeros((11, 500)), ALL, r"shape \[11, 500\]: 12 leads are named"),
        (np.zeros((12, 12)), ALL, "both axes could be the time"),
        (np.zeros(500), "I;II", r"shape \[500\]"),
        (np.zeros((3, 12, 500)), ALL, r"shape \[3, 12, 500\]"),
        (np.zeros((12, 0)), ALL, "no samples"),
        (np.zeros(0), "II", "no samples"),
        (np.zeros((12, 50), dtype=complex), ALL, "complex"),
        (np.array(["a", "b"]), "I;II", "numbers are needed"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, array, leads, words):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(RecordError, match=words):
        ArrayTable(table(tmp_path, f"a.npy,250,{leads},mV")).entries["a"].open("a")


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "b.npz").write_bytes(b"PK")
    np.savez(tmp_path / "c.npz", one=ECG, two=ECG)
    np.save(tmp_path / "d.npy", np.array([{}], dtype=object), allow_pickle=True)
    names = ("a.npy", "b.npz", "c.npz", "d.npy")
    listed = ArrayTable(table(tmp_path, *(f"{name},250,{ALL},mV" for name in names)))
    for name in "abcd":
        with pytest.raises(RecordError, match="one, two" if name == "c" else "cannot be read"):
            listed.entries[name].open(name)


def test_labels_of_other_systems():
    assert statements_of("b; a;snomed/59118001;snomed/AF;rhythm/SR;and/or") == (
        {"dx": ["a", "and/or", "b"], "snomed": ["AF", "CRBBB"], "rhythm": ["SR"]},
        [],
    )
    assert statements_of("snomed/999999999;") == ({"snomed": ["999999999"]}, ["999999999"])
    assert statements_of("") == ({}, [])


def test_from_the_table_to_windows(tmp_path):
    """Splits, folds, patients and labels as said; a broken array is listed, the rest goes on."""
    folder, lines = tmp_path / "mine", []
    folder.mkdir()
    for i in range(6):
        np.save(folder / f"a{i}.npy", made.ecg(LEADS, 250, 6, i).T)
        split = ("train", "train", "validation", "test", "test", "test")[i]
        lines.append(f"a{i}.npy,250,{ALL},mV,p{i},dx/x{i % 2},{split},50,f,2020-01-0{i + 1}")
    np.save(folder / "bad.npy", np.zeros((3, 4)))
    made.write("ptbdb", folder, "w1")
    lines += [f"bad.npy,250,{ALL},mV,p9,,train,,,", "w1.hea,,,,p0,x0,train,,,"]
    path = table(folder, *lines, header="path,fs,leads,unit,patient,labels,split,age,sex,recorded")
    raw = tmp_path / "raw"
    raw.mkdir()
    content = write_source(raw, list_table(path))
    assert [content[key] for key in ("source", "name", "table", "files")] == ["table", "mine", "mine.csv", 10]
    assert read_sources(raw)[0].table == "mine.csv"
    counts = preprocess(raw, tmp_path / "records", DataConfig(), PreprocessConfig())
    assert (counts["records"], counts["rejected"]) == (7, 1)
    (bad,) = read_csv(tmp_path / "records" / "rejected.csv")
    assert bad["record"] == "bad" and "shape [3, 4]" in bad["reason"]
    window(tmp_path / "records", tmp_path / "w", DataConfig(), WindowConfig(min_label_count=1))
    rows = {row["record"]: row for row in read_csv(tmp_path / "w" / "index.csv")}
    assert {name: row["split"] for name, row in rows.items()} == {
        **dict.fromkeys(("a0", "a1", "w1"), "train"),
        "a2": "validation",
        **dict.fromkeys(("a3", "a4", "a5"), "test"),
    }
    assert (rows["w1"]["patient"], rows["a1"]["labels"], rows["a1"]["database"]) == ("p0", "x1", "mine")
    assert rows["a1"]["recorded"] == "2020-01-02T00:00:00"
    assert read_json(tmp_path / "w" / "meta.json")["split_rule"] == "as the source says"


def test_fingerprint_follows_the_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 12, 500)))
    path = table(tmp_path, *(f"x.npy,250,{ALL},mV,{i}" for i in (0, 1)), header="path,fs,leads,unit,row")
    (tmp_path / "raw").mkdir()
    first = write_source(tmp_path / "raw", list_table(path))
    assert first["files"] == 2 and read_sources(tmp_path / "raw")[0].records == ["x/0", "x/1"]
    np.save(tmp_path / "x.npy", np.zeros((2, 12, 501)))
    assert write_source(tmp_path / "raw", list_table(path))["fingerprint"] != first["fingerprint"]
    assert list_table(path, limit=1).records == ["x/0"]
