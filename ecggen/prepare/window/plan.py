"""Which windows a record is cut into, and what is counted of all records before any window is written."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.flags import UNUSABLE, Span, kinds
from ecggen.leads import LEADS
from ecggen.utils.config import DataConfig, WindowConfig
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import iter_csv

Row = Mapping[str, str]


class WindowError(EcggenError):
    """Records from which no windows can be cut."""


@dataclass(frozen=True)
class Window:
    """A window to be written: number within its record, first sample, observed leads [12], flags."""

    number: int
    start: int
    observed: NDArray[np.bool_]
    flags: Sequence[str]


@dataclass(frozen=True)
class RecordWindows:
    """A row of records.csv, its windows, and (window, reason) of those that are left out."""

    row: Row
    windows: list[Window]
    rejected: list[tuple[int | str, str]]


class RecordRows:
    """Rows of a table that has some for each record, in the order of records.csv, read along with it."""

    def __init__(self, path: Path) -> None:
        """path: of a table with a column `record`; a missing file has no rows."""
        self.path, self.exists = path, path.is_file()
        rows = iter_csv(path) if self.exists else iter(())
        self._groups = groupby(rows, lambda row: row["record"])
        self._next = next(self._groups, None)

    def of(self, record: str) -> list[Row]:
        """The rows of a record; to be asked for in the order of records.csv."""
        if self._next is None or self._next[0] != record:
            return []
        rows: list[Row] = list(self._next[1])
        self._next = next(self._groups, None)
        return rows

    def close(self) -> None:
        """Raises WindowError if rows are left: the table names other records, or has another order."""
        if self._next is not None:
            raise WindowError(
                f"{self.path} lists record {self._next[0]!r} where records.csv does not: run the preprocess "
                "stage again."
            )


def window_starts(n: int, length: int, stride: int) -> list[int]:
    """First samples of the windows of a record of n samples: every stride, the last one at the very end.

    A record that is shorter than one window has none.
    """
    if n < length:
        return []
    starts = list(range(0, n - length + 1, stride))
    return starts if starts[-1] == n - length else [*starts, n - length]


def record_windows(records: Path, data: DataConfig, config: WindowConfig) -> Iterator[RecordWindows]:
    """The windows of each record of records/records.csv, in its order. Raises WindowError."""
    spans = RecordRows(records / "spans.csv")
    for row in iter_csv(records / "records.csv"):
        in_record = [
            Span(span["flag"], span["lead"], float(span["start_s"]), float(span["stop_s"]))
            for span in spans.of(row["record"])
        ]
        yield _cut(row, in_record, data, config)
    spans.close()


def _cut(row: Row, spans: Sequence[Span], data: DataConfig, config: WindowConfig) -> RecordWindows:
    record = RecordWindows(row, [], [])
    starts = window_starts(int(row["n_samples"]), data.time_len, config.stride)
    if not starts:
        record.rejected.append(("", f"shorter than one window of {data.time_len} samples"))
    observed = np.array([bit == "1" for bit in row["observed"]])
    lacking = {LEADS[i] for i in np.flatnonzero(~observed)}
    # Flags of leads that the whole record lacks hold in each of its windows.
    record_flags = {flag for flag in row["reasons"].split(";") if flag.partition(":")[2] in lacking}
    for number, start in enumerate(starts):
        begin_s, end_s = start / data.fs, (start + data.time_len) / data.fs
        here = [span for span in spans if span.start_s < end_s and span.stop_s > begin_s]
        usable = observed.copy()
        usable[[LEADS.index(span.lead) for span in here if span.flag in UNUSABLE]] = False
        flags = sorted(record_flags | {span.word for span in here})
        excluded = [flag for flag in flags if {flag, flag.partition(":")[0]} & set(config.exclude)]
        if not usable.any():
            excluded = ["no usable lead"]
        if excluded:
            record.rejected.append((number, ";".join(excluded)))
        else:
            record.windows.append(Window(number, start, usable, flags))
    return record


class Plan:
    """What is known once all records were cut. m records of which a window is kept, in their order.

    The counters say how often each flag, or each whole reason, appears.
    """

    def __init__(self, records: Iterable[RecordWindows]) -> None:
        self.patients: list[str] = []  # [m]
        self.folds: list[str] = []  # [m] a number, the name of a split, or empty
        self.databases: list[str] = []  # [m]
        self.windows = array("i")  # [m] how many
        self.records = 0  # all of them
        self.rejected: Counter[str] = Counter()  # windows by reason
        self.rejected_in: Counter[str] = Counter()  # by database
        self.flags_rejected: Counter[str] = Counter()
        self.flags_kept: Counter[str] = Counter()
        columns = {"patient": self.patients, "fold": self.folds, "database": self.databases}
        texts: dict[str, str] = {}  # a text that comes again is held once
        for record in records:
            self.records += 1
            for _, reason in record.rejected:
                self.rejected[reason] += 1
                self.rejected_in[record.row["database"]] += 1
                self.flags_rejected.update(kinds(reason.split(";")))
            for window in record.windows:
                self.flags_kept.update(kinds(window.flags))
            if record.windows:
                self.windows.append(len(record.windows))
                for name, column in columns.items():
                    column.append(texts.setdefault(record.row[name], record.row[name]))
