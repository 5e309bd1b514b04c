"""Which records there are, and where: `data/raw/source.json`.

A source is a folder of WFDB records in any layout, or a table that lists arrays and records. Records are
named by their path below the root without suffix, in an order that depends on the names alone. Several
sources lie in `raw/parts/KEY`, each as if it were alone. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ecggen.prepare import databases
from ecggen.prepare.specs import SourceError, SourceSpec, configured_sources, parse_source, plain_key
from ecggen.utils.files import iter_csv, read_csv, read_json, write_json

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
    sources, "" = it is the only one.
    """

    kind: str
    name: str
    root: Path
    records: list[str] = field(default_factory=list)
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
        lambda: _ptbxl_records(folder, fs),
        lambda: records_file(folder),
        lambda: _mimic_records(folder),
        lambda: _headers(folder),
    )
    for find in finds:
        names, absent = find()
        if names:
            break
    else:
        raise SourceError(f"No WFDB record in {path}: at least one header (*.hea) is needed there or below.")
    base = _named(database, folder) if database else databases.recognise(folder, names)
    if limit:
        names = names[:limit]
    return Source("wfdb", folder.resolve().name, Path(path), names, absent, base.key if base else "")


def _named(database: str, folder: Path) -> databases.Database:
    try:
        base = databases.get(database)
        databases.require(base, folder)
    except databases.DatabaseError as error:
        raise SourceError(str(error)) from None
    return base


