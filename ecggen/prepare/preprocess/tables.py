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
from ecggen.prepare.labels.record_info import RecordInfo
from ecggen.prepare.preprocess.batches import RecordResult
from ecggen.prepare.preprocess.conditioning import Findings
from ecggen.prepare.preprocess.sources import LabelledSource
from ecggen.utils.files import csv_rows

TABLES = {
    "records.csv": (
        *("record", "patient", "offset", "n_samples", "fs_raw", "observed", "labels", "fold", "age", "sex"),
        *("recorded", "quality", "reasons", "database", "label_system", "all_labels"),
    ),
    "spans.csv": ("record", "flag", "lead", "start_s", "stop_s"),
    "rejected.csv": ("record", "reason"),
    "rejected_labels.csv": ("record", "file", "reason"),  # files of annotations
    "unknown_leads.csv": ("name", "records", "example"),  # names of channels that were not understood
    "beats.csv": ("record", "time_s", "symbol"),  # if there are any
}
TOTALS = ("listed", "absent", "records", "rejected", "patients", "all_leads_observed", "records_with_frank")
_MOST_REASONS = 1000  # different ones that are counted, for the sentence that no record is usable


@dataclass
class Counts:
    """Records of one database: numbers by their names in meta.json, the others by what is counted."""

    numbers: Counter[str] = field(default_factory=Counter)
    patients_from: Counter[str] = field(default_factory=Counter)  # as RecordInfo.patients_from
    flags: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)  # label systems
    unknown: Counter[str] = field(default_factory=Counter)  # labels that their table lacks
    patients: array[int] = field(default_factory=lambda: array("Q"))  # hashes of 64 bits, one for each record

    def add(self, info: RecordInfo, result: RecordResult, findings: Findings) -> None:
        """A usable record."""
        self.numbers["records"] += 1
        self.numbers["labelled"] += bool(info.labels)
        self.numbers["all_leads_observed"] += bool(findings.observed.all())
        self.numbers["records_with_frank"] += bool(result.frank_rows)
        self.numbers["annotations_unreadable"] += bool(result.unreadable)
        self.patients_from[info.patients_from] += 1
        self.flags.update(kinds(findings.words))
        self.systems.update(info.statements.keys())
        self.unknown.update(info.unknown)
        digest = hashlib.blake2b(info.patient.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self.patients.append(int.from_bytes(digest, "little"))

    def table(self, source: LabelledSource) -> dict[str, Any]:
        """The counts of a source as meta.json has them."""
        names = ("records", "rejected", "all_leads_observed", "records_with_frank")
        return {name: self.numbers[name] for name in (*names, "annotations_unreadable", "unknown_leads")} | {
            "listed": source.listed,
            "absent": source.source.absent,
            "patients": len(np.unique(np.array(self.patients, dtype=np.uint64))),
            "records_by_label_system": dict(sorted(self.systems.items())),
            "labels_without_a_table": dict(sorted(self.unknown.items())),
            "patients_from": dict(sorted(self.patients_from.items())),
        }


class RecordTables:
    """The tables of a folder, and the counts; used with `with`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, contextlib.ExitStack()
        self._tables: dict[str, Callable[[Mapping[str, Any]], None]] = {}
        for name in TABLES.keys() - {"beats.csv"}:
            self._table(name)
        self._unknown_leads: dict[str, tuple[int, str]] = {}  # name -> records, the first of them
        self._by_database: dict[str, Counts] = {}
        self._reasons: Counter[str] = Counter()

    def add(self, source: LabelledSource, result: RecordResult, offset: int) -> None:
        """One record, in order; offset: its first row of signals.npy. Raises LabelError."""
        counts = self._by_database.setdefault(source.source.label, Counts())
        record, findings = source.source.record(result.name), result.findings
        counts.numbers["unknown_leads"] += bool(result.unknown_channels)
        for name in result.unknown_channels:
            number, first = self._unknown_leads.get(name, (0, record))
            self._unknown_leads[name] = (number + 1, first)
        if findings is None:
            self._reject(counts, record, result.error)
            return
        info = source.info(result.name, result.comments, {beat.symbol for beat in result.beats})
        self._table("records.csv")(
            {
                "record": record,
                "patient": info.patient,
                "offset": offset,
                "n_samples": result.rows,
                "fs_raw": result.fs,
                "observed": "".join("1" if seen else "0" for seen in findings.observed),
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
            self._table("spans.csv")({"record": record, "flag": span.flag, "lead": span.lead} | times)
        for beat in result.beats:
            row = {"record": record, "time_s": f"{beat.time_s:.6f}", "symbol": beat.symbol}
            self._table("beats.csv")(row)
        if result.unreadable:
            file = f"{Path(result.name).name}.{REFERENCE}"
            self._table("rejected_labels.csv")({"record": record, "file": file, "reason": result.unreadable})
        counts.add(info, result, findings)

    def _reject(self, counts: Counts, record: str, reason: str) -> None:
        counts.numbers["rejected"] += 1
        self._table("rejected.csv")({"record": record, "reason": reason})
        # The record's own name would make every reason look different.
        reason = re.sub(rf"\b{re.escape(Path(record).name)}\b", "*", reason)
        if reason in self._reasons or len(self._reasons) < _MOST_REASONS:
            self._reasons[reason] += 1

    def require_records(self) -> None:
        """Raises RecordError, with the most frequent reasons, if no record is usable."""
        numbers = sum((counts.numbers for counts in self._by_database.values()), Counter[str]())
        if numbers["records"]:
            return
        reasons = "; ".join(f"{text.rstrip('.')} ({n})" for text, n in self._reasons.most_common(3))
        raise RecordError(
            f"None of the {numbers['rejected']} records is usable: "
            f"{reasons or 'the list of records is empty'}."
        )

    def counts(self, sources: Sequence[LabelledSource]) -> dict[str, Any]:
        """All of the run and by database."""
        counts = {each.source.label: self._by_database.get(each.source.label, Counts()) for each in sources}
        by_database = {each.source.label: counts[each.source.label].table(each) for each in sources}
        # Patients of different databases have different names.
        totals = {name: sum(table[name] for table in by_database.values()) for name in TOTALS}
        flags = sum((each.flags for each in counts.values()), Counter[str]())
        return totals | {
            "labelled": sum(each.numbers["labelled"] for each in counts.values()),
            "records_by_flag": dict(sorted(flags.items())),
            "frank": totals["records_with_frank"] == totals["records"],
            "by_database": by_database,
        }

    def __enter__(self) -> RecordTables:
        return self

    def __exit__(self, *_: object) -> None:
        most_first = sorted(self._unknown_leads.items(), key=lambda item: (-item[1][0], item[0]))
        for name, (number, example) in most_first:
            self._table("unknown_leads.csv")({"name": name, "records": number, "example": example})
        self._stack.close()

    def _table(self, name: str) -> Callable[[Mapping[str, Any]], None]:
        """Adds a row to a table, which is opened at its first use."""
        if name not in self._tables:
            rows = csv_rows(self._folder / name, TABLES[name])
            self._tables[name] = self._stack.enter_context(rows)
        return self._tables[name]
