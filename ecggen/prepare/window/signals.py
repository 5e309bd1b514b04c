"""Signals of windows: cut out of those of the records, scaled, compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.prepare.window.plan import WindowError

_LEAST_SCALE = 1e-3  # mV; a window of nearly nothing must not be blown up


class Signals:
    """Signals of all records, one after the other: samples [n, channels] float32, by memory map."""

    def __init__(self, path: Path) -> None:
        """Raises WindowError for a file that cannot be read."""
        self._path = path
        try:
            self._samples = np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WindowError(f"Cannot read {path}: {reason}; run the preprocess stage again.") from error
        if self._samples.ndim != 2 or self._samples.dtype != np.float32:
            raise WindowError(
                f"{path} holds {self._samples.dtype} {self._samples.shape}, not float32 [samples, leads]: "
                "run the preprocess stage again."
            )
        self.channels = self._samples.shape[1]

    def windows(self, starts: Sequence[int], length: int) -> NDArray[np.float32]:
        """[k, channels, length]: those that begin at these samples. Raises WindowError."""
        if (stop := max(starts) + length) > len(self._samples):
            raise WindowError(
                f"{self._path} ends before sample {stop} that records.csv promises: run the preprocess stage "
                "again."
            )
        return np.stack([self._samples[start : start + length].T for start in starts])


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


def fingerprint(*paths: Path) -> str:
    """SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 18):
                digest.update(block)
    return digest.hexdigest()
