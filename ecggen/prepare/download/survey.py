"""Files of listed records: their size, a fingerprint, and which records are copies of one recording.

Records are paths without suffix, as strings: pathlib would take most of the time with a million of them.
Signals are read only where headers look alike. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ecggen.io.arrays import SUFFIXES
from ecggen.io.header import MAX_HEADER_BYTES, find_file, header_lines, named_files, read_regular

HEAD = 4096  # bytes at the beginning of signal files that are compared before the whole of them


@dataclass(frozen=True)
class Survey:
    """The files of some records: those with a record's name and one suffix, and those its header names.

    count, bytes: of all together; fingerprint: SHA-256 of names, sizes and headers, which hold a checksum of
    each signal; folders: real paths of the folders that they lie in; copies: record -> the record that it is
    a copy of.
    """

    count: int
    bytes: int
    fingerprint: str
    folders: frozenset[str]
    copies: dict[str, str]


@dataclass(frozen=True)
class RecordFiles:
    """What there is of one record (a path without suffix) on the disk, without a check of what it says.

    header: its bytes, b"" where it cannot be read; segments: as the header names them; signals: paths of the
    signal files that it names in its own folder, or without a header of the array of that name.
    """

    header: bytes
    lines: list[str]
    segments: list[str]
    signals: list[str]

    @classmethod
    def of(cls, path: str) -> RecordFiles:
        folder, _, stem = path.rpartition("/")
        header = header_bytes(find_file(Path(folder), f"{stem}.hea"))
        if not header:
            arrays = (f"{path}{suffix}" for suffix in SUFFIXES)
            return cls(header, [], [], [file for file in arrays if os.path.isfile(file)])
        lines, _ = header_lines(header)
        segments, names = named_files(lines)
        plain = (name for name in names if "/" not in name and "\\" not in name and "\0" not in name)
        return cls(header, lines, segments, [str(find_file(Path(folder), name)) for name in plain])


def header_bytes(path: str | Path) -> bytes:
    """The bytes of a header, b"" where it cannot be read."""
    try:
        return read_regular(path, MAX_HEADER_BYTES)
    except (OSError, ValueError):
        return b""


def survey(root: str, records: Sequence[str]) -> Survey:
    """Look at the files of records, which are named by their paths below `root`, or whole if it is "".

    Two records are copies of one recording if they share a signal file or a segment, through links too, or
    if their headers agree but for names and comments, and their signal files are equal. The original is the
    record that its own header names, else the one with the shortest name.
    """
    digest = hashlib.sha256()
    count = size = 0
    folders: set[str] = set()
    shared, alike = _Groups(), _Groups()
    files_by_stem = lru_cache(maxsize=64)(_files_by_stem)
    for record in records:
        path = _path(root, record)
        folder, _, stem = path.rpartition("/")
        files = RecordFiles.of(path)
        digest.update(f"{record}\n".encode(errors="surrogateescape") + files.header + b"\n")
        sizes: dict[str, int] = {}
        beside = (f"{folder}/{name}" for name in files_by_stem(folder).get(stem, ()))
        for file in sorted({*beside, *files.signals}):
            folders.add(os.path.dirname(os.path.realpath(file)) if os.path.islink(file) else folder)
            if os.path.isfile(file):
                state = os.stat(file)
                sizes[file] = state.st_size
                digest.update(f"{file[len(folder) :]}\t{state.st_size}\n".encode(errors="surrogateescape"))
                if files.header and file in files.signals:
                    shared.add((state.st_dev, state.st_ino), record)
        count, size = count + len(sizes), size + sum(sizes.values())
        for name in (stem, *files.segments):
            shared.add(f"{folder}/{name}", record)
        if files.signals and not files.segments and all(sizes.get(file) for file in files.signals):
            facts = [line.split()[1:] for line in files.lines]  # all but names and comments
            alike.add((hash(repr(facts)), *(sizes[file] for file in files.signals)), record)
    copies: dict[str, str] = {}
    for group in [*shared, *_same_contents(root, alike)]:
        original, *others = sorted(group, key=lambda record: _originality(_path(root, record)))
        copies |= {record: original for record in others if record not in copies}
    return Survey(count, size, digest.hexdigest(), frozenset(map(os.path.realpath, folders)), copies)


class _Groups:
    """Sets of at least two records with the same key."""

    def __init__(self) -> None:
        self._first: dict[Hashable, str] = {}
        self._groups: dict[Hashable, set[str]] = {}

    def add(self, key: Hashable, record: str) -> None:
        first = self._first.setdefault(key, record)
        if first != record:
            self._groups.setdefault(key, {first}).add(record)

    def __iter__(self) -> Iterator[set[str]]:
        return iter(self._groups.values())


def _same_contents(root: str, groups: Iterable[set[str]]) -> Iterable[set[str]]:
    """The parts of the groups whose signal files hold the same bytes."""
    for most in (HEAD, 0):
        same = _Groups()
        for number, group in enumerate(groups):
            for record in group:
                same.add((number, _contents(_path(root, record), most)), record)
        groups = same
    return groups


def _contents(path: str, most: int) -> str:
    """SHA-256 of the signal files, or of the first `most` bytes of each; the record itself where one cannot
    be read, or where all bytes are equal: flat lines tell nobody apart."""
    digest = hashlib.sha256()
    values: set[int] = set()
    try:
        for file in RecordFiles.of(path).signals:
            with open(file, "rb") as stream:
                while data := stream.read(most or 1 << 20):
                    digest.update(data)
                    values.update(data if len(values) < 2 else ())
                    if most:
                        break
    except OSError:
        return path
    return digest.hexdigest() if most or len(values) > 1 else path


def _path(root: str, record: str) -> str:
    return f"{root}/{record}" if root else record


def _originality(path: str) -> tuple[bool, int, str]:
    """Smallest for the original."""
    name = path.rpartition("/")[2]
    lines = RecordFiles.of(path).lines
    return not lines or lines[0].split()[0].partition("/")[0] != name, len(name), path


def _files_by_stem(folder: str) -> dict[str, list[str]]:
    """Record name -> files of the folder with that name and one suffix."""
    files: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):
            files.setdefault(name.rpartition(".")[0], []).append(name)
    except OSError:
        return {}
    return files
