"""Which records there are, and where: `data/raw/source.json`.

A source is a folder of WFDB records in any layout, or a table that lists arrays and records. Records are
named by their path below the root without suffix, in an order that depends on the names alone. Several
sources lie in `raw/parts/KEY`, each as if it were alone. Names pass from file to file and are never all held.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ecggen.io.tables import iter_table
from ecggen.prepare import databases
from ecggen.prepare.download.folders import headers_below, is_file, measure
from ecggen.prepare.download.names import NAMES_FILE, Names, PassingNames, each_once, write_names
from ecggen.prepare.download.specs import SourceError, SourceSpec, configured_sources, parse_source, plain_key
from ecggen.utils.files import atomic_path, read_json, write_json

SOURCE_FILE = "source.json"
PARTS = "parts"
PTBXL_CSV = "ptbxl_database.csv"
MIMIC_CSV = "record_list.csv"

__all__ = ["Source", "SourceError", "SourceSpec", "configured_sources", "list_source", "parse_source"]


@dataclass(frozen=True)
class Source:
    """A list of records.

    kind: synthetic, physionet, wfdb or table; root: folder that `records` are relative to; records: names
    without suffix, `/` between folders; absent: records that the folder's own list names but that are not
    there; database: name of the database it holds, "" = none that is known; table: the CSV file within root
    that lists the records of a table; key: what its records and patients are called by beside those of other
    sources, "" = it is the only one; bytes: of the files of all records, 0 = not measured.
    """

    kind: str
    name: str
    root: Path
    records: Sequence[str] = field(default_factory=list)
    absent: int = 0
    database: str = ""
    table: str = ""
    key: str = ""
    bytes: int = field(default=0, compare=False)

    @property
    def label(self) -> str:
        """What the source is called in tables and counts: its key, database or name."""
        return self.key or self.database or plain_key(self.name)

    def cohorts(self) -> set[str]:
        """Whose recordings these are: two sources that share a cohort hold the same people."""
        if self.kind == "synthetic":
            return {self.name}
        return databases.cohorts(databases.find(self.database), self.records)

    def record(self, name: str) -> str:
        """A record's name within the run, distinct from those of other sources: KEY/name."""
        return f"{self.key}/{name}" if self.key else name

    def patient(self, name: str) -> str:
        """A patient's name within the run: KEY:name."""
        return f"{self.key}:{name}" if self.key else name


def resolve_folder(path: str | Path) -> Path:
    """The folder meant by a path of the configuration.

    A relative path that does not exist here is looked up from DVC's main repository, because temporary and
    queued experiments run in a copy of it elsewhere.
    """
    path = Path(path).expanduser()
    main = os.environ.get("DVC_ROOT")
    if main and not path.is_absolute() and not path.exists() and (Path(main) / path).exists():
        return Path(main) / path
    return path


def list_source(
    path: str | Path, *, fs: float = 100.0, limit: int = 0, database: str | None = None
) -> Source:
    """The records of a local folder.

    Looked for in this order: PTB-XL's ptbxl_database.csv (its 100 Hz files for fs up to 100 Hz, else the
    500 Hz ones; the other where one is not there), a RECORDS file (lines ending in `/` point to folders with
    their own), MIMIC-IV-ECG's record_list.csv, every header below the folder. limit: the first records only,
    0 = all. database: the one that the folder is a copy of; None or "" = it is recognised by its files.

    Raises SourceError where there is no folder, no record, or another database than the one named.
    """
    folder = resolve_folder(path)
    if not folder.is_dir():
        raise SourceError(f"No folder of records at {path}: set data.path to a folder with WFDB records.")
    finds = (
        lambda: PassingNames(_ptbxl_records(folder, fs)),
        lambda: each_once(PassingNames(_records_file(folder))),
        lambda: PassingNames(_mimic_records(folder)),
        lambda: PassingNames(headers_below(folder)),
    )
    for find in finds:
        found = find()
        if found:
            break
    else:
        raise SourceError(f"No WFDB record in {path}: at least one header (*.hea) is needed there or below.")
    base = _named(database, folder) if database else databases.recognise(folder, found)
    names = found[:limit] if limit else found
    return Source("wfdb", folder.resolve().name, Path(path), names, found.absent, base.key if base else "")


