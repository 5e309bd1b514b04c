"""WFDB records out, through wfdb."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import MV_PER_UNIT, RecordError


def write_record(
    folder: str | Path,
    name: str,
    fs: float,
    signals_mv: NDArray[np.floating],
    channels: Sequence[str],
    comments: Sequence[str] = (),
    *,
    gain: float = 2000.0,
    unit: str = "mV",
) -> Path:
    """Write signals_mv [n, C] as an ordinary WFDB record (format 16) and return its path without suffix.

    gain is in steps per mV (2000 as in PTBDB, 0.5 uV a step); unit: that of the header, mV, uV, V or nV.
    NaN is written as an invalid sample. Raises RecordError for amplitudes beyond the format.
    """
    import wfdb

    values = np.asarray(signals_mv, dtype=np.float64)
    largest = float(np.abs(values[~np.isnan(values)]).max(initial=0.0))
    if not math.isfinite(largest) or largest * gain > 32_766:
        raise RecordError(
            f"Record {name}: {largest:.4g} mV does not fit 16 bits at {gain:g} steps per mV; "
            f"at most {32_766 / gain:.4g} mV is allowed."
        )
    folder, factor, count = Path(folder), MV_PER_UNIT[unit.lower()], len(channels)
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name,
        fs=int(fs) if float(fs).is_integer() else fs,
        units=[unit] * count,
        sig_name=list(channels),
        p_signal=values / factor,
        fmt=["16"] * count,
        adc_gain=[gain * factor] * count,
        baseline=[0] * count,
        comments=list(comments),
        write_dir=str(folder),
    )
    return folder / name
