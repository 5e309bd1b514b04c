"""Names of WFDB records: those that a folder's own list names, or every header below the folder.

A record's name is its path below the folder, without suffix, `/` between folders. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ecggen.io.header import find_file, header_lines, named_files, read_regular
from ecggen.io.tables import iter_table
from ecggen.prepare.download.specs import SourceError
from ecggen.prepare.download.survey import header_bytes

PTBXL_CSV = "ptbxl_database.csv"
SUFFIXES = (".hea", ".HEA")
MAX_LIST = 64 << 20  # bytes of a RECORDS file
#: What most paths look like: pathlib takes long with a million of them.
_PLAIN = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass
class Listing:
    """Records in order, each once; absent: how many are listed but have no header.

    rejected: entries that cannot be read -> the reason.
    """

    names: dict[str, None] = field(default_factory=dict)
    absent: int = 0
    rejected: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, exists: Callable[[str], bool]) -> None:
        """One entry of a list."""
        if name and any(exists(f"{name}{suffix}") for suffix in SUFFIXES):
            self.names[name] = None
        else:
            self.absent += 1


def list_folder(folder: Path, fs: float) -> Listing:
    """The records of a folder.

    Looked for in this order: PTB-XL's ptbxl_database.csv, RECORDS, every header below the folder.
    """

    def exists(name: str) -> bool:
        return os.path.lexists(find_file(folder, name))

    listing = list_ptbxl(folder / PTBXL_CSV, fs, exists)
    if not listing.names:
        listing = list_records_files(folder, exists)
    return listing if listing.names else list_headers(folder)


def list_ptbxl(table: Path, fs: float, exists: Callable[[str], bool]) -> Listing:
    """Records of ptbxl_database.csv: of the two rates of each the one nearer to fs (Hz), else the other."""
    listing = Listing()
    columns = ("filename_lr", "filename_hr") if fs <= 100 else ("filename_hr", "filename_lr")
    for row in iter_table(table) if table.is_file() else ():
        names = [safe_name(row[key].removesuffix(".hea"), table) for key in columns if row.get(key)]
        listing.add(next((name for name in names if exists(f"{name}.hea")), ""), exists)
    return listing


def list_records_files(
    folder: Path,
    exists: Callable[[str], bool],
    fetch: Callable[[list[str]], None] = lambda names: None,
    limit: int = 0,
) -> Listing:
    """Records that folder/RECORDS names; a line that ends in `/` is a folder with a RECORDS file of its own.

    exists: whether there is a file of this name; fetch: makes files available before they are opened; limit:
    names that are enough, 0 = all. Raises SourceError for names that leave the folder.
    """
    listing = Listing()
    visited: set[str] = set()

    def read(below: str) -> None:
        name, path = f"{below}RECORDS", folder / below / "RECORDS"
        if os.path.realpath(path) in visited:  # a list that leads back to itself, perhaps through a link
            return
        visited.add(os.path.realpath(path))
        if not exists(name):
            listing.absent += bool(below)
            return
        fetch([name])
        try:
            lines, _ = header_lines(read_regular(path, MAX_LIST))  # `#` begins a comment here as well
        except OSError as error:
            listing.rejected[name] = f"{name} cannot be read: {error.strerror or error}."
            return
        lines = [line.removesuffix(".hea").removeprefix("./") for line in lines]
        entries = [(safe_name(f"{below}{line}", path), line[-1] == "/") for line in lines if line]
        if not limit:
            fetch([file for entry, is_folder in entries if is_folder and exists(file := f"{entry}/RECORDS")])
        for entry, is_folder in entries:
            if limit and len(listing.names) >= limit:
                return
            if is_folder:
                read(f"{entry}/")
            else:
                listing.add(entry, exists)

    read("")
    return listing


def list_headers(folder: Path) -> Listing:
    """Every header below the folder but those of segments, sorted by name.

    Links are followed, each folder is visited once; hidden files and folders are left out.
    """
    listing = Listing()
    names: set[str] = set()
    segments: set[str] = set()
    visited: set[str] = set()

    def reject_folder(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        listing.rejected[name] = f"The folder {name} cannot be read: {error.strerror}."

    for at, folders, files in os.walk(folder, followlinks=True, onerror=reject_folder):
        real = os.path.realpath(at)
        folders[:] = [] if real in visited else sorted(name for name in folders if name[0] != ".")
        if real in visited:
            continue
        visited.add(real)
        below = "" if at == str(folder) else f"{Path(at).relative_to(folder).as_posix()}/"
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() != ".hea" or file[0] == ".":
                continue
            if not (below + stem).isprintable():
                listing.rejected[ascii(below + stem)] = "Its name is not plain text in UTF-8: rename it."
                continue
            names.add(below + stem)
            lines, _ = header_lines(header_bytes(f"{at}/{file}"))
            segments.update(below + name for name in named_files(lines)[0])
    listing.names = dict.fromkeys(sorted(names - segments))
    return listing


def safe_name(name: str, where: str | Path) -> str:
    """A path that stays below its root. Raises SourceError for one that does not."""
    if _PLAIN.fullmatch(name):
        return name
    pure = PurePosixPath(name)
    absolute = pure.is_absolute() or name[1:2] == ":"  # of a drive
    if absolute or ".." in pure.parts or "\\" in name or "\0" in name or not pure.parts:
        raise SourceError(f"{where} names {name!r}: only paths below its own folder are allowed.")
    return pure.as_posix()
