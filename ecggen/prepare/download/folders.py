"""Folders of records: the headers below one, and a fingerprint of the files of a list. Standard library only.

Paths are plain strings here, of which nothing stays (pathlib's parts do, in Python's table of interned
strings), and a folder is listed once: with a million files, little else counts.
"""

from __future__ import annotations

import hashlib
import os
import stat
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

_LISTED_AT_ONCE = 4000  # file names of folders that are kept, beside the folder that is needed


def is_file(path: Path) -> bool:
    """Path.is_file raises for a name longer than file systems allow."""
    try:
        return path.is_file()
    except OSError:
        return False


def headers_below(folder: Path) -> Iterator[str]:
    """Every header below the folder less the segments of multi-segment records, in the order of their names.

    One folder after the other, so that the names of all of them are never held. Links are followed once,
    hidden folders are not.
    """
    return _headers(str(folder), "", set(), set())


def _headers(at: str, below: str, seen: set[str], above: set[str]) -> Iterator[str]:
    """As headers_below, of one folder and those in it.

    below: its path below the first folder, with a slash behind it; seen: folders, without links, that were
    visited; above: segments that records of the folders above name.
    """
    real = os.path.realpath(at)
    if real in seen:
        return
    seen.add(real)
    stems, folders = _entries(at)
    segments = above.union(below + part for stem in stems for part in _segments(f"{at}/{stem}.hea"))
    further = {name for name in segments if "/" in name[len(below) :]}
    # A folder stands where its slash puts it: a-b/1 comes before a/1.
    for name in sorted([*stems, *(f"{name}/" for name in folders)]):
        if name.endswith("/"):
            yield from _headers(f"{at}/{name[:-1]}", below + name, seen, further)
        elif below + name not in segments:
            yield below + name


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """(headers without suffix, folders) in a folder, less what is hidden; none where it cannot be read."""
    stems, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.name.endswith(".hea"):
                    stems.append(entry.name[:-4])
    except OSError:
        return [], []
    return stems, folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _segments(header: str) -> list[str]:
    """Names of the segments of a multi-segment header (`name/3 ...` in its first line), else nothing."""
    with open(header, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123 - a string, see above
        lines = (line.split() for line in stream if line.strip() and not line.startswith("#"))
        first = next(lines, [])
        if not first or "/" not in first[0]:
            return []
        return [words[0] for words in lines if words[0] != "~"]


def measure(root: Path, records: Iterable[str]) -> tuple[int, int, str]:
    """(files, bytes, fingerprint) of the records, which may pass by one at a time.

    The fingerprint covers names, sizes and headers (which hold a checksum of each signal), not the signals:
    reading them all twice would cost more than it protects.
    """
    digest = hashlib.sha256()
    listings = _Listings(root)
    files = size = 0
    for name in records:
        for file, path in listings.files(name):
            said = os.stat(path)  # noqa: PTH116
            if not stat.S_ISREG(said.st_mode):
                continue
            files, size = files + 1, size + said.st_size
            digest.update(f"{name}\t{file}\t{said.st_size}\n".encode(errors="surrogateescape"))
            if file.endswith(".hea"):
                with open(path, "rb") as stream:  # noqa: PTH123
                    digest.update(stream.read())
    return files, size, digest.hexdigest()


class _Listings:
    """File names of the folders that were asked for last."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._known: OrderedDict[str, list[str]] = OrderedDict()
        self._held = 0

    def files(self, record: str) -> Iterator[tuple[str, str]]:
        """(name, path) of the files of a record: its name, and one suffix or none; in order."""
        below, _, name = record.rpartition("/")
        folder = f"{self._root}/{below}" if below else self._root
        listed = self._listed(folder)
        at = bisect_left(listed, name)
        if at < len(listed) and listed[at] == name:
            yield name, f"{folder}/{name}"
        for file in listed[bisect_left(listed, f"{name}.") : bisect_left(listed, f"{name}/")]:  # / follows .
            suffix = file[len(name) + 1 :]
            if suffix and "." not in suffix:
                yield file, f"{folder}/{file}"

    def _listed(self, folder: str) -> list[str]:
        if folder in self._known:
            self._known.move_to_end(folder)
            return self._known[folder]
        found = sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208
        self._known[folder] = found
        self._held += len(found)
        while self._held > _LISTED_AT_ONCE and len(self._known) > 1:
            self._held -= len(self._known.popitem(last=False)[1])
        return found
