"""Who and what each record of a database is: patient, split, age, sex and labels in every system it has.

One file per way of labelling: label_ptbxl, label_tables (LUDB, MIMIC-IV-ECG, Brugada-HUCA), label_headers
(databases that say it in the records' headers); snomed and beats are the code tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ecggen.prepare.labels import databases
from ecggen.prepare.labels.headers import (
    challenge_info,
    header_info,
    incartdb_info,
    mitdb_info,
    ptbdb_info,
)
from ecggen.prepare.labels.ptbxl import SUPERCLASSES, read_ptbxl
from ecggen.prepare.labels.record_info import LabelError, RecordInfo
from ecggen.prepare.labels.tables import read_brugada, read_ludb, read_mimic, stem

__all__ = ["SUPERCLASSES", "LabelError", "Labels", "RecordInfo", "header_info", "read_ptbxl"]

_HEADERS: dict[str, Callable[[str, Iterable[str], str], RecordInfo]] = {
    "ptbdb": ptbdb_info,
    "incartdb": incartdb_info,
    "mitdb": mitdb_info,
}


class Labels:
    """Looks up RecordInfo; reads the database's table once."""

    def __init__(self, root: Path, database: str = "", records: Iterable[str] = ()) -> None:
        """root: the folder that record names are relative to; database: its name, "" = plain WFDB records.

        records: those that will be asked for, where the table is too large to be kept whole. PTB-XL's table
        is used for plain records too. Raises LabelError for a broken table.
        """
        self.root = Path(root)
        self.database = databases.find(database)
        self.table = self._read_table(records)

    def info(self, record: str, comments: Iterable[str]) -> RecordInfo:
        """record: name relative to root, without suffix; comments: the header's comment lines."""
        found = self.table.get(stem(record))
        if found is not None:
            return found
        base = self.database
        if base is None:
            return header_info(record, comments, self.root.name)
        if base.default_labels == "snomed":
            return challenge_info(record, comments, self.root.name)
        read = _HEADERS.get(base.key, header_info)
        return replace(read(record, comments, self.root.name), system=base.default_labels)

    def _read_table(self, records: Iterable[str]) -> Mapping[str, RecordInfo]:
        key = self.database.key if self.database else "ptb-xl"
        if self.database and not self.database.files:
            return {}
        name = databases.get(key).files[0]
        table = databases.find_above(self.root, name)
        if table is None:
            return {}
        if key == "ptb-xl":
            return read_ptbxl(table)
        if key == "mimic-iv-ecg":
            return read_mimic(table, map(stem, records))
        read = {"ludb": read_ludb, "brugada-huca": read_brugada}.get(key)
        return read(table) if read else {}
