"""Which records there are, and where: `data/raw/source.json`, with their names in `records.txt` beside it.

A source is a folder of WFDB records in any layout, or a table that lists arrays and records. Several sources
lie in `raw/parts/KEY`, each as if it were alone. One recording is one record: copies are listed as rejected.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path, PurePosixPath
from typing import Any

from ecggen.prepare import databases
from ecggen.prepare.download.listing import list_folder
from ecggen.prepare.download.specs import SourceError, absolute_forms, local_path, plain_key, resolve_folder
from ecggen.prepare.download.survey import RecordFiles, Survey, survey
from ecggen.utils.files import read_json, write_json, write_text

SOURCE_FILE, NAMES_FILE = "source.json", "records.txt"
PARTS = "parts"
AGAIN = "run the download stage again (dvc repro download)"


@dataclass(frozen=True)
class Source:
    """A list of records.

    kind: synthetic, physionet, wfdb or table; root: folder that `records` are relative to; records: names
    without suffix, `/` between folders; absent: records that the folder's own list names but that are not
    there; database: name of the database it holds, "" = none that is known; table: the CSV file within root
    that lists the records of a table; key: what its records and patients are called by beside those of other
    sources, "" = it is the only one; rejected: entries that are no records of their own -> the reason; bytes:
    of the files of all records; files: what is known of them; both only where they were looked at.
    """

    kind: str
    name: str
    root: Path
    records: list[str] = field(default_factory=list)
    absent: int = 0
    database: str = ""
    table: str = ""
    key: str = ""
    rejected: dict[str, str] = field(default_factory=dict)
    bytes: int = field(default=0, compare=False)
    files: Survey | None = field(default=None, compare=False, repr=False)

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


def list_source(
    path: str | Path, *, fs: float = 100.0, limit: int = 0, database: str | None = None
) -> Source:
    """The records of a local folder, found as `list_folder` describes.

    fs in Hz: chooses between the two rates of PTB-XL; limit: the first records only, 0 = all; database: the
    one that the folder is a copy of; None or "" = it is recognised by its files. Raises SourceError where
    there is no folder or no record, DatabaseError where it is another database than the one named.
    """
    folder = local_path(path)
    listing = list_folder(folder, fs)
    if not listing.names:
        raise SourceError(f"No WFDB record in {path}: at least one header (*.hea) is needed there or below.")
    names = list(listing.names)
    source = Source("wfdb", folder.resolve().name, Path(path), names[: limit or None], listing.absent)
    source = surveyed(replace(source, rejected=listing.rejected))
    if database:
        base = databases.get(database)
        databases.require(base, folder)
        return replace(source, database=base.key)
    others = [name for name in names if name not in source.rejected]
    readable = (name for name in others if RecordFiles.of(f"{folder}/{name}").header)
    known = databases.recognise(folder, [*islice(readable, 1), *others])  # it reads the first header
    return replace(source, database=known.key if known else "")


def surveyed(source: Source) -> Source:
    """The source with what is known of its files; copies of a recording become rejected entries."""
    if source.files is not None:
        return source
    names = [*source.records]
    if source.table:  # the table itself, and arrays whose rows are records
        arrays = dict.fromkeys(str(PurePosixPath(name).parent) for name in source.records)
        names += [Path(source.table).stem, *(name for name in arrays if name != ".")]
    files = survey(str(resolve_folder(source.root)), names)
    rejected = source.rejected | {
        copy: f"Record {copy} is a copy of {original}: a recording counts once."
        for copy, original in files.copies.items()
    }
    records = [name for name in source.records if name not in files.copies]
    return replace(source, records=records, rejected=rejected, bytes=files.bytes, files=files)


def refuse_links(source: Source, replaced: Iterable[str | Path]) -> None:
    """Raises SourceError where files of the records, perhaps by links, lie in folders to be replaced."""
    roots = [f"{form}{os.sep}" for folder in replaced for form in absolute_forms(folder)]
    folders = [f"{os.path.normcase(folder)}{os.sep}" for folder in (source.files or survey("", ())).folders]
    for folder, root in product(folders, roots):
        if folder.startswith(root):
            raise SourceError(
                f"Records of {source.root} are files in {folder}, perhaps by links, and {root} is replaced "
                "as a whole: move the records elsewhere, so that they are not deleted."
            )


def write_source(raw: str | Path, source: Source) -> dict[str, Any]:
    """Write raw/source.json, and the records' names beside it; return what it holds.

    The root is stored relative to `raw` where it lies inside, else as given.
    """
    raw, source = Path(raw), surveyed(source)
    assert source.files is not None
    root = resolve_folder(source.root).resolve()
    is_inside = root.is_relative_to(raw.resolve())
    content: dict[str, Any] = {
        "source": source.kind,
        "name": source.name,
        "database": source.database,
        "root": root.relative_to(raw.resolve()).as_posix() if is_inside else str(source.root),
        "inside": is_inside,
        "records": len(source.records),
        "names": NAMES_FILE,
        "absent": source.absent,
        "rejected": source.rejected,
        "files": source.files.count,
        "bytes": source.files.bytes,
        "fingerprint": source.files.fingerprint,
    }
    content |= {"table": source.table} if source.table else {}
    write_text(raw / NAMES_FILE, "".join(f"{name}\n" for name in source.records))
    write_json(raw / SOURCE_FILE, content)
    return content


def write_parts(raw: str | Path, keys: Iterable[str]) -> dict[str, Any]:
    """Write raw/source.json for sources that were written to raw/parts/KEY, and return what it holds.

    Raises SourceError where two of them hold the same recordings: their patients would not be disjoint.
    """
    raw = Path(raw)
    parts = []
    for key in keys:
        content = read_json(raw / PARTS / key / SOURCE_FILE)
        root = {"root": f"{PARTS}/{key}/{content['root']}"} if content["inside"] else {}
        parts.append(content | root | {"names": f"{PARTS}/{key}/{content['names']}", "key": key})
    _refuse_overlapping([_as_source(raw, part) for part in parts])
    total = {
        "source": "several",
        "name": " + ".join(part["key"] for part in parts),
        "parts": parts,
        "fingerprint": hashlib.sha256("".join(part["fingerprint"] for part in parts).encode()).hexdigest(),
    }
    total |= {name: sum(part[name] for part in parts) for name in ("absent", "files", "bytes")}
    write_json(raw / SOURCE_FILE, total)
    return total


def _refuse_overlapping(sources: Iterable[Source]) -> None:
    """Raises SourceError where two sources share a cohort, a record, or the samples of one."""
    owners: dict[str, str] = {}

    def refuse(first: str, second: str, thing: str) -> None:
        if first != second:
            raise SourceError(
                f"The sources {first} and {second} both hold {thing}: the same people would be in two "
                "splits; leave one of them out."
            )

    for source in sources:
        root = source.root.resolve()
        things = {cohort: f"the recordings of {cohort}" for cohort in source.cohorts()}
        things |= {f"{root}/{name}": f"the recording {name}" for name in source.records}
        for thing, words in things.items():
            refuse(owners.setdefault(thing, source.key), source.key, words)
    for copy, original in survey("", [thing for thing in owners if "/" in thing]).copies.items():
        refuse(owners[original], owners[copy], f"the recording {original}")


def read_sources(raw: str | Path) -> list[Source]:
    """What the download stage left in `raw`: one source, or several with their keys. Raises SourceError."""
    raw = Path(raw)
    if not (raw / SOURCE_FILE).is_file():
        raise SourceError(f"No {SOURCE_FILE} in {raw}: run the download stage first (dvc repro download).")
    content = read_json(raw / SOURCE_FILE)
    several = isinstance(content, dict) and "parts" in content
    return [_as_source(raw, part) for part in (content["parts"] if several else [content])]


def _as_source(raw: Path, content: Any) -> Source:
    """The source that (a part of) raw/source.json describes."""
    path = raw / SOURCE_FILE
    try:
        records = (raw / content["names"]).read_text(encoding="utf-8").split("\n")[:-1]
        root = raw / content["root"] if content["inside"] else resolve_folder(content["root"])
        facts = {name: content[name] for name in ("name", "absent", "database", "rejected", "bytes")}
        facts |= {name: content.get(name, "") for name in ("table", "key")}
        if len(records) != content["records"]:
            raise ValueError(f"{content['names']} has {len(records)} records, not {content['records']}")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise SourceError(f"{path} is not a list of records ({error}): {AGAIN}.") from error
    if not root.is_dir():
        raise SourceError(f"The records of {path} lie in {root}, which is not there: {AGAIN}.")
    return Source(kind=content["source"], root=root, records=records, **facts)
