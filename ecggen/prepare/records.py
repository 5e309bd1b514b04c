"""WFDB records in and out: the only module that reads or writes them.

Inside the package a recording is in mV, in standard lead order, with NaN where a sample is not valid. Lead
names and units come from the header; nothing is guessed from amplitude or column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import FRANK, LEADS, canonical_lead
from ecggen.utils.errors import EcggenError

#: Factor to mV by unit, compared in lower case; the two Greek letters are micro sign and mu.
MV_PER_UNIT: dict[str, float] = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}

# Bytes per sample of the signal formats with a fixed size (WFDB signal(5)).
_BYTES = {"8": 1.0, "80": 1.0, "16": 2.0, "61": 2.0, "160": 2.0, "212": 1.5, "24": 3.0, "32": 4.0}
_BYTES |= {"310": 4 / 3, "311": 4 / 3}


class RecordError(EcggenError):
    """A record that cannot be read or written: which one, why."""


@dataclass(frozen=True)
class Recording:
    """One recording.

    ecg [12, n] float64 mV in LEADS order, NaN where invalid or not recorded; observed [12] bool, True = the
    lead is in the record; frank [3, n] mV (vx, vy, vz) or None; fs in Hz; units: channel name -> unit as the
    header has it; channels: all channel names of the record.
    """

    name: str
    fs: float
    ecg: NDArray[np.float64]
    observed: NDArray[np.bool_]
    frank: NDArray[np.float64] | None = None
    comments: list[str] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)


def read_record(path: str | Path, limit: int = 0) -> Recording:
    """Read one record; path has no suffix, limit > 0 reads only that many samples from the start.

    Any rate, length, format and mixture of signal files that wfdb reads. Where ECG channels have more samples
    per frame than the frame rate, they are read at their own rate if they share one, else averaged to the
    frame rate. Raises RecordError in one sentence: unreadable header, missing or truncated signal file,
    repeated lead, unknown unit, no ECG lead.
    """
    path = Path(path)
    raw = _read(path, limit)
    names = [str(name) for name in raw.sig_name or []]
    where = _lead_channels(path.name, names)
    if not any(lead in LEADS for lead in where):
        listed = ", ".join(names) if names else "none"
        raise RecordError(
            f"Record {path.name} has no ECG lead: its channels are {listed}, "
            f"wanted is any of {', '.join(LEADS)}."
        )
    signals, fs = _signals(raw, [where[lead] for lead in where if lead in LEADS])
    channel_units = _units(path, raw)
    units = dict(zip(names, channel_units, strict=True))
    n = len(signals[where[next(lead for lead in where if lead in LEADS)]])
    if n == 0:
        raise RecordError(f"Record {path.name} holds no samples.")
    ecg = np.full((len(LEADS), n), np.nan)
    observed = np.zeros(len(LEADS), dtype=bool)
    for row, lead in enumerate(LEADS):
        if lead in where:
            channel = where[lead]
            ecg[row] = signals[channel] * _factor(path.name, names[channel], channel_units[channel])
            observed[row] = True
    return Recording(
        name=path.name,
        fs=fs,
        ecg=ecg,
        observed=observed,
        frank=_frank(signals, where, channel_units, n),
        comments=[str(line).strip() for line in raw.comments or []],
        units=units,
        channels=names,
    )


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

    gain is in steps per mV (2000 as in PTBDB, 0.5 uV a step); unit: that of the header, one of MV_PER_UNIT.
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
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    if not math.isfinite(largest) or largest * gain > 32_766:
        raise RecordError(
            f"Record {name}: {largest:.4g} mV does not fit 16 bits at {gain:g} steps per mV; "
            f"at most {32_766 / gain:.4g} mV is allowed."
        )
    mv_per_unit = _factor(name, channels[0], unit)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = len(channels)
    wfdb.wrsamp(
        name,
        fs=int(fs) if float(fs).is_integer() else fs,
        units=[unit] * count,
        sig_name=list(channels),
        p_signal=values / mv_per_unit,
        fmt=["16"] * count,
        adc_gain=[gain * mv_per_unit] * count,
        baseline=[0] * count,
        comments=list(comments),
        write_dir=str(folder),
    )
    return folder / name


def _read(path: Path, limit: int) -> Any:
    """wfdb's record object; every failure becomes one sentence."""
    import wfdb

    header = path.parent / f"{path.name}.hea"
    if not header.is_file():
        raise RecordError(f"Record {path.name} has no header: {header.name} does not exist.")
    # wfdb takes longer over a header than over the signals: it is read apart only where that is needed.
    info = _header(path) if limit else None
    sampto = min(limit, info.sig_len) if info is not None and info.sig_len else None
    try:
        raw = wfdb.rdrecord(str(path), sampto=sampto, smooth_frames=False)
    except Exception as error:
        _check_files(path, _header(path))
        raise RecordError(f"Signals of record {path.name} cannot be read: {_cause(error)}.") from error
    _check_files(path, info or raw)
    if raw.e_p_signal is None:
        raise RecordError(f"Record {path.name} holds no samples.")
    return raw


