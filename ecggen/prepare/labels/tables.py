"""Patients and labels from the side tables of PTB-XL, LUDB, MIMIC-IV-ECG and Brugada-HUCA.

PTB-XL: a record has one of the superclasses NORM, MI, STTC, CD, HYP if any of its SCP-ECG codes is a
diagnostic statement of that class, at whatever likelihood (0 stands for "not stated" in PTB-XL). This is the
rule of the PTB-XL benchmark (Strodthoff et al., IEEE JBHI 25 (2021) 1519), and so are subclass, form and
rhythm: the columns diagnostic_subclass, form and rhythm of scp_statements.csv. A code without such a mark has
no label there.
"""

from __future__ import annotations

import ast
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ecggen.io.tables import iter_table
from ecggen.prepare.databases import find_above
from ecggen.prepare.labels import record_info, snomed
from ecggen.prepare.labels.record_info import LabelError, RecordInfo

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
#: Columns of ludb.csv that hold findings.
LUDB_FINDINGS = (
    *("Rhythms", "Electric axis of the heart", "Conduction abnormalities", "Extrasystolies"),
    *("Hypertrophies", "Cardiac pacing", "Ischemia", "Non-specific repolarization abnormalities"),
    "Other states",
)
#: Brugada-HUCA's metadata.csv: (column, value) -> label.
BRUGADA_WORDS: dict[tuple[str, float | None], str] = {
    ("brugada", 0): "no Brugada syndrome",
    ("brugada", 1): "Brugada syndrome",
    ("brugada", 2): "other or atypical",
    ("basal_pattern", 1): "abnormal baseline ECG",
    ("sudden_death", 1): "sudden death",
}
_CACHE_KIB = 16_384


def read_ptbxl(table: Path) -> dict[str, RecordInfo]:
    """File name without folder (00001_lr, 00001_hr) -> RecordInfo. Raises LabelError."""
    place = find_above(table.parent, "scp_statements.csv")
    if place is None:
        raise LabelError(f"{table.name} needs scp_statements.csv beside it: copy it there from the database.")
    statements = {row.get("", "") or row.get("scp_code", ""): row for row in iter_table(place)}
    infos: dict[str, RecordInfo] = {}
    for row in iter_table(table):
        try:
            info = _ptbxl_info(row, statements)
            names = filter(None, (row.get("filename_lr"), row.get("filename_hr")))
            infos |= {Path(name).name: info for name in names}
        except (KeyError, ValueError, SyntaxError, TypeError) as error:
            raise LabelError(
                f"{table.name}, record {row.get('ecg_id', '?')}: cannot read its row "
                f"({type(error).__name__}: {error}); columns patient_id, scp_codes, "
                "filename_lr and filename_hr are needed."
            ) from error
    return infos


def _ptbxl_info(row: Mapping[str, str], statements: Mapping[str, Mapping[str, str]]) -> RecordInfo:
    codes = [str(code) for code in ast.literal_eval(row["scp_codes"])]
    marked = {
        mark: {code for code in codes if record_info.number(statements.get(code, {}).get(mark)) == 1}
        for mark in ("diagnostic", "form", "rhythm")
    }
    superclasses = {statements[code].get("diagnostic_class", "") for code in marked["diagnostic"]}
    subclasses = {statements[code].get("diagnostic_subclass", "") for code in marked["diagnostic"]}
    mapped = snomed.scp_codes()
    axis = snomed.AXIS + (row.get("heart_axis") or "")
    systems = {
        "superclass": [name for name in SUPERCLASSES if name in superclasses],
        "subclass": sorted(subclasses - {""}),
        "form": sorted(marked["form"]),
        "rhythm": sorted(marked["rhythm"]),
        "snomed": sorted({snomed.class_name(mapped[code]) for code in (*codes, axis) if code in mapped}),
    }
    fold = record_info.number(row.get("strat_fold"))
    return RecordInfo(
        patient=f"{record_info.number(row['patient_id']):.0f}",
        statements={name: labels for name, labels in systems.items() if labels},
        system="superclass",
        fold=None if fold is None else int(fold),
        age=record_info.age(record_info.number(row.get("age"))),
        sex={"0": "male", "1": "female"}.get(row.get("sex", "").split(".")[0], ""),
        recorded=record_info.iso(row.get("recording_date", "")),
        unknown=tuple(code for code in codes if code not in statements),
    )


