"""Patients, folds and labels from headers and from PTB-XL's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecggen.prepare.labels.headers import header_info
from ecggen.prepare.labels.record_info import LabelError
from ecggen.prepare.labels.records import Labels

STATEMENTS = """,description,diagnostic,form,rhythm,diagnostic_class
NORM,normal,1.0,,,NORM
IMI,inferior MI,1.0,,,MI
ASMI,anteroseptal MI,1.0,,,MI
CLBBB,block,1.0,,,CD
SR,sinus rhythm,,,1.0,
"""
TABLE = """ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr
1,15709.0,56.0,1,"{'NORM': 100.0, 'SR': 0.0}",3,records100/00000/00001_lr,records500/00000/00001_hr
2,7.0,300.0,0,"{'IMI': 0.0, 'ASMI': 50, 'CLBBB': 15}",10,records100/00000/00002_lr,records500/00000/00002_hr
3,8.0,,,"{'SR': 0.0}",9,records100/00000/00003_lr,records500/00000/00003_hr
"""


def ptbxl(tmp_path: Path, table: str = TABLE, statements: str | None = STATEMENTS) -> Path:
    (tmp_path / "ptbxl_database.csv").write_text(table)
    if statements:
        (tmp_path / "scp_statements.csv").write_text(statements)
    (tmp_path / "records100").mkdir(exist_ok=True)
    return tmp_path


def test_ptbxl(tmp_path):
    labels = Labels(ptbxl(tmp_path))
    one = labels.info("records100/00000/00001_lr", ["Dx: wrong"])
    assert (one.patient, one.labels, one.fold, one.age, one.sex) == ("15709", ["NORM"], 3, 56.0, "female")
    two = labels.info("records500/00000/00002_hr", [])
    # Likelihood 0 means "not stated" and counts; the age 300 means older than 89.
    assert (two.patient, two.labels, two.fold, two.age, two.sex) == ("7", ["MI", "CD"], 10, 90.0, "male")
    three = labels.info("records100/00000/00003_lr", [])
    assert (three.labels, three.age, three.sex) == ([], None, "")


def test_ptbxl_table_above_the_records(tmp_path):
    assert Labels(ptbxl(tmp_path) / "records100").info("00000/00001_lr", []).patient == "15709"


def test_ptbxl_without_statements_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"scp_statements\.csv beside it"):
        Labels(ptbxl(tmp_path, statements=None))


@pytest.mark.parametrize(
    "bad", [("{'NORM': 100.0, 'SR': 0.0}", "{broken"), ("15709.0", "someone"), ("scp_codes", "x")]
)
def test_broken_ptbxl_row_is_named(tmp_path, bad):
    with pytest.raises(LabelError, match="record 1: cannot read its row"):
        Labels(ptbxl(tmp_path, TABLE.replace(*bad)))


def test_header_comments():
    comments = ["Age: 84", " Sex: Female", "Dx: 284470004, 55930002,284470004", "Patient: x9"]
    info = header_info("b/r1", comments)
    assert (info.patient, info.age, info.sex) == ("x9", 84.0, "female")
    assert info.labels == ["284470004", "55930002"]
    ludb = header_info("1", ["<age>: 51", "<sex>: M", "<diagnoses>:"])
    assert (ludb.patient, ludb.labels, ludb.age, ludb.sex) == ("1", [], 51.0, "male")


@pytest.mark.parametrize("key", ["Patient", "patient ID", "Patient_id", "<subject>", "Subject ID"])
def test_patients_by_any_name_of_the_field(key):
    info = header_info("r", [f"# {key}: x9"])
    assert (info.patient, info.patients_from) == ("x9", "header")


@pytest.mark.parametrize("text", ["", "Unknown", " n/a", ","])
def test_no_diagnosis_is_no_label(text):
    assert header_info("r", [f"Dx: {text}", "Age: NaN", "Sex: Unknown"]).labels == []


@pytest.mark.parametrize(
    "text", ["426783006,164889003", "426783006;164889003", "164889003 426783006", "426783006.0, 164889003.0"]
)
def test_codes_however_they_are_separated(text):
    info = header_info("r", [f"Dx: {text}"])
    assert info.statements == {"dx": ["164889003", "426783006"], "snomed": ["AF", "NSR"]}
    georgia = Labels(Path("/nowhere"), "georgia").info("E00001", [f"Dx: {text}"])
    assert georgia.statements == info.statements


def test_words_stay_words():
    info = header_info("r", ["Dx: sinus rhythm; old MI, 12 leads"])
    assert info.labels == ["12 leads", "old MI", "sinus rhythm"]


@pytest.mark.parametrize(
    ("record", "root", "patient"),
    [
        ("patient001/s0010_re", "ptbdb", "patient001"),
        ("s0010_re", "patient001", "patient001"),
        ("files/p1000/p10001725/s41/41", "mimic", "p10001725"),
        ("set/r7", "x", "set/r7"),
    ],
)
def test_folder_names_the_patient(record, root, patient):
    assert header_info(record, ["age: 81"], root).patient == patient


def test_real_ptbxl_row(shared_data):
    # Row 1 of the table: {'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}, patient 15709, fold 3, female, 56.
    info = Labels(shared_data / "ptb-xl").info("records100/00000/00001_lr", [])
    assert (info.patient, info.labels, info.fold, info.sex) == ("15709", ["NORM"], 3, "female")
