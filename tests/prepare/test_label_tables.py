"""Side tables and header comments of the single databases, and what is broken in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecggen.prepare.labels.record_info import LabelError, RecordInfo
from ecggen.prepare.labels.records import Labels
from ecggen.prepare.labels.tables import Studies, read_brugada, read_ludb


def test_ludb_cells_hold_several_findings(tmp_path: Path) -> None:
    table = tmp_path / "ludb.csv"
    table.write_text(
        'ID,Sex,Age,Rhythms,Ischemia\n7,"M\n",">89\n","Sinus rhythm\n","Ischemia: apical\nIschemia: septal"\n'
    )
    info = read_ludb(table)["7"]
    assert info.labels == ["Ischemia: apical", "Ischemia: septal", "Sinus rhythm"]
    assert (info.age, info.sex, info.patient) == (90.0, "male", "7")
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


def test_a_record_that_its_table_lacks_is_read_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "ludb.csv").write_text("ID,Sex,Age,Rhythms\n1,F,50,Sinus rhythm\n")
    labels = Labels(tmp_path, "ludb")
    assert labels.info("data/1", []).labels == ["Sinus rhythm"]
    other = labels.info("data/2", ["<age>: 30", "Dx: x"])
    assert (other.labels, other.age, other.patient, other.system) == (["x"], 30.0, "data/2", "dx")


def info(key: str, record: str, *comments: str) -> RecordInfo:
    return Labels(Path("/nowhere"), key).info(record, comments)


def test_incart() -> None:
    one = info("incartdb", "I01", "<age>: 65 <sex>: F <diagnoses> Earlier MI", "patient 12", "PVCs, noise")
    assert (one.patient, one.patients_from, one.age, one.sex) == ("patient12", "header", 65.0, "female")
    assert one.statements == {"dx": ["Earlier MI", "PVCs", "noise"]} and one.system == "beats"
    none = info("incartdb", "I08", "<age>: 51 <sex>: M ")
    assert (none.patient, none.patients_from, none.statements) == ("I08", "record", {})


def test_mitdb_201_and_202_are_one_person() -> None:
    a, b = (info("mitdb", name, "68 M 1960 1629 x1", "Digoxin").patient for name in ("201", "202"))
    assert a == b == "tape1960"
    assert info("mitdb", "201").patient == info("mitdb", "202", "?").patient == "201"
    unknown = info("mitdb", "103", "-1 M 742 654 x1")
    assert (unknown.age, unknown.sex, unknown.patient) == (None, "male", "tape742")


def test_ptbdb() -> None:
    comments = ("ECG date: 03/12/1991", "Reason for admission: n/a", "Dx: x")
    one = info("ptbdb", "patient002/s1", *comments)
    assert (one.recorded, one.statements, one.patient) == ("1991-12-03", {}, "patient002")


def test_challenge_cohorts_that_do_not_say_who_is_who_count_as_one_person() -> None:
    names = ("g1/S0001", "g1/S0100", "g1/I0001", "g1/A0001", "g1/A0002")
    patients = [info("challenge-2021", name, "Dx: 164865005").patient for name in names]
    assert patients == ["ptb", "ptb", "st_petersburg_incart", "g1/A0001", "g1/A0002"]
    one = info("georgia", "E00001", "Dx: 284470004,284470004,999999999", "Age: 300", "Sex: M")
    assert one.labels == ["999999999", "PAC"] and one.unknown == ("999999999",) and one.age == 90.0