def write_source(raw: str | Path, source: Source) -> dict[str, Any]:
    """Write raw/source.json and return what it says.

    The root is stored relative to `raw` where it lies inside, else as given.
    """
    raw = Path(raw)
    root = resolve_folder(source.root)
    inside = root.resolve().is_relative_to(raw.resolve())
    files, size, fingerprint = _measure(root, _listed_files(source, root))
    said: dict[str, Any] = {
        "source": source.kind,
        "name": source.name,
        "database": source.database or _database_of(source),
        "root": root.resolve().relative_to(raw.resolve()).as_posix() if inside else str(source.root),
        "inside": inside,
        "records": source.records,
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
        parts.append(said | inside | {"key": key})
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
        stored, records = Path(said["root"]), [str(name) for name in said["records"]]
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


def _database_of(source: Source) -> str:
    if source.kind == "synthetic":
        return "synthetic"
    base = databases.by_slug(source.name) if source.kind == "physionet" else None
    return base.key if base else ""


def records_file(folder: Path, below: str = "", seen: set[str] | None = None) -> tuple[list[str], int]:
    """Records named by folder/below/RECORDS and how many of them have no header; ([], 0) without the file.

    seen: folders that were read before; a list that leads back to one of them is not read again.
    """
    path = folder / below / "RECORDS"
    seen = set() if seen is None else seen
    real = os.path.realpath(path.parent)
    if not _is_file(path) or real in seen:
        return [], 0
    seen.add(real)
    names: list[str] = []
    absent = 0
    for line in record_lines(path.read_text(encoding="utf-8", errors="replace")):
        if line.endswith("/"):
            nested, missing = records_file(folder, safe_name(below + line, path) + "/", seen)
            names, absent = names + nested, absent + missing
        elif _is_file(folder / f"{safe_name(below + line, path)}.hea"):
            names.append(safe_name(below + line, path))
        else:
            absent += 1
    return list(dict.fromkeys(names)), absent


def _is_file(path: Path) -> bool:
    """Path.is_file raises for a name longer than file systems allow."""
    try:
        return path.is_file()
    except OSError:
        return False


def record_lines(text: str) -> list[str]:
    """The entries of a RECORDS file, in its order; a `.hea` suffix is dropped."""
    lines = (
        line.strip().lstrip("\ufeff").removesuffix(".hea").removeprefix("./") for line in text.splitlines()
    )
    return [line for line in lines if line and not line.startswith("#")]


def safe_name(name: str, where: str | Path) -> str:
    """A path that stays below its root. Raises SourceError for one that does not."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not pure.parts:
        raise SourceError(f"{where} names {name!r}: only paths below its own folder are allowed.")
    return pure.as_posix()


def ptbxl_choices(table: Path, fs: float) -> list[list[str]]:
    """For each row of ptbxl_database.csv: the record at the rate nearer to fs, then the other."""
    first, second = ("filename_lr", "filename_hr") if fs <= 100 else ("filename_hr", "filename_lr")
    return [
        [safe_name(row[key].removesuffix(".hea"), table) for key in (first, second) if row.get(key)]
        for row in read_csv(table)
    ]


def _ptbxl_records(folder: Path, fs: float) -> tuple[list[str], int]:
    if not (folder / PTBXL_CSV).is_file():
        return [], 0
    rows = ptbxl_choices(folder / PTBXL_CSV, fs)
    found = (next((n for n in row if (folder / f"{n}.hea").is_file()), None) for row in rows)
    names = [name for name in found if name]
    return names, len(rows) - len(names)


def _mimic_records(folder: Path) -> tuple[list[str], int]:
    if not (folder / MIMIC_CSV).is_file():
        return [], 0
    rows = [
        safe_name(row["path"], folder / MIMIC_CSV) for row in iter_csv(folder / MIMIC_CSV) if row.get("path")
    ]
    names = [name for name in rows if (folder / f"{name}.hea").is_file()]
    return names, len(rows) - len(names)


def _headers(folder: Path) -> tuple[list[str], int]:
    """Every header below the folder, less the segments of multi-segment records."""
    names: list[str] = []
    segments: set[str] = set()
    for directory, files in _walk(folder):
        below = directory.relative_to(folder)
        for file in files:
            if not file.endswith(".hea") or file.startswith("."):
                continue
            names.append((below / file.removesuffix(".hea")).as_posix())
            segments.update((below / part).as_posix() for part in _segments(directory / file))
    return sorted(name for name in names if name not in segments), 0


def _segments(header: Path) -> list[str]:
    """Names of the segments of a multi-segment header (`name/3 ...` in its first line), else nothing."""
    with header.open(encoding="utf-8", errors="replace") as stream:
        lines = (line.split() for line in stream if line.strip() and not line.startswith("#"))
        first = next(lines, [])
        if not first or "/" not in first[0]:
            return []
        return [words[0] for words in lines if words[0] != "~"]


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """(directory, sorted file names) below a folder; links are followed once, hidden folders are not."""
    seen: set[str] = set()
    for at, directories, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            directories.clear()
            continue
        seen.add(real)
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        yield Path(at), sorted(files)


def _listed_files(source: Source, root: Path) -> list[str]:
    """The records, or the table and the files that it lists (a record may be a row of an array)."""
    if not source.table:
        return source.records
    files = (
        name if (root / name).parent.is_dir() else str(PurePosixPath(name).parent) for name in source.records
    )
    return list(dict.fromkeys([Path(source.table).stem, *files]))


def _measure(root: Path, records: Iterable[str]) -> tuple[int, int, str]:
    """(files, bytes, fingerprint) of the records.

    The fingerprint covers names, sizes and headers (which hold a checksum of each signal), not the signals:
    reading them all twice would cost more than it protects.
    """
    digest = hashlib.sha256()
    listing: dict[Path, dict[str, list[os.DirEntry[str]]]] = {}
    files = size = 0
    for name in records:
        path = root / name
        if path.parent not in listing:
            listing[path.parent] = _by_stem(path.parent)
        for entry in listing[path.parent].get(path.name, []):
            length = entry.stat().st_size
            files, size = files + 1, size + length
            digest.update(f"{name}\t{entry.name}\t{length}\n".encode())
            if entry.name.endswith(".hea"):
                digest.update(Path(entry.path).read_bytes())
    return files, size, digest.hexdigest()


def _by_stem(folder: Path) -> dict[str, list[os.DirEntry[str]]]:
    """Files of a folder by name without the last suffix, in order."""
    out: dict[str, list[os.DirEntry[str]]] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if entry.is_file() and not entry.name.startswith("."):
                out.setdefault(Path(entry.name).stem, []).append(entry)
    return out
