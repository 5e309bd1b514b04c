"""The tables of data/records, written as records come; what is kept in memory does not grow with them.

(But for eight bytes a record, from which different patients are counted.)
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.data.quality.flags import Span, kinds
from ecggen.io.annotations import REFERENCE
from ecggen.io.records import RecordError
from ecggen.leads import LEADS
from ecggen.prepare.labels.record_info import RecordInfo
from ecggen.prepare.preprocess.chunks import Done
from ecggen.prepare.preprocess.conditioning import with_spans
from ecggen.prepare.preprocess.long_records import Verdict
from ecggen.prepare.preprocess.run_parts import Part
from ecggen.utils.files import csv_rows

RECORD_COLUMNS = (
    *("record", "patient", "offset", "n_samples", "fs_raw", "observed", "labels", "fold", "age", "sex"),
    *("recorded", "quality", "reasons", "database", "label_system", "all_labels"),
)
SPAN_COLUMNS = ("record", "flag", "lead", "start_s", "stop_s")
REJECTED_COLUMNS = ("record", "reason")
REJECTED_LABEL_COLUMNS = ("record", "file", "reason")
UNKNOWN_LEAD_COLUMNS = ("name", "records", "example")
BEAT_COLUMNS = ("record", "time_s", "symbol")
_Write = Callable[[Mapping[str, Any]], None]
_REASONS_KEPT = 1000  # different ones, for the sentence that no record is usable


@dataclass
class Counts:
    """Of one database: records and labels, counted as they come."""

    records: int = 0
    rejected: int = 0
    labelled: int = 0
    all_leads: int = 0
    unreadable: int = 0  # annotation files
    unknown_leads: int = 0  # records with channels whose names were not understood
    patients_from: Counter[str] = field(default_factory=Counter)  # as RecordInfo.patients_from -> records
    flags: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)  # label system -> records that have labels in it
    unknown: Counter[str] = field(default_factory=Counter)  # labels that their table lacks
    _patients: array[int] = field(default_factory=lambda: array("Q"))
    _distinct: int = 0  # patients when they were last sorted

    def patient(self, name: str) -> None:
        """Count a patient. By 64 bits of a hash: that two of a million get one is a chance of 3e-8."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self._patients.append(int.from_bytes(digest, "little"))
        if len(self._patients) > 2 * self._distinct + 65_536:
            self.patients()

    def patients(self) -> int:
        """Different ones so far."""
        distinct = np.unique(np.array(self._patients, dtype=np.uint64))
        self._patients, self._distinct = array("Q", distinct.tobytes()), len(distinct)
        return self._distinct


