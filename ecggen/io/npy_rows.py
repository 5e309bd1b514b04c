"""Files of float32 rows of which the number is known only at the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

#: Bytes copied or read at a time: they stay within a core's own cache.
PIECE = 1 << 18


class RowWriter:
    """Writes float32 rows [rows, columns], one after the other, without a header."""

    _HEADER = 0

    def __init__(self, path: Path, columns: int) -> None:
        self.rows = 0
        self._columns = columns
        self._stream = path.open("wb")
        self._stream.write(b" " * self._HEADER)

    def append(self, block: NDArray[np.floating]) -> None:
        """Add rows: block [k, columns]."""
        assert block.ndim == 2 and block.shape[1] == self._columns, block.shape
        self._stream.write(np.ascontiguousarray(block, dtype="<f4").data)
        self.rows += len(block)

    def cut(self, rows: int) -> None:
        """Take back what was added beyond that many rows."""
        if rows < self.rows:
            self._stream.truncate(self._HEADER + rows * self._columns * 4)
            self._stream.seek(0, os.SEEK_END)
            self.rows = rows

    def close(self) -> None:
        """Closing twice does nothing."""
        self._stream.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NpyAppender(RowWriter):
    """The same as a .npy file."""

    _HEADER = 128

    def __enter__(self) -> NpyAppender:
        return self

    def append_file(self, path: Path, rows: int) -> None:
        """Add the `rows` rows of a file of a `RowWriter`. Raises OSError for a file of another length."""
        size = path.stat().st_size
        if size != rows * self._columns * 4:
            raise OSError(0, f"{size} bytes, {rows * self._columns * 4} were written", str(path))
        with path.open("rb", buffering=0) as stream:
            shutil.copyfileobj(stream, self._stream, PIECE)
        self.rows += rows

    def close(self) -> None:
        """Write the header. Closing twice does nothing."""
        if self._stream.closed:
            return
        shape = f"({self.rows}, {self._columns})"
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        length = self._HEADER - 10
        header = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
        self._stream.seek(0)
        self._stream.write(header + text.ljust(length - 1).encode("latin1") + b"\n")
        self._stream.close()
