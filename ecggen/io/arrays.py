"""ECGs in NumPy files (.npy, .npz), read a stretch at a time like a WFDB record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import mv_per_unit
from ecggen.io.records import RecordError, Recording, require_stretch
from ecggen.leads import FRANK, LEADS, lead_channels

SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class ArrayRecord:
    """samples [leads, n] in `unit`, one row for each of `channels`; fs in Hz. Not finite = not valid."""

    name: str
    fs: float
    samples: NDArray[Any]
    channels: Sequence[str]
    unit: str
    comments: list[str] = field(default_factory=list)

    @property
    def n_samples(self) -> int:
        """Samples of each lead."""
        return int(self.samples.shape[1])

    @property
    def observed(self) -> NDArray[np.bool_]:
        """[12] bool, True = the lead is in the record."""
        rows = self._rows()
        return np.array([lead in rows for lead in LEADS])

    @property
    def frank(self) -> bool:
        """Whether vx, vy and vz are all there."""
        return set(FRANK) <= set(self._rows())

    @property
    def unknown_channels(self) -> tuple[str, ...]:
        """Names that were not understood."""
        return tuple(lead_channels(self.channels)[1])

    def read(self, start: int = 0, stop: int | None = None) -> Recording:
        """Samples start ... stop - 1 in mV, standard order. Raises RecordError where there are none."""
        stop = require_stretch(self, start, stop)
        rows, factor = self._rows(), mv_per_unit(self.unit)
        assert factor is not None, self.unit
        ecg = np.full((len(LEADS), stop - start), np.nan)
        frank = np.full((len(FRANK), stop - start), np.nan) if self.frank else None
        for out, names in ((ecg, LEADS), (frank, FRANK)):
            for at, lead in enumerate(names):
                if out is not None and lead in rows:
                    x = np.asarray(self.samples[rows[lead], start:stop], dtype=np.float64) * factor
                    out[at] = np.where(np.isfinite(x), x, np.nan)
        return Recording(
            name=self.name,
            fs=self.fs,
            ecg=ecg,
            observed=self.observed,
            frank=frank,
            comments=list(self.comments),
            units=dict.fromkeys(self.channels, self.unit),
            channels=list(self.channels),
            unknown_channels=self.unknown_channels,
        )

    def _rows(self) -> dict[str, int]:
        return {lead: rows[0] for lead, rows in lead_channels(self.channels)[0].items()}


def open_array(
    path: Path, name: str, fs: float, channels: Sequence[str], unit: str, row: int | None = None
) -> ArrayRecord:
    """One ECG [leads, n] or [n, leads], a .npy by memory map; which axis is which follows from `channels`.

    row: which of [records, ., .]; None = the array is one record. Raises RecordError.
    """
    array, count = _load(path), len(channels)
    shape = list(array.shape)
    if row is not None:
        if array.ndim != 3 or row >= len(array):
            raise RecordError(f"{path.name} has shape {shape}: row {row} of [records, leads, n] is needed.")
        array = array[row]
        shape = list(array.shape)
    if array.ndim == 1 and count == 1:
        array = array[None]
    elif array.ndim != 2 or count not in shape:
        raise RecordError(f"{path.name} has shape {shape}: {count} leads are named; [{count}, n] is needed.")
    elif shape[0] == shape[1]:
        raise RecordError(
            f"{path.name} has shape {shape}: with {count} leads both axes could be the time; another length "
            "is needed."
        )
    elif shape[0] != count:
        array = array.T
    if not array.shape[1]:
        raise RecordError(f"{path.name} holds no samples.")
    return ArrayRecord(name, fs, array, list(channels), unit)


def _load(path: Path) -> NDArray[Any]:
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                names = archive.files
                if len(names) != 1:
                    listed = ", ".join(names) or "none"
                    raise RecordError(f"{path.name} holds the arrays {listed}: exactly one is needed.")
                array = archive[names[0]]
    except RecordError:
        raise
    except Exception as error:  # numpy and zipfile raise whatever a broken file makes them trip over
        raise RecordError(f"{path.name} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    if array.dtype.kind not in "fiu":
        raise RecordError(f"{path.name} holds {array.dtype}: numbers are needed.")
    return array
