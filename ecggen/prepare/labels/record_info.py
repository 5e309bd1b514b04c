"""Who and what a record is, and how such facts are read from text. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ecggen.prepare.labels import snomed
from ecggen.utils.errors import EcggenError

NO_LABEL = {"", "unknown", "n/a", "na", "nan", "none", "no"}
#: What window.labels may name, in words. "dx" is what the source says itself, in its own words or codes.
LABEL_SYSTEMS: Mapping[str, str] = {
    "superclass": "PTB-XL's five diagnostic superclasses",
    "subclass": "PTB-XL's diagnostic subclasses",
    "form": "PTB-XL's form statements (SCP-ECG)",
    "rhythm": "PTB-XL's rhythm statements (SCP-ECG)",
    "snomed": "SNOMED CT, as the PhysioNet/CinC Challenges abbreviate it",
    "beats": "beat classes of ANSI/AAMI EC57 present in a window",
    "dx": "the source's own words or codes",
}


class LabelError(EcggenError):
    """A label file that cannot be used, or labels that a data set does not have."""


@dataclass(frozen=True)
class RecordInfo:
    """What is known of one record.

    patients_from: what names the patient: "table", "header" (or the folder), "pattern" (data.patient), or
    "record": nothing, so the record counts as a patient of its own. statements: label system -> labels;
    system: the one that window.labels=auto takes; fold None = none; split "train", "validation" or "test"
    where the source says so, else ""; age in years (90 = older than 89), None = not stated; sex "male",
    "female" or ""; recorded: date or time of the recording, ISO 8601 without a time zone, "" = not stated;
    unknown: labels that their system's table lacks.
    """

    patient: str
    patients_from: str = "table"
    statements: Mapping[str, list[str]] = field(default_factory=dict)
    system: str = "dx"
    fold: int | None = None
    split: str = ""
    age: float | None = None
    sex: str = ""
    recorded: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Labels of the record's own system."""
        return self.statements.get(self.system, [])

    @property
    def all_labels(self) -> list[str]:
        """Every label as "system/label"."""
        return [f"{name}/{label}" for name, labels in self.statements.items() for label in labels]


def clean(label: str) -> str:
    """A label in one line, without the character that separates labels in a table."""
    return " ".join(label.replace(";", " ").split())


def words(text: str, separators: str = ",;") -> list[str]:
    """The labels in a text, cleaned, sorted, each once; words for "none" are none.

    SNOMED CT codes may be separated by blanks as well, and be written as numbers (426783006.0).
    """
    labels: set[str] = set()
    for part in re.split(f"[{separators}]", text):
        codes = [snomed.code(word) for word in part.split()]
        labels.update(codes if codes and all(codes) else [clean(part)])
    return sorted(label for label in labels if label.lower() not in NO_LABEL)


def iso(text: str) -> str:
    """The text if it is a date or time in ISO 8601, at the clock of the place (no time zone), else ""."""
    text = re.sub(r"[zZ]$", "+00:00", text.strip())
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None).isoformat()
    except ValueError:
        return ""


def age(value: float | None) -> float | None:
    """Years; 90 stands for older than 89, so that nobody can be recognised (PTB-XL writes 300)."""
    return None if value is None or value < 0 else min(value, 90.0)


def number(text: str | None) -> float | None:
    """The number in a text, None for anything else and for NaN."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value == value else None


def sex(text: str) -> str:
    """ "male" or "female" from a word or letter in any case, else ""."""
    return {"m": "male", "f": "female"}.get(text.strip()[:1].lower(), "")
