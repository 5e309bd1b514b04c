"""Labels of more records than memory should hold: a table on disk that is gone with the process.

Standard library only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping

from ecggen.prepare.labels.record_info import RecordInfo

_CACHE_KIB = 16_384


class Studies(Mapping[str, RecordInfo]):
    """Study -> RecordInfo with patient, time and labels of system dx; of the wanted studies alone."""

    def __init__(self, wanted: Iterable[str]) -> None:
        # The empty name is a temporary file of SQLite's own, which nobody else sees.
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute(
            "CREATE TABLE studies (study TEXT PRIMARY KEY, patient TEXT, recorded TEXT, labels TEXT)"
            " WITHOUT ROWID"
        )
        self._all("INSERT OR IGNORE INTO studies (study) VALUES (?)", ((study,) for study in wanted))

    def set_patients(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """rows: study, patient, time of the recording (ISO 8601, "" = not known); others are passed over."""
        changed = ((patient, recorded, study) for study, patient, recorded in rows)
        self._all("UPDATE studies SET patient = ?, recorded = ? WHERE study = ?", changed)

    def set_labels(self, rows: Iterable[tuple[str, list[str]]]) -> None:
        """rows: study and its labels, which have no line breaks; others are passed over."""
        changed = (("\n".join(labels), study) for study, labels in rows)
        self._all("UPDATE studies SET labels = ? WHERE study = ?", changed)

    def __getitem__(self, study: str) -> RecordInfo:
        query = "SELECT patient, recorded, labels FROM studies WHERE study = ? AND patient NOT NULL"
        found = self._table.execute(query, (study,)).fetchone()
        if found is None:
            raise KeyError(study)
        patient, recorded, labels = found
        statements = {"dx": labels.split("\n")} if labels else {}
        return RecordInfo(patient=patient, recorded=recorded, statements=statements)

    def __iter__(self) -> Iterator[str]:
        for (study,) in self._table.execute("SELECT study FROM studies WHERE patient NOT NULL"):
            yield study

    def __len__(self) -> int:
        count = self._table.execute("SELECT COUNT(*) FROM studies WHERE patient NOT NULL").fetchone()[0]
        return int(count)

    def _all(self, statement: str, rows: Iterable[tuple[str, ...]]) -> None:
        self._table.execute("BEGIN")
        self._table.executemany(statement, rows)
        self._table.execute("COMMIT")