class RecordTables:
    """The tables of a folder, and the counts.

    records.csv, spans.csv, rejected.csv, rejected_labels.csv (files of annotations), unknown_leads.csv (names
    of channels that were not understood) and, if there are any, beats.csv.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._folder = folder
        self._records = self._table("records.csv", RECORD_COLUMNS)
        self._spans = self._table("spans.csv", SPAN_COLUMNS)
        self._rejected = self._table("rejected.csv", REJECTED_COLUMNS)
        self._rejected_labels = self._table("rejected_labels.csv", REJECTED_LABEL_COLUMNS)
        self._unknown_leads: dict[str, tuple[int, str]] = {}  # name -> records, the first of them
        self._beats: _Write | None = None
        self._by_database: dict[str, Counts] = {}
        self._reasons: Counter[str] = Counter()

    def add(self, part: Part, done: Done, offset: int) -> None:
        """One record, in order; offset: its first row of signals.npy. Raises LabelError."""
        counts = self._by_database.setdefault(part.source.label, Counts())
        record = part.source.record(done.name)
        counts.unknown_leads += bool(done.unknown_channels)
        for name in done.unknown_channels:
            number, first = self._unknown_leads.get(name, (0, record))
            self._unknown_leads[name] = (number + 1, first)
        if done.verdict is None or done.in_file is None:
            self._reject(counts, record, done.error)
            return
        made = with_spans(
            done.verdict, done.in_file, part.known_spans(done.seconds, done.verdict.spans), done.seconds
        )
        info = part.info(done.name, done.comments, {beat.symbol for beat in done.beats})
        row = _row(record, info, (offset, done.rows), done.fs, made) | part.columns(info)
        self._records(row)
        for span in made.spans:
            self._spans(_span_row(record, span))
        if done.beats and self._beats is None:
            self._beats = self._table("beats.csv", BEAT_COLUMNS)
        for beat in done.beats:
            assert self._beats is not None
            self._beats({"record": record, "time_s": f"{beat.time_s:.6f}", "symbol": beat.symbol})
        counts.records += 1
        counts.labelled += bool(row["labels"])
        counts.all_leads += row["observed"] == "1" * len(LEADS)
        if done.unreadable:
            counts.unreadable += 1
            self._rejected_labels(
                {"record": record, "file": f"{Path(done.name).name}.{REFERENCE}", "reason": done.unreadable}
            )
        counts.patients_from[info.patients_from] += 1
        counts.flags.update(kinds(made.words))
        counts.systems.update(info.statements.keys())
        counts.unknown.update(info.unknown)
        counts.patient(info.patient)

    def _reject(self, counts: Counts, record: str, reason: str) -> None:
        counts.rejected += 1
        self._rejected({"record": record, "reason": reason})
        # The record's own name would make every reason look different.
        shown = re.sub(rf"\b{re.escape(Path(record).name)}\b", "*", reason)
        if shown in self._reasons or len(self._reasons) < _REASONS_KEPT:
            self._reasons[shown] += 1

    def require_records(self) -> None:
        """Raises RecordError, with the most frequent reasons, if no record is usable."""
        if any(counts.records for counts in self._by_database.values()):
            return
        rejected = sum(counts.rejected for counts in self._by_database.values())
        listed = "; ".join(f"{text.rstrip('.')} ({n})" for text, n in self._reasons.most_common(3))
        raise RecordError(
            f"None of the {rejected} records is usable: {listed or 'the list of records is empty'}."
        )

    def counts(self, parts: Sequence[Part], frank: bool) -> dict[str, Any]:
        """All of the run and by database; frank: every record has Frank leads."""
        by_database: dict[str, dict[str, Any]] = {}
        flags: Counter[str] = Counter()
        labelled = 0
        for part in parts:
            own = self._by_database.get(part.source.label, Counts())
            flags.update(own.flags)
            labelled += own.labelled
            by_database[part.source.label] = {
                "listed": part.listed,
                "absent": part.source.absent,
                "records": own.records,
                "rejected": own.rejected,
                "patients": own.patients(),
                "all_leads_observed": own.all_leads,
                "records_by_label_system": dict(sorted(own.systems.items())),
                "labels_without_a_table": dict(sorted(own.unknown.items())),
                "annotations_unreadable": own.unreadable,
                "unknown_leads": own.unknown_leads,
                "patients_from": dict(sorted(own.patients_from.items())),
            }
        # Patients of different databases have different names.
        summed = ("listed", "absent", "records", "rejected", "patients", "all_leads_observed")
        return {name: sum(counts[name] for counts in by_database.values()) for name in summed} | {
            "labelled": labelled,
            "records_by_flag": dict(sorted(flags.items())),
            "frank": frank,
            "by_database": by_database,
        }

    def close(self) -> None:
        """All that was written is in the files."""
        unknown, self._unknown_leads = self._unknown_leads, {}
        if not (self._folder / "unknown_leads.csv").exists():
            write = self._table("unknown_leads.csv", UNKNOWN_LEAD_COLUMNS)
            for name, (number, first) in sorted(unknown.items(), key=lambda item: (-item[1][0], item[0])):
                write({"name": name, "records": number, "example": first})
        self._stack.close()

    def __enter__(self) -> RecordTables:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _table(self, name: str, columns: Sequence[str]) -> _Write:
        return self._stack.enter_context(csv_rows(self._folder / name, columns))


def _row(name: str, info: RecordInfo, rows: tuple[int, int], fs_raw: float, made: Verdict) -> dict[str, Any]:
    """A row of records.csv; rows: first one and number of signals.npy."""
    return {
        "record": name,
        "patient": info.patient,
        "offset": rows[0],
        "n_samples": rows[1],
        "fs_raw": fs_raw,
        "observed": "".join("1" if seen else "0" for seen in made.observed),
        "labels": ";".join(info.labels),
        "fold": "" if info.fold is None else info.fold,
        "age": "" if info.age is None else info.age,
        "sex": info.sex,
        "recorded": info.recorded,
        "quality": made.quality,
        "reasons": ";".join(made.words),
    }


def _span_row(name: str, span: Span) -> dict[str, str]:
    times = {"start_s": f"{span.start_s:.4f}", "stop_s": f"{span.stop_s:.4f}"}
    return {"record": name, "flag": span.flag, "lead": span.lead} | times
