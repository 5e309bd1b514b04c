"""Who and what a record is: patient, fold, age, sex and diagnostic labels.

PTB-XL: `ptbxl_database.csv` and `scp_statements.csv`, in the records' folder or up to two folders above.
Labels are the five diagnostic superclasses (NORM, MI, STTC, CD, HYP): a record has a class if any of its SCP
codes is a diagnostic statement of that class, at whatever likelihood (0 stands for "not stated" in PTB-XL).
This is the rule of the PTB-XL benchmark (Strodthoff et al., IEEE JBHI 25 (2021) 1519).

Otherwise the header's comments: `#Dx:` (names or SNOMED CT codes, comma separated), `#Age:`, `#Sex:`,
`#Patient:`. Without a patient comment, a folder called patient001 or p10001725 names the patient (PTBDB,
MIMIC-IV-ECG); else each record counts as a patient of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ecggen.utils.errors import EcggenError
from ecggen.utils.files import read_csv

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
_PATIENT_FOLDER = re.compile(r"(?:patient|p)[-_]?\d+", re.IGNORECASE)
_NO_LABEL = {"", "unknown", "n/a", "na", "nan", "none"}


class LabelError(EcggenError):
    """A label file that cannot be used."""


@dataclass(frozen=True)
class RecordInfo:
    """age in years (90 = older than 89), None = not stated; sex "male", "female" or ""; fold None = none.

    recorded: date or time of the recording, ISO 8601, "" = not stated.
    """

    patient: str
    labels: list[str] = field(default_factory=list)
    fold: int | None = None
    age: float | None = None
    sex: str = ""
    recorded: str = ""


class Labels:
    """Looks up RecordInfo; reads the database's table once."""

    def __init__(self, root: Path) -> None:
        """root: the folder that record names are relative to. Raises LabelError for a broken PTB-XL table."""
        self.root = Path(root)
        table = _find_above(self.root, "ptbxl_database.csv")
        self.ptbxl = read_ptbxl(table) if table else {}

    def info(self, record: str, comments: Iterable[str]) -> RecordInfo:
        """record: name relative to root, without suffix; comments: the header's comment lines."""
        found = self.ptbxl.get(Path(record).name)
        return found if found is not None else header_info(record, comments, self.root.name)


def read_ptbxl(table: Path) -> dict[str, RecordInfo]:
    """File name without folder (00001_lr, 00001_hr) -> RecordInfo. Raises LabelError."""
    statements = _find_above(table.parent, "scp_statements.csv")
    if statements is None:
        raise LabelError(f"{table.name} needs scp_statements.csv beside it: copy it there from the database.")
    superclass = {}
    for row in read_csv(statements):
        code, name = row.get("", "") or row.get("scp_code", ""), row.get("diagnostic_class", "")
        if name and _number(row.get("diagnostic", "")) == 1:
            superclass[code] = name
    out: dict[str, RecordInfo] = {}
    for row in read_csv(table):
        try:
            codes = ast.literal_eval(row["scp_codes"])
            classes = {superclass[code] for code in codes if code in superclass}
            fold, age = _number(row.get("strat_fold", "")), _number(row.get("age", ""))
            info = RecordInfo(
                patient=f"{_number(row['patient_id']):.0f}",
                labels=[name for name in SUPERCLASSES if name in classes],
                fold=None if fold is None else int(fold),
                age=_age(age),
                sex={"0": "male", "1": "female"}.get(row.get("sex", "").split(".")[0], ""),
                recorded=_iso(row.get("recording_date", "")),
            )
            names = [row[column] for column in ("filename_lr", "filename_hr") if row.get(column)]
        except (KeyError, ValueError, SyntaxError, TypeError) as error:
            raise LabelError(
                f"{table.name}, record {row.get('ecg_id', '?')}: cannot read its row "
                f"({type(error).__name__}: {error}); columns patient_id, scp_codes, "
                "filename_lr and filename_hr are needed."
            ) from error
        out |= {Path(name).name: info for name in names}
    return out


def header_info(record: str, comments: Iterable[str], root_name: str = "") -> RecordInfo:
    """RecordInfo from `Key: value` comment lines; keys in any case, with or without <>."""
    values: dict[str, str] = {}
    for line in comments:
        key, sep, value = line.strip().lstrip("#").partition(":")
        if sep:
            values.setdefault(key.strip().strip("<>").lower(), value.strip())
    parts = (root_name, *Path(record).parts[:-1])
    folders = [part for part in reversed(parts) if _PATIENT_FOLDER.fullmatch(part)]
    patient = values.get("patient", "")
    if patient.lower() in _NO_LABEL:
        patient = folders[0] if folders else record
    labels = [" ".join(part.replace(";", " ").split()) for part in values.get("dx", "").split(",")]
    sex = values.get("sex", "")[:1].lower()
    return RecordInfo(
        patient=patient,
        labels=sorted({label for label in labels if label.lower() not in _NO_LABEL}),
        age=_age(_number(values.get("age", ""))),
        sex={"m": "male", "f": "female"}.get(sex, ""),
        recorded=_iso(values.get("recorded", "")),
    )


def _iso(text: str) -> str:
    """The text if it is a date or time in ISO 8601, else ""."""
    try:
        return datetime.fromisoformat(text.strip()).isoformat()
    except ValueError:
        return ""


def _age(value: float | None) -> float | None:
    # PTB-XL writes 300 for "older than 89", so that nobody can be recognised by age.
    if value is None or value < 0:
        return None
    return min(value, 90.0)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value == value else None


def _find_above(folder: Path, name: str) -> Path | None:
    for place in (folder, *list(folder.resolve().parents)[:2]):
        if (place / name).is_file():
            return place / name
    return None
