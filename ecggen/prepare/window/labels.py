"""Which label system a window folder has, what each window is labelled with, and how many have each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.annotations import Beat, present, within
from ecggen.prepare.labels.record_info import LABEL_SYSTEMS, LabelError
from ecggen.prepare.window.plan import ByRecord
from ecggen.prepare.window.splits import SPLITS
from ecggen.utils.files import iter_csv

#: Tried in this order where databases are combined that have different systems of their own.
SHARED_ORDER = ("snomed", "superclass", "subclass", "beats", "dx", "rhythm", "form")
BEATS_FILE = "beats.csv"
BEAT_COLUMNS = ("window", "sample", "symbol", "class")


class WindowLabels:
    """The labels of windows in one system; records are asked about in the order of records.csv."""

    def __init__(self, records: Path, wanted: str, *, in_order: bool = True) -> None:
        """records: folder of records.csv; wanted: window.labels; in_order: beats.csv has the order of
        records.csv. Raises LabelError."""
        first = next(iter_csv(records / "records.csv"), None)
        # A table without the columns (made by hand) has the labels it has.
        self.plain = first is None or "all_labels" not in first
        self.system = "" if self.plain else choose_system(iter_csv(records / "records.csv"), wanted)
        self.has_beats = next(_beat_rows(records), None) is not None
        self._beats = ByRecord(records / BEATS_FILE, _beat, in_order=in_order)

    def beats_of(self, record: str) -> list[Beat]:
        """The beats of a record, in order of time; each record is asked for once."""
        return self._beats.of(record)

    def of(
        self, record: Mapping[str, str], beats: Sequence[Beat], start_s: float, stop_s: float
    ) -> list[str]:
        """Labels of the window start_s <= t < stop_s: classes of the beats in it, or those of the record."""
        if self.plain:
            return [label for label in record["labels"].split(";") if label]
        if self.system == "beats":
            return present(beat.symbol for beat in within(beats, start_s, stop_s))
        return _in_system(record, self.system)


def window_beats(
    window: int, beats: Sequence[Beat], start_s: float, length: int, fs: float
) -> list[dict[str, Any]]:
    """Rows of windows/beats.csv: where the beats of one window are, in samples at fs in Hz.

    beats: of the whole record, in order of time; length: samples of a window.
    """
    return [
        {
            "window": window,
            "sample": min(length - 1, round((beat.time_s - start_s) * fs)),
            "symbol": beat.symbol,
            "class": beat.aami,
        }
        for beat in within(beats, start_s, start_s + length / fs)
    ]


def choose_system(table: Iterable[Mapping[str, str]], wanted: str) -> str:
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


class LabelCounts:
    """How many patients, records and windows have each label, by split. A bit per label and patient."""

    def __init__(self, patients: int) -> None:
        """patients: how many there are; they are numbered from 0."""
        self._patients, self._seen = patients, {}  # type: int, dict[str, NDArray[np.uint8]]
        self._records: dict[str, Counter[str]] = {}
        self._windows: dict[str, Counter[str]] = {}
        self._split_of: dict[str, NDArray[np.uint8]] = {}

    def add(self, patient: int, split: str, windows: Sequence[Sequence[str]]) -> None:
        """One record: the number of its patient, its split, the labels of each of its windows."""
        for own in windows:
            for label in own:
                self._windows.setdefault(label, Counter())[split] += 1
        bit = np.uint8(1 << patient % 8)
        for label in set().union(*windows):
            self._records.setdefault(label, Counter())[split] += 1
            self._bits(self._seen, label)[patient // 8] |= bit
            self._bits(self._split_of, split)[patient // 8] |= bit

    def _bits(self, of: dict[str, NDArray[np.uint8]], name: str) -> NDArray[np.uint8]:
        if name not in of:
            of[name] = np.zeros(-(-self._patients // 8), dtype=np.uint8)
        return of[name]

    def result(self) -> dict[str, dict[str, dict[str, int]]]:
        """{"patients", "records", "windows"} -> label -> split -> how many have it."""
        labels = sorted(self._windows)
        patients = {
            label: {
                split: int(np.unpackbits(self._seen[label] & self._bits(self._split_of, split)).sum())
                for split in SPLITS
            }
            for label in labels
        }
        return {
            "patients": patients,
            "records": {label: {s: self._records[label][s] for s in SPLITS} for label in labels},
            "windows": {label: {s: self._windows[label][s] for s in SPLITS} for label in labels},
        }


def _in_system(row: Mapping[str, str], system: str) -> list[str]:
    parts = (entry.partition("/") for entry in row["all_labels"].split(";"))
    return [label for name, _, label in parts if name == system]


def _listed(there: Mapping[str, set[str]]) -> str:
    return "; ".join(
        f"{name} has {', '.join(sorted(found)) or 'no labels'}" for name, found in sorted(there.items())
    )


def _beat(row: Mapping[str, str]) -> Beat:
    return Beat(float(row["time_s"]), row["symbol"])


def _beat_rows(records: Path) -> Iterator[Mapping[str, str]]:
    path = records / BEATS_FILE
    return iter_csv(path) if path.is_file() else iter(())
