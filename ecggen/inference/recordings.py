"""Raw recordings to windows of a model, and windows back to recordings.

Recordings of one length are filtered together: the work is the same, the calls are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecggen.data.filters import condition, fill_gaps, resample
from ecggen.leads import EXPAND, INDEPENDENT_INDEX, LEADS, complete_limb_leads, derivable
from ecggen.utils.errors import EcggenError

Array = NDArray[np.float32]
#: Seconds that windows of a rendered recording overlap at least. More does not bring the rendering nearer to
#: the recording (benchmarks/overlap.py) and takes as much longer as there are windows more.
OVERLAP_S = 0.2
_MAX_MV = 50.0  # far beyond any ECG: the caller's unit is not mV
_INDEPENDENT = list(INDEPENDENT_INDEX)


class SignalError(EcggenError):
    """A recording that cannot be rendered."""


@dataclass(frozen=True)
class Recording:
    """raw [n_leads, n_samples] mV at fs Hz; rows: the lead of each row; name: what errors call it."""

    raw: NDArray[np.float64]
    rows: list[int]
    fs: float
    name: str = ""

    @property
    def observed(self) -> NDArray[np.bool_]:
        """[12], True = recorded."""
        out = np.zeros(len(LEADS), bool)
        out[self.rows] = True
        return out


@dataclass(frozen=True)
class Windows:
    """A recording cut for a model: windows [n, 12, T] mV, band-passed, leads that were not recorded 0; their
    first samples; the recording's length at the model's rate."""

    windows: Array
    starts: list[int]
    length: int


def recording(signal_mv: ArrayLike, fs: float, rows: list[int], name: str = "") -> Recording:
    """Check what a caller gave. Raises SignalError."""
    try:
        return Recording(_checked(signal_mv, fs, rows), rows, fs, name)
    except SignalError as error:
        raise SignalError(f"{name}{error}") from error


def _checked(signal_mv: ArrayLike, fs: float, rows: list[int]) -> NDArray[np.float64]:
    try:
        raw = np.atleast_2d(np.asarray(signal_mv, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise SignalError(
            f"The signal is no array of numbers ({error}): give [n_leads, n_samples] in mV."
        ) from error
    if raw.ndim != 2 or raw.shape[0] != len(rows):
        raise SignalError(
            f"The signal has shape {raw.shape} but {len(rows)} lead(s) are named: give "
            "[n_leads, n_samples], one row per name."
        )
    if not (np.isfinite(fs) and 20 <= fs <= 100_000):
        raise SignalError(f"fs is {fs!r}: a sampling rate from 20 to 100000 Hz is needed.")
    if raw.shape[1] < fs:
        raise SignalError(f"The signal lasts {raw.shape[1] / fs:.2f} s: at least one second is needed.")
    finite = np.isfinite(raw)
    largest = float(np.abs(raw, where=finite, out=np.zeros_like(raw)).max())
    if largest > _MAX_MV:
        raise SignalError(f"The signal reaches {largest:g} mV: no ECG does; give it in mV (1 mV = 1000 uV).")
    return raw


def window_starts(length: int, time_len: int, stride: int) -> list[int]:
    """First samples of windows of time_len every `stride` samples; the last one ends with the recording."""
    last = max(length, time_len) - time_len
    return sorted({*range(0, last + 1, stride), last})


def fewest_windows(length: int, time_len: int, fs: float) -> int:
    """The stride, in samples, of as few windows as overlap by OVERLAP_S, evenly spread over the recording."""
    last = max(length, time_len) - time_len
    most = max(1, time_len - math.ceil(OVERLAP_S * fs))
    return max(1, math.ceil(last / max(1, math.ceil(last / most))))


def neighbours(counts: Sequence[int]) -> tuple[NDArray[np.int64], list[slice]]:
    """Which windows of recordings share a W: two that follow each other, about ten seconds.

    counts: windows of each recording, which lie one after the other. Returns (numbers [n, k] of the windows
    of each group, k = 1 where no recording has two; the places of each recording's windows among all of
    these). The last one of an odd number stands twice.
    """
    each = min(2, max(counts))
    groups, places, first, at = [], [], 0, 0
    for count in counts:
        rows = np.minimum(np.arange(-(-count // each) * each), count - 1)
        groups.append(first + rows.reshape(-1, each))
        places.append(slice(at, at + count))
        first, at = first + count, at + len(rows)
    return np.concatenate(groups), places


def to_windows(
    recordings: Sequence[Recording], rules: dict[str, Any], fs: float, time_len: int, stride: int | None
) -> list[Windows]:
    """Recordings of the same rate as windows of time_len samples at fs Hz, one every `stride` samples.

    stride None: `fewest_windows`. rules: preprocessing of the checkpoint. Raises SignalError: a gap too long
    to be bridged.
    """
    filled = [_without_gaps(one, float(rules.get("max_gap_s", 0.2))) for one in recordings]
    made: list[NDArray[np.float64] | None] = [None] * len(recordings)
    for same in _alike(x.shape for x in filled):
        conditioned = condition(
            np.stack([filled[i] for i in same]),
            recordings[same[0]].fs,
            fs,
            low_hz=float(rules.get("low_hz", 0.67)),
            high_hz=float(rules.get("high_hz", 40.0)),
            order=int(rules.get("order", 3)),
        )
        for i, signal in zip(same, conditioned, strict=True):
            made[i] = signal
    return [
        _cut(signal, one.rows, time_len, stride or fewest_windows(signal.shape[1], time_len, fs))
        for signal, one in zip(made, recordings, strict=True)
        if signal is not None
    ]


def _without_gaps(one: Recording, max_gap_s: float) -> NDArray[np.float64]:
    if np.isfinite(one.raw).all():
        return one.raw
    filled = []
    for row, signal in zip(one.rows, one.raw, strict=True):
        clean, gaps = fill_gaps(signal, int(max_gap_s * one.fs))
        if len(gaps):
            longest = (gaps[:, 1] - gaps[:, 0]).max() / one.fs
            raise SignalError(
                f"{one.name}Lead {LEADS[row]} has {longest:.2f} s without numbers: up to {max_gap_s:g} s is "
                "bridged; cut the recording or leave the lead out."
            )
        filled.append(clean)
    return np.stack(filled)


def _cut(made: NDArray[np.float64], rows: list[int], time_len: int, stride: int) -> Windows:
    length = made.shape[1]
    short = time_len - length
    if short > 0:
        made = np.pad(made, ((0, 0), (0, short)), mode="reflect" if short < length else "wrap")
    full = np.zeros((len(LEADS), made.shape[1]), np.float32)
    full[rows] = made
    starts = window_starts(length, time_len, stride)
    return Windows(np.stack([full[:, s : s + time_len] for s in starts]), starts, length)


def _alike(shapes: Iterable[Any]) -> list[list[int]]:
    """Numbers of those of equal shape, group by group."""
    groups: dict[Any, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    return list(groups.values())


@dataclass(frozen=True)
class Rendered:
    """A recording completed to twelve leads, at the caller's rate and length n.

    leads: the 12 names; ecg_mv, rendered_mv [12, n] mV; vcg_mv [3, n] mV, Frank axes; state [n_windows, S];
    std_mv [12, n] mV, the model's own standard deviation of its rendering (1.645 of it either side should
    hold 90 % of the errors; 0 where observed or fixed by observed limb leads); directions_mv
    [n_directions, n] mV, one row for each direction that was asked for.
    ecg_mv holds the observed leads as recorded, limb leads that follow from two observed ones by algebra, and
    the rendering of the rest (band-passed, as training was); rendered_mv is the model's own of all twelve.
    """

    leads: tuple[str, ...]
    ecg_mv: NDArray[np.float64]
    rendered_mv: NDArray[np.float64]
    vcg_mv: NDArray[np.float64]
    state: Array
    std_mv: NDArray[np.float64]
    directions_mv: NDArray[np.float64]


def to_recordings(
    recordings: Sequence[Recording],
    cuts: Sequence[Windows],
    made: Sequence[dict[str, Array]],
    fs: float,
    vectors: NDArray[np.float64],
) -> list[Rendered]:
    """What a model made of the windows of recordings of the same rate, joined and resampled.

    made, of each: leads, std [n, 12, T] and vcg [n, 3, T] at fs Hz, state [n, S]; vectors [k, 3]: directions.
    Only what is open is resampled: the eight independent leads give the other four by algebra, and a lead
    that is recorded or follows from two recorded limb leads has no deviation.
    """
    return [_back(*each, fs, vectors) for each in zip(recordings, cuts, made, strict=True)]


def _back(
    one: Recording, cut: Windows, out: dict[str, Array], fs: float, vectors: NDArray[np.float64]
) -> Rendered:
    # One at a time: all of a recording fits the cache, ten of them do not.
    free = np.flatnonzero(~(one.observed | derivable(one.observed)))
    parts = [out["leads"][:, _INDEPENDENT], out["vcg"], out["std"][:, free]]
    joined = join(np.concatenate(parts, 1), cut.starts, cut.length)
    back = resample(joined, fs, one.fs, n_out=one.raw.shape[1])
    return _rendered(one, back, free, out["state"], vectors)


def _rendered(
    one: Recording,
    back: NDArray[np.float64],
    free: NDArray[np.int64],
    state: Array,
    vectors: NDArray[np.float64],
) -> Rendered:
    independent, vcg, deviation = np.split(back, [len(_INDEPENDENT), len(_INDEPENDENT) + 3])
    rendered = EXPAND @ independent
    ecg = rendered.copy()
    ecg[one.rows] = one.raw
    whole, _ = complete_limb_leads(ecg, one.observed)  # two observed limb leads give the other four
    std = np.zeros_like(rendered)
    std[free] = np.maximum(deviation, 0.0)
    return Rendered(
        LEADS, np.asarray(whole, dtype=np.float64), rendered, vcg.copy(), state, std, vectors @ vcg
    )


def join(windows: Array, starts: list[int], length: int) -> NDArray[np.float64]:
    """Overlapping windows [n, C, T] -> [C, length], weighted by a smooth bump, so that no seam shows."""
    size = windows.shape[2]
    bump = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2 + 1e-3
    total = np.zeros((windows.shape[1], max(length, starts[-1] + size)))
    weight = np.zeros(total.shape[1])
    for start, window in zip(starts, windows, strict=True):
        total[:, start : start + size] += window * bump
        weight[start : start + size] += bump
    return (total / weight)[:, :length]


def directions_3d(directions: ArrayLike | None) -> NDArray[np.float64]:
    """[n, 3]. Raises SignalError."""
    if directions is None:
        return np.zeros((0, 3))
    try:
        vectors = np.atleast_2d(np.asarray(directions, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise SignalError(f"The directions are no array of numbers ({error}): give [n, 3].") from error
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not np.isfinite(vectors).all():
        raise SignalError(
            f"The directions have shape {vectors.shape}: give [n, 3] finite numbers, a lead vector (x left, "
            "y inferior, z posterior) in each row."
        )
    return vectors
