"""The sources of one run, each with its labels and the flags that hold for all of its records."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ecggen.io.annotations import present
from ecggen.prepare import databases
from ecggen.prepare.download.array_table import ArrayTable
from ecggen.prepare.download.source import Source
from ecggen.prepare.labels.record_info import RecordInfo
from ecggen.prepare.labels.records import Labels


class LabelledSource:
    """One source of a run; records and patients carry its key in front where there are several."""

    def __init__(self, source: Source, limit: int = 0, pattern: str = "") -> None:
        """limit: the first records only, 0 = all; pattern: data.patient."""
        self.source = source
        self._limit = limit or None
        self.listed = len(source.records[: self._limit]) + len(source.rejected)
        pattern = "" if source.kind == "synthetic" else pattern
        self.table = ArrayTable(source.root / source.table, pattern) if source.table else None
        labels = self.table or Labels(source.root, source.database, self.names(), pattern)
        self._info = labels.info
        base = databases.find(source.database)
        self.flags: tuple[str, ...] = base.flags if base else ()

    def names(self) -> Iterator[str]:
        """The records of the run, in order, read from the list one at a time."""
        return itertools.islice(self.source.records, self._limit)

    def info(self, name: str, comments: Iterable[str], symbols: Iterable[str]) -> RecordInfo:
        """Who and what a record is, from its header's comments and the symbols of its annotated beats."""
        info = self._info(name, comments)
        if beat_classes := present(symbols):
            info = replace(info, statements={**info.statements, "beats": beat_classes})
        return replace(info, patient=self.source.patient(info.patient))


def describe_sources(sources: Sequence[LabelledSource]) -> dict[str, Any]:
    """kind and name of the source, or of all of them; cohorts: whose recordings they are, where known."""
    cohorts = sorted({name for each in sources for name in each.source.cohorts()})
    if len(sources) == 1:
        return {"kind": sources[0].source.kind, "name": sources[0].source.name, "cohorts": cohorts}
    name = " + ".join(each.source.label for each in sources)
    return {"kind": "several", "name": name, "cohorts": cohorts}
