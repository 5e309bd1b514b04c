"""A .npy file of float32 rows whose number is known only at the end."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 18  # bytes copied at a time


class NpyRows:
    """Appends rows of a given shape; the header is complete once the file is closed."""

    def __init__(self, path: Path, *shape: int) -> None:
        self.rows, self._shape = 0, shape
        self._stream = path.open("wb")
        self._write_header()
        self._first = self._stream.tell()

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add rows [k, *shape]. Raises OSError."""
        self.rows += len(rows)
        self._stream.write(np.ascontiguousarray(rows, dtype="<f4").data)

    def move_file(self, path: Path, rows: int) -> None:
        """Add the rows of a file that holds nothing else, and remove it. Raises OSError."""
        self.rows += rows
        with path.open("rb", buffering=0) as stream:
            shutil.copyfileobj(stream, self._stream, _PIECE)
        if self._stream.tell() != self._first + self.rows * int(np.prod(self._shape)) * 4:
            raise OSError(errno.EIO, "not as long as it was written", str(path))
        path.unlink()

    def close(self) -> None:
        """Write the number of rows."""
        with self._stream:
            self._stream.seek(0)
            self._write_header()  # of the same length: NumPy leaves room for the number of rows

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._stream, header)
