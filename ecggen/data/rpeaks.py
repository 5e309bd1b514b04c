"""R-peaks, vectorised: no loop over samples or beats, the same code for one long recording and for a batch.

Energy of a band-limited difference, integrated over a QRS width, local maxima over the refractory time
compared with a running level. After Pan & Tompkins, IEEE Trans Biomed Eng 32 (1985) 230 (derivative,
squaring, moving-window integration, refractory, lower threshold after a long pause) and Elgendi, PLoS ONE
8 (2013) e73557 (moving averages instead of filters, a threshold that moves with the signal).
We depart from them:
- the second difference of a moving average replaces band-pass and derivative: it is blind to polarity and
  slow waves (T wave, wander) fall with the square of their frequency;
- thresholds are not updated beat by beat, which needs a loop: the level is the average of local maxima
  over a few seconds, so a row of a batch and a piece of a long recording are treated alike;
- the position is refined to the extremum of the signal near by, whatever its sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ecggen.data.window_folder import DataError

FS_RANGE = (50.0, 2000.0)  # Hz
REFRACTORY_S = 0.25
_STEP_S = 0.036  # half width of the second difference: its gain peaks at 1 / (2 * step) = 14 Hz
_SMOOTH_S = 0.03  # moving average before it
_INTEGRATE_S = 0.1  # width of a QRS
_BLOCK_S = 0.1  # resolution of the running level
_NEAR_S = 0.75  # a beat is expected within +- this (40 beats a minute)
_LEVEL_S = 4.0  # ... and the level is their average over +- this
_SHARE = 0.35  # of the level: a beat
_WEAK_SHARE = 0.17  # of the level: a beat where there would be a pause without it
_PAUSE = 1.5  # a pause is a gap of this many typical intervals
_FLOOR_MV = 0.008  # below this everything is noise
_REFINE_S = 0.08  # reach of the search for the extremum of the band-limited signal
_SHARPEN_S = 0.02  # ... and then of the signal itself
_MIN_RATE = 125.0  # Hz; faster signals are averaged down to between this and twice this
_PIECE_S, _CONTEXT_S = 20.0, 5.0  # a long recording is cut into pieces seen with context on both sides
_PIECES = 32  # worked on at once


def max_beats(n_samples: int, fs: float) -> int:
    """The most beats that n_samples can hold: they lie more than the refractory time apart."""
    return (n_samples - 1) // (_refractory(fs) + 1) + 1


def _refractory(fs: float) -> int:
    return max(1, round(REFRACTORY_S * fs))


def _half(seconds: float, fs: float) -> int:
    """Half width in samples of a centred odd window of about this length."""
    return max(0, round((seconds * fs - 1) / 2))


def _average(x: Tensor, half: int) -> Tensor:
    """Centred moving average along the last axis, [B, T]; shorter at the ends."""
    if half < 1:
        return x
    width = 2 * half + 1
    return functional.avg_pool1d(x[:, None], width, 1, half, count_include_pad=False)[:, 0]


def _local_max(x: Tensor, half: int) -> Tensor:
    return functional.max_pool1d(x[:, None], 2 * half + 1, 1, half)[:, 0]


def _keep_peaks(score: Tensor, candidate: Tensor, half: int) -> Tensor:
    """Candidates that have the largest score within +-half samples; of equal ones the first. [B, T] bool."""
    score = torch.where(candidate, score, torch.zeros_like(score))
    peak = candidate & (score > 0) & (score >= _local_max(score, half))
    at = torch.arange(score.shape[1], device=score.device)
    last = torch.where(peak, at, -half - 1).cummax(dim=1).values
    before = functional.pad(last[:, :-1], (1, 0), value=-half - 1)
    return peak & (at - before > half)


def _level(energy: Tensor, fs: float) -> Tensor:
    """Running level of the beats [B, T]: average over seconds of the maximum around each moment."""
    n = energy.shape[1]
    block = max(1, round(_BLOCK_S * fs))
    coarse = functional.max_pool1d(energy[:, None], block, block, ceil_mode=True)[:, 0]
    coarse = _local_max(coarse, min(round(_NEAR_S / _BLOCK_S), coarse.shape[1] - 1))
    coarse = _average(coarse, min(round(_LEVEL_S / _BLOCK_S), coarse.shape[1] - 1))
    return coarse.repeat_interleave(block, dim=1)[:, :n]


def _fill_pauses(strong: Tensor, weak: Tensor) -> Tensor:
    """Weak beats [B, T] that lie in a pause of the strong ones: Pan and Tompkins' search back."""
    n = strong.shape[1]
    at = torch.arange(n, device=strong.device)
    before = functional.pad(torch.where(strong, at, -1).cummax(dim=1).values[:, :-1], (1, 0), value=-1)
    after = torch.where(strong, at, n).flip(1).cummin(dim=1).values.flip(1)
    gap = torch.where(strong & (before >= 0), at - before, n + 1)
    count = (gap <= n).sum(dim=1, keepdim=True)
    middle = gap.sort(dim=1).values.gather(1, (count // 2).clamp(max=n - 1))
    typical = torch.where(count >= 2, middle, n)
    return strong | (weak & (before >= 0) & (after < n) & (after - before > _PAUSE * typical))


def _detect(x: Tensor, fs: float) -> tuple[Tensor, Tensor]:
    """Beats at 50 to 250 Hz: (mask [B, T] bool, band-limited signal [B, T])."""
    n = x.shape[1]
    step = max(1, round(_STEP_S * fs))
    smooth = _average(x, _half(_SMOOTH_S, fs))
    padded = functional.pad(smooth[:, None], (step, step), mode="replicate")[:, 0]
    band = smooth - 0.5 * (padded[:, :n] + padded[:, 2 * step :])
    energy = _average(band.square(), _half(_INTEGRATE_S, fs)).sqrt()
    half = _refractory(fs)
    level = _level(energy, fs)
    peaks = _keep_peaks(energy, energy > (_WEAK_SHARE * level).clamp(min=_FLOOR_MV), half)
    strong = peaks & (energy > _SHARE * level)
    beats = _fill_pauses(strong, peaks & ~strong)
    return beats, band


def detect_r_peaks_batch(x: Tensor, fs: float) -> tuple[Tensor, Tensor]:
    """R-peaks of single-lead rows, each row on its own.

    x [B, T] in mV (NaN counts as 0), fs in Hz (50 to 2000). Returns (positions [B, M] long, ascending,
    padded with -1; valid [B, M] bool) with M = max_beats(T, fs), the same for every input of this shape.
    Raises DataError for a rate out of range.
    """
    _check_rate(fs)
    assert x.ndim == 2, f"[B, T] expected, got {tuple(x.shape)}"
    batch, n = x.shape
    x = torch.nan_to_num(x.detach().float(), posinf=0.0, neginf=0.0)
    factor = max(1, int(fs // _MIN_RATE))
    if n < 3 * factor:
        shape = (batch, max(1, max_beats(n, fs)) if n else 1)
        return torch.full(shape, -1, device=x.device), torch.zeros(shape, dtype=torch.bool, device=x.device)
    slow = functional.avg_pool1d(x[:, None], factor, factor, ceil_mode=True)[:, 0] if factor > 1 else x
    beats, band = _detect(slow, fs / factor)
    coarse = _positions(beats, max_beats(slow.shape[1], fs / factor))
    valid = coarse >= 0
    # The energy is broad: go to the extremum of the band-limited signal near by, then of the signal itself.
    coarse, score = _climb(band.abs(), coarse.clamp(min=0), max(1, round(_REFINE_S * fs / factor)))
    sign = band.gather(1, coarse).sign()
    centre = coarse * factor + factor // 2
    positions, _ = _climb(x, centre, factor // 2 + round(_SHARPEN_S * fs), sign)
    positions = _separate(torch.where(valid, positions, -1), score, _refractory(fs))
    missing = max_beats(n, fs) - positions.shape[1]
    positions = functional.pad(
        positions, (0, missing), value=-1
    )  # a negative number cuts columns that hold no beat
    return positions, positions >= 0


def _climb(x: Tensor, at: Tensor, reach: int, sign: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest value of x [B, T] (times sign [B, M]) within +-reach of at [B, M]: (position, value)."""
    around = at[:, :, None] + torch.arange(-reach, reach + 1, device=x.device)
    around = around.clamp(0, x.shape[1] - 1)
    values = x.gather(1, around.flatten(1)).view(around.shape)
    if sign is not None:
        values = values * sign[:, :, None]
    best, index = values.max(dim=2)
    return around.gather(2, index[:, :, None])[:, :, 0], best


def _separate(positions: Tensor, score: Tensor, refractory: int) -> Tensor:
    """Drop the lower one of two neighbours that came within the refractory time; [B, M], -1 = none, last."""
    near = (positions.diff(dim=1) <= refractory) & (positions[:, 1:] >= 0)
    lower = near & (score[:, 1:] <= score[:, :-1])
    upper = near & ~lower
    drop = functional.pad(lower, (1, 0)) | functional.pad(upper, (0, 1))
    far = torch.iinfo(positions.dtype).max
    kept = torch.where(drop | (positions < 0), far, positions).sort(dim=1).values
    return torch.where(kept == far, -1, kept)


def _positions(mask: Tensor, limit: int) -> Tensor:
    """Positions of True in each row of mask [B, T], ascending: [B, limit] long, padded with -1."""
    batch, n = mask.shape
    column = torch.where(mask, mask.cumsum(dim=1) - 1, limit).clamp(max=limit)
    at = torch.arange(n, device=mask.device).expand(batch, n)
    out = torch.full((batch, limit + 1), -1, device=mask.device)
    return out.scatter(1, column, at)[:, :limit]


def detect_r_peaks(signal_mv: Any, fs: float) -> NDArray[np.int64]:
    """R-peaks of a recording of any length.

    signal_mv [n_samples] or [n_leads, n_samples] in mV, NaN allowed; of several leads the first is used,
    or, where that is flat or mostly NaN, the first that is neither. fs in Hz (50 to 2000). Returns
    ascending sample positions, int64, more than 0.25 s apart. Memory does not grow with the length.
    Raises DataError for a shape, a type or a rate that cannot be used.
    """
    _check_rate(fs)
    signal = np.asarray(signal_mv)
    if signal.ndim not in (1, 2) or signal.dtype.kind not in "fiu":
        raise DataError(
            f"The signal is {signal.dtype} of shape {signal.shape}: numbers in mV, [n_samples] or "
            "[n_leads, n_samples], are needed."
        )
    if signal.ndim == 2:
        signal = next((lead for lead in signal if _usable(lead)), signal[:1].reshape(-1))
    n = len(signal)
    piece, context = round(_PIECE_S * fs), round(_CONTEXT_S * fs)
    if n <= piece + 2 * context:
        found = _detect_rows(signal[None], fs)[1]
    else:
        starts = np.arange(0, n, piece)
        parts = [
            _detect_pieces(signal, starts[at : at + _PIECES], piece, context, fs)
            for at in range(0, len(starts), _PIECES)
        ]
        found = np.concatenate(parts)
    return _apart(np.sort(found), _refractory(fs))


def _detect_pieces(
    signal: NDArray[Any], starts: NDArray[np.int64], piece: int, context: int, fs: float
) -> NDArray[np.int64]:
    length = piece + 2 * context
    # Pieces at the ends are shifted inwards rather than padded: padding would look like a pause.
    first = np.clip(starts - context, 0, len(signal) - length)
    rows = np.stack([signal[at : at + length] for at in first])
    row, found = _detect_rows(rows, fs)
    found = found + first[row]
    return found[(found >= starts[row]) & (found < starts[row] + piece)]


def _detect_rows(rows: NDArray[Any], fs: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if rows.shape[1] == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows = rows.astype(np.float32)
    for values in rows:
        bad = ~np.isfinite(values)
        if bad.any():  # a gap is bridged, so that its borders do not look like beats
            known = np.flatnonzero(~bad)
            values[bad] = np.interp(np.flatnonzero(bad), known, values[known]) if len(known) else 0.0
    positions, valid = detect_r_peaks_batch(torch.from_numpy(rows), fs)
    row, column = np.nonzero(valid.numpy())
    return row, positions.numpy()[row, column]


def _usable(lead: NDArray[Any]) -> bool:
    """Neither flat nor mostly NaN; looked at in blocks to stay small in memory."""
    known, low, high = 0, np.inf, -np.inf
    for at in range(0, len(lead), 1 << 20):
        block = lead[at : at + (1 << 20)]
        block = block[np.isfinite(block)]
        if len(block):
            known += len(block)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    return known * 2 > len(lead) and high - low > _FLOOR_MV


def _apart(found: NDArray[np.int64], refractory: int) -> NDArray[np.int64]:
    """Two pieces may place one beat at either side of their border: keep the first."""
    while len(found) > 1 and (close := np.diff(found) <= refractory).any():
        found = np.delete(found, np.flatnonzero(close)[0] + 1)
    return found


def _check_rate(fs: float) -> None:
    if not FS_RANGE[0] <= fs <= FS_RANGE[1]:
        raise DataError(
            f"The sampling rate is {fs!r} Hz: R-peaks are detected at {FS_RANGE[0]:g} to {FS_RANGE[1]:g} Hz."
        )
