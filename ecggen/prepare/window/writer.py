"""Signals of windows: samples of the records in, one .npy file of windows out, written from start to end."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.prepare.window.plan import WindowError

_LEAST_SCALE = 1e-3  # mV; a window of nearly nothing must not be blown up


class SignalWriter:
    """Writes windows [n, C, T] float32, cut from signals [samples, C], as np.save would; used with `with`.

    hashes: a number per window, equal for equal samples.
    """

    def __init__(self, source: Path, target: Path, n: int, time_len: int) -> None:
        """n: windows that will be added. Raises WindowError for a source that cannot be read, OSError."""
        try:
            self._signals = np.lib.format.open_memmap(source, mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WindowError(f"Cannot read {source}: {reason}; run the preprocess stage again.") from error
        if self._signals.ndim != 2 or self._signals.dtype != np.float32:
            raise WindowError(
                f"{source} holds {self._signals.dtype} {self._signals.shape}, not float32 [samples, leads]: "
                "run the preprocess stage again."
            )
        self._source, self._time_len = source, time_len
        self._digest, self.hashes = hashlib.sha256(), array("q")
        self._stream = target.open("w+b")
        shape = (n, self._signals.shape[1], time_len)
        fields: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, fields)
        self._stream.seek(0)
        self._digest.update(self._stream.read())

    def __enter__(self) -> SignalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, starts: Sequence[int], observed: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Write the windows [k, C, T] that begin at these samples; leads that are not observed become zero.

        observed [k, C], None = all. Returns the windows. Raises WindowError, OSError.
        """
        stop = max(starts) + self._time_len
        if stop > len(self._signals):
            raise WindowError(
                f"{self._source} ends before sample {stop} that records.csv promises: run the preprocess "
                "stage again."
            )
        windows = np.stack([self._signals[start : start + self._time_len].T for start in starts])
        if observed is not None:
            windows[~observed] = 0.0
        for window in windows:
            values = np.ascontiguousarray(window, dtype="<f4").tobytes()
            self.hashes.append(hash(values))
            self._digest.update(values)
            self._stream.write(values)
        return windows

    def fingerprint(self, index: Path) -> str:
        """SHA-256 of the file and of another one, one after the other."""
        with index.open("rb") as stream:
            while block := stream.read(1 << 20):
                self._digest.update(block)
        return self._digest.hexdigest()


def robust_scale(ecg: NDArray[np.floating], observed: NDArray[np.bool_]) -> float:
    """RMS in mV of the observed leads [12] of a window [12, T], samples clipped at their 99th percentile.

    1 where no lead is observed.
    """
    if not observed.any():
        return 1.0
    size = np.abs(ecg[observed], dtype=np.float64)
    clipped = np.minimum(size, np.percentile(size, 99))
    return max(_LEAST_SCALE, float(np.sqrt(np.mean(np.square(clipped)))))


def copies(hashes: Sequence[int], splits: Sequence[int]) -> int:
    """Windows [n] with the same samples as a window of another split; splits: a number per window."""
    _, group = np.unique(np.asarray(hashes), return_inverse=True)
    there = np.zeros((len(hashes), max(splits) + 1), dtype=bool)
    there[group, np.asarray(splits)] = True
    return int((there.sum(axis=1) > 1)[group].sum())
