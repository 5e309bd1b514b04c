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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import mv_per_unit
from ecggen.io.records import AnyRecord, RecordError, Recording, open_record
from ecggen.leads import FRANK, LEADS, canonical_lead
from ecggen.prepare.download.source import Source, SourceError, resolve_folder, safe_name
from ecggen.prepare.labels import record_info, snomed
from ecggen.prepare.labels.database import LABEL_SYSTEMS
from ecggen.prepare.labels.record_info import RecordInfo
from ecggen.utils.files import read_csv

COLUMNS = (
    *("path", "fs", "leads", "unit", "row", "patient", "labels", "split", "fold", "age", "sex", "recorded"),
)
SPLITS = ("train", "validation", "test")
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Entry:
    """One line of the table. leads: channel names in the array's order; factor: to mV."""

    line: int
    path: Path
    info: RecordInfo
    fs: float = 0.0
    leads: tuple[str, ...] = ()
    unit: str = ""
    row: int | None = None

    @property
    def is_array(self) -> bool:
        """Whether the signal is an array, not a WFDB record."""
        return self.path.suffix.lower() in ARRAYS


@dataclass(frozen=True)
class ArrayRecord:
    """An array that is open for reading, stretch by stretch; samples [leads, n] in `unit`."""

    name: str
    fs: float
    samples: NDArray[Any]
    channels: list[str]
    units: dict[str, str]
    comments: list[str] = field(default_factory=list)

    @property
    def n_samples(self) -> int:
        """Samples of each lead."""
        return int(self.samples.shape[1])

    @property
    def observed(self) -> NDArray[np.bool_]:
        """[12] bool, True = the lead is in the record."""
        there = {canonical_lead(name) for name in self.channels}
        return np.array([lead in there for lead in LEADS])

    @property
    def frank(self) -> bool:
        """Whether vx, vy and vz are all there."""
        return set(FRANK) <= {canonical_lead(name) for name in self.channels}

    def read(self, start: int = 0, stop: int | None = None) -> Recording:
        """Samples start <= i < stop in mV, standard order. Raises RecordError where there are none."""
        stop = self.n_samples if stop is None else min(stop, self.n_samples)
        if not 0 <= start < stop:
            raise RecordError(
                f"Record {self.name} has {self.n_samples} samples: {start} to {stop} is no stretch of it."
            )
        rows = {canonical_lead(name): row for row, name in enumerate(self.channels)}
        factor = mv_per_unit(next(iter(self.units.values())))
        assert factor is not None, self.units

        def millivolts(lead: str) -> NDArray[np.float64]:
            values = np.asarray(self.samples[rows[lead], start:stop], dtype=np.float64) * factor
            return np.where(np.isfinite(values), values, np.nan)

        ecg = np.full((len(LEADS), stop - start), np.nan)
        for at in np.flatnonzero(self.observed):
            ecg[at] = millivolts(LEADS[at])
        frank = np.stack([millivolts(lead) for lead in FRANK]) if self.frank else None
        return Recording(
            name=self.name,
            fs=self.fs,
            ecg=ecg,
            observed=self.observed,
            frank=frank,
            comments=list(self.comments),
            units=dict(self.units),
            channels=list(self.channels),
        )


