"""Window folders on disk.

A window folder holds `windows.npy` (float32 [n, 12, T], mV, leads in standard order) or, where there are many
windows, `windows-00000.npy` and those that follow, and `index.csv` and `meta.json`, as the window stage
writes them. A bare folder of .npy files, each [12, T] or [n, 12, T], is read as well: every file is then one
record of one patient, and patients are split by a seeded share.

Signals stay on disk; what is kept of each window are a few numbers.
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

from ecggen.data.window_files import DataError, NpyHead, WindowFiles, find_shards, read_head
from ecggen.data.window_index import SPLITS, read_index
from ecggen.leads import LEADS
from ecggen.utils.files import read_json
from ecggen.utils.seed import derive_seed
from ecggen.utils.words import Words

__all__ = ["SPLITS", "DataError", "WindowFiles", "WindowFolder", "read_window_folder", "split_patients"]

#: A support window may share this part of its samples with the window it supports; more would hand over
#: the hidden leads. Two windows of 5.12 s cut from a record of 10 s share 4.7 %.
MAX_SUPPORT_OVERLAP = 0.1
_BARE_SHARES = (0.15, 0.2)  # validation, test: as window.validation_share and window.test_share
_BARE_SEED = 1

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class WindowFolder:
    """The windows of a folder and what is known of each. n windows, C label classes."""

    root: Path
    windows: Any  # array-like float32 [n, 12, T], mV, unscaled (WindowFiles: read as it is indexed)
    frank: Any  # array-like float32 [n, 3, T], mV, or None
    record: Sequence[str]  # these four become `Words`: codes, and every different word once
    patient: Sequence[str]
    split: Sequence[str]
    start_s: NDArray[np.float64]  # [n] seconds from the record's start
    observed: Any  # array-like bool [n, 12] True = the lead was recorded
    labels: Any  # array-like float32 [n, C] 0 or 1
    label_valid: NDArray[np.bool_]  # [n] True = the record carries labels at all
    label_classes: list[str]
    scale: NDArray[np.float64]  # [n] mV, never applied on disk
    meta: dict[str, Any]  # fs, time_len, preprocessing, counts, ...
    database: Sequence[str] = field(default_factory=list)  # [n] which each window is from, "" = not said

    def __post_init__(self) -> None:
        if not len(self.database):
            object.__setattr__(self, "database", Words.repeated("", len(self.record)))
        for name in ("record", "patient", "split", "database"):
            object.__setattr__(self, name, Words.of(getattr(self, name)))

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
        return np.flatnonzero(_codes(self.split) == _words(self.split).code(split))

    def partners(self, row: int) -> Ints:
        """The other windows of the same record, in time order of the file."""
        rows = self._of_record.members(_one(row))[0]
        return rows[rows != int(row)]

    def supports(self, row: int) -> Ints:
        """Partners that share at most MAX_SUPPORT_OVERLAP of their samples with this window."""
        return self.all_supports(_one(row))[0]

    def other_records(self, row: int) -> Ints:
        """Windows of the same patient's other records, in the order of the file."""
        return self.all_other_records(_one(row))[0]

    def stretch(self, row: int) -> tuple[int, int, int]:
        """(first, second, gap): this window and its neighbour of the same record and leads, in time order.

        The next window, else the one before; they overlap or touch, the second starts `gap` samples after the
        first. A window without such a neighbour gives (row, row, 0), and so does a folder that does not say
        how its windows were cut (`stride` in meta.json).
        """
        first, second, gap = self.stretches(_one(row))
        return int(first[0]), int(second[0]), int(gap[0])

    def all_supports(self, rows: Ints) -> tuple[Ints, Ints]:
        """`supports` of many rows, one after the other: (windows [m], for which of rows each is [m])."""
        found, owner = self._of_record.members(rows)
        apart = np.abs(self._later(rows, found, owner)) * self.fs
        keep = apart >= (1 - MAX_SUPPORT_OVERLAP) * self.time_len
        return found[keep], owner[keep]

    def all_other_records(self, rows: Ints) -> tuple[Ints, Ints]:
        """`other_records` of many rows, as all_supports gives them."""
        found, owner = self._of_patient.members(rows)
        record = _codes(self.record)
        keep = record[found] != record[rows[owner]]
        return found[keep], owner[keep]

    def stretches(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """`stretch` of many rows: (first, second, gap), each as long as rows."""
        first, second, gap = rows.copy(), rows.copy(), np.zeros(len(rows), dtype=np.int64)
        if not self.meta.get("stride"):
            return first, second, gap
        others, owner = self._of_record.members(rows)
        after = self._later(rows, others, owner) * self.fs
        near = np.flatnonzero(np.abs(after) < self.time_len + 1)  # a record may be a day long
        others, owner, after = others[near], owner[near], after[near]
        same = (self.observed[others] == self.observed[rows[owner]]).all(axis=1)
        others, owner, gaps = others[same], owner[same], np.rint(after[same]).astype(np.int64)
        for sign in (-1, 1):  # a window that has both goes with the next
            near = np.flatnonzero((sign * gaps > 0) & (sign * gaps <= self.time_len))
            near = near[np.lexsort((np.abs(gaps[near]), owner[near]))]
            mine, at = np.unique(owner[near], return_index=True)
            best = near[at]
            gap[mine] = np.abs(gaps[best])
            first[mine] = rows[mine] if sign > 0 else others[best]
            second[mine] = others[best] if sign > 0 else rows[mine]
        return first, second, gap

    def _later(self, rows: Ints, others: Ints, owner: Ints) -> NDArray[np.float64]:
        """Seconds from the start of rows[owner] to that of others."""
        after: NDArray[np.float64] = self.start_s[others] - self.start_s[rows][owner]
        return after

    @functools.cached_property
    def _of_record(self) -> _Groups:
        return _Groups(_codes(self.record))

    @functools.cached_property
    def _of_patient(self) -> _Groups:
        return _Groups(_codes(self.patient))


class _Groups:
    """Rows that share a code: sorted once, then cut out."""

    def __init__(self, codes: NDArray[np.integer]) -> None:
        self._codes = codes
        self._stops = np.cumsum(np.bincount(codes)).astype(np.int32)
        # Windows of a record usually follow each other: then every row is in its place.
        in_order = bool((codes[1:] >= codes[:-1]).all())
        self._order = None if in_order else np.argsort(codes, kind="stable").astype(np.int32)

    def members(self, rows: Ints) -> tuple[Ints, Ints]:
        """(rows of the same group as each of `rows`, itself among them [m]; for which of them [m])."""
        codes = self._codes[rows].astype(np.int64)
        stops = self._stops[codes].astype(np.int64)
        sizes = stops - np.where(codes > 0, self._stops[codes - 1], 0)
        owner = np.repeat(np.arange(len(rows)), sizes)
        places = np.arange(len(owner)) + np.repeat(stops - np.cumsum(sizes), sizes)
        return (places if self._order is None else self._order[places].astype(np.int64)), owner


def _one(row: int) -> Ints:
    return np.array([int(row)], dtype=np.int64)


def _words(column: Sequence[str]) -> Words:
    assert isinstance(column, Words)
    return column


def _codes(column: Sequence[str]) -> NDArray[np.integer]:
    return _words(column).codes


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
    # Without any windows, the error names the file that is usual.
    paths = find_shards(root, "windows") or [root / "windows.npy"]
    windows = _open_files(paths, len(LEADS), time_len)
    index = read_index(root / "index.csv", meta.get("label_classes"))
    if len(index) != len(windows):
        held = f"{paths[0].name} holds" if len(paths) == 1 else f"the {len(paths)} files windows-*.npy hold"
        raise DataError(
            f"{root / 'index.csv'} lists {len(index)} windows but {held} {len(windows)}: "
            "make the windows again."
        )
    measured = find_shards(root, "frank")
    frank = _open_files(measured, 3, windows.shape[2]) if measured else None
    if frank is not None and len(frank) != len(windows):
        raise DataError(
            f"{measured[-1]} ends the Frank leads of {len(frank)} windows, there are {len(windows)}: make "
            "the windows again."
        )
    return WindowFolder(
        root=root,
        windows=windows,
        frank=frank,
        observed=index.observed,
        labels=index.labels,
        label_valid=index.label_valid,
        label_classes=index.label_classes,
        meta={**meta, "fs": fs, "time_len": int(windows.shape[2])},
        record=index.words["record"],
        patient=index.words["patient"],
        split=index.words["split"],
        database=index.words["database"],
        start_s=index.numbers["start_s"],
        scale=index.numbers["scale"],
    )


def _open_files(paths: Sequence[Path], width: int, time_len: int | None) -> WindowFiles:
    """Files [n, width, T] of the same T. Raises DataError."""
    heads = [read_head(path) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if len(head.shape) != 3:
            raise DataError(f"{path} has shape {head.shape}: [n, {width}, T] is needed.")
        _check_shape(path, head.shape, time_len, width)
        time_len = time_len or head.shape[2]
    assert time_len is not None
    return WindowFiles(paths, heads, width, time_len, clean=False)


def _read_bare(root: Path, meta: dict[str, Any], fs: float, time_len: int | None) -> WindowFolder:
    paths = sorted(p for p in root.rglob("*.npy") if not p.name.startswith(".") and p.name != "frank.npy")
    if not paths:
        raise DataError(
            f"{root} holds no .npy file: run the window stage, or point data.meta_root to a folder of "
            "windows."
        )
    heads: list[NpyHead] = []
    counts, observed = [], []
    for path in paths:
        head = read_head(path)
        shape = (1, *head.shape) if len(head.shape) == 2 else head.shape
        _check_shape(path, shape, time_len, len(LEADS))
        time_len = time_len or shape[2]
        heads.append(head)
        counts.append(shape[0])
        array = WindowFiles([path], [head], len(LEADS), time_len, clean=False)[:]
        # Without an index nobody says which leads were recorded: NaN and all-equal leads were not.
        observed.append(np.isfinite(array).all(axis=2) & (np.ptp(np.nan_to_num(array), axis=2) > 0))
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    split_of = split_patients(names, *_BARE_SHARES, seed=_BARE_SEED)
    record = Words.of(name for name, count in zip(names, counts, strict=True) for _ in range(count))
    total = len(record)
    assert time_len is not None
    # Names and sizes: enough for a resumed run to notice that it was given other files.
    sizes = "\n".join(f"{name} {path.stat().st_size}" for name, path in zip(names, paths, strict=True))
    fingerprint = hashlib.sha256(sizes.encode()).hexdigest()
    return WindowFolder(
        root=root,
        windows=WindowFiles(paths, heads, len(LEADS), time_len, clean=True),
        frank=None,
        record=record,
        patient=record,
        split=Words.of(split_of[name] for name in record),
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


def _check_shape(path: Path, shape: Sequence[int], time_len: int | None, width: int) -> None:
    if len(shape) != 3 or shape[1] != width:
        either = f"[{width}, T] or " if width == len(LEADS) else ""
        raise DataError(f"{path} has shape {tuple(shape)}: {either}[n, {width}, T] is needed.")
    if time_len is not None and shape[2] != time_len:
        raise DataError(
            f"{path} has windows of {shape[2]} samples but {time_len} are expected: "
            "set data.time_len to the length of the windows, or make them again."
        )
