"""Windows of the embedded data set without records or pipeline in between."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.signal import condition
from ecggen.leads import LEADS
from ecggen.prepare.synthetic.population import CLASSES, SyntheticRecord, dataset
from ecggen.utils.config import DataConfig, PreprocessConfig, SyntheticConfig, WindowConfig
from ecggen.utils.files import fresh_folder, save_npy, write_csv, write_json

Array = NDArray[np.float32]


def windows(
    config: SyntheticConfig,
    fs: float,
    time_len: int,
    *,
    n: int = 0,
    pre: PreprocessConfig | None = None,
) -> tuple[Array, Array, list[float], list[SyntheticRecord]]:
    """Filtered windows at fs in memory, `n` at most (0 = all), without files, wfdb or scipy.

    As many whole windows per record as cover it; records are made long enough for one. Returns (ecg
    [n, 12, T] mV, frank [n, 3, T] mV, start of each in s, the record of each).
    """
    from ecggen.prepare.window.plan import window_starts

    pre = pre or PreprocessConfig()
    band: dict[str, Any] = {"low_hz": pre.low_hz, "high_hz": pre.high_hz, "order": pre.order}
    config = replace(config, seconds=max(config.seconds, (time_len + 1) / fs))
    parts: list[NDArray[np.float64]] = []
    owners: list[SyntheticRecord] = []
    starts: list[float] = []
    for record in dataset(config):
        signals = np.concatenate([record.ecg_mv, record.vcg_mv], axis=1).T
        signals = condition(signals, config.fs, fs, **band, backend="numpy")
        for start in window_starts(signals.shape[1], time_len, time_len):
            parts.append(signals[:, start : start + time_len])
            owners.append(record)
            starts.append(start / fs)
        if n and len(parts) >= n:
            break
    keep = n or len(parts)
    both = np.stack(parts[:keep]).astype(np.float32)
    return both[:, :12], both[:, 12:], starts[:keep], owners[:keep]


def write_windows(
    root: str | Path,
    config: SyntheticConfig,
    fs: float,
    time_len: int,
    *,
    n: int = 0,
    pre: PreprocessConfig | None = None,
    split: WindowConfig | None = None,
) -> dict[str, Any]:
    """Write a whole window folder (windows.npy, frank.npy, index.csv, rejected.csv, meta.json).

    For trying out the training without the pipeline: the same format, nothing rejected. Returns meta.json.
    """
    from ecggen.prepare.preprocess.conditioning import preprocessing_settings
    from ecggen.prepare.window.splits import assign_splits
    from ecggen.prepare.window.stage import INDEX_COLUMNS
    from ecggen.prepare.window.writer import robust_scale

    pre, split = pre or PreprocessConfig(), split or WindowConfig()
    ecg, frank, start_s, owners = windows(config, fs, time_len, n=n, pre=pre)
    by_patient, rule = assign_splits([r.patient for r in owners], [None] * len(owners), split)
    seen = np.ones(len(LEADS), dtype=bool)
    rows = []
    for i, r in enumerate(owners):
        scale = robust_scale(ecg[i], seen) if split.scale == "rms" else 1.0
        row = {"window": i, "record": r.name, "patient": r.patient, "start_s": start_s[i]}
        row |= {"split": by_patient[r.patient], "labels": ";".join(r.labels), "scale": scale}
        row |= {"observed": "1" * len(LEADS), "quality": 1.0, "reasons": "", "database": "synthetic"}
        rows.append(row)
    with fresh_folder(root) as folder:
        save_npy(folder / "windows.npy", ecg)
        save_npy(folder / "frank.npy", frank)
        write_csv(folder / "index.csv", rows, INDEX_COLUMNS)
        write_csv(folder / "rejected.csv", [], ["record", "window", "reason"])
        digest = hashlib.sha256((folder / "windows.npy").read_bytes() + (folder / "index.csv").read_bytes())
        meta = {
            "fs": fs,
            "time_len": time_len,
            "leads": list(LEADS),
            "preprocessing": preprocessing_settings(DataConfig(fs=fs, time_len=time_len), pre, "numpy"),
            "label_classes": list(CLASSES),
            "counts": {
                "records": len({r.name for r in owners}),
                "windows": len(rows),
                "windows_rejected": 0,
                "windows_by_split": dict(Counter(str(row["split"]) for row in rows)),
            },
            "split_rule": rule,
            "source": {"source": "synthetic", "name": "synthetic"},
            "fingerprint": digest.hexdigest(),
        }
        write_json(folder / "meta.json", meta)
    return meta
