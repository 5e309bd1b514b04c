"""Arrays and records of one's own, listed by a CSV file: the source kind `table`.

Columns: `path` (.npy or .npz array [leads, n] or [n, leads], or a WFDB record, relative to the file's
folder), `fs` in Hz, `leads` (names separated by ;, in the array's order), `unit` (mV, uV, V, nV); if wanted
`row` (which record of an array [records, ., .]), `patient`, `labels` (separated by ;, of another system as
system/label), `split` (train, validation, test) or `fold` (whole number), `age`, `sex`, `recorded`. A WFDB
record says fs, leads and unit itself: leave the three empty. Nothing is guessed, every wrong cell is an error
that names its line. Numbers that are not finite are invalid samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ecggen.io.arrays import SUFFIXES, open_array
from ecggen.io.header import find_file, mv_per_unit
from ecggen.io.records import AnyRecord, open_record
from ecggen.io.tables import numbered_rows, table_columns
from ecggen.leads import LEADS, lead_channels, unit_in_name
from ecggen.prepare.download.listing import safe_name
from ecggen.prepare.download.source import Source
from ecggen.prepare.download.specs import SourceError, resolve_folder
from ecggen.prepare.labels import record_info, snomed
from ecggen.prepare.labels.headers import patient_in_name
from ecggen.prepare.labels.record_info import LABEL_SYSTEMS, RecordInfo

NEEDED = ("path", "fs", "leads", "unit")
COLUMNS = (*NEEDED, "row", "patient", "labels", "split", "fold", "age", "sex", "recorded")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Entry:
    """One line of the table. leads: channel names in the array's order; fs 0 = a WFDB record."""

    line: int
    path: Path
    info: RecordInfo
    fs: float = 0.0
    leads: tuple[str, ...] = ()
    unit: str = ""
    row: int | None = None

    def open(self, record: str) -> AnyRecord:
        """The record, ready to be read. Raises RecordError."""
        if not self.fs:
            return open_record(self.path)
        return open_array(self.path, record, self.fs, self.leads, self.unit, self.row)


class ArrayTable:
    """A table of records; reads and checks all its lines at once, the signals one by one."""

    def __init__(self, table: str | Path, pattern: str = "") -> None:
        """pattern: data.patient, for lines without a patient.

        Raises SourceError: no such file, a missing column, a wrong cell, the same record twice.
        """
        self.path = resolve_folder(table)
        if not self.path.is_file():
            raise SourceError(f"No table of records at {table}: set data.path to a CSV file.")
        columns = table_columns(self.path)
        unknown = [name for name in columns if name not in COLUMNS]
        missing = [name for name in NEEDED if name not in columns]
        if unknown or missing:
            words = f"lacks the column {missing[0]!r}" if missing else f"has a column {unknown[0]!r}"
            raise SourceError(f"{self.path.name} {words}: columns are {', '.join(COLUMNS)}.")
        self.entries: dict[str, Entry] = {}
        for number, row in numbered_rows(self.path):
            line = _Line(self.path, number, row, pattern)
            name, entry = line.entry()
            if name in self.entries:
                raise line.wrong("path", f"already in line {self.entries[name].line}")
            self.entries[name] = entry
        if not self.entries:
            raise SourceError(
                f"{self.path.name} lists no record: one line each is needed below the column names."
            )

    def info(self, record: str, comments: Iterable[str]) -> RecordInfo:
        """As Labels.info; all is in the table."""
        return self.entries[record].info

    def entry(self, record: str) -> Entry:
        """The line of one record; its path is absolute."""
        entry = self.entries[record]
        return replace(entry, path=entry.path.absolute())


