"""Arrays and records of one's own, listed by a CSV file: the source kind `table`.

Columns: `path` (.npy or .npz array [leads, n] or [n, leads], or a WFDB record, relative to the file's
folder), `fs` in Hz, `leads` (names separated by ;, in the array's order), `unit` (mV, uV, V, nV); if wanted
`row` (which record of an array [records, ., .]), `patient`, `labels` (separated by ;, of another system as
system/label), `split` (train, validation, test) or `fold` (whole number), `age`, `sex`, `recorded`. A WFDB
record says fs, leads and unit itself: leave the three empty. Nothing is guessed, every wrong cell is an error
that names its line. Numbers that are not finite are invalid samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ecggen.io.arrays import SUFFIXES, open_array
from ecggen.io.header import find_file, mv_per_unit
from ecggen.io.records import AnyRecord, open_record
from ecggen.io.tables import numbered_rows, table_columns
from ecggen.leads import LEADS, lead_channels, unit_in_name
from ecggen.prepare.download.listing import safe_name
from ecggen.prepare.download.source import Source, surveyed
from ecggen.prepare.download.specs import SourceError, local_path
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
        self.path = local_path(table, is_table=True)
        columns = table_columns(self.path)
        faults = [f"lacks the column {name!r}" for name in NEEDED if name not in columns]
        faults += [f"has a column {name!r}" for name in columns if name not in COLUMNS]
        if faults:
            raise SourceError(f"{self.path.name} {faults[0]}: columns are {', '.join(COLUMNS)}.")
        self.entries: dict[str, Entry] = {}
        for line, row in numbered_rows(self.path):
            cell = {column: row.get(column, "").strip() for column in COLUMNS}
            name, entry = _entry(self.path, line, cell, pattern)
            if name in self.entries:
                words = f"already in line {self.entries[name].line}"
                raise SourceError(f"{self.path.name}, line {line}: path is {cell['path']!r}: {words}.")
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


def _entry(table: Path, line: int, cell: Mapping[str, str], pattern: str) -> tuple[str, Entry]:
    """(name of the record, what a line says of it). Raises SourceError for the first wrong cell."""
    relative = safe_name(cell["path"], table.name) if cell["path"] else ""
    path = table.parent / relative
    is_array = path.suffix.lower() in SUFFIXES
    stem = relative.removesuffix(path.suffix) if is_array or path.suffix.lower() == ".hea" else relative
    fs, row, fold, years = (record_info.number(cell[column]) for column in ("fs", "row", "fold", "age"))
    sex, recorded = record_info.sex(cell["sex"]), record_info.iso(cell["recorded"])
    name = f"{stem}/{int(row)}" if row is not None and row.is_integer() else stem
    in_name = patient_in_name(name, pattern)
    leads = tuple(lead.strip() for lead in cell["leads"].split(";")) if is_array else ()
    whole = "a whole number is needed"
    checks = [
        ("path", not relative, "a file is needed"),
        *(_array_checks(path, cell, fs, leads) if is_array else _wfdb_checks(table.parent / stem, cell)),
        ("row", cell["row"] and (row is None or not row.is_integer()), whole),
        ("row", row is not None and row < 0, "a whole number from 0 is needed"),
        ("fold", cell["fold"] and (fold is None or not fold.is_integer()), whole),
        ("split", cell["split"] not in ("", *SPLITS), f"{', '.join(SPLITS)} are known"),
        ("fold", cell["split"] and fold is not None, "leave it empty, since split is given"),
        ("age", cell["age"] and years is None, "years are needed"),
        ("sex", cell["sex"] and not sex, "male, female, m or f is needed"),
        ("recorded", cell["recorded"] and not recorded, "a date or time in ISO 8601 is needed"),
        (
            "patient",
            pattern and not (cell["patient"] or in_name),
            f"data.patient {pattern!r} finds none in the name {name!r}",
        ),
    ]
    for column, is_wrong, words in checks:
        if is_wrong:
            raise SourceError(f"{table.name}, line {line}: {column} is {cell[column]!r}: {words}.")
    statements, unknown = statements_of(cell["labels"])
    info = RecordInfo(
        patient=cell["patient"] or in_name or name,
        patients_from="table" if cell["patient"] else "pattern" if in_name else "record",
        statements=statements,
        fold=None if fold is None else int(fold),
        split=cell["split"],
        age=record_info.age(years),
        sex=sex,
        recorded=recorded,
        unknown=tuple(unknown),
    )
    if not is_array:
        return name, Entry(line, table.parent / stem, info)
    return name, Entry(line, path, info, fs or 0.0, leads, cell["unit"], None if row is None else int(row))


def _wfdb_checks(record: Path, cell: Mapping[str, str]) -> list[tuple[str, bool, str]]:
    """(column, whether its cell is wrong, what is needed) of a line that names a WFDB record."""
    words = "a WFDB record says it itself; leave it empty"
    is_there = find_file(record.parent, f"{record.name}.hea").is_file()
    return [
        *((column, bool(cell[column]), words) for column in ("fs", "leads", "unit", "row")),
        ("path", not is_there, "no .npy, no .npz, and no WFDB header of that name"),
    ]


def _array_checks(
    path: Path, cell: Mapping[str, str], fs: float | None, leads: Sequence[str]
) -> list[tuple[str, bool, str]]:
    """As _wfdb_checks, of a line that names an array."""
    channels, _ = lead_channels(leads)
    twice = next((lead for lead, places in channels.items() if len(places) > 1), "")
    units = {mv_per_unit(unit) for unit in (cell["unit"], *filter(None, map(unit_in_name, leads)))}
    order = "names in the array's order are needed, separated by ;, of "
    return [
        ("path", not path.is_file(), "there is no such file"),
        ("fs", fs is None or not 0 < fs <= 100_000, "the sampling rate in Hz is needed"),
        ("unit", mv_per_unit(cell["unit"]) is None, "mV, uV, V or nV is needed"),
        ("leads", not set(channels) & set(LEADS), order + ", ".join(LEADS)),
        ("leads", bool(twice), f"{twice} is named twice"),
        ("leads", len(units) > 1, f"a name says another unit than the column unit, {cell['unit']!r}"),
    ]


def list_table(table: str | Path, *, limit: int = 0) -> Source:
    """The records of a CSV file, in its order. Raises SourceError."""
    listed = ArrayTable(table)
    names, path = list(listed.entries), listed.path
    return surveyed(Source("table", path.stem, path.parent, names[: limit or None], table=path.name))


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
