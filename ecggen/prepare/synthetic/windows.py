"""Windows of the embedded data set without WFDB records in between."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.data.signal import condition
from ecggen.leads import LEADS
from ecggen.prepare.preprocess.conditioning import preprocessing_settings
from ecggen.prepare.synthetic.population import dataset
from ecggen.prepare.window.stage import window
from ecggen.utils.config import Config
from ecggen.utils.files import save_npy, write_csv, write_json


def write_windows(root: str | Path, config: Config) -> dict[str, Any]:
    """Write a folder of windows as the stages do, from filtered records that are not checked.

    For trying out the training without the pipeline: NumPy is enough. Records are made long enough for one
    window. Returns the counts.
    """
    data, synthetic = config.data, config.synthetic
    synthetic = replace(synthetic, seconds=max(synthetic.seconds, (data.time_len + 1) / data.fs))
    settings = preprocessing_settings(data, config.preprocess, "numpy")
    band = {name: settings[name] for name in ("low_hz", "high_hz", "order", "backend")}
    rows: list[dict[str, Any]] = []
    parts = []
    for record in dataset(synthetic):
        signals = np.concatenate([record.ecg_mv, record.vcg_mv], axis=1).T
        parts.append(condition(signals, record.fs, data.fs, **band).T.astype(np.float32))
        n = len(parts[-1])
        row = {"record": record.name, "patient": record.patient, "offset": n * len(rows), "n_samples": n}
        row |= {"observed": "1" * len(LEADS), "fold": "", "reasons": "", "recorded": ""}
        row |= {"database": "synthetic", "label_system": "dx"}
        rows.append(row | {"all_labels": ";".join(f"dx/{label}" for label in record.labels)})
    counts = {"listed": len(rows), "absent": 0, "rejected": 0, "records": len(rows)}
    source = {"kind": "synthetic", "name": "synthetic"}
    meta = {"fs": data.fs, "preprocessing": settings, "source": source, "counts": counts}
    with tempfile.TemporaryDirectory() as name:
        records, signals = Path(name), np.concatenate(parts)
        save_npy(records / "signals.npy", signals[:, : len(LEADS)])
        save_npy(records / "frank.npy", signals[:, len(LEADS) :])
        write_csv(records / "records.csv", rows, list(rows[0]))
        write_csv(records / "rejected.csv", [], ("record", "reason"))
        write_json(records / "meta.json", meta)
        return window(records, Path(root), data, config.window)
