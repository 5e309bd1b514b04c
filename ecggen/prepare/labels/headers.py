"""Patient and labels from the comments of a WFDB header, each database in its own way.

Any header: `#Dx:` (words or SNOMED CT codes, comma separated), `#Age:`, `#Sex:`, `#Patient:`, `#Recorded:`;
keys in any case, with or without <>. Without a patient comment, a folder called patient001 or p10001725 names
the patient; else each record counts as a patient of its own. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath

from ecggen.prepare.labels import record_info, snomed
from ecggen.prepare.labels.databases import cohort
from ecggen.prepare.labels.record_info import NO_LABEL, RecordInfo

_PATIENT_FOLDER = re.compile(r"(?:patient|p)[-_]?\d+", re.IGNORECASE)
#: Cohorts of the Challenge in which several records are one person's, and nothing says which.
_SHARED = {"incartdb": "st_petersburg_incart", "ptbdb": "ptb"}


def header_info(record: str, comments: Iterable[str], root_name: str = "") -> RecordInfo:
    """RecordInfo from `Key: value` comment lines of any header; record: name below the folder root_name."""
    values = _values(comments)
    parts = (root_name, *Path(record).parts[:-1])
    folders = [part for part in reversed(parts) if _PATIENT_FOLDER.fullmatch(part)]
    patient = values.get("patient", "")
    if patient.lower() in NO_LABEL:
        patient = folders[0] if folders else record
    entries = record_info.words(values.get("dx", ""))
    statements = {"dx": entries} if entries else {}
    codes = [entry for entry in entries if snomed.is_code(entry)]
    found, unknown = snomed.classes(codes)
    return RecordInfo(
        patient=patient,
        statements=statements | ({"snomed": found} if found else {}),
        age=record_info.age(record_info.number(values.get("age", ""))),
        sex=record_info.sex(values.get("sex", "")),
        recorded=record_info.iso(values.get("recorded", "")),
        unknown=tuple(unknown),
    )


def challenge_info(record: str, comments: Iterable[str], root_name: str = "") -> RecordInfo:
    """A record of the PhysioNet/CinC Challenges, of CPSC 2018 or of ecg-arrhythmia.

    Where a cohort holds several records of one person without saying whose, all of it is one patient: nobody
    may be in two splits.
    """
    info = header_info(record, comments, root_name)
    entries = info.statements.get("dx", [])
    found, unknown = snomed.classes(entries)
    name = _SHARED.get(cohort(record), record)
    return replace(
        info,
        patient=name,
        statements={**info.statements, **({"snomed": found} if found else {})},
        system="snomed",
        unknown=tuple(unknown),
    )


def ptbdb_info(record: str, comments: Iterable[str], root_name: str = "") -> RecordInfo:
    """PTBDB: the reason for admission; the date of the ECG is day/month/year."""
    comments = list(comments)
    info, values = header_info(record, comments, root_name), _values(comments)
    reason = record_info.clean(values.get("reason for admission", ""))
    known = reason.lower() not in NO_LABEL
    return replace(
        info,
        statements={"dx": [reason]} if known else {},
        recorded=_day_month_year(values.get("ecg date", "")),
    )


def incartdb_info(record: str, comments: Iterable[str], root_name: str = "") -> RecordInfo:
    """INCART: `<age>: 65 <sex>: F <diagnoses> ...`, `patient N`, then remarks on the ECG, comma separated."""
    patient, found = "", {"age": "", "sex": "", "diagnoses": ""}
    remarks: list[str] = []
    for line in comments:
        text = line.strip().lstrip("#").strip()
        if "<age>" in text:
            for key in found:
                match = re.search(rf"<{key}>:?\s*([^<]*)", text)
                found[key] = match[1].strip() if match else ""
        elif number := re.fullmatch(r"patient\s+(\d+)", text, re.IGNORECASE):
            patient = f"patient{int(number[1]):02d}"
        elif text:
            remarks.append(text)
    entries = sorted({*record_info.words(found["diagnoses"]), *record_info.words(",".join(remarks))})
    return RecordInfo(
        patient=patient or record,
        statements={"dx": entries} if entries else {},
        system="beats",
        age=record_info.age(record_info.number(found["age"])),
        sex=record_info.sex(found["sex"]),
    )


def mitdb_info(record: str, comments: Iterable[str], root_name: str = "") -> RecordInfo:
    """MIT-BIH: the first comment is age, sex, tape and recorder (`69 M 1085 1629 x1`); a tape is a person."""
    first = next((line.strip().lstrip("#").split() for line in comments if line.strip()), [])
    stem = PurePosixPath(record).name
    if len(first) < 3 or not first[2].isdigit():
        # 202 was cut from the tape of 201.
        return replace(
            header_info(record, [], root_name), patient={"202": "201"}.get(stem, stem), system="beats"
        )
    return RecordInfo(
        patient=f"tape{first[2]}",
        system="beats",
        age=record_info.age(record_info.number(first[0])),
        sex=record_info.sex(first[1]),
    )


def _values(comments: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in comments:
        key, sep, value = line.strip().lstrip("#").partition(":")
        if sep:
            values.setdefault(key.strip().strip("<>").lower(), value.strip())
    return values


def _day_month_year(text: str) -> str:
    try:
        return datetime.strptime(text.strip(), "%d/%m/%Y").date().isoformat()
    except ValueError:
        return ""
