"""Patients and labels from the side tables of LUDB, MIMIC-IV-ECG and Brugada-HUCA. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ecggen.prepare.labels import record_info
from ecggen.prepare.labels.databases import find_above
from ecggen.prepare.labels.record_info import LabelError, RecordInfo
from ecggen.prepare.labels.studies import Studies
from ecggen.utils.files import iter_csv

#: Columns of ludb.csv that hold findings.
LUDB_FINDINGS = (
    *("Rhythms", "Electric axis of the heart", "Conduction abnormalities", "Extrasystolies"),
    *(
        "Hypertrophies",
        "Cardiac pacing",
        "Ischemia",
        "Non-specific repolarization abnormalities",
        "Other states",
    ),
)
#: Brugada-HUCA's metadata.csv: (column, value) -> label.
BRUGADA_WORDS = {
    ("brugada", 0): "no Brugada syndrome",
    ("brugada", 1): "Brugada syndrome",
    ("brugada", 2): "other or atypical",
    ("basal_pattern", 1): "abnormal baseline ECG",
    ("sudden_death", 1): "sudden death",
}


def read_ludb(table: Path) -> dict[str, RecordInfo]:
    """Record number -> RecordInfo; cells end in a line break, each line is a finding. Raises LabelError."""
    out = {}
    for row in iter_csv(table):
        _need(table, row, ("ID", "Rhythms"))
        cells = [row.get(column) or "" for column in LUDB_FINDINGS]
        found = record_info.words("\n".join(cells), "\n")
        years = (row.get("Age") or "").strip()  # one is ">89"
        out[row["ID"].strip()] = RecordInfo(
            patient=row["ID"].strip(),
            statements={"dx": found} if found else {},
            age=90.0 if years.startswith(">") else record_info.age(record_info.number(years)),
            sex=record_info.sex(row.get("Sex") or ""),
        )
    return out


def read_brugada(table: Path) -> dict[str, RecordInfo]:
    """Patient = record -> RecordInfo. Raises LabelError for a missing column or a value that is not known."""
    out = {}
    for row in iter_csv(table):
        _need(table, row, ("patient_id", "basal_pattern", "sudden_death", "brugada"))
        labels = []
        for column in ("brugada", "basal_pattern", "sudden_death"):
            value = record_info.number(row[column])
            if value is None:
                continue
            if (column, int(value)) in BRUGADA_WORDS:
                labels.append(BRUGADA_WORDS[column, int(value)])
            elif value:
                raise LabelError(
                    f"{table.name}, patient {row['patient_id']}: {column} is {row[column]!r}: 0, 1 or, for "
                    "brugada, 2 is known."
                )
        name = row["patient_id"].strip()
        out[name] = RecordInfo(patient=name, statements={"dx": sorted(labels)} if labels else {})
    return out


def read_mimic(table: Path, wanted: Iterable[str]) -> Studies:
    """Study number = record -> RecordInfo, of the wanted records alone, kept on disk.

    Times are in record_list.csv, the lines of the machine's report in machine_measurements.csv beside it;
    each line is one label, without its full stop. Without that file there are no labels. Raises LabelError.
    """
    out = Studies(wanted)
    out.set_patients(_mimic_patients(table))
    reports = find_above(table.parent, "machine_measurements.csv")
    if reports:
        out.set_labels(_mimic_reports(reports))
    return out


def _mimic_patients(table: Path) -> Iterator[tuple[str, str, str]]:
    for row in iter_csv(table):
        _need(table, row, ("subject_id", "study_id", "path"))
        time = record_info.iso(row.get("ecg_time") or "")
        yield row["study_id"].strip(), f"p{row['subject_id'].strip()}", time


def _mimic_reports(table: Path) -> Iterator[tuple[str, list[str]]]:
    for row in iter_csv(table):
        _need(table, row, ("study_id", "report_0"))
        lines = (row.get(f"report_{number}") or "" for number in range(18))
        found = {record_info.clean(line).rstrip(".") for line in lines}
        yield row["study_id"].strip(), sorted(line for line in found if line)


def stem(record: str) -> str:
    """The key of a record in these tables."""
    return PurePosixPath(record).name


def _need(table: Path, row: dict[str, str], columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        raise LabelError(
            f"{table.name} lacks the column {', '.join(missing)}, or a row of it is cut short: copy it again "
            "from the database."
        )