class ArrayTable:
    """A table of records; reads and checks all its lines at once, the signals one by one."""

    def __init__(self, table: str | Path) -> None:
        """Raises SourceError: no such file, a missing column, a wrong cell, the same record twice."""
        self.path = resolve_folder(table)
        if not self.path.is_file():
            raise SourceError(f"No table of records at {table}: set data.path to a CSV file.")
        rows = read_csv(self.path)
        if not rows:
            raise SourceError(
                f"{self.path.name} lists no record: one line each is needed below the column names."
            )
        self._check_columns(rows[0])
        self.entries: dict[str, Entry] = {}
        for number, row in enumerate(rows, start=2):
            name, entry = self._entry(number, row)
            if name in self.entries:
                raise self._wrong(number, "path", row["path"], f"already in line {self.entries[name].line}")
            self.entries[name] = entry

    def info(self, record: str, comments: Iterable[str]) -> RecordInfo:
        """As Labels.info; all is in the table."""
        return self.entries[record].info

    def open(self, record: str) -> AnyRecord:
        """One record, ready to be read. Raises RecordError."""
        return open_entry(record, self.entries[record])

    def entry(self, record: str) -> Entry:
        """The line of one record; its path is absolute."""
        entry = self.entries[record]
        return replace(entry, path=entry.path.absolute())

    def _check_columns(self, row: Mapping[str, str]) -> None:
        unknown = [str(name) for name in row if name not in COLUMNS]
        missing = [name for name in ("path", "fs", "leads", "unit") if name not in row]
        if unknown or missing:
            words = f"lacks the column {missing[0]!r}" if missing else f"has a column {unknown[0]!r}"
            raise SourceError(f"{self.path.name} {words}: columns are {', '.join(COLUMNS)}.")

    def _entry(self, number: int, row: Mapping[str, str]) -> tuple[str, Entry]:
        cell = {name: (row.get(name) or "").strip() for name in COLUMNS}
        wrong = lambda name, words: self._wrong(number, name, cell[name], words)  # noqa: E731
        if not cell["path"]:
            raise wrong("path", "a file is needed")
        relative = safe_name(cell["path"], self.path.name)
        path = self.path.parent / relative
        name = relative.removesuffix(".hea").removesuffix(path.suffix if path.suffix in ARRAYS else "")
        if path.suffix.lower() not in ARRAYS:
            path = path.with_name(path.name.removesuffix(".hea"))
            said = next((key for key in ("fs", "leads", "unit", "row") if cell[key]), None)
            if said:
                raise wrong(said, "a WFDB record says it itself; leave it empty")
            if not path.with_name(f"{path.name}.hea").is_file():
                raise wrong("path", "no .npy, no .npz, and no WFDB header of that name")
            return name, Entry(number, path, self._info(name, cell, wrong))
        if not path.is_file():
            raise wrong("path", "there is no such file")
        fs = record_info.number(cell["fs"])
        if fs is None or not 0 < fs <= 100_000 or not math.isfinite(fs):
            raise wrong("fs", "the sampling rate in Hz is needed")
        if mv_per_unit(cell["unit"]) is None:
            raise wrong("unit", "mV, uV, V or nV is needed")
        row_number = record_info.number(cell["row"]) if cell["row"] else None
        if cell["row"] and (row_number is None or row_number < 0 or row_number != int(row_number)):
            raise wrong("row", "a whole number from 0 is needed")
        at = None if row_number is None else int(row_number)
        name = name if at is None else f"{name}/{at}"
        leads = self._leads(cell["leads"], wrong)
        return name, Entry(number, path, self._info(name, cell, wrong), fs, leads, cell["unit"], at)

    def _leads(self, text: str, wrong: Callable[[str, str], SourceError]) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(";"))
        known = [canonical_lead(name) for name in names]
        if not text or not any(lead in LEADS for lead in known):
            raise wrong(
                "leads", f"names in the array's order are needed, separated by ;, of {', '.join(LEADS)}"
            )
        twice = {lead for lead in known if lead is not None and known.count(lead) > 1}
        if twice:
            raise wrong("leads", f"{min(twice)} is named twice")
        return names

    def _info(
        self, name: str, cell: Mapping[str, str], wrong: Callable[[str, str], SourceError]
    ) -> RecordInfo:
        fold, years = record_info.number(cell["fold"]), record_info.number(cell["age"])
        if cell["fold"] and (fold is None or fold != int(fold)):
            raise wrong("fold", "a whole number is needed")
        if cell["split"] and cell["split"] not in SPLITS:
            raise wrong("split", f"{', '.join(SPLITS)} are known")
        if cell["split"] and cell["fold"]:
            raise wrong("fold", "split says already where the record goes; leave one of the two empty")
        if cell["age"] and years is None:
            raise wrong("age", "years are needed")
        if cell["sex"] and not record_info.sex(cell["sex"]):
            raise wrong("sex", "male, female, m or f is needed")
        if cell["recorded"] and not record_info.iso(cell["recorded"]):
            raise wrong("recorded", "a date or time in ISO 8601 is needed")
        statements, unknown = statements_of(cell["labels"])
        return RecordInfo(
            patient=cell["patient"] or name,
            statements=statements,
            fold=None if fold is None else int(fold),
            split=cell["split"],
            age=record_info.age(years),
            sex=record_info.sex(cell["sex"]),
            recorded=record_info.iso(cell["recorded"]),
            unknown=tuple(unknown),
        )

    def _wrong(self, number: int, column: str, value: str, words: str) -> SourceError:
        return SourceError(f"{self.path.name}, line {number}: {column} is {value!r}: {words}.")