def _header(path: Path) -> Any:
    import wfdb

    try:
        info = wfdb.rdheader(str(path))
    except Exception as error:
        raise RecordError(f"Header {path.name}.hea cannot be read: {_cause(error)}.") from error
    if not info.n_sig:
        raise RecordError(f"Record {path.name} has no signals: its header names none.")
    return info


def _check_files(path: Path, info: Any) -> None:
    """Compare every signal file with what the header promises, because wfdb's own words are obscure."""
    files = getattr(info, "file_name", None)
    if not files:  # a multi-segment record: wfdb looks at each segment
        return
    length = info.sig_len or 0
    for name in dict.fromkeys(files):
        if name == "~":
            continue
        file = path.parent / str(name)
        if not file.is_file():
            raise RecordError(f"Record {path.name} has no signal file: {name} does not exist.")
        rows = [i for i, other in enumerate(files) if other == name]
        fmt = str(info.fmt[rows[0]])
        if fmt not in _BYTES:
            continue
        samples = length * sum(info.samps_per_frame[i] or 1 for i in rows)
        offset = info.byte_offset[rows[0]] or 0
        needed = offset + math.floor(samples * _BYTES[fmt])
        size = file.stat().st_size
        if size < needed or size <= offset:
            raise RecordError(
                f"Signal file {name} of record {path.name} is truncated: {size} bytes, "
                f"the header promises {max(needed, offset + 1)}."
            )


def _units(path: Path, raw: Any) -> list[str]:
    """Unit of each channel. wfdb drops letters beyond ASCII, so that a header's µV would become V."""
    data = (path.parent / f"{path.name}.hea").read_bytes()
    if not data.isascii():
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        gains = [words[2] if len(words) > 2 else "" for words in lines[1:]]
        if len(gains) == len(raw.units):
            return [gain.partition("/")[2] or "mV" for gain in gains]
    return [str(unit) for unit in raw.units]


def _lead_channels(record: str, names: Sequence[str]) -> dict[str, int]:
    """Standard lead name -> channel. Raises RecordError for a lead that appears twice."""
    where: dict[str, int] = {}
    for channel, name in enumerate(names):
        lead = canonical_lead(name)
        if lead is None:
            continue
        if lead in where:
            raise RecordError(
                f"Record {record} has lead {lead} twice, as {names[where[lead]]!r} and {name!r}: "
                "each lead may appear once."
            )
        where[lead] = channel
    return where


def _signals(raw: Any, ecg_channels: Sequence[int]) -> tuple[list[NDArray[np.float64]], float]:
    """One array per channel at the rate of the ECG channels, and that rate in Hz."""
    per_frame = [int(k or 1) for k in raw.samps_per_frame]
    shared = {per_frame[c] for c in ecg_channels}
    target = shared.pop() if len(shared) == 1 else 1
    out = []
    for signal, k in zip(raw.e_p_signal, per_frame, strict=True):
        frames = np.asarray(signal, dtype=np.float64).reshape(-1, k)
        if k != target:  # average to the frame rate, then hold: only channels of another rate come here
            frames = np.repeat(frames.mean(axis=1, keepdims=True), target, axis=1)
        out.append(frames.reshape(-1))
    return out, float(raw.fs) * target


def _frank(
    signals: list[NDArray[np.float64]], where: dict[str, int], units: Sequence[Any], n: int
) -> NDArray[np.float64] | None:
    """[3, n] mV when vx, vy and vz are all there, at the ECG's rate and in a unit of voltage, else None."""
    if not all(name in where for name in FRANK):
        return None
    factors = [MV_PER_UNIT.get(str(units[where[name]]).strip().lower()) for name in FRANK]
    rows = [signals[where[name]] for name in FRANK]
    if any(f is None for f in factors) or any(len(r) != n for r in rows):
        return None  # channels called x, y, z may well be an accelerometer
    return np.stack([row * factor for row, factor in zip(rows, factors, strict=True) if factor is not None])


def _factor(record: str, lead: str, unit: Any) -> float:
    factor = MV_PER_UNIT.get(str(unit).strip().lower())
    if factor is None:
        raise RecordError(f"Record {record} has lead {lead} in {unit!r}: mV, uV, V or nV is needed.")
    return factor


def _cause(error: BaseException) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    return f"{words[:200]} ({type(error).__name__})" if words else type(error).__name__
