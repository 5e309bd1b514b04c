"""Folders of records: the headers below one, and a fingerprint of the files of a list. Standard library only.

Paths are plain strings here, and a folder is listed once: with a million files, little else counts.
"""

from __future__ import annotations

import hashlib
import os
import stat
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

_LISTED_AT_ONCE = 20_000  # file names of folders that are kept, beside the folder that is needed


def is_file(path: Path) -> bool:
    """Path.is_file raises for a name longer than file systems allow."""
    try:
        return path.is_file()
    except OSError:
        return False


def headers_below(folder: Path) -> tuple[list[str], int]:
    """(every header below the folder less the segments of multi-segment records, 0), names sorted."""
    names: list[str] = []
    segments: set[str] = set()
    for directory, below, files in _walk(folder):
        for file in files:
            if not file.endswith(".hea") or file.startswith("."):
                continue
            names.append(below + file[:-4])
            segments.update(below + part for part in _segments(f"{directory}/{file}"))
    if segments:
        names = [name for name in names if name not in segments]
    names.sort()
    return names, 0


def _segments(header: str) -> list[str]:
    """Names of the segments of a multi-segment header (`name/3 ...` in its first line), else nothing."""
    with open(header, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123 - a string, see above
        lines = (line.split() for line in stream if line.strip() and not line.startswith("#"))
        first = next(lines, [])
        if not first or "/" not in first[0]:
            return []
        return [words[0] for words in lines if words[0] != "~"]


def _walk(folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(directory, the same below the folder with a slash behind it, its files).

    Links are followed once, hidden folders are not.
    """
    seen: set[str] = set()
    for at, directories, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            directories.clear()
            continue
        seen.add(real)
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        below = Path(at).relative_to(folder).as_posix()
        yield at, "" if below == "." else f"{below}/", files


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
                digest.update(Path(path).read_bytes())
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
            if Path(file).stem == name:
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
