"""The names of records, one a line in a file, so that no list of them has to be in memory.

Standard library only, but for a list that may name a record twice.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, overload

from ecggen.prepare.download.specs import SourceError

NAMES_FILE = "records.txt"
_BLOCK = 1 << 16  # bytes


class Names(Sequence[str]):
    """The lines of a file, read from its start each time they are asked for; equal to a list of the same."""

    def __init__(self, path: Path, count: int) -> None:
        """count: lines that there are; iterating raises SourceError if there are fewer or more."""
        self.path, self._count = path, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        found = 0
        try:
            for line in self._lines():
                found += 1
                yield line
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: run the download stage again.") from error
        if found != self._count:
            raise SourceError(
                f"{self.path} has {found} records, {self._count} were listed: run the download stage again."
            )

    def _lines(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
            yield from (line.removesuffix("\n") for line in stream)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            start, stop, step = at.indices(self._count)
            if step > 0:
                return list(itertools.islice(self, start, stop, step))
            return list(self)[at]
        place = range(self._count)[at]
        return next(itertools.islice(self, place, None))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, Names)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class PassingNames(Names):
    """Names in a temporary file of this process, which has no name itself and is gone with its last user."""

    def __init__(self, names: Iterable[str]) -> None:
        """Takes them from the iterable; an empty one stands for a record that is listed and not there.

        absent: how many of these there were. Raises SourceError for a line break in a name.
        """
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - as long as there is this object
        self.absent, count = 0, 0
        for name in names:
            if name:
                self._file.write(_line(name))
                count += 1
            else:
                self.absent += 1
        self._file.flush()  # a full disk is to be noticed here
        super().__init__(Path(tempfile.gettempdir(), "names of records"), count)

    def _lines(self) -> Iterator[str]:
        # Several may read in turn: each keeps its own place.
        place, rest = 0, b""
        while True:
            self._file.seek(place)
            block = self._file.read(_BLOCK)
            if not block:
                return
            place += len(block)
            *lines, rest = (rest + block).split(b"\n")
            yield from (line.decode("utf-8", "surrogateescape") for line in lines)


def each_once(names: PassingNames) -> PassingNames:
    """The same names, each where it came first."""
    if all(a < b for a, b in itertools.pairwise(names)):
        return names
    import numpy as np

    # Eight bytes of each are enough to tell which may come again; only of those the names are compared.
    keys = np.fromiter(map(hash, names), np.int64, len(names))
    keys.sort()
    again = set(keys[1:][keys[1:] == keys[:-1]].tolist())
    if not again:
        return names
    seen: set[str] = set()

    def first() -> Iterator[str]:
        for name in names:
            if hash(name) in again:
                if name in seen:
                    continue
                seen.add(name)
            yield name

    once = PassingNames(first())
    once.absent = names.absent
    return once


def write_names(path: Path, names: Iterable[str]) -> Iterator[str]:
    """Write the names to a file as they pass by. Raises SourceError for one that has a line break."""
    with path.open("wb") as stream:
        for name in names:
            stream.write(_line(name))
            yield name


def _line(name: str) -> bytes:
    if "\n" in name:
        raise SourceError(f"Record {name!r} has a line break in its name: rename it.")
    return f"{name}\n".encode("utf-8", "surrogateescape")
