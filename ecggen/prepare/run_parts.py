"""The sources of one run, each with its reader, its labels and the flags that hold for all of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecggen.leads import LEADS
from ecggen.prepare import databases
from ecggen.prepare.array_table import ArrayTable
from ecggen.prepare.label_systems.beats import present
from ecggen.prepare.label_systems.record_info import RecordInfo
from ecggen.prepare.labels import Labels
from ecggen.prepare.lead_quality.flags import Span
from ecggen.prepare.records import AnyRecord, open_record
from ecggen.prepare.source import Source, read_sources
from ecggen.prepare.wfdb_files.annotations import AnnotationError, has_beats, read_beats

BEAT_COLUMNS = ("record", "time_s", "symbol")


class Part:
    """One source of a run. Records and patients carry its key in front where there are several sources."""

    def __init__(self, source: Source, limit: int = 0) -> None:
        """limit: the first records only, 0 = all."""
        self.source = source
        self.names = source.records[: limit or None]
        self.table = ArrayTable(source.root / source.table) if source.table else None
        labels = self.table or Labels(source.root, source.database, self.names)
        self._info = labels.info
        base = databases.find(source.database)
        self.flags: tuple[str, ...] = base.flags if base else ()
        self.systems: Counter[str] = Counter()  # label system -> records that have labels in it
        self.unknown: Counter[str] = Counter()  # labels that their table lacks
        self.unreadable: list[str] = []  # annotation files, with their reasons
        self.beats: list[dict[str, Any]] = []  # rows of BEAT_COLUMNS

    def open(self, name: str) -> AnyRecord:
        """One record, ready to be read. Raises RecordError."""
        if self.table:
            return self.table.open(name)
        return open_record(self.source.root / name)

    def info(self, name: str, comments: Iterable[str], fs: float) -> RecordInfo:
        """Who and what a record is, and its beats in `beats`; fs in Hz."""
        info = self._info(name, comments)
        symbols = self._read_beats(name, fs)
        if symbols:
            info = replace(info, statements={**info.statements, "beats": present(symbols)})
        self.systems.update(info.statements.keys())
        self.unknown.update(info.unknown)
        return replace(info, patient=self.source.patient(info.patient))

    def columns(self, info: RecordInfo) -> dict[str, str]:
        """What records.csv says beyond the record's own row."""
        said = {
            "database": self.source.label,
            "label_system": info.system,
            "all_labels": ";".join(info.all_labels),
        }
        return said | ({"fold": info.split} if info.split else {})

    def known_spans(self, seconds: float, found: Collection[Span]) -> list[Span]:
        """Spans over the whole record of the flags that hold throughout its database."""
        whole = (Span(flag, "", 0.0, seconds) for flag in self.flags)
        return [span for span in whole if span not in found]

    def _read_beats(self, name: str, fs: float) -> list[str]:
        path = self.source.root / name
        if self.table or not has_beats(path):
            return []
        try:
            beats = read_beats(path, fs)
        except AnnotationError as error:
            self.unreadable.append(str(error))
            return []
        record = self.source.record(name)
        self.beats += [{"record": record, "time_s": f"{b.time_s:.6f}", "symbol": b.symbol} for b in beats]
        return [beat.symbol for beat in beats]


def read_parts(raw: Path, limit: int = 0) -> list[Part]:
    """The sources in raw/source.json; limit: as Part. Raises SourceError, LabelError."""
    return [Part(source, limit) for source in read_sources(raw)]


def each_record(parts: Sequence[Part]) -> Iterator[tuple[Part, str, str]]:
    """(source, name within it, name within the run) of every record."""
    for part in parts:
        for name in part.names:
            yield part, name, part.source.record(name)


def described(parts: Sequence[Part]) -> dict[str, Any]:
    """kind and name of the source, or of all of them; cohorts: whose recordings they are, where known."""
    whose = sorted({name for part in parts for name in part.source.cohorts()})
    if len(parts) == 1:
        return {"kind": parts[0].source.kind, "name": parts[0].source.name, "cohorts": whose}
    return {"kind": "several", "name": " + ".join(part.source.label for part in parts), "cohorts": whose}


def database_counts(
    parts: Sequence[Part], rows: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Per database: records listed, absent, read, rejected, all twelve leads, patients and labels."""
    out: dict[str, dict[str, Any]] = {}
    for part in parts:
        key = part.source.label
        own = [row for row in rows if row["database"] == key]
        out[key] = {
            "listed": len(part.names),
            "absent": part.source.absent,
            "records": len(own),
            "rejected": sum(row["database"] == key for row in rejected),
            "patients": len({row["patient"] for row in own}),
            "all_leads_observed": sum(row["observed"] == "1" * len(LEADS) for row in own),
            "records_by_label_system": dict(sorted(part.systems.items())),
            "labels_without_a_table": dict(sorted(part.unknown.items())),
            "annotations_unreadable": len(part.unreadable),
        }
    return out
