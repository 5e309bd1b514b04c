"""PTB-XL's labels: `ptbxl_database.csv` and `scp_statements.csv`.

Superclass: a record has one of NORM, MI, STTC, CD, HYP if any of its SCP-ECG codes is a diagnostic statement
of that class, at whatever likelihood (0 stands for "not stated" in PTB-XL). This is the rule of the PTB-XL
benchmark (Strodthoff et al., IEEE JBHI 25 (2021) 1519), and so are subclass, form and rhythm: the columns
diagnostic_subclass, form and rhythm of scp_statements.csv. A code without such a mark has no label there.
Standard library only.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from ecggen.prepare.labels import record_info, snomed
from ecggen.prepare.labels.databases import find_above
from ecggen.prepare.labels.record_info import LabelError, RecordInfo
from ecggen.utils.files import iter_csv, read_csv

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")


@dataclass(frozen=True)
class _Statement:
    superclass: str
    subclass: str
    form: bool
    rhythm: bool


def read_ptbxl(table: Path) -> dict[str, RecordInfo]:
    """File name without folder (00001_lr, 00001_hr) -> RecordInfo. Raises LabelError."""
    place = find_above(table.parent, "scp_statements.csv")
    if place is None:
        raise LabelError(f"{table.name} needs scp_statements.csv beside it: copy it there from the database.")
    known = _read_statements(place)
    out: dict[str, RecordInfo] = {}
    for row in iter_csv(table):
        try:
            info = _row_info(row, known)
            names = [row[column] for column in ("filename_lr", "filename_hr") if row.get(column)]
        except (KeyError, ValueError, SyntaxError, TypeError) as error:
            raise LabelError(
                f"{table.name}, record {row.get('ecg_id', '?')}: cannot read its row "
                f"({type(error).__name__}: {error}); columns patient_id, scp_codes, "
                "filename_lr and filename_hr are needed."
            ) from error
        out |= {Path(name).name: info for name in names}
    return out


def _read_statements(place: Path) -> dict[str, _Statement]:
    found = {}
    for row in read_csv(place):
        diagnostic = record_info.number(row.get("diagnostic", "")) == 1
        found[row.get("", "") or row.get("scp_code", "")] = _Statement(
            superclass=row.get("diagnostic_class", "") if diagnostic else "",
            subclass=(row.get("diagnostic_subclass") or "") if diagnostic else "",
            form=record_info.number(row.get("form", "")) == 1,
            rhythm=record_info.number(row.get("rhythm", "")) == 1,
        )
    return found


def _row_info(row: dict[str, str], known: dict[str, _Statement]) -> RecordInfo:
    codes = [str(code) for code in ast.literal_eval(row["scp_codes"])]
    statements = [known[code] for code in codes if code in known]
    superclasses = {statement.superclass for statement in statements}
    mapped = snomed.scp_codes()
    axis = snomed.AXIS + (row.get("heart_axis") or "")
    systems = {
        "superclass": [name for name in SUPERCLASSES if name in superclasses],
        "subclass": sorted({statement.subclass for statement in statements} - {""}),
        "form": sorted(code for code in codes if code in known and known[code].form),
        "rhythm": sorted(code for code in codes if code in known and known[code].rhythm),
        "snomed": sorted({snomed.class_name(mapped[code]) for code in (*codes, axis) if code in mapped}),
    }
    fold = record_info.number(row.get("strat_fold", ""))
    return RecordInfo(
        patient=f"{record_info.number(row['patient_id']):.0f}",
        statements={name: labels for name, labels in systems.items() if labels},
        system="superclass",
        fold=None if fold is None else int(fold),
        age=record_info.age(record_info.number(row.get("age", ""))),
        sex={"0": "male", "1": "female"}.get(row.get("sex", "").split(".")[0], ""),
        recorded=record_info.iso(row.get("recording_date", "")),
        unknown=tuple(code for code in codes if code not in known),
    )
