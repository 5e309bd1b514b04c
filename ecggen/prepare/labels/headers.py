"""Patient and labels from the comments of a WFDB header, each database in its own way.

Any header: `#Dx:` (words or SNOMED CT codes, separated by commas or semicolons), `#Age:`, `#Sex:`,
`#Patient:` or `#Subject:` (also with ID), `#Recorded:`; keys in any case, with or without <>. Without a
patient there, a folder called patient001 or p10001725 names the patient; else each record counts as a patient
of its own. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath

from ecggen.prepare.databases import cohort
from ecggen.prepare.labels import record_info, snomed
from ecggen.prepare.labels.record_info import NO_LABEL, RecordInfo

_PATIENT_KEYS = ("patient", "patient id", "patientid", "subject", "subject id", "subjectid")
_PATIENT_FOLDER = re.compile(r"(?:patient|p)[-_]?\d+", re.IGNORECASE)
#: Cohorts of the Challenge in which several records are one person's, and nothing says which.
_SHARED = {"incartdb": "st_petersburg_incart", "ptbdb": "ptb"}


def header_info(record: str, comments: Iterable[str], root_name: str = "", pattern: str = "") -> RecordInfo:
    """RecordInfo from `Key: value` comment lines of any header; record: name below the folder root_name.

    pattern: data.patient, which finds the patient in a record's name.
    """
    values = _values(comments)
    patient, patients_from = next((values[key] for key in _PATIENT_KEYS if key in values), ""), "header"
    if patient.lower() in NO_LABEL:
        patient, patients_from = _patient_of_name(record, root_name, pattern)
    labels = record_info.words(values.get("dx", ""))
    classes, unknown = snomed.classes(label for label in labels if snomed.code(label))
    return RecordInfo(
        patient=patient,
        patients_from=patients_from,
        statements=_statements(dx=labels, snomed=classes),
        age=record_info.age(record_info.number(values.get("age", ""))),
        sex=record_info.sex(values.get("sex", "")),
        recorded=record_info.iso(values.get("recorded", "")),
        unknown=tuple(unknown),
    )


def patient_in_name(record: str, pattern: str) -> str:
    """The patient in a record's name: the first group of the pattern that matches, or all of the match.

    "" for an empty pattern, and for a name that it does not match.
    """
    match = re.search(pattern, record) if pattern else None
    return next(filter(None, match.groups()), match[0]) if match else ""


def challenge(info: RecordInfo, record: str, comments: Sequence[str]) -> RecordInfo:
    """A record of the PhysioNet/CinC Challenges, of CPSC 2018 or of ecg-arrhythmia.

    Where a cohort holds several records of one person without saying whose, all of it is one patient: nobody
    may be in two splits.
    """
    labels = info.statements.get("dx", [])
    classes, unknown = snomed.classes(labels)
    info = replace(info, statements=_statements(dx=labels, snomed=classes), unknown=tuple(unknown))
    if (key := cohort(record)) in _SHARED:
        return replace(info, patient=_SHARED[key], patients_from="header")
    return info if info.patients_from == "pattern" else replace(info, patient=record, patients_from="record")


def ptbdb(info: RecordInfo, record: str, comments: Sequence[str]) -> RecordInfo:
    """PTBDB: the reason for admission; the date of the ECG is day/month/year."""
    values = _values(comments)
    reason = record_info.clean(values.get("reason for admission", ""))
    try:
        date = datetime.strptime(values.get("ecg date", ""), "%d/%m/%Y").date().isoformat()
    except ValueError:
        date = ""
    statements = _statements(dx=[reason] if reason.lower() not in NO_LABEL else [])
    return replace(info, statements=statements, recorded=date)


def incartdb(info: RecordInfo, record: str, comments: Sequence[str]) -> RecordInfo:
    """INCART: `<age>: 65 <sex>: F <diagnoses> ...`, `patient N`, then remarks on the ECG, comma separated."""
    values: dict[str, str] = {}
    remarks = []
    for line in comments:
        text = line.strip().lstrip("#").strip()
        if "<age>" in text:
            values = {key: value.strip() for key, value in re.findall(r"<(\w+)>:?\s*([^<]*)", text)}
        elif number := re.fullmatch(r"patient\s+(\d+)", text, re.IGNORECASE):
            info = replace(info, patient=f"patient{int(number[1]):02d}", patients_from="header")
        else:
            remarks.append(text)
    return replace(
        info,
        statements=_statements(dx=record_info.words(",".join([values.get("diagnoses", ""), *remarks]))),
        age=record_info.age(record_info.number(values.get("age"))),
        sex=record_info.sex(values.get("sex", "")),
    )


def mitdb(info: RecordInfo, record: str, comments: Sequence[str]) -> RecordInfo:
    """MIT-BIH: the first comment is age, sex, tape and recorder (`69 M 1085 1629 x1`); a tape is a person."""
    first = next((line.strip().lstrip("#").split() for line in comments if line.strip()), [])
    if len(first) < 3 or not first[2].isdigit():
        stem = PurePosixPath(record).name  # 202 was cut from the tape of 201
        return RecordInfo(patient={"202": "201"}.get(stem, stem), patients_from="record")
    return RecordInfo(
        patient=f"tape{first[2]}",
        patients_from="header",
        age=record_info.age(record_info.number(first[0])),
        sex=record_info.sex(first[1]),
    )


#: Databases with headers of their own, by what window.labels=auto takes or by key.
OF_DATABASE = {"snomed": challenge, "ptbdb": ptbdb, "incartdb": incartdb, "mitdb": mitdb}


def _patient_of_name(record: str, root_name: str, pattern: str) -> tuple[str, str]:
    """(patient, patients_from) where only the record's name can tell."""
    if patient := patient_in_name(record, pattern):
        return patient, "pattern"
    folders = (root_name, *Path(record).parts[:-1])
    patients = [part for part in reversed(folders) if _PATIENT_FOLDER.fullmatch(part)]
    return (patients[0], "header") if patients else (record, "record")


def _statements(**labels: list[str]) -> dict[str, list[str]]:
    return {system: names for system, names in labels.items() if names}


def _values(comments: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in comments:
        key, colon, value = line.strip().lstrip("#").partition(":")
        if colon:
            values.setdefault(key.strip().strip("<>").lower().replace("_", " "), value.strip())
    return values
