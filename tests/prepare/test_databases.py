"""Databases by name: the facts hang together, and each is read in its own layout."""

from __future__ import annotations

from pathlib import Path

import made_databases as made
import numpy as np
import pytest

from ecggen.data.signal import condition
from ecggen.leads import FRANK, LEADS, canonical_lead
from ecggen.prepare.databases import (
    cohort,
    cohorts,
    databases,
    document,
    find,
    get,
    main,
    physionet_address,
    recognise,
    require,
)
from ecggen.prepare.download.source import list_source
from ecggen.prepare.labels.record_info import LABEL_SYSTEMS
from ecggen.utils.config import LABEL_CHOICES
from ecggen.utils.files import read_csv, read_json

KEYS = [base.key for base in databases()]


def test_names_and_aliases_in_any_case() -> None:
    assert find("PTB-XL") is get("ptbxl") is get(" ptb_xl ") and find("nothing") is None
    names = [name for base in databases() for name in (base.key, *base.aliases)]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ptb-xl", "ptb-xl/1.0.3"),
        ("PTBXL/1.0.1", "ptb-xl/1.0.1"),
        ("mimic", "mimic-iv-ecg/1.0"),
        ("x/2", "x/2"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert physionet_address(text) == address


def test_names_without_an_address_and_unknown_ones(tmp_path: Path) -> None:
    made.make("georgia", tmp_path)
    for refused, words in (
        (lambda: get("ptb-x"), rf"Unknown database 'ptb-x'.*{', '.join(KEYS)}.*mean 'ptb-xl'"),
        (lambda: physionet_address("georgia"), r"georgia has no place of its own.*part of challenge-2021"),
        (lambda: physionet_address("other"), r"Unknown database 'other'.*write slug/version"),
        (lambda: require(get("ptb-xl"), tmp_path), r"is said to be ptb-xl but has no ptbxl_database\.csv"),
        (lambda: list_source(tmp_path, database="mimic"), r"to be mimic-iv-ecg but has no record_list\.csv"),
    ):
        with pytest.raises(ValueError, match=words):
            refused()
    assert list_source(tmp_path, database="challenge-2021").database == "challenge-2021"


@pytest.mark.parametrize("base", databases(), ids=KEYS)
def test_facts_hang_together(base) -> None:
    assert base.default_labels in base.labels and set(base.labels) <= set(LABEL_SYSTEMS)
    assert bool(base.slug) == bool(base.version) != bool(base.part_of)
    assert not base.part_of or base.key in get(base.part_of).cohorts
    assert base.cohorts and base.sources and base.licence and base.tested
    assert ("auto", *LABEL_SYSTEMS) == LABEL_CHOICES
    known = {canonical_lead(name) for name in base.leads} - {None}
    if base.key != "mitdb":
        assert known - set(FRANK) == set(LEADS) and len(known) == len(base.leads)


def test_the_document_is_current(repository: Path, tmp_path: Path) -> None:
    assert (repository / "docs" / "databases.md").read_text(encoding="utf-8") == document()
    assert main([str(tmp_path / "d.md")]) == 0 and (tmp_path / "d.md").read_text() == document()


#: key -> (patients in order, labels of auto in order, as records.csv has them)
EXPECTED = {
    "ptb-xl": (["0", "1", "1"], ["NORM", "MI", "CD"]),
    "ptbdb": (["patient001", "patient001", "patient002"], ["", "Healthy control", "Healthy control"]),
    "ludb": (
        ["1", "2"],
        [
            "Left atrial hypertrophy;Left ventricular hypertrophy;Sinus bradycardia",
            "Electric axis of the heart: normal;Sinus rhythm",
        ],
    ),
    "mitdb": (["tape1085", "tape1960", "tape1960"], ["N;V;Q"] * 3),
    "incartdb": (["patient01", "patient01", "patient04"], ["N;S"] * 3),
    "challenge-2021": (
        [
            *("training/cpsc_2018/g1/A0001", "training/georgia/g1/E00001", "training/ningbo/g1/JS20001"),
            *("ptb", "ptb", "training/ptb-xl/g1/HR00001"),
        ],
        ["CRBBB", "NSR;PAC", "999999999", "MI", "MI", "LQRSV;NSR"],
    ),
    "cpsc2018": (["g1/A0001", "g1/A0002"], ["CRBBB;IAVB"] * 2),
    "cpsc2018-extra": (["g1/Q0001", "g1/Q0002"], ["OldMI"] * 2),
    "georgia": (["g1/E00001", "g1/E00002"], ["PAC"] * 2),
    "chapman-shaoxing": (["g1/JS00001", "g1/JS10646"], ["SB"] * 2),
    "ningbo": (["g1/JS10647", "g1/S23074"], ["LVHV"] * 2),
    "ecg-arrhythmia": (
        ["WFDBRecords/01/010/JS00001", "WFDBRecords/46/460/JS45551"],
        ["AF;CRBBB;TAb"] * 2,
    ),
    "brugada-huca": (
        ["188981", "251972", "596382"],
        ["Brugada syndrome;abnormal baseline ECG", "no Brugada syndrome", "other or atypical;sudden death"],
    ),
    "mimic-iv-ecg": (
        ["p10000032", "p10000032", "p10000117"],
        ["Sinus rhythm", *["Possible infarct - age undetermined;Sinus rhythm"] * 2],
    ),
}


@pytest.mark.parametrize("key", EXPECTED)
def test_a_folder_in_its_layout_is_recognised_and_read(key: str, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    names = made.make(key, root)
    source = list_source(root, fs=500)
    assert (source.database, source.records, source.absent) == (key, names, 0)
    counts = made.preprocess_folder(root, source=source)
    assert counts["records"] == len(names) and counts["by_database"][key]["listed"] == len(names)
    rows = read_csv(tmp_path / "records" / "records.csv")
    assert ([row["patient"] for row in rows], [row["labels"] for row in rows]) == EXPECTED[key]
    assert {row["database"] for row in rows} == {key}
    assert {row["label_system"] for row in rows} == {get(key).default_labels}
    # Leads are where they belong by name, in whatever order the database stores them.
    base, signals = get(key), np.load(tmp_path / "records" / "signals.npy")
    written = made.ecg(base.leads, base.fs[-1], seed=int(key in ("ptb-xl", "ludb")))
    for column, lead in enumerate(map(canonical_lead, base.leads)):
        if lead in LEADS:
            truth = condition(written[:, [column]].T, base.fs[-1], 100, low_hz=0.67, high_hz=40)[0]
            np.testing.assert_allclose(signals[: len(truth), LEADS.index(lead)], truth, atol=2e-3)


def test_leads_that_the_database_scales_apart_are_flagged(tmp_path: Path) -> None:
    made.make("ludb", tmp_path / "ludb")
    made.preprocess_folder(tmp_path / "ludb")
    records = read_csv(tmp_path / "records" / "records.csv")
    assert all("algebra" in row["reasons"].split(";") for row in records) and len(records) == 2
    spans = [s for s in read_csv(tmp_path / "records" / "spans.csv") if s["flag"] == "algebra"]
    assert [(s["start_s"], s["stop_s"]) for s in spans] == [("0.0000", "6.0000")] * 2


def test_what_is_known_of_a_challenge_record_by_its_name() -> None:
    names = ("A0001", "Q3453", "I0075", "S0549", "HR21837", "E10344")
    assert [cohort(f"x/{name}") for name in names] == [
        "cpsc2018",
        "cpsc2018-extra",
        "incartdb",
        "ptbdb",
        "ptb-xl",
        "georgia",
    ]
    assert cohort("JS10646") == "chapman-shaoxing" and cohort("JS10647") == cohort("S23074") == "ningbo"
    assert cohort("r1") == cohort("A001") == cohort("HR1") == ""
    assert cohorts(get("challenge-2021"), ["a/E00001", "JS00001"]) == {"georgia", "chapman-shaoxing"}
    assert cohorts(None, ["E00001"]) == set() and cohorts(get("ludb"), []) == {"ludb"}


def test_names_alone_do_not_make_a_database(tmp_path: Path) -> None:
    """Somebody's own A0001 without the Challenge's comments, or a 100 without beats, is a plain record."""
    for name in ("A0001", "100", "metadata"):
        made.write("georgia", tmp_path / name, name)
        assert recognise(tmp_path / name, [name]) is None
    (tmp_path / "metadata" / "metadata.csv").write_text("patient_id,age\n1,50\n")
    assert recognise(tmp_path / "metadata", ["metadata"]) is None


@pytest.mark.parametrize(
    ("folder", "key", "name"),
    [
        ("ptbxl", "ptb-xl", "records100/00000/00001_lr"),
        ("ptbdb", "ptbdb", "patient001/s0010_re"),
        ("ludb", "ludb", "data/1"),
        ("mitdb", "mitdb", "105"),
        ("challenge", "challenge-2021", "georgia/E07500"),
        ("challenge/georgia", "georgia", "E07500"),
        ("challenge/cpsc2018", "cpsc2018", "A0001"),
        ("challenge/cpsc2018_extra", "cpsc2018-extra", "Q0001"),
        ("challenge/chapman_ningbo", "ningbo", "JS20000"),
    ],
)
def test_real_folders_are_what_the_registry_says(shared_data: Path, folder: str, key: str, name: str) -> None:
    source = list_source(shared_data / folder)
    assert source.database == key and name in source.records
    lines = (shared_data / folder / f"{name}.hea").read_text().splitlines()
    fs, leads = float(lines[0].split()[2].split("/")[0]), get(key).leads
    assert fs in get(key).fs and "mV" in get(key).units
    assert tuple(line.split()[8] for line in lines[1 : 1 + len(leads)]) == leads


def test_real_challenge_records(shared_data: Path, tmp_path: Path) -> None:
    counts = made.preprocess_folder(tmp_path / "copy", source=list_source(shared_data / "challenge"))
    assert counts["records"] == counts["patients"] == 64 and counts["labelled"] == 61
    challenge = counts["by_database"]["challenge-2021"]
    assert challenge["records_by_label_system"] == {"dx": 61, "snomed": 61}
    assert not challenge["labels_without_a_table"]
    rows = {row["record"]: row for row in read_csv(tmp_path / "records" / "records.csv")}
    assert rows["chapman_ningbo/JS20000"]["labels"] == "NSIVCB;PAC;STC;STach"
    assert rows["cpsc2018/A0059"]["all_labels"] == "dx/Normal;snomed/NSR"
    source = read_json(tmp_path / "records" / "meta.json")["source"]
    assert (source["kind"], source["name"]) == ("wfdb", "challenge")
    assert source["cohorts"] == ["cpsc2018", "cpsc2018-extra", "georgia", "ningbo"]
