"""Who and what each record of a database is: patient, split, age, sex and labels in every system it has.

Where the facts are depends on the database: in tables (tables.py) or in the records' headers (headers.py).
snomed.py has the code tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ecggen.prepare import databases
from ecggen.prepare.labels import headers, tables
from ecggen.prepare.labels.record_info import LabelError, RecordInfo

_TABLES = {"ptb-xl": tables.read_ptbxl, "ludb": tables.read_ludb, "brugada-huca": tables.read_brugada}


def patient_notes(by_database: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each database of which records count as patients of their own, since nothing says whose."""
    return [
        f"{name}: nothing says whose {alone} of {counts['records']} records are, so each counts as a patient "
        "of its own; data.patient finds patients in the records' names."
        for name, counts in by_database.items()
        if (alone := counts["patients_from"].get("record"))
    ]


class Labels:
    """Looks up RecordInfo; reads the database's table once."""

    def __init__(
        self, root: Path, database: str = "", records: Iterable[str] = (), pattern: str = ""
    ) -> None:
        """root: the folder that record names are relative to; database: its name, "" = plain WFDB records.

        records: those of the run; pattern: data.patient, for records of which neither a table nor the header
        says whose they are. PTB-XL's table is used for plain records too. Raises LabelError for a broken
        table, and for a pattern that does not match the name of each plain record.
        """
        self.root = Path(root)
        self.database = databases.find(database)
        self._pattern = pattern
        self._table = self._read_table(records)
        if pattern and self.database is None and not self._table:
            self._require_pattern(records)

    def info(self, record: str, comments: Iterable[str]) -> RecordInfo:
        """record: name relative to root, without suffix; comments: the header's comment lines."""
        in_table = self._table.get(PurePosixPath(record).name)
        if in_table is not None:
            return in_table
        comments = list(comments)
        info = headers.header_info(record, comments, self.root.name, self._pattern)
        if self.database is None:
            return info
        system = self.database.default_labels
        adapt = headers.OF_DATABASE.get(system) or headers.OF_DATABASE.get(self.database.key)
        return replace(adapt(info, record, comments) if adapt else info, system=system)

    def _read_table(self, records: Iterable[str]) -> Mapping[str, RecordInfo] | tables.Studies:
        key = self.database.key if self.database else "ptb-xl"
        files = databases.get(key).files
        table = databases.find_above(self.root, files[0]) if files else None
        if table is None:
            return {}
        if key == "mimic-iv-ecg":
            return tables.Studies(table, (PurePosixPath(name).name for name in records))
        return _TABLES[key](table) if key in _TABLES else {}

    def _require_pattern(self, records: Iterable[str]) -> None:
        others = [name for name in records if not headers.patient_in_name(name, self._pattern)]
        if others:
            raise LabelError(
                f"data.patient is {self._pattern!r}, which finds no patient in the names of {len(others)} "
                f"records, the first of them {others[0]!r}: change it so that it matches every name."
            )