def _named(database: str, folder: Path) -> databases.Database:
    try:
        base = databases.get(database)
        databases.require(base, folder)
    except databases.DatabaseError as error:
        raise SourceError(str(error)) from None
    return base


def write_source(raw: str | Path, source: Source) -> dict[str, Any]:
    """Write raw/source.json, and the records' names beside it; return what it says.

    The root is stored relative to `raw` where it lies inside, else as given.
    """
    raw = Path(raw)
    root = resolve_folder(source.root)
    inside = root.resolve().is_relative_to(raw.resolve())
    with atomic_path(raw / NAMES_FILE) as names:
        passing = write_names(names, source.records)
        if source.table:
            files, size, fingerprint = measure(root, _files_of_table(source, root, list(passing)))
        else:
            files, size, fingerprint = measure(root, passing)
    said: dict[str, Any] = {
        "source": source.kind,
        "name": source.name,
        "database": source.database or _database_of(source),
        "root": root.resolve().relative_to(raw.resolve()).as_posix() if inside else str(source.root),
        "inside": inside,
        "records": len(source.records),
        "names": NAMES_FILE,
        "absent": source.absent,
        "files": files,
        "bytes": size,
        "fingerprint": fingerprint,
    }
    said |= {"table": source.table} if source.table else {}
    write_json(raw / SOURCE_FILE, said)
    return said


