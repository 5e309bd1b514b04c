"""Signals of windows on disk: samples in, .npy files of windows out, some windows in a row at a time.

The place of each window is known beforehand, so that several processes write to the same files. What they
write does not depend on who wrote it, nor on how often.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.npy_rows import PIECE
from ecggen.leads import LEADS
from ecggen.prepare.window.plan import Cut, CutRecord
from ecggen.prepare.window.scale import robust_scales
from ecggen.utils.errors import EcggenError
from ecggen.utils.parallel import Pool, ordered_map

#: Windows of a task at most, and their bytes, from which there are fewer.
WINDOWS, BYTES = 64, 2 << 20


class WindowError(EcggenError):
    """Records from which no windows can be cut."""


class Samples:
    """signals.npy or frank.npy of data/records, float32 [samples, C], read stretch by stretch."""

    def __init__(self, path: Path) -> None:
        """Raises WindowError."""
        try:
            self._stream = path.open("rb", buffering=0)
            version = np.lib.format.read_magic(self._stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
            read = read or np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(self._stream)
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or error
            raise WindowError(f"Cannot read {path}: {words}; run the preprocess stage again.") from error
        if len(shape) != 2 or fortran or dtype != np.float32:
            raise WindowError(f"{path} holds {dtype} {shape}, not float32 [samples, leads].")
        self.path, self.width, self._offset = path, int(shape[1]), self._stream.tell()

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """[N, C, length], each from its sample of `starts` [N]. Raises WindowError: the file is too short."""
        out = np.empty((len(starts), length, self.width), dtype=np.float32)
        for window, start in zip(out, starts.tolist(), strict=True):
            self._stream.seek(self._offset + start * self.width * 4)
            rest = memoryview(window.data).cast("B")
            while len(rest):
                got = self._stream.readinto(rest)
                if not got:
                    raise WindowError(
                        f"{self.path} ends before sample {start + length} that records.csv promises: run the "
                        "preprocess stage again."
                    )
                rest = rest[got:]
        return np.ascontiguousarray(out.transpose(0, 2, 1))


@dataclass(frozen=True)
class ShardFiles:
    """n windows [C, T] in folder/STEM.npy or, where they are more than `most`, in STEM-00000.npy, ...

    shape: (C, T). float32, the bytes of np.save.
    """

    folder: Path
    stem: str
    n: int
    shape: tuple[int, int]
    most: int

    @property
    def size(self) -> int:
        """Bytes of a window."""
        return 4 * self.shape[0] * self.shape[1]

    def create(self) -> None:
        """All files in their length; what is not written yet reads as zeros."""
        for number in range(0, self.n, self.most):
            header = self._header(number)
            with self._path(number).open("wb") as stream:
                stream.write(header)
                stream.truncate(len(header) + min(self.most, self.n - number) * self.size)

    def write(self, first: int, windows: NDArray[np.float32]) -> None:
        """Put windows [N, C, T] in their place, from number `first` on."""
        assert windows.shape[1:] == self.shape and first + len(windows) <= self.n
        values = np.ascontiguousarray(windows, dtype="<f4")
        for start, stop, place in self._pieces(first, len(windows)):
            with self._path(start).open("r+b") as stream:
                stream.seek(place)
                stream.write(values[start - first : stop - first].data)

    def read(self, first: int, count: int) -> Iterator[bytes]:
        """The bytes of windows, with those of the header before the first one of a file."""
        for start, stop, place in self._pieces(first, count):
            rest = (stop - start) * self.size
            with self._path(start).open("rb", buffering=0) as stream:
                if start % self.most:
                    stream.seek(place)
                else:
                    rest += place
                while rest:
                    values = stream.read(min(rest, PIECE))
                    if not values:
                        raise OSError(errno.EIO, "shorter than it was written", str(self._path(start)))
                    yield values
                    rest -= len(values)

    def _pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, bytes before window `start` in its file) of those that lie in one file."""
        stop = first + count
        while first < stop:
            own = min(stop, (first // self.most + 1) * self.most)
            yield first, own, len(self._header(first)) + first % self.most * self.size
            first = own

    def _path(self, window: int) -> Path:
        """The file of a window."""
        if self.n <= self.most:
            return self.folder / f"{self.stem}.npy"
        return self.folder / f"{self.stem}-{window // self.most:05d}.npy"  # as data.window_files reads it

    def _header(self, window: int) -> bytes:
        """The first bytes of that file."""
        count = min(self.most, self.n - window // self.most * self.most)
        header = io.BytesIO()
        said: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(header, said)
        return header.getvalue()


@dataclass(frozen=True)
class Block:
    """A task: windows first, first + 1, ..., which begin at samples `starts` [N] of the records' signals.

    observed [N, 12]: leads that are not become zero; frank: where the Frank leads go to, if there are any;
    scale: rule of the configuration.
    """

    records: Path
    windows: ShardFiles
    frank: ShardFiles | None
    scale: str
    first: int
    starts: NDArray[np.int64]
    observed: NDArray[np.bool_]

    def __str__(self) -> str:
        return f"windows {self.first} to {self.first + len(self.starts) - 1}"


def write_block(block: Block) -> NDArray[np.float64]:
    """Write its windows; their scales in mV [N]. Raises WindowError, OSError."""
    length = block.windows.shape[1]
    with Samples(block.records / "signals.npy") as samples:
        ecg = samples.windows(block.starts, length)
    ecg[~block.observed] = 0.0
    block.windows.write(block.first, ecg)
    if block.frank is not None:
        with Samples(block.records / "frank.npy") as samples:
            block.frank.write(block.first, samples.windows(block.starts, length))
    return robust_scales(ecg, block.observed) if block.scale == "rms" else np.ones(len(ecg))


class SignalWriter:
    """Writes the windows of the records of a folder, whoever works; `digest`: SHA-256 of windows*.npy."""

    def __init__(self, records: Path, folder: Path, n: int, time_len: int, most: int, scale: str) -> None:
        """Makes the files in `folder`, of n windows of time_len samples, `most` of them in each."""
        self._records, self._scale = records.absolute(), scale
        self._windows = ShardFiles(folder.absolute(), "windows", n, (len(LEADS), time_len), most)
        self._frank: ShardFiles | None = None
        if (records / "frank.npy").is_file():
            with Samples(records / "frank.npy") as frank:
                self._frank = ShardFiles(folder.absolute(), "frank", n, (frank.width, time_len), most)
        for files in (self._windows, self._frank):
            if files is not None:
                files.create()
        self.digest = hashlib.sha256()

    def write(self, cut: Iterable[CutRecord], pool: Pool) -> Iterator[tuple[CutRecord, list[float]]]:
        """Each record, and the scale of each of its windows, once they are written."""
        passing: deque[CutRecord] = deque()
        scales: deque[float] = deque()
        done = 0
        for made in ordered_map(write_block, self._blocks(cut, passing), pool):
            for values in self._windows.read(done, len(made)):
                self.digest.update(values)
            done += len(made)
            scales.extend(made.tolist())
            while passing and len(passing[0].cuts) <= len(scales):
                record = passing.popleft()
                yield record, [scales.popleft() for _ in record.cuts]
        assert done == self._windows.n, "fewer windows than were announced"
        yield from ((record, []) for record in passing)

    def _blocks(self, cut: Iterable[CutRecord], passing: deque[CutRecord]) -> Iterator[Block]:
        """The tasks; the records that have passed are added to `passing`."""
        most = max(1, min(WINDOWS, BYTES // self._windows.size))
        own: list[tuple[int, Cut]] = []  # with the first sample of its record
        done = 0
        for record in cut:
            passing.append(record)
            for one in record.cuts:
                own.append((int(record.row["offset"]), one))
                if len(own) == most:
                    yield self._block(done, own)
                    done += len(own)
                    own = []
        if own:
            yield self._block(done, own)

    def _block(self, first: int, own: list[tuple[int, Cut]]) -> Block:
        starts = np.array([offset + one.start for offset, one in own], dtype=np.int64)
        observed = np.array([one.observed for _, one in own])
        return Block(self._records, self._windows, self._frank, self._scale, first, starts, observed)
