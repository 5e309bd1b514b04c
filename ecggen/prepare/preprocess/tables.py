"""The tables of data/records, written as records come; of a record, eight bytes stay in memory."""

from __future__ import annotations

import contextlib
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
NUMBERS = (
    *("records", "rejected", "all_leads_observed", "records_with_frank"),
    *("annotations_unreadable", "unknown_leads"),
)
TOTALS = ("listed", "absent", "records", "rejected", "patients", "all_leads_observed", "records_with_frank")
_MOST_REASONS = 1000  # different ones that are counted, for the sentence that no record is usable


class Counts:
    """What is counted of the records of one database."""

    def __init__(self) -> None:
        self.words: Counter[tuple[str, str]] = Counter()  # (what, value) -> how many records have it
        self.patients = array("Q")  # a hash of 64 bits for each record

    def add(self, what: str, values: Iterable[str]) -> None:
        """One record that has these."""
        self.words.update((what, value) for value in values)

    def of(self, what: str) -> Counter[str]:
        """Value -> how many records have it."""
        return Counter({value: count for (name, value), count in sorted(self.words.items()) if name == what})

    def table(self, source: LabelledSource) -> dict[str, Any]:
        """The counts of a source as meta.json has them."""
        numbers = self.of("number")
        return {name: numbers[name] for name in NUMBERS} | {
            "listed": source.listed,
            "absent": source.source.absent,
            "patients": len(np.unique(np.array(self.patients, dtype=np.uint64))),
            "records_by_label_system": self.of("label system"),
            "labels_without_a_table": self.of("unknown label"),
            "patients_from": self.of("patients from"),
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
        record = source.source.record(result.name)
        for name in result.unknown_channels:
            number, first = self._unknown_leads.get(name, (0, record))
            self._unknown_leads[name] = (number + 1, first)
        facts: dict[str, Any] = {"unknown_leads": result.unknown_channels, "rejected": result.error}
        if result.findings is None:
            self._table("rejected.csv")({"record": record, "reason": result.error})
            # The record's own name would make every reason look different.
            reason = re.sub(rf"\b{re.escape(Path(record).name)}\b", "*", result.error)
            if reason in self._reasons or len(self._reasons) < _MOST_REASONS:
                self._reasons[reason] += 1
        else:
            info = source.info(result.name, result.comments, {beat.symbol for beat in result.beats})
            self._write(source.source.label, record, info, result, result.findings, offset)
            facts |= {"records": True, "labelled": info.labels, "records_with_frank": result.frank_rows}
            facts |= {"all_leads_observed": result.findings.observed.all()}
            facts |= {"annotations_unreadable": result.unreadable}
            counts.add("flag", kinds(result.findings.words))
            counts.add("label system", info.statements)
            counts.add("unknown label", info.unknown)
            counts.add("patients from", [info.patients_from])
            digest = hashlib.blake2b(info.patient.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            counts.patients.append(int.from_bytes(digest, "little"))
        counts.add("number", (name for name, value in facts.items() if value))

    def _write(
        self,
        database: str,
        record: str,
        info: RecordInfo,
        result: RecordResult,
        findings: Findings,
        offset: int,
    ) -> None:
        """The rows of a usable record."""
        row = {"record": record, "patient": info.patient, "offset": offset, "n_samples": result.rows}
        row |= {"fs_raw": result.fs, "observed": "".join("01"[seen] for seen in findings.observed.tolist())}
        row |= {"labels": ";".join(info.labels), "all_labels": ";".join(info.all_labels)}
        row |= {"fold": info.split or ("" if info.fold is None else info.fold), "sex": info.sex}
        row |= {"age": "" if info.age is None else info.age, "recorded": info.recorded}
        row |= {"quality": findings.quality, "reasons": ";".join(findings.words)}
        self._table("records.csv")(row | {"database": database, "label_system": info.system})
        for span in findings.spans:
            row = {"record": record, "flag": span.flag, "lead": span.lead}
            row |= {"start_s": f"{span.start_s:.4f}", "stop_s": f"{span.stop_s:.4f}"}
            self._table("spans.csv")(row)
        for beat in result.beats:
            row = {"record": record, "time_s": f"{beat.time_s:.6f}", "symbol": beat.symbol}
            self._table("beats.csv")(row)
        if result.unreadable:
            file = f"{Path(result.name).name}.{REFERENCE}"
            self._table("rejected_labels.csv")({"record": record, "file": file, "reason": result.unreadable})

    def counts(self, sources: Sequence[LabelledSource]) -> dict[str, Any]:
        """All of the run and by database. Raises RecordError, with the reasons, if no record is usable."""
        counts = {each.source.label: self._by_database.get(each.source.label, Counts()) for each in sources}
        by_database = {each.source.label: counts[each.source.label].table(each) for each in sources}
        # Patients of different databases have different names.
        totals = {name: sum(table[name] for table in by_database.values()) for name in TOTALS}
        if not totals["records"]:
            reasons = "; ".join(f"{text.rstrip('.')} ({n})" for text, n in self._reasons.most_common(3))
            raise RecordError(
                f"None of the {totals['rejected']} records is usable: "
                f"{reasons or 'the list of records is empty'}."
            )
        every = Counts()
        every.words = sum((each.words for each in counts.values()), Counter())
        return totals | {
            "labelled": every.of("number")["labelled"],
            "records_by_flag": every.of("flag"),
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
