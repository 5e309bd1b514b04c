"""Which windows a record is cut into, and what is known of the whole data set before any is written.

Tables are read row by row, several times if need be; nothing is kept of a record but a few numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.flags import UNUSABLE, Span, kinds
from ecggen.leads import LEADS
from ecggen.utils.config import DataConfig, WindowConfig
from ecggen.utils.files import iter_csv
from ecggen.utils.words import Words, WordsWriter, smallest

Row = Mapping[str, str]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Cut:
    """One window to be: its number within the record, first sample, observed leads [12], flags."""

    number: int
    start: int
    observed: NDArray[np.bool_]
    words: Sequence[str]


@dataclass(frozen=True)
class CutRecord:
    """A row of records.csv, the windows that are kept of it, and (window, reason) of those that are not."""

    row: Row
    cuts: list[Cut]
    rejected: list[tuple[int | str, str]]

    @property
    def database(self) -> str:
        """Its database, empty = not said."""
        return self.row.get("database", "")


class ByRecord(Generic[Made]):
    """What a table says of each record, for records that are asked for in the order of records.csv.

    Usually the table is in that order as well, and is read along; otherwise it has to be held.
    """

    def __init__(self, path: Path, make: Callable[[Row], Made], *, in_order: bool = True) -> None:
        """path: of a table with a column `record`, or of none; make: what a row becomes."""
        rows: Iterator[Row] = iter_csv(path) if path.is_file() else iter(())
        self._groups = (
            (name, [make(row) for row in own]) for name, own in groupby(rows, lambda row: row["record"])
        )
        self._held: dict[str, list[Made]] | None = None
        if not in_order:
            self._held = {}
            for name, made in self._groups:
                self._held.setdefault(name, []).extend(made)
        self._ahead = next(self._groups, None)

    def of(self, record: str) -> list[Made]:
        """What the table says of this record; each is asked for once."""
        if self._held is not None:
            return self._held.get(record, [])
        if self._ahead is None or self._ahead[0] != record:
            return []
        made = self._ahead[1]
        self._ahead = next(self._groups, None)
        return made

    @property
    def over(self) -> bool:
        """Whether nothing is left: else the table has another order than the records asked for."""
        return self._ahead is None


def make_span(row: Row) -> Span:
    """A row of spans.csv."""
    return Span(row["flag"], row["lead"], float(row["start_s"]), float(row["stop_s"]))


def window_starts(n: int, length: int, stride: int) -> list[int]:
    """First samples of the windows of a record of n samples: every stride, the last one at the very end.

    A record that is shorter than one window has none.
    """
    if n < length:
        return []
    starts = list(range(0, n - length + 1, stride))
    return starts if starts[-1] == n - length else [*starts, n - length]


def cut_records(
    records: Path, data: DataConfig, rules: WindowConfig, *, in_order: bool
) -> Iterator[CutRecord]:
    """Each record of records/records.csv, cut. in_order: spans.csv has the order of records.csv."""
    spans = ByRecord(records / "spans.csv", make_span, in_order=in_order)
    for row in iter_csv(records / "records.csv"):
        yield _cut_record(row, spans.of(row["record"]), data, rules)


def _cut_record(row: Row, spans: Sequence[Span], data: DataConfig, rules: WindowConfig) -> CutRecord:
    made = CutRecord(row, [], [])
    starts = window_starts(int(row["n_samples"]), data.time_len, rules.stride)
    if not starts:
        made.rejected.append(("", f"shorter than one window of {data.time_len} samples"))
    observed = np.array([bit == "1" for bit in row["observed"]])
    # Flags of leads that the whole record lacks hold in each of its windows.
    lasting = set()
    for word in row["reasons"].split(";"):
        lead = word.partition(":")[2]
        if lead in LEADS and not observed[LEADS.index(lead)]:
            lasting.add(word)
    for number, start in enumerate(starts):
        cut = _cut(number, start, observed, lasting, spans, data)
        barred = [w for w in cut.words if w in rules.exclude or w.split(":")[0] in rules.exclude]
        if not cut.observed.any():
            barred = ["no usable lead"]
        if barred:
            made.rejected.append((number, ";".join(barred)))
        else:
            made.cuts.append(cut)
    return made


def _cut(
    number: int,
    start: int,
    observed: NDArray[np.bool_],
    lasting: set[str],
    spans: Sequence[Span],
    data: DataConfig,
) -> Cut:
    """What holds within one window: leads that are flat or missing in it are not observed in it."""
    begin, end = start / data.fs, (start + data.time_len) / data.fs
    here = [span for span in spans if span.start_s < end and span.stop_s > begin]
    unusable = [LEADS.index(span.lead) for span in here if span.flag in UNUSABLE]
    if unusable:
        observed = observed.copy()
        observed[unusable] = False
    return Cut(number, start, observed, sorted(lasting | {span.word for span in here}))


@dataclass(frozen=True)
class Plan:
    """What is known once all records are cut. m records of which a window is kept; in the order of the table.

    windows [m]: how many of each, in the smallest type that holds them; the counters say how often each flag,
    or each whole reason, appears.
    """

    patients: Words
    folds: Words
    databases: Words
    windows: NDArray[np.integer]
    records: int
    rejected: Counter[str]  # by reason
    rejected_in: Counter[str]  # by database
    flags_rejected: Counter[str]
    flags_kept: Counter[str]


def make_plan(cut: Iterator[CutRecord]) -> Plan:
    """Look at every record once."""
    patients, folds, databases, windows = WordsWriter(), WordsWriter(), WordsWriter(), WordsWriter()
    records = 0
    rejected, rejected_in = Counter[str](), Counter[str]()
    flags_rejected, flags_kept = Counter[str](), Counter[str]()
    for record in cut:
        records += 1
        for _, reason in record.rejected:
            rejected[reason] += 1
            rejected_in[record.database] += 1
            flags_rejected.update(kinds(reason.split(";")))
        for kept in record.cuts:
            if kept.words:
                flags_kept.update(kinds(kept.words))
        if record.cuts:
            windows.add(str(len(record.cuts)))
            patients.add(record.row["patient"])
            folds.add(record.row["fold"])
            databases.add(record.database)
    counts = windows.words()  # most records have as many as the one before: next to nothing is held
    numbers = np.array([int(count) for count in counts.distinct()], dtype=np.int32)
    return Plan(
        patients=patients.words(),
        folds=folds.words(),
        databases=databases.words(),
        windows=numbers.astype(smallest(int(numbers.max(initial=0)) + 1))[counts.codes],
        records=records,
        rejected=rejected,
        rejected_in=rejected_in,
        flags_rejected=flags_rejected,
        flags_kept=flags_kept,
    )
