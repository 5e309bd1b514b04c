"""Which label system a window folder has, what each window is labelled with, and how many have each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecggen.prepare.known_databases.database import LABEL_SYSTEMS
from ecggen.prepare.label_systems.beats import Beat, present, within
from ecggen.prepare.label_systems.record_info import LabelError
from ecggen.prepare.splits import SPLITS
from ecggen.utils.files import iter_csv

#: Tried in this order where databases are combined that have different systems of their own.
SHARED_ORDER = ("snomed", "superclass", "subclass", "beats", "dx", "rhythm", "form")
BEAT_COLUMNS = ("window", "sample", "symbol", "class")


class WindowLabels:
    """The labels of windows in one system."""

    def __init__(self, table: Sequence[Mapping[str, str]], records: Path, wanted: str) -> None:
        """table: rows of records.csv; records: its folder; wanted: window.labels. Raises LabelError."""
        # A table without the columns (made by hand) has the labels it has.
        self.plain = not table or "all_labels" not in table[0]
        self.system = "" if self.plain else choose_system(table, wanted)
        self._of_record = {} if self.plain else {row["record"]: _in_system(row, self.system) for row in table}
        self.beats = _read_beats(records / "beats.csv")

    def of(self, record: Mapping[str, str], start_s: float, stop_s: float) -> list[str]:
        """Labels of the window start_s <= t < stop_s: classes of the beats in it, or those of the record."""
        if self.plain:
            return [label for label in record["labels"].split(";") if label]
        if self.system == "beats":
            inside = within(self.beats.get(record["record"], ()), start_s, stop_s)
            return present(beat.symbol for beat in inside)
        return self._of_record[record["record"]]

    def beat_rows(
        self, window: int, record: str, start_s: float, length: int, fs: float
    ) -> list[dict[str, Any]]:
        """Rows of windows/beats.csv: where the beats of one window are, in samples at fs in Hz."""
        inside = within(self.beats.get(record, ()), start_s, start_s + length / fs)
        return [
            {
                "window": window,
                "sample": min(length - 1, round((beat.time_s - start_s) * fs)),
                "symbol": beat.symbol,
                "class": beat.aami,
            }
            for beat in inside
        ]


def choose_system(table: Sequence[Mapping[str, str]], wanted: str) -> str:
    """The label system of a window folder.

    auto: the databases' own where it is the same, else one that all of those with labels have. Raises
    LabelError, with the systems there are, where there is none, or where no record has labels in the wanted.
    """
    own: dict[str, set[str]] = {}
    there: dict[str, set[str]] = {}
    for row in table:
        own.setdefault(row["database"], set()).add(row["label_system"])
        found = there.setdefault(row["database"], set())
        found.update(entry.partition("/")[0] for entry in row["all_labels"].split(";") if entry)
    if wanted != "auto":
        if any(wanted in found for found in there.values()):
            return wanted
        raise LabelError(
            f"window.labels is {wanted} ({LABEL_SYSTEMS[wanted]}), which no record has: {_listed(there)}."
        )
    defaults = set().union(*own.values())
    if len(defaults) == 1:
        return defaults.pop()
    labelled = [found for found in there.values() if found]
    shared = set.intersection(*labelled) if labelled else set()
    for name in SHARED_ORDER:
        if name in shared:
            return name
    if not labelled:
        return "dx"
    raise LabelError(
        f"The databases have no label system in common: {_listed(there)}. Set window.labels to one of these: "
        "records without such labels then count as unlabelled."
    )


def count_labels(
    windows: Iterable[tuple[str, str, str, Sequence[str]]],
) -> dict[str, dict[str, dict[str, int]]]:
    """{"patients", "records", "windows"} -> label -> split -> how many have it.

    windows: (patient, record, split, labels) of each.
    """
    patients: dict[str, dict[str, set[str]]] = {}
    records: dict[str, dict[str, set[str]]] = {}
    counts: dict[str, Counter[str]] = {}
    for patient, record, split, labels in windows:
        for label in labels:
            patients.setdefault(label, {name: set() for name in SPLITS})[split].add(patient)
            records.setdefault(label, {name: set() for name in SPLITS})[split].add(record)
            counts.setdefault(label, Counter())[split] += 1
    return {
        "patients": {k: {s: len(patients[k][s]) for s in SPLITS} for k in sorted(patients)},
        "records": {k: {s: len(records[k][s]) for s in SPLITS} for k in sorted(records)},
        "windows": {k: {s: counts[k][s] for s in SPLITS} for k in sorted(counts)},
    }


def _in_system(row: Mapping[str, str], system: str) -> list[str]:
    parts = (entry.partition("/") for entry in row["all_labels"].split(";"))
    return [label for name, _, label in parts if name == system]


def _listed(there: Mapping[str, set[str]]) -> str:
    return "; ".join(
        f"{name} has {', '.join(sorted(found)) or 'no labels'}" for name, found in sorted(there.items())
    )


def _read_beats(path: Path) -> dict[str, list[Beat]]:
    found: dict[str, list[Beat]] = {}
    if path.is_file():
        for row in iter_csv(path):
            found.setdefault(row["record"], []).append(Beat(float(row["time_s"]), row["symbol"]))
    return found
