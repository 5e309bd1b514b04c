"""The names of records, one a line in a file, so that no list of them has to be in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from ecggen.prepare.specs import SourceError

NAMES_FILE = "records.txt"


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
            with self.path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
                for line in stream:
                    found += 1
                    yield line.removesuffix("\n")
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: run the download stage again.") from error
        if found != self._count:
            raise SourceError(
                f"{self.path} has {found} records, {self._count} were listed: run the download stage again."
            )

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


def write_names(path: Path, names: Iterable[str]) -> Iterator[str]:
    """Write the names to a file as they pass by. Raises SourceError for one that has a line break."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        for name in names:
            if "\n" in name:
                raise SourceError(f"Record {name!r} has a line break in its name: rename it.")
            stream.write(f"{name}\n")
            yield name
