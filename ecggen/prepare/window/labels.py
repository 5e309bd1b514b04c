"""The label system of a window folder, and how many patients, records and windows have each label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ecggen.prepare.labels.record_info import LABEL_SYSTEMS, LabelError
from ecggen.utils.config import SPLITS

#: Tried in this order where databases are combined whose own systems differ.
SHARED_ORDER = ("snomed", "superclass", "subclass", "beats", "dx", "rhythm", "form")


def choose_system(table: Iterable[Mapping[str, str]], wanted: str) -> str:
    """The label system of a window folder; table: rows of records.csv, wanted: window.labels.

    auto: the databases' own where it is the same, else one that all of those with labels have. Raises
    LabelError, with the systems there are, where there is none, or where no record has labels in the wanted.
    """
    defaults: set[str] = set()
    systems: dict[str, set[str]] = {}  # database -> those that its records have labels in
    for row in table:
        defaults.add(row["label_system"])
        entries = filter(None, row["all_labels"].split(";"))
        systems.setdefault(row["database"], set()).update(entry.partition("/")[0] for entry in entries)
    listed = "; ".join(
        f"{name} has {', '.join(sorted(there)) or 'no labels'}" for name, there in sorted(systems.items())
    )
    if wanted != "auto":
        if any(wanted in there for there in systems.values()):
            return wanted
        raise LabelError(
            f"window.labels is {wanted} ({LABEL_SYSTEMS[wanted]}), which no record has: {listed}."
        )
    if len(defaults) == 1:
        return defaults.pop()
    labelled = [there for there in systems.values() if there]
    if not labelled:
        return "dx"
    for name in SHARED_ORDER:
        if all(name in there for there in labelled):
            return name
    raise LabelError(
        f"The databases have no label system in common: {listed}. Set window.labels to one of these: "
        "records without such labels then count as unlabelled."
    )


def record_labels(record: Mapping[str, str], system: str) -> list[str]:
    """Labels in one system of a row of records.csv."""
    entries = (entry.partition("/") for entry in record["all_labels"].split(";"))
    return [label for name, _, label in entries if name == system]


class SplitCounts:
    """How many patients, records and windows of each split have each label, or are of each database."""

    def __init__(self, split_of: Mapping[str, str]) -> None:
        """split_of: patient -> split."""
        self._split_of = split_of
        self._number = {patient: number for number, patient in enumerate(split_of)}
        self._has: dict[str, NDArray[np.bool_]] = {}  # label -> [patients]
        self._records: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._windows: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, patient: str, windows: Sequence[Sequence[str]]) -> None:
        """One record of a patient: the labels of each of its windows."""
        split = self._split_of[patient]
        for label in (label for labels in windows for label in labels):
            self._windows[label][split] += 1
        for label in set().union(*windows):
            self._records[label][split] += 1
            self._has.setdefault(label, np.zeros(len(self._number), dtype=bool))[self._number[patient]] = True

    def result(self) -> dict[str, dict[str, dict[str, int]]]:
        """{"patients", "records", "windows"} -> label -> split -> how many have it."""
        splits = np.array(list(self._split_of.values()))
        patients = {label: Counter(splits[has].tolist()) for label, has in self._has.items()}
        counts = {"patients": patients, "records": self._records, "windows": self._windows}
        return {
            kind: {label: {split: of[label][split] for split in SPLITS} for label in sorted(self._windows)}
            for kind, of in counts.items()
        }
