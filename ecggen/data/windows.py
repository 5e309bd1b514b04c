"""Window folders on disk, opened for training and evaluation.

A window folder holds `windows.npy` (float32 [n, 12, T], mV, leads in standard order), `index.csv` (a row per
window), `meta.json` and, where the records have Frank leads, `frank.npy`, as the window stage writes them. A
bare folder of .npy files, each [12, T] or [n, 12, T] in mV, is read as well: every file is then one record of
one patient, and patients are split by a seeded draw.

Signals stay on disk; only the names and a few numbers of each window are held in memory.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import math
import sys
import tokenize
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import LEADS
from ecggen.utils.config import SPLITS, PreprocessConfig
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import read_json
from ecggen.utils.seed import derive_seed

#: A support window may share this part of its samples with the window it supports; more would hand over
#: the hidden leads. Two windows of 5.12 s cut from a record of 10 s share 4.7 %.
MAX_SUPPORT_OVERLAP = 0.1
#: Peak-to-peak range in mV that the median lead of a folder must have; beyond it the unit is another one.
PLAUSIBLE_MV = (PreprocessConfig.flat_mv, PreprocessConfig.max_abs_mv)
_AMPLITUDE_WINDOWS = 100  # windows of an indexed folder whose amplitude is looked at
_BARE_SHARES = (0.15, 0.2)  # validation, test: as window.validation_share and window.test_share
_BARE_SEED = 1

Ints = NDArray[np.int64]


class DataError(EcggenError):
    """Windows or signals that cannot be used."""


class WindowFiles:
    """Windows of .npy files, each [n, C, T] or one window [C, T], seen as one array float32 [n, C, T].

    Indexed as an array is; returns copies. A file is mapped while it is read and not longer: any number of
    files can be used, and a pickled object is a list of paths.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(self, paths: Sequence[Path], width: int = len(LEADS), time_len: int | None = None) -> None:
        """width, time_len: the C and T that are expected, time_len None = that of the first file.

        Raises DataError for files that cannot be read, are cut short or have another shape.
        """
        self.paths = [path.absolute() for path in paths]
        self.counts = []
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
        if len(self.paths) == 1:
            return np.array(_open(self.paths[0]).reshape(self.shape)[key], dtype=self.dtype)
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        rows = np.arange(len(self))[first]
        stops = np.cumsum(self.counts)
        files = np.searchsorted(stops, rows, side="right")
        out = np.empty((*rows.shape, *self.shape[1:]), dtype=self.dtype)
        for i in np.unique(files):
            part = _open(self.paths[i]).reshape(-1, *self.shape[1:])
            here = files == i
            out[here] = part[rows[here] - (stops[i] - self.counts[i])]
        return out[(*(slice(None),) * rows.ndim, *rest)]

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
            found, at = np.unique(owner[near], return_index=True)
            nearest = near[at]
            gap[found] = np.abs(after[nearest])
            first[found] = rows[found] if sign > 0 else others[nearest]
            second[found] = others[nearest] if sign > 0 else rows[found]
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