def write_parts(raw: str | Path, keys: Iterable[str]) -> dict[str, Any]:
    """Write raw/source.json for sources that were written to raw/parts/KEY, and return what it says.

    Raises SourceError where two of them hold the same recordings: their patients would not be disjoint.
    """
    raw = Path(raw)
    parts = []
    for key in keys:
        said = read_json(raw / PARTS / key / SOURCE_FILE)
        inside = {"root": f"{PARTS}/{key}/{said['root']}"} if said["inside"] else {}
        parts.append(said | inside | {"names": f"{PARTS}/{key}/{said['names']}", "key": key})
    _check_disjoint([replace(read_source(raw / PARTS / part["key"]), key=part["key"]) for part in parts])
    total = {
        "source": "several",
        "name": " + ".join(part["key"] for part in parts),
        "parts": parts,
        "absent": sum(part["absent"] for part in parts),
        "files": sum(part["files"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "fingerprint": hashlib.sha256("".join(part["fingerprint"] for part in parts).encode()).hexdigest(),
    }
    write_json(raw / SOURCE_FILE, total)
    return total


def _check_disjoint(sources: Iterable[Source]) -> None:
    owners: dict[str, str] = {}
    for source in sources:
        for name in {*source.cohorts(), str(source.root.resolve() / source.table)}:
            if name in owners:
                shown = name if "/" not in name else "that folder"
                raise SourceError(
                    f"The sources {owners[name]} and {source.key} both hold the recordings of {shown}: the "
                    "same people would be in two splits; leave one of them out."
                )
            owners[name] = source.key


def read_sources(raw: str | Path) -> list[Source]:
    """What the download stage left in `raw`: one source, or several with their keys. Raises SourceError."""
    raw = Path(raw)
    path = raw / SOURCE_FILE
    said = read_json(path) if path.is_file() else {}
    if not isinstance(said, dict) or said.get("source") != "several":
        return [read_source(raw)]
    parts = said.get("parts")
    return [_as_source(raw, part) for part in (parts if isinstance(parts, list) else [parts])]


def read_source(raw: str | Path) -> Source:
    """The single source that the download stage left in `raw`. Raises SourceError."""
    raw = Path(raw)
    path = raw / SOURCE_FILE
    if not path.is_file():
        raise SourceError(f"No {SOURCE_FILE} in {raw}: run the download stage first (dvc repro download).")
    return _as_source(raw, read_json(path))


def _as_source(raw: Path, said: Any) -> Source:
    """The source that (a part of) raw/source.json describes."""
    path = raw / SOURCE_FILE
    try:
        stored, records = Path(said["root"]), _records_of(raw, said)
        root = raw / stored if said.get("inside", said["source"] != "wfdb") else resolve_folder(stored)
        source = Source(
            said["source"],
            said["name"],
            root,
            records,
            int(said.get("absent", 0)),
            str(said.get("database", "")),
            str(said.get("table", "")),
            str(said.get("key", "")),
            int(said.get("bytes", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path} is not a list of records ({error}): run the download stage again."
        ) from error
    if not source.root.is_dir():
        raise SourceError(
            f"The records of {path} lie in {source.root}, which is not there: run the download stage again."
        )
    return source


def _records_of(raw: Path, said: Any) -> Sequence[str]:
    """The names of the records: in a file, or, as earlier versions wrote them, in source.json itself."""
    if isinstance(said["records"], list):
        return [str(name) for name in said["records"]]
    names = Names(raw / str(said["names"]), int(said["records"]))
    if not names.path.is_file():
        raise SourceError(f"No {names.path.name} in {names.path.parent}: run the download stage again.")
    return names


def _database_of(source: Source) -> str:
    if source.kind == "synthetic":
        return "synthetic"
    base = databases.by_slug(source.name) if source.kind == "physionet" else None
    return base.key if base else ""


def _records_file(folder: Path, below: str = "", seen: set[str] | None = None) -> Iterator[str]:
    """Records that folder/below/RECORDS names, empty for one that has no header; none without the file.

    seen: folders that were read before; a list that leads back to one of them is not read again.
    """
    path = folder / below / "RECORDS"
    seen = set() if seen is None else seen
    real = os.path.realpath(path.parent)
    if not is_file(path) or real in seen:
        return
    seen.add(real)
    for line in record_lines(path):
        name = safe_name(below + line, path)
        if line.endswith("/"):
            yield from _records_file(folder, f"{name}/", seen)
        else:
            yield name if is_file(folder / f"{name}.hea") else ""


def record_lines(path: Path) -> Iterator[str]:
    """The entries of a RECORDS file, in its order, one at a time: it may have millions.

    A `.hea` suffix is dropped.
    """
    with path.open(encoding="utf-8", errors="replace") as stream:
        # A line may be cut further, by a form feed or the like.
        for line in (part for whole in stream for part in whole.splitlines()):
            entry = line.strip().lstrip("\ufeff").removesuffix(".hea").removeprefix("./")
            if entry and not entry.startswith("#"):
                yield entry


def safe_name(name: str, where: str | Path) -> str:
    """A path that stays below its root. Raises SourceError for one that does not."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not pure.parts:
        raise SourceError(f"{where} names {name!r}: only paths below its own folder are allowed.")
    return pure.as_posix()


def ptbxl_choices(table: Path, fs: float) -> Iterator[list[str]]:
    """For each row of ptbxl_database.csv: the record at the rate nearer to fs, then the other."""
    first, second = ("filename_lr", "filename_hr") if fs <= 100 else ("filename_hr", "filename_lr")
    for row in iter_table(table):
        yield [safe_name(row[key].removesuffix(".hea"), table) for key in (first, second) if row.get(key)]


def _ptbxl_records(folder: Path, fs: float) -> Iterator[str]:
    if (folder / PTBXL_CSV).is_file():
        for row in ptbxl_choices(folder / PTBXL_CSV, fs):
            yield next((name for name in row if (folder / f"{name}.hea").is_file()), "")


def _mimic_records(folder: Path) -> Iterator[str]:
    table = folder / MIMIC_CSV
    for row in iter_table(table) if table.is_file() else ():
        if row.get("path"):
            name = safe_name(row["path"], table)
            yield name if (folder / f"{name}.hea").is_file() else ""


def _files_of_table(source: Source, root: Path, names: list[str]) -> list[str]:
    """The table and the files that it lists (a record may be a row of an array)."""
    files = (name if (root / name).parent.is_dir() else str(PurePosixPath(name).parent) for name in names)
    return list(dict.fromkeys([Path(source.table).stem, *files]))