class _Line:
    """One line of the table, cell by cell."""

    def __init__(self, table: Path, number: int, row: Mapping[str, str], pattern: str) -> None:
        self.table, self.number, self.pattern = table, number, pattern
        self.cell = {name: row.get(name, "").strip() for name in COLUMNS}

    def wrong(self, column: str, words: str) -> SourceError:
        """What is wrong with a cell."""
        value = self.cell[column]
        return SourceError(f"{self.table.name}, line {self.number}: {column} is {value!r}: {words}.")

    def entry(self) -> tuple[str, Entry]:
        """The record's name, and all that the line says. Raises SourceError."""
        if not self.cell["path"]:
            raise self.wrong("path", "a file is needed")
        relative = safe_name(self.cell["path"], self.table.name)
        path = self.table.parent / relative
        suffix = path.suffix if path.suffix.lower() in (*SUFFIXES, ".hea") else ""
        name = relative.removesuffix(suffix)
        if path.suffix.lower() not in SUFFIXES:
            path = self.table.parent / name
            filled = next((key for key in ("fs", "leads", "unit", "row") if self.cell[key]), None)
            if filled:
                raise self.wrong(filled, "a WFDB record says it itself; leave it empty")
            if not find_file(path.parent, f"{path.name}.hea").is_file():
                raise self.wrong("path", "no .npy, no .npz, and no WFDB header of that name")
            return name, Entry(self.number, path, self._info(name))
        if not path.is_file():
            raise self.wrong("path", "there is no such file")
        fs = record_info.number(self.cell["fs"])
        if fs is None or not 0 < fs <= 100_000 or not math.isfinite(fs):
            raise self.wrong("fs", "the sampling rate in Hz is needed")
        if mv_per_unit(self.cell["unit"]) is None:
            raise self.wrong("unit", "mV, uV, V or nV is needed")
        row = self._whole("row")
        if row is not None and row < 0:
            raise self.wrong("row", "a whole number from 0 is needed")
        name = name if row is None else f"{name}/{row}"
        return name, Entry(self.number, path, self._info(name), fs, self._leads(), self.cell["unit"], row)

    def _whole(self, column: str) -> int | None:
        value = record_info.number(self.cell[column])
        if self.cell[column] and (value is None or value != math.floor(value)):
            raise self.wrong(column, "a whole number is needed")
        return None if value is None else int(value)

    def _leads(self) -> tuple[str, ...]:
        names = tuple(name.strip() for name in self.cell["leads"].split(";"))
        channels, _ = lead_channels(names)
        if not set(channels) & set(LEADS):
            words = "names in the array's order are needed, separated by ;, of "
            raise self.wrong("leads", words + ", ".join(LEADS))
        twice = next((lead for lead, places in channels.items() if len(places) > 1), None)
        if twice:
            raise self.wrong("leads", f"{twice} is named twice")
        units = [self.cell["unit"], *filter(None, map(unit_in_name, names))]
        if len({mv_per_unit(unit) for unit in units}) > 1:
            raise self.wrong("leads", f"a name says another unit than the column unit, {self.cell['unit']!r}")
        return names

    def _info(self, name: str) -> RecordInfo:
        cell, fold, in_name = self.cell, self._whole("fold"), patient_in_name(name, self.pattern)
        years, sex = record_info.number(cell["age"]), record_info.sex(cell["sex"])
        recorded = record_info.iso(cell["recorded"])
        for column, is_wrong, words in (
            ("split", cell["split"] not in ("", *SPLITS), f"{', '.join(SPLITS)} are known"),
            ("fold", cell["split"] and fold is not None, "leave it empty, since split is given"),
            ("age", cell["age"] and years is None, "years are needed"),
            ("sex", cell["sex"] and not sex, "male, female, m or f is needed"),
            ("recorded", cell["recorded"] and not recorded, "a date or time in ISO 8601 is needed"),
        ):
            if is_wrong:
                raise self.wrong(column, words)
        if self.pattern and not (cell["patient"] or in_name):
            raise self.wrong("patient", f"data.patient {self.pattern!r} finds none in the name {name!r}")
        statements, unknown = statements_of(cell["labels"])
        return RecordInfo(
            patient=cell["patient"] or in_name or name,
            patients_from="table" if cell["patient"] else "pattern" if in_name else "record",
            statements=statements,
            fold=fold,
            split=cell["split"],
            age=record_info.age(years),
            sex=sex,
            recorded=recorded,
            unknown=tuple(unknown),
        )


def list_table(table: str | Path, *, limit: int = 0) -> Source:
    """The records of a CSV file, in its order. Raises SourceError."""
    listed = ArrayTable(table)
    names, path = list(listed.entries), listed.path
    return Source("table", path.stem, path.parent, names[: limit or None], table=path.name)


def statements_of(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """(label system -> labels, SNOMED codes without a name) of a cell: `a;snomed/426783006;rhythm/SR`."""
    statements: dict[str, set[str]] = {}
    unknown: list[str] = []
    for entry in text.split(";"):
        system, slash, label = entry.strip().partition("/")
        if not slash or system not in LABEL_SYSTEMS:
            system, label = "dx", entry
        label = record_info.clean(label)
        if system == "snomed" and label not in snomed.abbreviations():
            labels, missing = snomed.classes([label] if label else [])
            unknown += missing
        else:
            labels = [label] if label else []
        statements.setdefault(system, set()).update(labels)
    return {system: sorted(labels) for system, labels in statements.items() if labels}, unknown
