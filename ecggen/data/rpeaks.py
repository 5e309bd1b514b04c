"""R-peaks, vectorised: no loop over samples or beats, the same code for one long recording and for a batch.

Recipe: pacing pulses flattened, moving average, second difference, squares integrated over a QRS width,
local maxima over the refractory time above a threshold that moves with the signal, weaker ones in pauses,
then the largest deflection near by. After
- Pan & Tompkins, IEEE Trans Biomed Eng 32 (1985) 230, doi:10.1109/TBME.1985.325532 (derivative, squaring,
  moving-window integration, refractory time, threshold between noise and signal level, search back);
- Elgendi, PLoS ONE 8 (2013) e73557, doi:10.1371/journal.pone.0073557 (moving averages in place of filters);
- Christov, BioMed Eng OnLine 3 (2004) 28, doi:10.1186/1475-925X-3-28 (one function out of all leads).

We depart from them:
- the second difference of a moving average replaces band-pass and derivative: it is blind to polarity, and
  slow waves (T wave, wander) fall with the square of their frequency;
- levels are not updated beat by beat, which needs a loop: signal and noise level are averages over seconds
  of local maxima and minima, so a row of a batch and a piece of a long recording are treated alike;
- a pulse shorter than 8 ms is cut down to the usual roughness of the signal by the median of three samples
  8 ms apart, which leaves every slope as it is: pacing is no beat, and does not hide one;
- leads are combined by the power mean (exponent 1/2, between arithmetic and geometric mean) of energies in
  units of each lead's own level, weighted by its distance from its own noise: a beat is what most leads see,
  and the threshold knows that the noise of several leads varies less than that of one;
- the position is that of the largest deflection near the maximum of the energy, of two of about one size
  that to the side which most beats of the row have: no preference for either sign.

The constants were chosen on the records of benchmarks/r_peaks.py (six of mitdb, a hundred of ludb, also with
noise), on the agreement of two other detectors over the twelve leads of 2,656 PTB-XL records, and on how
alike the beats of a window are once aligned; its option --sensitivity shows what each of them does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ecggen.data.sliding import average, bend, blocks, extend, local_max, peaks, slow_down, spread
from ecggen.data.windows import DataError

FS_RANGE = (50.0, 2000.0)  # Hz
REFRACTORY_S = 0.25
_SPIKE_S = 0.008  # a pulse shorter than this is not the heart's ...
_SPIKE_TIMES = 1.5  # ... and is cut where it stands out this many times as far as the roughness of the signal
_SMOOTH_S = 0.02  # moving average
_STEP_S = 0.022  # half width of the second difference after it: together their gain peaks near 20 Hz
_INTEGRATE_S = 0.1  # width of a QRS
_BLOCK_S = 0.1  # resolution of the running levels
_NEAR_S = 0.5  # a beat is expected within +- this ...
_QUIET_S = 0.3  # ... and a moment without one within +- this;
_LEVEL_S = 3.0  # levels are averages over +- this
_NOISE_PEAK = 2.5  # highest noise in units of its quiet moments
_SHARE = 0.32  # of the way from noise to signal level: a beat
_WEAK_SHARE = 0.17  # ... a beat where there would be a pause without it
_PAUSE = 1.5  # a pause is a gap of this many typical intervals
_FLOOR_MV = 0.008  # below this everything is noise ...
_OFF_MV = 1e-4  # ... and below this there is no electrode
_SITE_SMOOTH_S = 0.03  # the deflection that gives a beat its position: a second moving average ...
_SITE_STEP_S = 0.05  # ... and the value against those this far on both sides
_REFINE_S = 0.04  # reach of the search for it from the maximum of the energy,
_SHARPEN_S = 0.02  # then of the search for the extremum of the signal itself
_USUAL_SIDE = 1.35  # how much more a deflection counts to the side that most beats of the row have
_MIN_RATE = 125.0  # Hz; faster signals are averaged down to between this and twice this
_PIECE_S, _CONTEXT_S = 40.0, 5.0  # a long recording is cut into pieces seen with context on both sides
_PIECES = 16  # leads times pieces worked on at once


def max_beats(n_samples: int, fs: float) -> int:
    """The most beats that n_samples can hold: they lie more than the refractory time apart."""
    return (n_samples - 1) // (_refractory(fs) + 1) + 1


def _refractory(fs: float) -> int:
    return max(1, round(REFRACTORY_S * fs))


def _flatten_spikes(x: Tensor, fs: float) -> Tensor:
    """Pulses shorter than _SPIKE_S cut down; below 190 Hz a sample is too long to tell."""
    reach, n = round(_SPIKE_S * fs), x.shape[1]
    if reach < 2:
        return x
    wide = extend(x, reach, reach)
    before, after = wide[:, :n], wide[:, 2 * reach :]
    middle = torch.maximum(torch.minimum(before, after), torch.minimum(torch.maximum(before, after), x))
    rest = x - middle
    rough = blocks(rest.abs(), round(_BLOCK_S * fs)).amax(dim=2)
    limit = _SPIKE_TIMES * rough.median(dim=1, keepdim=True).values
    return middle + torch.minimum(torch.maximum(rest, -limit), limit)


def _levels(power: Tensor, block: int, alike: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The energy in mV, a value per block [R, ceil(T / block)]: (largest here, level of beats, of noise).

    alike [R, blocks]: how many leads of a like weight the energy was put together from.
    """
    parts = blocks(power, block)
    last = parts.shape[1] - 1
    near, quiet, reach = (min(round(s / _BLOCK_S), last) for s in (_NEAR_S, _QUIET_S, _LEVEL_S))
    top, low = parts.amax(dim=2).sqrt(), parts.amin(dim=2).sqrt()
    both = torch.stack([local_max(top, near), -local_max(-low, quiet)], dim=1)
    # Shorter at the ends: what lies outside is not known to be silent.
    high, low = functional.avg_pool1d(both, 2 * reach + 1, 1, reach, count_include_pad=False).unbind(1)
    # Noises of several leads level each other out: the peaks of their mean stand out less.
    peak = 1 + (_NOISE_PEAK - 1) * alike.rsqrt()
    return local_max(top, quiet), high, torch.minimum(peak * low, 0.9 * high)


