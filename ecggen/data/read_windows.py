"""Reading a window folder: its index, or a bare folder of .npy files; what is refused, and why."""

from __future__ import annotations

import csv
import hashlib
import math
import sys
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.windows import DataError, WindowFiles, WindowFolder
from ecggen.leads import LEADS
from ecggen.utils.config import SPLITS, PreprocessConfig
from ecggen.utils.files import read_json
from ecggen.utils.seed import derive_seed

#: Peak-to-peak range in mV that the median lead of a folder must have; beyond it the unit is another one.
PLAUSIBLE_MV = (PreprocessConfig.flat_mv, PreprocessConfig.max_abs_mv)
_AMPLITUDE_WINDOWS = 100  # windows of an indexed folder whose amplitude is looked at
_BARE_SHARES = (0.15, 0.2)  # validation, test: as window.validation_share and window.test_share
_BARE_SEED = 1


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
    indexed = (root / "index.csv").is_file()
    if "split_rule" in meta and not indexed:  # a folder of the window stage, not a bare one
        raise DataError(f"{root / 'index.csv'} is missing: make the windows again.")
    read = _read_indexed if indexed else _read_bare
    folder = read(root, meta, time_len)
    if not len(folder):
        raise DataError(f"{root} holds no window: run the window stage, or point data.meta_root elsewhere.")
    meta["time_len"] = folder.time_len
    return folder


def _agreed_fs(root: Path, meta: dict[str, Any], fs: float | None) -> float:
    try:
        stated = float(meta.get("fs", fs))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The sampling rate of {root} is unknown: set data.fs, or write fs in Hz into meta.json."
        ) from error
    if fs is not None and abs(stated - fs) > 1e-6 * fs:
        raise DataError(
            f"The windows in {root} are sampled at {stated:g} Hz but data.fs is {fs:g} Hz: "
            "set data.fs to the rate of the windows, or make the windows again."
        )
    return stated


def _read_indexed(root: Path, meta: dict[str, Any], time_len: int | None) -> WindowFolder:
    windows = WindowFiles([root / "windows.npy"], len(LEADS), time_len)
    there = (root / "frank.npy").is_file()
    frank = WindowFiles([root / "frank.npy"], 3, windows.shape[2]) if there else None
    columns = _read_index(root / "index.csv", meta.get("label_classes"))
    n = len(columns["record"])
    for name, files in (("windows.npy", windows), ("frank.npy", frank)):
        if files is not None and len(files) != n:
            raise DataError(
                f"{root / 'index.csv'} lists {n} windows but {name} holds {len(files)}: make the windows "
                "again."
            )
    windows.observed = columns["observed"]
    some = np.unique(np.linspace(0, max(n - 1, 0), _AMPLITUDE_WINDOWS).astype(int))[:n]
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
    n = len(labels)
    return columns | {
        "start_s": np.asarray(start_s),
        "observed": np.array([bits_of[text] for text in observed], dtype=bool).reshape(n, len(LEADS)),
        "labels": np.array([has_label[text] for text in labels], dtype=bool).reshape(n, len(classes)),
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
    windows = WindowFiles(paths, len(LEADS), time_len)
    ranges = np.concatenate([np.zeros((0, len(LEADS))), *map(_lead_ranges, paths)])
    observed = ranges > 0  # without an index nobody says which leads were recorded: constant ones were not
    _check_amplitude(root, ranges[observed])
    flat = zip(LEADS, (~observed).sum(axis=0).tolist(), strict=True)
    if listed := [f"{lead} in {count} of {len(windows)}" for lead, count in flat if count]:
        warnings.warn(
            f"Leads that are constant in a window of {root} count as not recorded there: "
            f"{', '.join(listed)}.",
            stacklevel=3,
        )
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    split_of = _draw_splits(names)
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
        start_s=np.concatenate([[], *(np.arange(count) * step_s for count in windows.counts)]),
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
    median = float(np.median(ranges)) if len(ranges) else low
    if not low <= median <= high:
        raise DataError(
            f"The leads in {root} have a range of {median:.3g} mV in the median, {low:g} to {high:g} mV is "
            "possible: the samples must be in mV (1 mV = 1000 uV = 0.001 V)."
        )


def _draw_splits(patients: Sequence[str]) -> dict[str, str]:
    """Patient -> split, by a seeded hash; with three patients or more no split is empty."""
    names = sorted(patients, key=lambda name: (derive_seed(_BARE_SEED, "split", name), name))
    validation, test = (max(1, round(len(names) * share)) for share in _BARE_SHARES)
    test = test if len(names) >= 3 else 0
    validation = validation if len(names) >= 2 else 0
    splits = ["test"] * test + ["validation"] * validation
    return dict(zip(names, splits + ["train"] * (len(names) - len(splits)), strict=True))
