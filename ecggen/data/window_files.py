"""Signals of windows in one .npy file or in several, seen as one array; nothing stays open or mapped.

Rows are read straight into the array that is returned. Processes share the page cache, as they would share a
memory map; but here its pages are not part of the memory of each process that has touched them, and what is
not cached yet comes window by window instead of page fault by page fault.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecggen.utils.errors import EcggenError

SHARD_DIGITS = 5


class DataError(EcggenError):
    """Windows or signals that cannot be used."""


class NpyHead(NamedTuple):
    """What the header of a .npy file says; offset: bytes before the values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    fortran: bool


class WindowFiles:
    """.npy files, each [n, C, T] or one window [C, T], seen as one array float32 [n, C, T].

    Indexed by rows: a number, a slice, an array of rows or a mask [n], and what may follow. Pickled, it is
    the absolute paths. Not finite values become zero if `clean`.
    """

    def __init__(
        self, paths: Sequence[Path], heads: Sequence[NpyHead], width: int, time_len: int, *, clean: bool
    ) -> None:
        """width, time_len: C and T, of every file. heads: as `read_head` gives them."""
        self.paths, self._heads, self._clean = list(paths), list(heads), clean
        counts = [head.shape[0] if len(head.shape) == 3 else 1 for head in heads]
        self._stops = np.cumsum(np.asarray(counts, dtype=np.int64))
        self.shape = (int(self._stops[-1]) if counts else 0, width, time_len)
        self.dtype = np.dtype(np.float32)
        self.ndim = 3

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"paths": [path.absolute() for path in self.paths]}

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        rows = self._rows(first)
        if rows.ndim == 0:
            out: NDArray[np.float32] = self._read(rows[None])[0]
            return out[rest] if rest else out
        out = self._read(rows.reshape(-1)).reshape(*rows.shape, *self.shape[1:])
        return out[(*(slice(None),) * rows.ndim, *rest)] if rest else out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _rows(self, key: Any) -> NDArray[np.int64]:
        """Row numbers; IndexError beyond the last."""
        if isinstance(key, slice):
            return np.arange(*key.indices(len(self)))
        rows = np.asarray(key)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of {len(self)} rows is needed, not one of shape {rows.shape}")
            return np.flatnonzero(rows)
        if not rows.size:
            return rows.astype(np.int64)
        if rows.dtype.kind not in "iu" or rows.min() < -len(self) or rows.max() >= len(self):
            raise IndexError(f"row {key!r} of {len(self)} windows")
        return np.where(rows < 0, rows + len(self), rows).astype(np.int64)

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.float32)
        files = np.searchsorted(self._stops, rows, side="right")
        for index in np.unique(files) if len(self.paths) > 1 and len(rows) else files[:1]:
            where = np.flatnonzero(files == index)
            start = self._stops[index - 1] if index else 0
            _read_rows(self.paths[index], self._heads[index], rows[where] - start, where, out)
        if self._clean:
            np.nan_to_num(out, copy=False, posinf=0.0, neginf=0.0)
        return out


def shard_name(stem: str, number: int) -> str:
    """windows, 3 -> windows-00003.npy."""
    return f"{stem}-{number:0{SHARD_DIGITS}d}.npy"


def find_shards(root: Path, stem: str) -> list[Path]:
    """root/STEM.npy, or root/STEM-00000.npy and those that follow, in order; empty if there are none.

    Raises DataError if one is missing in the middle, or both kinds are there.
    """
    whole, found = root / f"{stem}.npy", sorted(root.glob(f"{stem}-{'[0-9]' * SHARD_DIGITS}.npy"))
    if not found:
        return [whole] if whole.is_file() else []
    if whole.is_file():
        raise DataError(f"{root} holds both {whole.name} and {found[0].name}: make the windows again.")
    for number, path in enumerate(found):
        if path.name != shard_name(stem, number):
            raise DataError(
                f"{root / shard_name(stem, number)} is missing, {path.name} is there: make the windows again."
            )
    return found


def read_head(path: Path) -> NpyHead:
    """The header of a .npy file of numbers. Raises DataError, also where the file is shorter than it says."""
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            offset, size = stream.tell(), os.fstat(stream.fileno()).st_size
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if dtype.kind not in "fiu":
        raise DataError(f"{path} holds {dtype}: numbers in mV are needed.")
    needed = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size < needed:
        raise DataError(
            f"{path} has {size} bytes and its header promises {needed}: it was cut short, make the windows "
            "again."
        )
    return NpyHead(tuple(shape), dtype, offset, bool(fortran))


def _read_rows(
    path: Path, head: NpyHead, rows: NDArray[np.int64], where: NDArray[np.int64], out: NDArray[np.float32]
) -> None:
    """Windows `rows` of one file into out[where]. Raises DataError."""
    if head.fortran:  # the samples of a window lie apart: NumPy's map knows where
        array = np.load(path, mmap_mode="r")
        out[where] = (array[None] if array.ndim == 2 else array)[rows]
        return
    order = np.argsort(rows, kind="stable")
    rows, where = rows[order], where[order]
    # Neighbours on disk that are neighbours in the result come with one call.
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(where) != 1)) + 1
    firsts, lasts = (np.concatenate(x) for x in (([0], breaks), (breaks, [len(rows)])))
    size = out[0].size * head.dtype.itemsize
    straight = head.dtype == out.dtype
    try:
        with path.open("rb", buffering=0) as stream:
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                at = int(where[first])
                block = out[at : at + last - first]
                raw: NDArray[Any] = block if straight else np.empty(block.shape, head.dtype)
                stream.seek(head.offset + int(rows[first]) * size)
                _fill(stream, memoryview(raw.data).cast("B"), path)
                if not straight:
                    block[:] = raw
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _fill(stream: io.FileIO, buffer: memoryview, path: Path) -> None:
    """All of buffer; a system reads 2 GiB at once, at most."""
    while len(buffer):
        got = stream.readinto(buffer)
        if not got:
            raise DataError(f"{path} ends within a window: it was cut short, make the windows again.")
        buffer = buffer[got:]
