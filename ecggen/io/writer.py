"""WFDB records out: the bytes that wfdb.wrsamp writes, in a small part of its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import MV_PER_UNIT, RecordError

INVALID = -32_768  # what format 16 holds where there is no sample


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
    values = np.asarray(signals_mv, dtype=np.float64)
    largest = float(np.abs(values[~np.isnan(values)]).max(initial=0.0))
    if not math.isfinite(largest) or largest * gain > 32_766:
        raise RecordError(
            f"Record {name}: {largest:.4g} mV does not fit 16 bits at {gain:g} steps per mV; "
            f"at most {32_766 / gain:.4g} mV is allowed."
        )
    folder, factor, count = Path(folder), MV_PER_UNIT[unit.lower()], len(channels)
    folder.mkdir(parents=True, exist_ok=True)
    digital = np.round(values / factor * (gain * factor))
    samples = np.where(np.isnan(values), INVALID, digital).astype("<i2")
    samples.tofile(folder / f"{name}.dat")
    lines = [f"{name} {count} {int(fs) if float(fs).is_integer() else fs} {len(samples)}"]
    for channel, column in zip(channels, samples.T, strict=True):
        checksum = int(column.sum(dtype=np.int64) % 65_536)
        scale = f"{float(gain * factor)}(0)/{unit}"
        lines.append(f"{name}.dat 16 {scale} 16 0 {column[0]} {checksum} 0 {channel}")
    lines += [f"# {comment}" for comment in comments]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return folder / name
