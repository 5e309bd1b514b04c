"""Files of listed records: their size, a fingerprint, and which records are copies of one recording.

Records are paths without suffix, as strings: pathlib would take most of the time with a million of them.
Signals are read only where headers look alike. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from ecggen.io.arrays import SUFFIXES
from ecggen.io.header import find_file
from ecggen.prepare.download.listing import header_files, header_lines, header_path, read_header

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


def survey(root: str, records: Sequence[str]) -> Survey:
    """Look at the files of records, which are named by their paths below `root`, or whole if it is "".

    Two records are copies of one recording if they share a signal file or a segment, through links too, or
    if their headers agree but for names and comments, and their signal files are equal. The original is the
    record that its own header names, else the one with the shortest name.
    """
    digest = hashlib.sha256()
    count = size = 0
    folders: set[str] = set()
    shared: list[tuple[str, str]] = []  # (what no two recordings have in common, record)
    alike: list[tuple[str, str]] = []  # (what a copy of the signal file has as well, record)
    files_by_stem = lru_cache(maxsize=64)(_files_by_stem)
    for record in records:
        path = _path(root, record)
        folder, _, stem = path.rpartition("/")
        text = read_header(header_path(path))
        digest.update(f"{record}\n{text}\n".encode(errors="surrogateescape"))
        signals = _signal_files(path, text)
        beside = (f"{folder}/{name}" for name in files_by_stem(folder).get(stem, ()))
        for file in sorted({*beside, *signals}):
            folders.add(os.path.dirname(os.path.realpath(file)) if os.path.islink(file) else folder)
            if os.path.isfile(file):
                state = os.stat(file)
                count, size = count + 1, size + state.st_size
                digest.update(f"{file[len(folder) :]}\t{state.st_size}\n".encode(errors="surrogateescape"))
                if text and file in signals:
                    shared.append((f"{state.st_dev}:{state.st_ino}", record))
        shared += [(f"{folder}/{name}", record) for name in [stem, *header_files(text)[0]]]
        alike += [(key, record) for key in _signature(text, signals)]
    same = list(_groups(alike))
    for measure in (_sizes, partial(_contents, most=HEAD), _contents):
        keyed = [[(measure(_path(root, name)), name) for name in group] for group in same]
        same = [part for group in keyed for part in _groups(group)]
    copies: dict[str, str] = {}
    for group in [*_groups(shared), *same]:
        original, *others = sorted(group, key=lambda record: _originality(_path(root, record)))
        copies |= {record: original for record in others if record not in copies}
    return Survey(count, size, digest.hexdigest(), frozenset(map(os.path.realpath, folders)), copies)


def _path(root: str, record: str) -> str:
    return f"{root}/{record}" if root else record


def _groups(keyed: list[tuple[str, str]]) -> Iterator[set[str]]:
    """Sets of at least two records with the same key."""
    for _, group in groupby(sorted(keyed), key=itemgetter(0)):
        records = {record for _, record in group}
        if len(records) > 1:
            yield records


def _signature(text: str, signals: list[str]) -> Iterator[str]:
    """A hash of all that a header states but names and comments; arrays have no header and all look alike."""
    lines = header_lines(text)
    if lines and "/" not in lines[0][0]:
        rest = "\n".join(" ".join(words[1:]) for words in lines)
        yield hashlib.sha256(rest.encode(errors="surrogateescape")).hexdigest()[:16]
    elif signals and not text:
        yield ""


def _signal_files(path: str, text: str) -> list[str]:
    """The signal files that a header names in its own folder; without a header the array of that name."""
    if not text:
        return [file for suffix in SUFFIXES if os.path.isfile(file := f"{path}{suffix}")]
    folder = path.rpartition("/")[0]
    names = [name for name in header_files(text)[1] if "/" not in name and "\\" not in name]
    return [str(find_file(Path(folder), name)) for name in names]


def _sizes(path: str) -> str:
    """Sizes of a record's signal files; the record itself where one is missing or empty."""
    files = _signal_files(path, read_header(header_path(path)))
    sizes = [os.path.getsize(file) if os.path.isfile(file) else 0 for file in files]
    return ",".join(map(str, sizes)) if all(sizes) else path


def _contents(path: str, most: int = 0) -> str:
    """SHA-256 of the signal files, or of the first `most` bytes of each; the record itself where one cannot
    be read, or where all bytes are equal: flat lines tell nobody apart."""
    digest = hashlib.sha256()
    values: set[int] = set()
    try:
        for file in _signal_files(path, read_header(header_path(path))):
            with open(file, "rb") as stream:
                while data := stream.read(most or 1 << 20):
                    digest.update(data)
                    values.update(data if len(values) < 2 else ())
                    if most:
                        break
    except OSError:
        return path
    return digest.hexdigest() if most or len(values) > 1 else path


def _originality(path: str) -> tuple[bool, int, str]:
    """Smallest for the original."""
    name = path.rpartition("/")[2]
    lines = header_lines(read_header(header_path(path)))
    return not lines or lines[0][0].partition("/")[0] != name, len(name), path


def _files_by_stem(folder: str) -> dict[str, list[str]]:
    """Record name -> files of the folder with that name and one suffix."""
    files: dict[str, list[str]] = {}
    try:
        for name in os.listdir(folder):
            files.setdefault(name.rpartition(".")[0], []).append(name)
    except OSError:
        return {}
    return files