def _add_leads(x: Tensor) -> Tensor:
    """x [B, C, ...] to [B, ...]. In halves: the order of a reduction may depend on the shape of the batch."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        pairs = x[:, :half] + x[:, half : 2 * half]
        x = pairs if x.shape[1] % 2 == 0 else torch.cat([pairs, x[:, -1:]], dim=1)
    return x[:, 0]


def _fuse(power: Tensor, leads: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Energies of the leads [B * C, T], mV^2, put together.

    Returns (one energy [B, T], what a mV in each lead counts [B, C, T], how many leads of a like weight there
    are [B, blocks]). With one lead they are its energy, 1 and 1.
    """
    n = power.shape[1]
    one = torch.ones((), device=power.device).expand(len(power), -(-n // block))
    if leads == 1:
        return power, one[:, :1, None].expand(-1, 1, n), one
    top, high, noise = _levels(power, block, one)
    high = high.clamp(min=1e-9)
    # Where a lead does not move at all, it is off or missing: the others decide.
    trust = (1 - noise / high) * ((top > _OFF_MV) & (high > _FLOOR_MV))
    share = trust.square()
    root = (power * spread(high.pow(-2), block, n)).sqrt().sqrt() * spread(share, block, n)
    coarse = torch.stack([share, share * high.square(), share.square()], dim=1).unflatten(0, (-1, leads))
    total, size, squares = _add_leads(coarse).clamp(min=1e-12).unbind(1)
    mean = _add_leads(root.unflatten(0, (-1, leads))) / spread(total, block, n)
    counts = spread(trust / high, block, n).unflatten(0, (-1, leads))
    return (
        mean.square().square() * spread(size / total, block, n),
        counts,
        (total.square() / squares).clamp(min=1.0),
    )


def _candidates(power: Tensor, fs: float, block: int, alike: Tensor) -> tuple[Tensor, Tensor]:
    """Local maxima of the energy [R, T] at 50 to 250 Hz: (samples [R, M], -1 = none; which are beats)."""
    _, high, noise = _levels(power, block, alike)
    weak, strong = (
        (noise + share * (high - noise)).clamp(min=_FLOOR_MV).square() for share in (_WEAK_SHARE, _SHARE)
    )
    n = power.shape[1]
    found = peaks(power, _refractory(fs)) & (power > spread(weak, block, n))
    at = _positions(found, max_beats(n, fs))
    here = at.clamp(min=0)
    sure = (at >= 0) & (power.gather(1, here) > strong.gather(1, here // block))
    return at, _fill_pauses(at, sure, n)


def _positions(mask: Tensor, limit: int) -> Tensor:
    """Positions of True in each row of mask [R, T], ascending: [R, limit] long, padded with -1."""
    row, at = mask.nonzero(as_tuple=True)
    count = mask.sum(dim=1)
    rank = torch.arange(len(at), device=mask.device) - (count.cumsum(0) - count)[row]
    out = torch.full((mask.shape[0], limit), -1, device=mask.device)
    out[row, rank] = at
    return out


def _fill_pauses(at: Tensor, sure: Tensor, n: int) -> Tensor:
    """The sure ones of candidates at [R, M], and those in a pause of them: Pan and Tompkins' search back."""
    before = functional.pad(torch.where(sure, at, -1).cummax(dim=1).values[:, :-1], (1, 0), value=-1)
    after = torch.where(sure, at, n).flip(1).cummin(dim=1).values.flip(1)
    gap = torch.where(sure & (before >= 0), at - before, n + 1)
    count = (gap <= n).sum(dim=1, keepdim=True)
    middle = gap.sort(dim=1).values.gather(1, (count // 2).clamp(max=gap.shape[1] - 1))
    typical = torch.where(count >= 2, middle, n)
    inside = (at >= 0) & (before >= 0) & (after < n)
    return sure | (inside & (after - before > _PAUSE * typical))


def detect_r_peaks_batch(x: Tensor, fs: float, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """R-peaks of rows, each row on its own, of one lead or of several together.

    x [B, T] or [B, C, T] in mV (NaN counts as 0), fs in Hz (50 to 2000), observed [B, C] bool: the leads to
    use (default all; flat ones count for nothing, the order makes no difference). Returns (positions [B, M]
    long, ascending, padded with -1; valid [B, M] bool) with M = max_beats(T, fs), the same for every input
    of this length. Raises DataError for a rate out of range.
    """
    _check_rate(fs)
    assert x.ndim in (2, 3), f"[B, T] or [B, C, T] expected, got {tuple(x.shape)}"
    x = torch.nan_to_num(x.detach().float(), posinf=0.0, neginf=0.0)
    x = x[:, None] if x.ndim == 2 else x
    batch, leads, n = x.shape
    if observed is not None:
        assert observed.shape == (batch, leads), f"{tuple(observed.shape)} against {tuple(x.shape)}"
        x = torch.where(observed[:, :, None], x, 0.0)
    factor = max(1, int(fs // _MIN_RATE))
    if n < 3 * factor:
        shape = (batch, max(1, max_beats(n, fs)) if n else 1)
        return torch.full(shape, -1, device=x.device), torch.zeros(shape, dtype=torch.bool, device=x.device)
    recorded = x.flatten(0, 1)
    clean = _flatten_spikes(recorded, fs)
    slow_fs = fs / factor
    block = max(1, round(_BLOCK_S * slow_fs))
    smooth = average(slow_down(clean, factor), _SMOOTH_S * slow_fs)
    power = bend(smooth, _STEP_S * slow_fs).square()
    # A jump at the last sample is not a QRS: its energy must not be taken to go on.
    power = average(power, _INTEGRATE_S * slow_fs, silent_outside=True)
    power, counts, alike = _fuse(power, leads, block)
    at, keep = _candidates(power, slow_fs, block, alike)
    site = bend(average(smooth, _SITE_SMOOTH_S * slow_fs), _SITE_STEP_S * slow_fs, mirrored=True)
    recorded, clean, site = (rows.unflatten(0, (batch, leads)) for rows in (recorded, clean, site))
    each = _Leads(recorded, clean, site, counts)
    positions, score = _place(each, at.clamp(min=0), keep, fs, factor)
    positions = _separate(torch.where(keep, positions, -1), score, _refractory(fs))
    # A negative number of columns cuts some that hold no beat.
    positions = functional.pad(positions, (0, max_beats(n, fs) - positions.shape[1]), value=-1)
    return positions, positions >= 0


class _Leads(NamedTuple):
    """What the position of a beat is read from."""

    recorded: Tensor  # [B, C, T] mV
    clean: Tensor  # [B, C, T] mV, spikes flattened
    site: Tensor  # [B, C, T / factor] mV, height over both sides
    counts: Tensor  # [B, C, T / factor], what a mV counts


def _place(leads: _Leads, at: Tensor, keep: Tensor, fs: float, factor: int) -> tuple[Tensor, Tensor]:
    """From maxima of the energy, at [B, M] in samples of factor / fs, to the largest deflection near by.

    keep [B, M] bool: the beats among them. Returns (samples at rate fs [B, M], size [B, M]).
    """
    n, slow_n = leads.recorded.shape[2], leads.site.shape[2]
    near = _reach(at, max(1, round(_REFINE_S * fs / factor)), slow_n)
    heights = _take(leads.site * leads.counts, near)
    # R here and S there, where both are of a size, would make intervals of beats that are alike differ.
    up = (heights.amax(dim=3) > -heights.amin(dim=3)) & keep[:, None]
    usual = 2.0 * (2 * up.sum(dim=2) >= keep.sum(dim=1, keepdim=True)) - 1.0
    as_usual = _add_leads(heights * usual[:, :, None, None]) > 0
    size = _add_leads(heights.abs()) * (1.0 + (_USUAL_SIDE - 1.0) * as_usual)
    score, best = size.max(dim=2, keepdim=True)
    coarse = near.gather(2, best)
    side = heights.gather(3, best[:, None].expand(-1, heights.shape[1], -1, -1)).sign()
    side = side * _take(leads.counts, coarse)
    at = coarse[:, :, 0] * factor + factor // 2
    at = _climb(leads.clean, side, _reach(at, factor // 2 + round(_SHARPEN_S * fs), n))
    if (spike := round(_SPIKE_S * fs)) > 1:
        # What was flattened may be the tip of a narrow QRS: half a spike's width is looked at as recorded.
        at = _climb(leads.recorded, side, _reach(at, (spike + 1) // 2, n))
    return at, score[:, :, 0]


def _climb(x: Tensor, side: Tensor, near: Tensor) -> Tensor:
    """The sample of near [B, M, K] where x [B, C, T] times side [B, C, M, 1] is largest: [B, M]."""
    best = _add_leads(side * _take(x, near)).max(dim=2, keepdim=True).indices
    return near.gather(2, best)[:, :, 0]


def _reach(at: Tensor, reach: int, n: int) -> Tensor:
    """Samples within +-reach of at [B, M], kept inside [0, n): [B, M, 2 * reach + 1]."""
    return (at[:, :, None] + torch.arange(-reach, reach + 1, device=at.device)).clamp(0, n - 1)


def _take(x: Tensor, at: Tensor) -> Tensor:
    """x [B, C, T] at [B, M, K], the same in each lead: [B, C, M, K]."""
    index = at.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.gather(2, index).unflatten(2, at.shape[1:])


def _separate(positions: Tensor, score: Tensor, refractory: int) -> Tensor:
    """Drop the lower one of two neighbours that came within the refractory time; [B, M], -1 = none, last."""
    far = torch.iinfo(positions.dtype).max
    positions, order = torch.where(positions < 0, far, positions).sort(dim=1, stable=True)
    score = score.gather(1, order)
    near = (positions.diff(dim=1) <= refractory) & (positions[:, 1:] < far)
    lower = near & (score[:, 1:] <= score[:, :-1])
    upper = near & ~lower
    drop = functional.pad(lower, (1, 0)) | functional.pad(upper, (0, 1))
    kept = torch.where(drop, far, positions).sort(dim=1).values
    return torch.where(kept == far, -1, kept)


def detect_r_peaks(signal_mv: Any, fs: float) -> NDArray[np.int64]:
    """R-peaks of a recording of any length.

    signal_mv [n_samples] or [n_leads, n_samples] in mV, NaN allowed; of several leads all are used together
    that are neither flat nor mostly NaN, in any order. fs in Hz (50 to 2000). Returns ascending sample
    positions, int64, more than 0.25 s apart. Memory does not grow with the length.
    Raises DataError for a shape, a type or a rate that cannot be used.
    """
    _check_rate(fs)
    signal = np.asarray(signal_mv)
    if signal.ndim not in (1, 2) or signal.dtype.kind not in "fiu":
        raise DataError(
            f"The signal is {signal.dtype} of shape {signal.shape}: numbers in mV, [n_samples] or "
            "[n_leads, n_samples], are needed."
        )
    leads = [signal] if signal.ndim == 1 else [lead for lead in signal if _usable(lead)]
    n = signal.shape[-1]
    if not leads:
        return np.zeros(0, dtype=np.int64)
    piece, context = round(_PIECE_S * fs), round(_CONTEXT_S * fs)
    if n <= piece + 2 * context:
        found = _detect_rows(np.stack(leads)[None], fs)[1]
    else:
        starts = np.arange(0, n, piece)
        at_once = max(1, _PIECES // len(leads))
        parts = [
            _detect_pieces(leads, starts[at : at + at_once], piece, context, fs)
            for at in range(0, len(starts), at_once)
        ]
        found = np.concatenate(parts)
    return _apart(np.sort(found), _refractory(fs))


def _detect_pieces(
    leads: list[NDArray[Any]], starts: NDArray[np.int64], piece: int, context: int, fs: float
) -> NDArray[np.int64]:
    length = piece + 2 * context
    # Pieces at the ends are shifted inwards rather than padded: padding would look like a pause.
    first = np.clip(starts - context, 0, len(leads[0]) - length)
    rows = np.stack([[lead[at : at + length] for lead in leads] for at in first])
    row, found = _detect_rows(rows, fs)
    found = found + first[row]
    mine = (found >= starts[row]) & (found < starts[row] + piece)
    return found[mine]


def _detect_rows(rows: NDArray[Any], fs: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """rows [B, C, T] -> (row, sample) of each beat."""
    if rows.shape[2] == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows = rows.astype(np.float32)
    for values in rows.reshape(-1, rows.shape[2]):
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
    for at in range(0, len(lead), 1 << 18):
        block = lead[at : at + (1 << 18)]
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