def open_entry(record: str, entry: Entry) -> AnyRecord:
    """One record of a table, ready to be read. Raises RecordError."""
    if not entry.is_array:
        return open_record(entry.path)
    return ArrayRecord(
        name=record,
        fs=entry.fs,
        samples=_oriented(entry, _load(entry)),
        channels=list(entry.leads),
        units=dict.fromkeys(entry.leads, entry.unit),
    )


def list_table(table: str | Path, *, limit: int = 0) -> Source:
    """The records of a CSV file, in its order. Raises SourceError."""
    listed = ArrayTable(table)
    names, path = list(listed.entries), listed.path
    return Source("table", path.stem, path.parent, names[: limit or None], table=path.name)


def statements_of(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """(label system -> labels, SNOMED codes without a name) of a cell: `a;snomed/426783006;rhythm/SR`."""
    found: dict[str, list[str]] = {}
    for entry in text.split(";"):
        system, slash, label = entry.strip().partition("/")
        if not slash or system not in LABEL_SYSTEMS:
            system, label = "dx", entry
        label = record_info.clean(label)
        if label:
            found.setdefault(system, []).append(label)
    unknown: list[str] = []
    if "snomed" in found:
        named = {concept.abbreviation for concept in snomed.concepts().values()}
        words = [label for label in found["snomed"] if label in named]
        codes, unknown = snomed.classes(label for label in found["snomed"] if label not in named)
        found["snomed"] = [*words, *codes]
    return {name: sorted(set(labels)) for name, labels in found.items()}, unknown


def _load(entry: Entry) -> NDArray[Any]:
    """The array of an entry; .npy by memory map."""
    name = entry.path.name
    try:
        if entry.path.suffix.lower() == ".npy":
            array = np.load(entry.path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(entry.path, allow_pickle=False) as archive:
                if len(archive.files) != 1:
                    listed = ", ".join(archive.files) or "none"
                    raise RecordError(f"{name} holds the arrays {listed}: exactly one is needed.")
                array = archive[archive.files[0]]
    except RecordError:
        raise
    except Exception as error:  # numpy and zipfile raise whatever a broken file makes them trip over
        raise RecordError(f"{name} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    if array.dtype.kind not in "fiu":
        raise RecordError(f"{name} holds {array.dtype}: numbers are needed.")
    if entry.row is None:
        return array
    if array.ndim != 3 or entry.row >= len(array):
        raise RecordError(
            f"{name} has shape {list(array.shape)}: row {entry.row} of [records, leads, n] is asked for."
        )
    return array[entry.row]


def _oriented(entry: Entry, array: NDArray[Any]) -> NDArray[Any]:
    """[leads, n]; which axis is which follows from the number of lead names."""
    count = len(entry.leads)
    shape = list(array.shape)
    if array.ndim == 1 and count == 1:
        return array[None]
    if array.ndim != 2 or count not in shape:
        raise RecordError(
            f"{entry.path.name} has shape {shape}: {count} leads are named; [{count}, n] is needed."
        )
    if shape[0] == shape[1]:
        raise RecordError(
            f"{entry.path.name} has shape {shape}: with {count} leads both axes could be the time; "
            "another length is needed."
        )
    array = array if shape[0] == count else array.T
    if not array.shape[1]:
        raise RecordError(f"{entry.path.name} holds no samples.")
    return array
