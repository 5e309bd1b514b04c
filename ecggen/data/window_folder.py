"""Window folders on disk.

A window folder holds `windows.npy` (float32 [n, 12, T], mV, leads in standard order), `index.csv` and
`meta.json` as the window stage writes them. A bare folder of .npy files, each [12, T] or [n, 12, T], is
read as well: every file is then one record of one patient, and patients are split by a seeded share.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import LEADS
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import read_csv, read_json
from ecggen.utils.seed import derive_seed

SPLITS: tuple[str, ...] = ("train", "validation", "test")
#: A support window may share this part of its samples with the window it supports; more would hand over
#: the hidden leads. Two windows of 5.12 s cut from a record of 10 s share 4.7 %.
MAX_SUPPORT_OVERLAP = 0.1
_BARE_SHARES = (0.15, 0.2)  # validation, test: as window.validation_share and window.test_share
_BARE_SEED = 1


class DataError(EcggenError):
    """Windows or signals that cannot be used."""


class WindowFiles:
    """Several .npy files seen as one array [n, 12, T]; each is opened only while it is read.

    Thousands of open memory maps would exhaust the file handles of a process.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int], time_len: int) -> None:
        self.paths = list(paths)
        self._stops = np.cumsum(np.asarray(counts, dtype=np.int64))
        self.shape = (int(self._stops[-1]) if len(counts) else 0, len(LEADS), time_len)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        rows = np.arange(len(self))[key]
        if rows.ndim == 0:
            return self._read(rows[None])[0]
        return self._read(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.float32)
        files = np.searchsorted(self._stops, rows, side="right")
        for index in np.unique(files):
            where = np.flatnonzero(files == index)
            array = _as_windows(np.load(self.paths[index], mmap_mode="r"))
            start = self._stops[index] - len(array)
            out[where] = array[rows[where] - start]
        return np.nan_to_num(out, copy=False, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class WindowFolder:
    """The windows of a folder and what is known of each. n windows, C label classes."""

    root: Path
    windows: Any  # array-like float32 [n, 12, T], mV, unscaled (np.memmap or WindowFiles)
    frank: np.memmap | None  # float32 [n, 3, T], mV
    record: list[str]
    patient: list[str]
    split: list[str]
    start_s: NDArray[np.float64]  # [n] seconds from the record's start
    observed: NDArray[np.bool_]  # [n, 12] True = the lead was recorded
    labels: NDArray[np.float32]  # [n, C] 0 or 1
    label_valid: NDArray[np.bool_]  # [n] True = the record carries labels at all
    label_classes: list[str]
    scale: NDArray[np.float64]  # [n] mV, never applied on disk
    meta: dict[str, Any]  # fs, time_len, preprocessing, counts, ...
    database: list[str] = field(default_factory=list)  # [n] which one each window is from, "" = not said

    def __post_init__(self) -> None:
        if not self.database:
            object.__setattr__(self, "database", [""] * len(self.record))

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

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split in file order; "all" = every row. Raises DataError for an unknown split."""
        if split == "all":
            return np.arange(len(self))
        if split not in SPLITS:
            raise DataError(f"Unknown split {split!r}: use one of {', '.join(SPLITS)} or all.")
        return np.flatnonzero(np.asarray(self.split) == split)

    def partners(self, row: int) -> NDArray[np.int64]:
        """The other windows of the same record, in time order of the file."""
        rows = self._rows_of_record[self.record[int(row)]]
        return rows[rows != int(row)]

    def supports(self, row: int) -> NDArray[np.int64]:
        """Partners that share at most MAX_SUPPORT_OVERLAP of their samples with this window."""
        rows = self.partners(row)
        apart = np.abs(self.start_s[rows] - self.start_s[int(row)]) * self.fs
        return rows[apart >= (1 - MAX_SUPPORT_OVERLAP) * self.time_len]

    def other_records(self, row: int) -> NDArray[np.int64]:
        """Windows of the same patient's other records, in the order of the file."""
        rows = self._rows_of_patient[self.patient[int(row)]]
        return rows[[self.record[other] != self.record[int(row)] for other in rows]]

    def stretch(self, row: int) -> tuple[int, int, int]:
        """(first, second, gap): this window and its neighbour of the same record and leads, in time order.

        The next window, else the one before; they overlap or touch, the second starts `gap` samples after the
        first. A window without such a neighbour gives (row, row, 0), and so does a folder that does not say
        how its windows were cut (`stride` in meta.json).
        """
        row = int(row)
        others = self.partners(row) if self.meta.get("stride") else np.empty(0, np.int64)
        others = others[(self.observed[others] == self.observed[row]).all(axis=1)]
        gaps = np.rint((self.start_s[others] - self.start_s[row]) * self.fs).astype(np.int64)
        for sign in (1, -1):
            near = np.flatnonzero((sign * gaps > 0) & (sign * gaps <= self.time_len))
            if len(near):
                best = near[np.abs(gaps[near]).argmin()]
                other, gap = int(others[best]), abs(int(gaps[best]))
                return (row, other, gap) if sign > 0 else (other, row, gap)
        return row, row, 0

    @functools.cached_property
    def _rows_of_record(self) -> dict[str, NDArray[np.int64]]:
        return _rows_by_name(self.record)

    @functools.cached_property
    def _rows_of_patient(self) -> dict[str, NDArray[np.int64]]:
        return _rows_by_name(self.patient)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry the whole file to every loader process: send the path instead.
        state = dict(self.__dict__)
        for name in ("windows", "frank"):
            if isinstance(state[name], np.memmap):
                state[name] = Path(str(state[name].filename))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("windows", "frank"):
            if isinstance(state[name], Path):
                state[name] = np.load(state[name], mmap_mode="r")
        self.__dict__.update(state)


def _rows_by_name(names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return {name: np.asarray(rows) for name, rows in found.items()}


def read_window_folder(
    root: str | Path, *, fs: float | None = None, time_len: int | None = None
) -> WindowFolder:
    """Open a folder of windows.

    fs (Hz) and time_len (samples) are what the caller expects: what the folder says must agree; a bare
    folder without meta.json takes fs on trust. Raises DataError: missing or empty folder, another sampling
    rate or window length, a table that does not fit the array.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"No folder {root}: set data.meta_root to a folder of .npy windows.")
    meta = read_json(root / "meta.json") if (root / "meta.json").is_file() else {}
    if not isinstance(meta, dict):
        raise DataError(f"{root / 'meta.json'} holds a {type(meta).__name__}: a mapping is needed.")
    fs = _agreed_fs(root, meta, fs)
    leads = meta.get("leads")
    if leads and [str(name) for name in leads] != list(LEADS):
        raise DataError(
            f"{root / 'meta.json'} lists the leads {', '.join(map(str, leads))}: the order "
            f"{', '.join(LEADS)} is needed."
        )
    if (root / "index.csv").is_file():
        folder = _read_indexed(root, meta, fs, time_len)
    else:
        folder = _read_bare(root, meta, fs, time_len)
    if not len(folder):
        raise DataError(f"{root} holds no window: run the window stage, or point data.meta_root elsewhere.")
    return folder


def _agreed_fs(root: Path, meta: dict[str, Any], fs: float | None) -> float:
    said = meta.get("fs")
    if said is None and fs is None:
        raise DataError(f"The sampling rate of {root} is unknown: set data.fs, or write it into meta.json.")
    if said is not None and fs is not None and abs(float(said) - fs) > 1e-6 * fs:
        raise DataError(
            f"The windows in {root} are sampled at {float(said):g} Hz but data.fs is {fs:g} Hz: "
            "set data.fs to the rate of the windows, or make the windows again."
        )
    return float(said if said is not None else fs)  # type: ignore[arg-type]


def _read_indexed(root: Path, meta: dict[str, Any], fs: float, time_len: int | None) -> WindowFolder:
    windows = _open_npy(root / "windows.npy")
    rows = read_csv(root / "index.csv")
    if len(rows) != len(windows):
        raise DataError(
            f"{root / 'index.csv'} lists {len(rows)} windows but windows.npy holds {len(windows)}: "
            "make the windows again."
        )
    _check_shape(root / "windows.npy", windows, time_len)
    needed = {"record", "patient", "split"}
    if rows and not needed <= set(rows[0]):
        raise DataError(
            f"{root / 'index.csv'} lacks the column {', '.join(sorted(needed - set(rows[0])))}: "
            "make the windows again."
        )
    frank = _open_npy(root / "frank.npy") if (root / "frank.npy").is_file() else None
    if frank is not None and frank.shape != (len(windows), 3, windows.shape[2]):
        raise DataError(f"{root / 'frank.npy'} has shape {frank.shape}: [n, 3, T] as windows.npy is needed.")
    unknown = sorted({row["split"] for row in rows} - set(SPLITS))
    if unknown:
        raise DataError(f"{root / 'index.csv'} names the split {unknown[0]!r}: use {', '.join(SPLITS)}.")
    texts = [row.get("labels") or "" for row in rows]
    names = [set(filter(None, text.split(";"))) for text in texts]
    classes = [str(name) for name in meta.get("label_classes", sorted(set().union(*names)))]
    labels = np.array([[name in own for name in classes] for own in names], dtype=np.float32)
    return WindowFolder(
        root=root,
        windows=windows,
        frank=frank,
        record=[row["record"] for row in rows],
        patient=[row["patient"] for row in rows],
        split=[row["split"] for row in rows],
        start_s=np.array([float(row.get("start_s") or 0) for row in rows]),
        observed=np.array([_observed_bits(root, row) for row in rows], dtype=bool).reshape(-1, len(LEADS)),
        labels=labels.reshape(len(rows), len(classes)),
        label_valid=np.array([bool(text) for text in texts], dtype=bool),
        label_classes=classes,
        scale=np.array([float(row.get("scale") or 1) for row in rows]),
        meta={**meta, "fs": fs, "time_len": int(windows.shape[2])},
        database=[row.get("database") or "" for row in rows],
    )


def _observed_bits(root: Path, row: dict[str, str]) -> list[bool]:
    bits = row.get("observed") or "1" * len(LEADS)
    if len(bits) != len(LEADS) or set(bits) - {"0", "1"}:
        raise DataError(
            f"{root / 'index.csv'}: observed is {bits!r}: twelve characters 0 or 1 are needed, one per lead."
        )
    return [bit == "1" for bit in bits]


def _read_bare(root: Path, meta: dict[str, Any], fs: float, time_len: int | None) -> WindowFolder:
    paths = sorted(p for p in root.rglob("*.npy") if not p.name.startswith(".") and p.name != "frank.npy")
    if not paths:
        raise DataError(
            f"{root} holds no .npy file: run the window stage, or point data.meta_root to a folder of "
            "windows."
        )
    counts, observed = [], []
    for path in paths:
        array = _as_windows(_open_npy(path))
        _check_shape(path, array, time_len)
        time_len = time_len or int(array.shape[2])
        counts.append(len(array))
        # Without an index nobody says which leads were recorded: NaN and all-equal leads were not.
        observed.append(np.isfinite(array).all(axis=2) & (np.ptp(np.nan_to_num(array), axis=2) > 0))
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    split_of = split_patients(names, *_BARE_SHARES, seed=_BARE_SEED)
    record = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    total = len(record)
    assert time_len is not None
    # Names and sizes: enough for a resumed run to notice that it was given other files.
    sizes = "\n".join(f"{name} {path.stat().st_size}" for name, path in zip(names, paths, strict=True))
    fingerprint = hashlib.sha256(sizes.encode()).hexdigest()
    return WindowFolder(
        root=root,
        windows=WindowFiles(paths, counts, time_len),
        frank=None,
        record=record,
        patient=list(record),
        split=[split_of[name] for name in record],
        # Taken as consecutive: a bare folder does not say where its windows were cut.
        start_s=np.concatenate([np.arange(count) * (time_len / fs) for count in counts]),
        observed=np.concatenate(observed).reshape(total, len(LEADS)),
        labels=np.zeros((total, 0), dtype=np.float32),
        label_valid=np.zeros(total, dtype=bool),
        label_classes=[],
        scale=np.ones(total),
        meta={"fingerprint": fingerprint, **meta, "fs": fs, "time_len": time_len},
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


def _open_npy(path: Path) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {array.dtype}: numbers in mV are needed.")
    return array


def _as_windows(array: Any) -> Any:
    return array[None] if array.ndim == 2 else array


def _check_shape(path: Path, array: Any, time_len: int | None) -> None:
    if array.ndim != 3 or array.shape[1] != len(LEADS):
        raise DataError(f"{path} has shape {tuple(array.shape)}: [12, T] or [n, 12, T] is needed.")
    if time_len is not None and array.shape[2] != time_len:
        raise DataError(
            f"{path} has windows of {array.shape[2]} samples but {time_len} are expected: "
            "set data.time_len to the length of the windows, or make them again."
        )
