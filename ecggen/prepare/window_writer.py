"""Signals of windows on disk: samples in, .npy files of windows out, one window at a time."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.utils.errors import EcggenError


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

    def read(self, start: int, length: int) -> NDArray[np.float32]:
        """[length, C] from sample `start` on. Raises WindowError where the file is too short."""
        out = np.empty((length, self.width), dtype=np.float32)
        self._stream.seek(self._offset + start * self.width * 4)
        rest = memoryview(out.data).cast("B")
        while len(rest):
            got = self._stream.readinto(rest)
            if not got:
                raise WindowError(
                    f"{self.path} ends before sample {start + length} that records.csv promises: run the "
                    "preprocess stage again."
                )
            rest = rest[got:]
        return out


class ShardWriter:
    """n windows [C, T] into folder/STEM.npy or, where they are more than `most`, into STEM-00000.npy, ...

    float32, the bytes of np.save; `digest` is the SHA-256 of all files, one after the other, as they are
    written.
    """

    def __init__(self, folder: Path, stem: str, n: int, shape: tuple[int, int], most: int) -> None:
        """shape: (C, T)."""
        self._folder, self._stem, self._n, self._shape, self._most = folder, stem, n, shape, most
        self._done, self._stream = 0, None  # type: tuple[int, io.BufferedWriter | None]
        self.digest = hashlib.sha256()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        assert kind is not None or self._done == self._n, "fewer windows than were announced"

    def write(self, window: NDArray[np.float32]) -> None:
        """Append one window [C, T]."""
        assert window.shape == self._shape and self._done < self._n
        if self._done % self._most == 0:
            self._next_file()
        self._put(np.ascontiguousarray(window, dtype="<f4").data)
        self._done += 1

    def _next_file(self) -> None:
        if self._stream is not None:
            self._stream.close()
        name = f"{self._stem}.npy"
        if self._n > self._most:
            name = f"{self._stem}-{self._done // self._most:05d}.npy"  # as ecggen.data.window_files reads it
        count = min(self._most, self._n - self._done)
        header = io.BytesIO()
        said: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(header, said)
        self._stream = (self._folder / name).open("wb")
        self._put(header.getbuffer())

    def _put(self, values: memoryview) -> None:
        assert self._stream is not None
        self._stream.write(values)
        self.digest.update(values)
