"""ECGs in NumPy files (.npy, .npz), read a stretch at a time like a WFDB record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import mv_per_unit
from ecggen.io.records import AnyRecord, RecordError
from ecggen.leads import FRANK, LEADS, lead_channels

SUFFIXES = (".npy", ".npz")


class ArrayRecord(AnyRecord):
    """samples [leads, n] in `unit`, one row for each of `channels`; fs in Hz. Not finite = not valid."""

    def __init__(
        self, name: str, fs: float, samples: NDArray[Any], channels: Sequence[str], unit: str
    ) -> None:
        rows, unknown = lead_channels(channels)
        factor = mv_per_unit(unit)
        assert factor is not None, unit
        self.name, self.fs, self.samples, self._factor = name, fs, samples, factor
        self.n_samples = samples.shape[1]
        self.comments, self.unknown_channels = [], tuple(unknown)
        self.observed = np.array([lead in rows for lead in LEADS])
        self.frank = set(FRANK) <= set(rows)
        names = (*LEADS, *FRANK) if self.frank else LEADS
        self._rows = [rows[lead][0] if lead in rows else None for lead in names]

    def _millivolts(self, start: int, stop: int) -> NDArray[np.float64]:
        out = np.full((len(self._rows), stop - start), np.nan)
        for at, row in enumerate(self._rows):
            if row is not None:
                out[at] = np.asarray(self.samples[row, start:stop], dtype=np.float64) * self._factor
        out[~np.isfinite(out)] = np.nan
        return out


def open_array(
    path: Path, name: str, fs: float, channels: Sequence[str], unit: str, row: int | None = None
) -> ArrayRecord:
    """One ECG [leads, n] or [n, leads], a .npy by memory map; which axis is which follows from `channels`.

    row: which of [records, ., .]; None = the array is one record. Raises RecordError.
    """
    array, count = _load(path), len(channels)
    has = f"{path.name} has shape {list(array.shape)}"
    if row is not None:
        if array.ndim != 3 or row >= len(array):
            raise RecordError(f"{has}: row {row} of [records, leads, n] is needed.")
        array = array[row]
    if array.ndim == 1 and count == 1:
        array = array[None]
    if array.ndim != 2 or count not in array.shape:
        raise RecordError(f"{has}: {count} leads are named; [{count}, n] is needed.")
    if array.shape[0] == array.shape[1] > 1:
        raise RecordError(f"{has}: with {count} leads both axes could be the time; another length is needed.")
    if not array.size:
        raise RecordError(f"{path.name} holds no samples.")
    return ArrayRecord(name, fs, array if array.shape[0] == count else array.T, channels, unit)


def _load(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            with array as archive:
                if len(archive.files) != 1:
                    listed = ", ".join(archive.files) or "none"
                    raise RecordError(f"{path.name} holds the arrays {listed}: exactly one is needed.")
                array = archive[archive.files[0]]
    except RecordError:
        raise
    except Exception as error:  # numpy and zipfile raise whatever a broken file makes them trip over
        raise RecordError(f"{path.name} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    if array.dtype.kind not in "fiu":
        raise RecordError(f"{path.name} holds {array.dtype}: numbers are needed.")
    return array
