"""Patients, folds and labels from side tables and header comments, and what is broken in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecggen.prepare.labels.headers import header_info
from ecggen.prepare.labels.record_info import LabelError, RecordInfo
from ecggen.prepare.labels.records import Labels
from ecggen.prepare.labels.tables import Studies, read_brugada, read_ludb

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


def ptbxl(tmp_path: Path, table: str = TABLE) -> Path:
    (tmp_path / "ptbxl_database.csv").write_text(table)
    (tmp_path / "scp_statements.csv").write_text(STATEMENTS)
    (tmp_path / "records100").mkdir(exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    ("record", "facts"),
    [
        ("records100/00000/00001_lr", ("15709", ["NORM"], 3, 56.0, "female")),
        # Likelihood 0 means "not stated" and counts; the age 300 means older than 89.
        ("records500/00000/00002_hr", ("7", ["MI", "CD"], 10, 90.0, "male")),
        ("records100/00000/00003_lr", ("8", [], 9, None, "")),
    ],
)
def test_ptbxl(tmp_path, record, facts):
    info = Labels(ptbxl(tmp_path)).info(record, ["Dx: wrong"])
    assert (info.patient, info.labels, info.fold, info.age, info.sex) == facts
    above = Labels(tmp_path / "records100").info(Path(record).name, [])  # the table lies above the records
    assert above == info


@pytest.mark.parametrize(
    ("old", "new"), [("{'NORM': 100.0, 'SR': 0.0}", "{broken"), ("15709.0", "someone"), ("scp_codes", "x")]
)
def test_ptbxl_tables_that_are_refused(tmp_path, old, new):
    with pytest.raises(LabelError, match="record 1: cannot read its row"):
        Labels(ptbxl(tmp_path, TABLE.replace(old, new)))
    (tmp_path / "scp_statements.csv").unlink()
    with pytest.raises(LabelError, match=r"scp_statements\.csv beside it"):
        Labels(tmp_path)


def test_real_ptbxl_row(shared_data):
    # Row 1 of the table: {'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}, patient 15709, fold 3, female, 56.
    info = Labels(shared_data / "ptb-xl").info("records100/00000/00001_lr", [])
    assert (info.patient, info.labels, info.fold, info.sex) == ("15709", ["NORM"], 3, "female")


def test_ludb_cells_hold_several_findings(tmp_path: Path) -> None:
    table = tmp_path / "ludb.csv"
    table.write_text(
        'ID,Sex,Age,Rhythms,Ischemia\n7,"M\n",">89\n","Sinus rhythm\n","Ischemia: apical\nIschemia: septal"\n'
    )
    info = read_ludb(table)["7"]
    assert info.labels == ["Ischemia: apical", "Ischemia: septal", "Sinus rhythm"]
    assert (info.age, info.sex, info.patient) == (90.0, "male", "7")
    labels = Labels(tmp_path, "ludb")
    other = labels.info("data/2", ["<age>: 30", "Dx: x"])  # which the table lacks
    assert labels.info("data/7", []) == info
    assert (other.labels, other.age, other.patient, other.system) == (["x"], 30.0, "data/2", "dx")
    table.write_text("ID,Sex\n1,F\n")
    with pytest.raises(LabelError, match=r"ludb\.csv lacks the column Rhythms"):
        read_ludb(table)


def test_real_ludb(shared_data: Path) -> None:
    """142 of 200 records have sinus rhythm alone, one has it with another rhythm, and so on."""
    infos = read_ludb(shared_data / "ludb" / "ludb.csv").values()
    rhythms = {
        "Sinus rhythm": 143,
        "Sinus bradycardia": 25,
        "Atrial fibrillation": 15,
        "Sinus tachycardia": 4,
    }
    assert {name: sum(name in info.labels for info in infos) for name in rhythms} == rhythms
    assert len(infos) == 200


def test_brugada_values_that_nobody_explained(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    table.write_text("patient_id,basal_pattern,sudden_death,brugada\n1,0,0,3\n")
    with pytest.raises(LabelError, match=r"patient 1: brugada is '3'"):
        read_brugada(table)
    table.write_text("patient_id,basal_pattern,sudden_death,brugada\n1,,,\n")
    assert read_brugada(table)["1"].labels == []


def test_mimic_keeps_what_is_wanted(tmp_path: Path) -> None:
    table = tmp_path / "record_list.csv"
    rows = "".join(f"{100 + i},{i},{i},2180-01-01 00:00:00,files/{i}\n" for i in range(5))
    table.write_text(f"subject_id,study_id,file_name,ecg_time,path\n{rows}")
    time = "2180-01-01T00:00:00"
    assert Studies(table, ["3"]).get("3") == RecordInfo("p103", recorded=time)
    (tmp_path / "machine_measurements.csv").write_text("study_id,report_0,report_1\n3,Sinus rhythm.,\n4,x,\n")
    studies = Studies(table, ["4", "3", "9", "3"])
    assert studies.get("9") is studies.get("2") is None
    for study, label in (("3", "Sinus rhythm"), ("4", "x")):
        assert studies.get(study) == RecordInfo(f"p10{study}", statements={"dx": [label]}, recorded=time)


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


@pytest.mark.parametrize("key", ["Patient", "patient ID", "Patient_id", "<subject>", "Subject ID"])
def test_patients_by_any_name_of_the_field(key):
    info = header_info("r", [f"# {key}: x9"])
    assert (info.patient, info.patients_from) == ("x9", "header")


HEADERS = {
    # (database, record): comments, what is said of the record
    ("", "r1"): (
        ["Age: 84", " Sex: Female", "Dx: sinus rhythm; old MI, 12 leads", "Patient: x9"],
        {"patient": "x9", "age": 84.0, "sex": "female", "labels": ["12 leads", "old MI", "sinus rhythm"]},
    ),
    ("", "1"): (
        ["<age>: 51", "<sex>: M", "<diagnoses>:"],
        {"patient": "1", "age": 51.0, "sex": "male", "labels": []},
    ),
    ("incartdb", "I01"): (
        ["<age>: 65 <sex>: F <diagnoses> Earlier MI", "patient 12", "PVCs, noise"],
        {
            "patient": "patient12",
            "patients_from": "header",
            "age": 65.0,
            "sex": "female",
            "statements": {"dx": ["Earlier MI", "PVCs", "noise"]},
            "system": "beats",
        },
    ),
    ("incartdb", "I08"): (
        ["<age>: 51 <sex>: M "],
        {"patient": "I08", "patients_from": "record", "statements": {}},
    ),
    # 201 and 202 are one person.
    ("mitdb", "201"): (["68 M 1960 1629 x1", "Digoxin"], {"patient": "tape1960", "patients_from": "header"}),
    ("mitdb", "202"): (["?"], {"patient": "201", "patients_from": "record"}),
    ("mitdb", "103"): (["-1 M 742 654 x1"], {"age": None, "sex": "male", "patient": "tape742"}),
    ("ptbdb", "patient002/s1"): (
        ["ECG date: 03/12/1991", "Reason for admission: n/a", "Dx: x"],
        {"recorded": "1991-12-03", "statements": {}, "patient": "patient002"},
    ),
    # Cohorts of the Challenge that do not say who is who count as one person.
    ("challenge-2021", "g1/S0001"): (["Dx: 164865005"], {"patient": "ptb"}),
    ("challenge-2021", "g1/I0001"): (["Dx: 164865005"], {"patient": "st_petersburg_incart"}),
    ("challenge-2021", "g1/A0001"): (["Dx: 164865005"], {"patient": "g1/A0001"}),
    ("georgia", "E00001"): (
        ["Dx: 284470004,284470004,999999999", "Age: 300", "Sex: M"],
        {"labels": ["999999999", "PAC"], "unknown": ("999999999",), "age": 90.0},
    ),
}


@pytest.mark.parametrize(("database", "record"), HEADERS)
def test_headers_of_databases(database: str, record: str) -> None:
    comments, facts = HEADERS[database, record]
    info = Labels(Path("/nowhere"), database).info(record, comments)
    assert {name: getattr(info, name) for name in facts} == facts
