"""The tables of data/records, written as records come; of a record, eight bytes stay in memory."""

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

from ecggen.data.quality.flags import kinds
from ecggen.io.annotations import REFERENCE
from ecggen.io.records import RecordError
from ecggen.leads import LEADS
from ecggen.prepare.labels.record_info import RecordInfo
from ecggen.prepare.preprocess.batches import RecordResult
from ecggen.prepare.preprocess.sources import LabelledSource
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
_MOST_REASONS = 1000  # different ones that are counted, for the sentence that no record is usable


@dataclass
class Counts:
    """Records and labels of one database."""

    records: int = 0
    rejected: int = 0
    labelled: int = 0
    all_leads: int = 0
    frank: int = 0
    unreadable: int = 0  # annotation files
    unknown_leads: int = 0  # records with channels whose names were not understood
    patients_from: Counter[str] = field(default_factory=Counter)  # as RecordInfo.patients_from -> records
    flags: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)  # label system -> records that have labels in it
    unknown: Counter[str] = field(default_factory=Counter)  # labels that their table lacks
    patients: array[int] = field(default_factory=lambda: array("Q"))  # hashes of 64 bits, one for each record

    def add(self, info: RecordInfo, result: RecordResult, words: Sequence[str]) -> None:
        """A usable record; words: its flags."""
        self.records += 1
        self.labelled += bool(info.labels)
        self.frank += bool(result.frank_rows)
        self.unreadable += bool(result.unreadable)
        self.patients_from[info.patients_from] += 1
        self.flags.update(kinds(words))
        self.systems.update(info.statements.keys())
        self.unknown.update(info.unknown)
        digest = hashlib.blake2b(info.patient.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self.patients.append(int.from_bytes(digest, "little"))

    def table(self, source: LabelledSource) -> dict[str, Any]:
        """The counts of a source as meta.json has them."""
        return {
            "listed": source.listed,
            "absent": source.source.absent,
            "records": self.records,
            "rejected": self.rejected,
            "patients": len(np.unique(np.array(self.patients, dtype=np.uint64))),
            "all_leads_observed": self.all_leads,
            "records_with_frank": self.frank,
            "records_by_label_system": dict(sorted(self.systems.items())),
            "labels_without_a_table": dict(sorted(self.unknown.items())),
            "annotations_unreadable": self.unreadable,
            "unknown_leads": self.unknown_leads,
            "patients_from": dict(sorted(self.patients_from.items())),
        }


class RecordTables:
    """The tables of a folder, and the counts.

    records.csv, spans.csv, rejected.csv, rejected_labels.csv (files of annotations), unknown_leads.csv (names
    of channels that were not understood) and, if there are any, beats.csv.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self._folder = folder
        self._add_record = self._table("records.csv", RECORD_COLUMNS)
        self._add_span = self._table("spans.csv", SPAN_COLUMNS)
        self._add_rejected = self._table("rejected.csv", REJECTED_COLUMNS)
        self._add_rejected_labels = self._table("rejected_labels.csv", REJECTED_LABEL_COLUMNS)
        self._unknown_leads: dict[str, tuple[int, str]] = {}  # name -> records, the first of them
        self._add_beat: Callable[[Mapping[str, Any]], None] | None = None
        self._by_database: dict[str, Counts] = {}
        self._reasons: Counter[str] = Counter()

    def add(self, source: LabelledSource, result: RecordResult, offset: int) -> None:
        """One record, in order; offset: its first row of signals.npy. Raises LabelError."""
        counts = self._by_database.setdefault(source.source.label, Counts())
        record, findings = source.source.record(result.name), result.findings
        counts.unknown_leads += bool(result.unknown_channels)
        for name in result.unknown_channels:
            number, first = self._unknown_leads.get(name, (0, record))
            self._unknown_leads[name] = (number + 1, first)
        if findings is None:
            self._reject(counts, record, result.error)
            return
        info = source.info(result.name, result.comments, {beat.symbol for beat in result.beats})
        observed = "".join("1" if seen else "0" for seen in findings.observed)
        self._add_record(
            {
                "record": record,
                "patient": info.patient,
                "offset": offset,
                "n_samples": result.rows,
                "fs_raw": result.fs,
                "observed": observed,
                "labels": ";".join(info.labels),
                "fold": info.split or ("" if info.fold is None else info.fold),
                "age": "" if info.age is None else info.age,
                "sex": info.sex,
                "recorded": info.recorded,
                "quality": findings.quality,
                "reasons": ";".join(findings.words),
                "database": source.source.label,
                "label_system": info.system,
                "all_labels": ";".join(info.all_labels),
            }
        )
        for span in findings.spans:
            times = {"start_s": f"{span.start_s:.4f}", "stop_s": f"{span.stop_s:.4f}"}
            self._add_span({"record": record, "flag": span.flag, "lead": span.lead} | times)
        if result.beats and self._add_beat is None:
            self._add_beat = self._table("beats.csv", BEAT_COLUMNS)
        for beat in result.beats:
            assert self._add_beat is not None
            self._add_beat({"record": record, "time_s": f"{beat.time_s:.6f}", "symbol": beat.symbol})
        if result.unreadable:
            file = f"{Path(result.name).name}.{REFERENCE}"
            self._add_rejected_labels({"record": record, "file": file, "reason": result.unreadable})
        counts.add(info, result, findings.words)
        counts.all_leads += observed == "1" * len(LEADS)

    def _reject(self, counts: Counts, record: str, reason: str) -> None:
        counts.rejected += 1
        self._add_rejected({"record": record, "reason": reason})
        # The record's own name would make every reason look different.
        reason = re.sub(rf"\b{re.escape(Path(record).name)}\b", "*", reason)
        if reason in self._reasons or len(self._reasons) < _MOST_REASONS:
            self._reasons[reason] += 1

    def require_records(self) -> None:
        """Raises RecordError, with the most frequent reasons, if no record is usable."""
        if any(counts.records for counts in self._by_database.values()):
            return
        rejected = sum(counts.rejected for counts in self._by_database.values())
        reasons = "; ".join(f"{text.rstrip('.')} ({n})" for text, n in self._reasons.most_common(3))
        raise RecordError(
            f"None of the {rejected} records is usable: {reasons or 'the list of records is empty'}."
        )

    def counts(self, sources: Sequence[LabelledSource]) -> dict[str, Any]:
        """All of the run and by database."""
        own = {each.source.label: self._by_database.get(each.source.label, Counts()) for each in sources}
        by_database = {each.source.label: own[each.source.label].table(each) for each in sources}
        # Patients of different databases have different names.
        names = ("listed", "absent", "records", "rejected", "patients", "all_leads_observed")
        totals: dict[str, Any] = {
            name: sum(table[name] for table in by_database.values())
            for name in (*names, "records_with_frank")
        }
        flags = sum((counts.flags for counts in own.values()), Counter[str]())
        return totals | {
            "labelled": sum(counts.labelled for counts in own.values()),
            "records_by_flag": dict(sorted(flags.items())),
            "frank": totals["records_with_frank"] == totals["records"],
            "by_database": by_database,
        }

    def __enter__(self) -> RecordTables:
        return self

    def __exit__(self, *_: object) -> None:
        add = self._table("unknown_leads.csv", UNKNOWN_LEAD_COLUMNS)
        most_first = sorted(self._unknown_leads.items(), key=lambda item: (-item[1][0], item[0]))
        for name, (number, example) in most_first:
            add({"name": name, "records": number, "example": example})
        self._stack.close()

    def _table(self, name: str, columns: Sequence[str]) -> Callable[[Mapping[str, Any]], None]:
        return self._stack.enter_context(csv_rows(self._folder / name, columns))
