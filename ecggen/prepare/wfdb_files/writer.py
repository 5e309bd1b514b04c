"""WFDB records out: header(5) and signal format 16 of the WFDB Applications Guide.

Written here because wfdb.wrsamp takes 19 ms a record for its header; a test compares the bytes with its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.prepare.wfdb_files.header import RecordError, mv_per_unit

_INVALID = -32_768  # of format 16


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
    NaN is written as an invalid sample. Raises RecordError for a name or a text WFDB does not take, a shape
    that does not fit, an unknown unit, or amplitudes beyond the format.
    """
    values = np.asarray(signals_mv, dtype=np.float64)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RecordError(f"Record name {name!r}: letters, digits, _ and - are allowed.")
    if values.ndim != 2 or values.shape[1] != len(channels) or not len(values):
        raise RecordError(
            f"Record {name}: signals of shape {list(values.shape)} do not fit {len(channels)} channel names; "
            "[samples, channels] is needed."
        )
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    if not math.isfinite(largest) or largest * gain > 32_766:
        raise RecordError(
            f"Record {name}: {largest:.4g} mV does not fit 16 bits at {gain:g} steps per mV; "
            f"at most {32_766 / gain:.4g} mV is allowed."
        )
    factor = mv_per_unit(unit)
    if factor is None:
        raise RecordError(f"Record {name}: the unit is {unit!r}, mV, uV, V or nV is needed.")
    _check_text(name, channels, comments)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    gain *= factor  # steps per unit of the header
    steps = np.round(values / factor * gain)
    steps[np.isnan(values)] = _INVALID
    digital = steps.astype("<i2")
    (folder / f"{name}.dat").write_bytes(digital.tobytes())
    sums = digital.sum(axis=0, dtype=np.int64) % 65_536
    rate = int(fs) if float(fs).is_integer() else fs
    lines = [f"{name} {len(channels)} {rate} {len(digital)}"]
    lines += [
        f"{name}.dat 16 {float(gain)}(0)/{unit} 16 0 {first} {checksum} 0 {channel}"
        for channel, first, checksum in zip(channels, digital[0].tolist(), sums.tolist(), strict=True)
    ]
    lines += [f"# {comment}" for comment in comments]
    (folder / f"{name}.hea").write_text(
        "".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n"
    )
    return folder / name


def _check_text(name: str, channels: Sequence[str], comments: Sequence[str]) -> None:
    """Raises RecordError for text that a header cannot hold."""
    wrong = [word for word in channels if not word or word != word.strip() or not word.isprintable()]
    wrong += [word for word in channels if list(channels).count(word) > 1]
    if wrong:
        raise RecordError(
            f"Record {name}: channel {wrong[0]!r}: a name that stands once is needed, no blanks around it."
        )
    broken = [comment for comment in comments if len(comment.splitlines()) > 1]
    if broken:
        raise RecordError(f"Record {name}: comment {broken[0]!r}: one line is needed.")
