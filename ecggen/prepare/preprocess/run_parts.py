"""The sources of one run, each with its reader, its labels and the flags that hold for all of its records."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecggen.data.quality.flags import Span
from ecggen.io.annotations import present
from ecggen.prepare import databases
from ecggen.prepare.download.array_table import ArrayTable
from ecggen.prepare.download.source import Source, read_sources
from ecggen.prepare.labels.record_info import RecordInfo
from ecggen.prepare.labels.records import Labels


class Part:
    """One source of a run. Records and patients carry its key in front where there are several sources."""

    def __init__(self, source: Source, limit: int = 0, pattern: str = "") -> None:
        """limit: the first records only, 0 = all; pattern: data.patient."""
        self.source = source
        self.listed = min(limit or len(source.records), len(source.records))
        pattern = "" if source.kind == "synthetic" else pattern
        self.table = ArrayTable(source.root / source.table, pattern) if source.table else None
        labels = self.table or Labels(source.root, source.database, self.names(), pattern)
        self._info = labels.info
        base = databases.find(source.database)
        self.flags: tuple[str, ...] = base.flags if base else ()

    def names(self) -> Iterator[str]:
        """The records of the run, in order, read from the list as they are asked for."""
        return itertools.islice(self.source.records, self.listed)

    def blocks(self, size: int) -> Iterator[tuple[str, ...]]:
        """The same, `size` at a time."""
        names = self.names()
        while block := tuple(itertools.islice(names, size)):
            yield block

    def info(self, name: str, comments: Iterable[str], symbols: Iterable[str]) -> RecordInfo:
        """Who and what a record is, from its header's comments and the symbols of its annotated beats."""
        info = self._info(name, comments)
        if found := present(symbols):
            info = replace(info, statements={**info.statements, "beats": found})
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


def read_parts(raw: Path, limit: int = 0, pattern: str = "") -> list[Part]:
    """The sources in raw/source.json; limit and pattern: as Part. Raises SourceError, LabelError."""
    return [Part(source, limit, pattern) for source in read_sources(raw)]


def described(parts: Sequence[Part]) -> dict[str, Any]:
    """kind and name of the source, or of all of them; cohorts: whose recordings they are, where known."""
    whose = sorted({name for part in parts for name in part.source.cohorts()})
    if len(parts) == 1:
        return {"kind": parts[0].source.kind, "name": parts[0].source.name, "cohorts": whose}
    return {"kind": "several", "name": " + ".join(part.source.label for part in parts), "cohorts": whose}