def read_window_folder(
    root: str | Path, *, fs: float | None = None, time_len: int | None = None
) -> WindowFolder:
    """Open a folder of windows.

    fs (Hz) and time_len (samples) are what the caller expects: what the folder says must agree; a bare
    folder without meta.json takes fs on trust. Raises DataError: missing or empty folder, another sampling
    rate or window length, a table that does not fit the array, signals that cannot be ECGs in mV.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"No folder {root}: set data.meta_root to a folder of .npy windows.")
    meta = read_json(root / "meta.json") if (root / "meta.json").is_file() else {}
    if not isinstance(meta, dict):
        raise DataError(f"{root / 'meta.json'} holds a {type(meta).__name__}: a mapping is needed.")
    meta["fs"] = _agreed_fs(root, meta, fs)
    leads = meta.get("leads")
    if leads and [str(name) for name in leads] != list(LEADS):
        raise DataError(
            f"{root / 'meta.json'} lists the leads {', '.join(map(str, leads))}: the order "
            f"{', '.join(LEADS)} is needed."
        )
    read = _read_indexed if (root / "index.csv").is_file() else _read_bare
    folder = read(root, meta, time_len)
    meta["time_len"] = folder.time_len
    return folder


def _agreed_fs(root: Path, meta: dict[str, Any], fs: float | None) -> float:
    stated = meta.get("fs")
    if stated is None and fs is None:
        raise DataError(f"The sampling rate of {root} is unknown: set data.fs, or write it into meta.json.")
    if stated is not None and fs is not None and abs(float(stated) - fs) > 1e-6 * fs:
        raise DataError(
            f"The windows in {root} are sampled at {float(stated):g} Hz but data.fs is {fs:g} Hz: "
            "set data.fs to the rate of the windows, or make the windows again."
        )
    return float(stated if stated is not None else fs)  # type: ignore[arg-type]


def _read_indexed(root: Path, meta: dict[str, Any], time_len: int | None) -> WindowFolder:
    windows = WindowFiles([root / "windows.npy"], len(LEADS), time_len)
    frank = None
    if (root / "frank.npy").is_file():
        frank = WindowFiles([root / "frank.npy"], 3, windows.shape[2])
    columns = _read_index(root / "index.csv", meta.get("label_classes"))
    n = len(columns["record"])
    for files in (windows, frank):
        if files is not None and len(files) != n:
            raise DataError(
                f"{root / 'index.csv'} lists {n} windows but {files.paths[0].name} holds {len(files)}: "
                "make the windows again."
            )
    if not n:
        raise DataError(f"{root} holds no window: run the window stage, or point data.meta_root elsewhere.")
    some = np.unique(np.linspace(0, n - 1, _AMPLITUDE_WINDOWS).astype(int))
    _check_amplitude(root, np.ptp(windows[some], axis=2)[columns["observed"][some]])
    return WindowFolder(root=root, windows=windows, frank=frank, meta=meta, **columns)


def _read_index(path: Path, classes: Sequence[Any] | None) -> dict[str, Any]:
    """Columns of index.csv as WindowFolder has them; classes: label classes, None = all labels there are."""
    columns: dict[str, list[str]] = {n: [] for n in ("record", "patient", "split", "observed", "labels")}
    start_s = array("d")
    split_of: dict[str, str] = {}
    for where, row in _index_rows(path):
        row = {"observed": "1" * len(LEADS), "labels": ""} | row
        for name, column in columns.items():
            column.append(sys.intern(row[name]))
        start_s.append(_seconds(where, row.get("start_s", "0")))
        split, other = row["split"], split_of.setdefault(row["patient"], row["split"])
        if split not in SPLITS:
            raise DataError(f"{where} names the split {split!r}: use {', '.join(SPLITS)}.")
        if split != other:
            raise DataError(
                f"{where}: patient {row['patient']!r} is in {other} and in {split}: one split for all "
                "windows of a person is needed."
            )
    observed, labels = columns.pop("observed"), columns.pop("labels")
    bits_of = {text: _observed_bits(path, text) for text in set(observed)}
    sets = {text: set(filter(None, text.split(";"))) for text in set(labels)}
    classes = [str(name) for name in (sorted(set().union(*sets.values())) if classes is None else classes)]
    has_label = {text: [name in one for name in classes] for text, one in sets.items()}
    return columns | {
        "start_s": np.asarray(start_s),
        "observed": np.array([bits_of[text] for text in observed], dtype=bool).reshape(
            len(labels), len(LEADS)
        ),
        "labels": np.array([has_label[text] for text in labels], dtype=bool).reshape(
            len(labels), len(classes)
        ),
        "label_valid": np.array([bool(sets[text]) for text in labels], dtype=bool),
        "label_classes": classes,
    }


def _index_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, row) of index.csv. Raises DataError for a table that was cut short or reordered."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.reader(stream)
            header = next(table, [])
            if missing := sorted({"record", "patient", "split"} - set(header)):
                raise DataError(f"{path} lacks the column {', '.join(missing)}: make the windows again.")
            for number, cells in enumerate(filter(None, table)):
                where = f"{path}, line {table.line_num}"
                row = dict(zip(header, cells, strict=False))
                if len(cells) != len(header):
                    raise DataError(
                        f"{where} has {len(cells)} cells, not {len(header)}: make the windows again."
                    )
                if row.get("window", str(number)) != str(number):
                    raise DataError(
                        f"{where} is window {row['window']!r}, not {number}: the order of windows.npy is "
                        "needed, make the windows again."
                    )
                yield where, row
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _seconds(where: str, text: str) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: start_s is {text!r}: a number is needed.")
    return value


def _observed_bits(path: Path, bits: str) -> list[bool]:
    if len(bits) != len(LEADS) or set(bits) - {"0", "1"}:
        raise DataError(f"{path}: observed is {bits!r}: twelve characters 0 or 1 are needed, one per lead.")
    return [bit == "1" for bit in bits]


def _read_bare(root: Path, meta: dict[str, Any], time_len: int | None) -> WindowFolder:
    paths = sorted(p for p in root.rglob("*.npy") if not p.name.startswith(".") and p.name != "frank.npy")
    if not paths:
        raise DataError(
            f"{root} holds no .npy file: run the window stage, or point data.meta_root to a folder of "
            "windows."
        )
    windows = WindowFiles(paths, len(LEADS), time_len)
    if not len(windows):
        raise DataError(f"{root} holds no window: point data.meta_root to a folder of windows.")
    ranges = np.concatenate([_lead_ranges(path) for path in paths])
    observed = ranges > 0  # without an index nobody says which leads were recorded: constant ones were not
    _check_amplitude(root, ranges[observed])
    if not observed.all():
        flat = [
            f"{lead} in {n} of {len(windows)}" for lead, n in zip(LEADS, (~observed).sum(0), strict=True) if n
        ]
        warnings.warn(
            f"Leads that are constant in a window of {root} count as not recorded there: {', '.join(flat)}.",
            stacklevel=3,
        )
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    split_of = split_patients(names, *_BARE_SHARES, seed=_BARE_SEED)
    record = [name for name, count in zip(names, windows.counts, strict=True) for _ in range(count)]
    # Names and sizes: enough for a resumed run to notice that it was given other files.
    sizes = "\n".join(f"{name} {path.stat().st_size}" for name, path in zip(names, paths, strict=True))
    step_s = windows.shape[2] / meta["fs"]
    return WindowFolder(
        root=root,
        windows=windows,
        frank=None,
        record=record,
        patient=record,
        split=[split_of[name] for name in record],
        # Taken as consecutive: a bare folder does not say where its windows were cut.
        start_s=np.concatenate([np.arange(count) * step_s for count in windows.counts]),
        observed=observed,
        labels=np.zeros((len(record), 0), dtype=bool),
        label_valid=np.zeros(len(record), dtype=bool),
        label_classes=[],
        meta={"fingerprint": hashlib.sha256(sizes.encode()).hexdigest()} | meta,
    )


def _lead_ranges(path: Path) -> NDArray[np.float64]:
    """[n, 12] peak to peak in mV. Raises DataError for NaN, and for a window without a signal."""
    ecg = WindowFiles([path])[:]
    if not np.isfinite(ecg).all():
        window, lead, _ = (int(where[0]) for where in np.nonzero(~np.isfinite(ecg)))
        raise DataError(
            f"{path} has NaN or infinite samples in lead {LEADS[lead]} of window {window}: fill the gap, or "
            "write zeros where a lead was not recorded."
        )
    ranges = np.ptp(ecg, axis=2).astype(np.float64)
    if not ranges.any(axis=1).all():
        window = int(np.flatnonzero(~ranges.any(axis=1))[0])
        raise DataError(f"{path} has no signal in window {window}, all its leads are constant: leave it out.")
    return ranges


def _check_amplitude(root: Path, ranges: NDArray[np.floating]) -> None:
    """ranges: peak to peak of recorded leads. Raises DataError where the unit cannot be mV."""
    low, high = PLAUSIBLE_MV
    median = float(np.nanmedian(ranges)) if len(ranges) else low
    if not low <= median <= high:
        raise DataError(
            f"The leads in {root} have a range of {median:.3g} mV in the median, {low:g} to {high:g} mV is "
            "possible: the samples must be in mV (1 mV = 1000 uV = 0.001 V)."
        )


def split_patients(
    patients: Sequence[str], validation_share: float, test_share: float, *, seed: int
) -> dict[str, str]:
    """Patient -> split, by a seeded order that does not depend on the order given.

    With three patients or more no split is empty.
    """
    names = sorted(set(patients), key=lambda name: (derive_seed(seed, "split", name), name))
    n_test = max(1, round(len(names) * test_share)) if len(names) >= 3 else 0
    n_validation = max(1, round(len(names) * validation_share)) if len(names) >= 2 else 0
    out = dict.fromkeys(names, "train")
    out |= dict.fromkeys(names[:n_test], "test")
    out |= dict.fromkeys(names[n_test : n_test + n_validation], "validation")
    return out
