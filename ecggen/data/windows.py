"""Window folders on disk, opened for training and evaluation.

A window folder holds `windows.npy` (float32 [n, 12, T], mV, leads in standard order), `index.csv` (a row per
window), `meta.json` and, where the records have Frank leads, `frank.npy`, as the window stage writes them. A
bare folder of .npy files, each [12, T] or [n, 12, T] in mV, is read as well: every file is then one record of
one patient, and patients are split by a seeded draw.

Signals stay on disk; only the names and a few numbers of each window are held in memory.
"""

from __future__ import annotations

import functools
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import LEADS
from ecggen.utils.config import SPLITS
from ecggen.utils.errors import EcggenError

#: A support window may share this part of its samples with the window it supports; more would hand over
#: the hidden leads. Two windows of 5.12 s cut from a record of 10 s share 4.7 %.
MAX_SUPPORT_OVERLAP = 0.1

Ints = NDArray[np.int64]


class DataError(EcggenError):
    """Windows or signals that cannot be used."""


class WindowFiles:
    """Windows of .npy files, each [n, C, T] or one window [C, T], seen as one array float32 [n, C, T].

    Indexed as an array is; returns copies. A file is mapped while it is read and not longer: any number of
    files can be used, and a pickled object is a list of paths.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, paths: Sequence[Path], width: int = len(LEADS), time_len: int | None = None) -> None:
        """width, time_len: the C and T that are expected, time_len None = that of the first file.

        Raises DataError for files that cannot be read, are cut short or have another shape.
        """
        self.paths = [path.absolute() for path in paths]
        self.counts = []
        self.observed: NDArray[np.bool_] | None = None
        for path in paths:
            shape = _open(path).shape
            if len(shape) not in (2, 3) or shape[-2] != width:
                raise DataError(f"{path} has shape {shape}: [n, {width}, T] or [{width}, T] is needed.")
            if time_len is not None and shape[-1] != time_len:
                raise DataError(
                    f"{path} has windows of {shape[-1]} samples but {time_len} are expected: "
                    "set data.time_len to the length of the windows, or make them again."
                )
            time_len = shape[-1]
            self.counts.append(shape[0] if len(shape) == 3 else 1)
        self.shape = (sum(self.counts), width, time_len or 0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Where `observed` [n, C] is set, leads that were not recorded are zero, and NaN in others raises
        DataError."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        rows = np.arange(len(self))[first]
        if len(self.paths) == 1:
            out = _open(self.paths[0]).reshape(self.shape).take(rows, axis=0).astype(self.dtype, copy=False)
        else:
            out = self._gather(rows)
        if self.observed is not None:
            if not (observed := self.observed[rows]).all():
                out[~observed] = 0.0
            if not np.isfinite(out).all():
                *at, lead = (int(where[0]) for where in np.nonzero(~np.isfinite(out).all(axis=-1)))
                raise DataError(
                    f"Window {rows[tuple(at)]} of {self.paths[0]} has NaN or infinite samples in lead "
                    f"{LEADS[lead]}, which is marked as observed: make the windows again."
                )
        return out[(*(slice(None),) * rows.ndim, *rest)]

    def _gather(self, rows: Ints) -> NDArray[np.float32]:
        """These rows from several files."""
        stops = np.cumsum(self.counts)
        files = np.searchsorted(stops, rows, side="right")
        out = np.empty((*rows.shape, *self.shape[1:]), dtype=self.dtype)
        for i in np.unique(files):
            part = _open(self.paths[i]).reshape(-1, *self.shape[1:])
            out[files == i] = part[rows[files == i] - (stops[i] - self.counts[i])]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


def _open(path: Path) -> NDArray[Any]:
    """The memory map of a .npy file of numbers. Raises DataError."""
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, SyntaxError, TypeError, tokenize.TokenError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"Cannot read {path}: {reason}; make the windows again.") from error
    if mapped.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {mapped.dtype}: numbers in mV are needed.")
    return mapped.view(np.ndarray)


@dataclass(frozen=True)
class WindowFolder:
    """The windows of a folder and what is known of each. n windows, C label classes."""

    root: Path
    windows: Any  # array-like float32 [n, 12, T], mV (WindowFiles: read as it is indexed)
    frank: Any  # array-like float32 [n, 3, T], mV, or None
    record: Sequence[str]
    patient: Sequence[str]
    split: Sequence[str]
    start_s: NDArray[np.float64]  # [n] seconds from the record's start
    observed: NDArray[np.bool_]  # [n, 12] True = the lead was recorded
    labels: NDArray[Any]  # [n, C] 0 or 1
    label_valid: NDArray[np.bool_]  # [n] True = the record carries labels at all
    label_classes: list[str]
    meta: dict[str, Any]  # fs, time_len, preprocessing, counts, ...

    def __len__(self) -> int:
        return len(self.record)

    @property
    def fs(self) -> float:
        """Sampling rate in Hz."""
        return float(self.meta["fs"])

    @property
    def time_len(self) -> int:
        """Samples of a window."""
        return int(self.windows.shape[2])

    def rows(self, split: str) -> Ints:
        """Rows of a split in file order; "all" = every row. Raises DataError for an unknown split."""
        if split == "all":
            return np.arange(len(self))
        if split not in SPLITS:
            raise DataError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)} or all.")
        return np.flatnonzero([name == split for name in self.split])

    def supports(self, rows: Ints) -> tuple[Ints, Ints]:
        """Windows of the same record that share at most MAX_SUPPORT_OVERLAP of their samples with each row.

        Returns (windows [m], for which entry of rows each of them is [m]), in file order for each row.
        """
        others, owner = self._records.members(rows)
        apart = np.abs(self._seconds_after(rows, others, owner)) * self.fs
        far = apart >= (1 - MAX_SUPPORT_OVERLAP) * self.time_len
        return others[far], owner[far]

    def other_records(self, rows: Ints) -> tuple[Ints, Ints]:
        """Windows of the same patient's other records; returned as by `supports`."""
        others, owner = self._patients.members(rows)
        differs = self._records.codes[others] != self._records.codes[rows[owner]]
        return others[differs], owner[differs]

    def neighbours(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """(first, second, gap), each as long as rows: the window and its neighbour, in time order.

        The neighbour is the next window of the same record and leads, else the one before; the two overlap or
        touch, and the second starts `gap` samples after the first. A window without a neighbour gives (row,
        row, 0), as do all windows of a folder that does not say how they were cut (`stride` in meta.json).
        """
        first, second, gap = rows.copy(), rows.copy(), np.zeros(len(rows), dtype=np.int64)
        if not self.meta.get("stride"):
            return first, second, gap
        others, owner = self._records.members(rows)
        after = self._seconds_after(rows, others, owner) * self.fs
        near = np.flatnonzero(np.abs(after) < self.time_len + 1)  # a record may be a day long
        others, owner, after = others[near], owner[near], np.rint(after[near]).astype(np.int64)
        same_leads = (self.observed[others] == self.observed[rows[owner]]).all(axis=1)
        for sign in (-1, 1):  # the next window, if there is one, replaces the one before
            near = np.flatnonzero(same_leads & (sign * after > 0) & (sign * after <= self.time_len))
            near = near[np.lexsort((np.abs(after[near]), owner[near]))]
            paired, at = np.unique(owner[near], return_index=True)
            nearest = near[at]
            gap[paired] = np.abs(after[nearest])
            first[paired] = rows[paired] if sign > 0 else others[nearest]
            second[paired] = others[nearest] if sign > 0 else rows[paired]
        return first, second, gap

    def _seconds_after(self, rows: Ints, others: Ints, owner: Ints) -> NDArray[np.float64]:
        """From the start of rows[owner] to that of others."""
        seconds: NDArray[np.float64] = self.start_s[others] - self.start_s[rows][owner]
        return seconds

    @functools.cached_property
    def _records(self) -> _Groups:
        return _Groups(self.record)

    @functools.cached_property
    def _patients(self) -> _Groups:
        return _Groups(self.patient)


class _Groups:
    """Rows that share a name."""

    def __init__(self, names: Sequence[str]) -> None:
        number: dict[str, int] = {}
        self.codes = np.fromiter((number.setdefault(n, len(number)) for n in names), np.int32, len(names))
        self._order = np.argsort(self.codes, kind="stable").astype(np.int32)
        self._stops = np.cumsum(np.bincount(self.codes, minlength=1))

    def members(self, rows: Ints) -> tuple[Ints, Ints]:
        """(rows of the same group as each of `rows`, itself among them [m]; for which of them [m])."""
        stops = self._stops[self.codes[rows]]
        sizes = stops - np.where(self.codes[rows] > 0, self._stops[self.codes[rows] - 1], 0)
        owner = np.repeat(np.arange(len(rows)), sizes)
        places = np.arange(len(owner)) + np.repeat(stops - np.cumsum(sizes), sizes)
        return self._order[places].astype(np.int64), owner