def read_ludb(table: Path) -> dict[str, RecordInfo]:
    """Record number -> RecordInfo; cells end in a line break, each line is a finding. Raises LabelError."""
    infos = {}
    for row in iter_table(table):
        _need(table, row, ("ID", "Rhythms"))
        findings = record_info.words("\n".join(row.get(column, "") for column in LUDB_FINDINGS), "\n")
        years = row.get("Age", "").strip()  # one is ">89"
        infos[row["ID"].strip()] = RecordInfo(
            patient=row["ID"].strip(),
            statements={"dx": findings} if findings else {},
            age=90.0 if years.startswith(">") else record_info.age(record_info.number(years)),
            sex=record_info.sex(row.get("Sex", "")),
        )
    return infos


def read_brugada(table: Path) -> dict[str, RecordInfo]:
    """Patient = record -> RecordInfo. Raises LabelError for a missing column or a value that is not known."""
    infos = {}
    for row in iter_table(table):
        _need(table, row, ("patient_id", "basal_pattern", "sudden_death", "brugada"))
        values = [
            (name, record_info.number(row[name])) for name in ("brugada", "basal_pattern", "sudden_death")
        ]
        for column, value in values:
            if value and (column, value) not in BRUGADA_WORDS:
                raise LabelError(
                    f"{table.name}, patient {row['patient_id']}: {column} is {row[column]!r}: 0, 1 or, for "
                    "brugada, 2 is known."
                )
        labels = sorted(BRUGADA_WORDS[pair] for pair in values if pair in BRUGADA_WORDS)
        name = row["patient_id"].strip()
        infos[name] = RecordInfo(patient=name, statements={"dx": labels} if labels else {})
    return infos


class Studies:
    """Studies of MIMIC-IV-ECG, of the wanted ones alone, in a table on disk that is gone with the process.

    Times are in record_list.csv, the lines of the machine's report in machine_measurements.csv beside it;
    each line is one label, without its full stop. Without that file there are no labels. Raises LabelError.
    """

    def __init__(self, table: Path, wanted: Iterable[str]) -> None:
        # The empty name is a temporary file of SQLite's own, which nobody else sees.
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._table.execute("PRAGMA journal_mode = OFF")
        columns = "study TEXT PRIMARY KEY, patient TEXT, recorded TEXT, labels TEXT"
        self._table.execute(f"CREATE TABLE studies ({columns}) WITHOUT ROWID")
        self._write("INSERT OR IGNORE INTO studies (study) VALUES (?)", ((study,) for study in wanted))
        # An update passes over studies that are not wanted.
        patients = "UPDATE studies SET patient = ?, recorded = ? WHERE study = ?"
        self._write(patients, _mimic_patients(table))
        if reports := find_above(table.parent, "machine_measurements.csv"):
            self._write("UPDATE studies SET labels = ? WHERE study = ?", _mimic_reports(reports))

    def get(self, study: str) -> RecordInfo | None:
        """What is known of a study; None for one that is not wanted, or not in the table."""
        query = "SELECT patient, recorded, labels FROM studies WHERE study = ? AND patient NOT NULL"
        row = self._table.execute(query, (study,)).fetchone()
        if row is None:
            return None
        statements = {"dx": row[2].split("\n")} if row[2] else {}
        return RecordInfo(patient=row[0], recorded=row[1], statements=statements)

    def _write(self, statement: str, rows: Iterable[tuple[str, ...]]) -> None:
        self._table.execute("BEGIN")
        self._table.executemany(statement, rows)
        self._table.execute("COMMIT")


def _mimic_patients(table: Path) -> Iterator[tuple[str, str, str]]:
    for row in iter_table(table):
        _need(table, row, ("subject_id", "study_id", "path"))
        time = record_info.iso(row.get("ecg_time", ""))
        yield f"p{row['subject_id'].strip()}", time, row["study_id"].strip()


def _mimic_reports(table: Path) -> Iterator[tuple[str, str]]:
    for row in iter_table(table):
        _need(table, row, ("study_id", "report_0"))
        lines = (row.get(f"report_{number}", "") for number in range(18))
        labels = {record_info.clean(line).rstrip(".") for line in lines} - {""}
        yield "\n".join(sorted(labels)), row["study_id"].strip()


def _need(table: Path, row: Mapping[str, str], columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in row]
    if missing:
        raise LabelError(
            f"{table.name} lacks the column {', '.join(missing)}, or a row of it is cut short: copy it again "
            "from the database."
        )
