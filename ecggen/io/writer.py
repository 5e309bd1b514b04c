"""WFDB records out, through wfdb."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import RecordError, mv_per_unit


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
    NaN is written as an invalid sample. Raises RecordError for a name WFDB does not take, a shape that does
    not fit, an unknown unit, or amplitudes beyond the format.
    """
    import wfdb

    values = np.asarray(signals_mv, dtype=np.float64)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RecordError(f"Record name {name!r}: letters, digits, _ and - are allowed.")
    if values.ndim != 2 or values.shape[1] != len(channels) or not len(values):
        raise RecordError(
            f"Record {name}: signals of shape {list(values.shape)} do not fit {len(channels)} channel names; "
            "[samples, channels] is needed."
        )
    largest = float(np.abs(values[~np.isnan(values)]).max(initial=0.0))
    if not math.isfinite(largest) or largest * gain > 32_766:
        raise RecordError(
            f"Record {name}: {largest:.4g} mV does not fit 16 bits at {gain:g} steps per mV; "
            f"at most {32_766 / gain:.4g} mV is allowed."
        )
    factor = mv_per_unit(unit)
    if factor is None:
        raise RecordError(f"Record {name}: the unit is {unit!r}, mV, uV, V or nV is needed.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = len(channels)
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
