"""R-peaks, vectorised: no loop over samples or beats, the same code for one long recording and for a batch.

Steps: pacing pulses are flattened; moving average, second difference, square and mean over a QRS width give
an energy; its local maxima above a threshold that moves with the signal are beats, and so are weaker ones in
pauses or far from any other beat; the position is the largest deflection near by. After
- Pan & Tompkins, IEEE Trans Biomed Eng 32 (1985) 230, doi:10.1109/TBME.1985.325532 (derivative, squaring,
  moving-window integration, refractory time, threshold between noise and signal level, search back);
- Elgendi, PLoS ONE 8 (2013) e73557, doi:10.1371/journal.pone.0073557 (moving averages in place of filters);
- Christov, BioMed Eng OnLine 3 (2004) 28, doi:10.1186/1475-925X-3-28 (one function out of all leads).

We depart from them:
- the second difference of a moving average replaces band-pass and derivative: it does not depend on polarity,
  and slow waves (T wave, wander) fall with the square of their frequency;
- levels are not updated beat by beat, which needs a loop: the noise level is a lower quantile of the energy
  around, the signal level an average of its maxima, so a row of a batch and a piece of a long recording are
  treated alike;
- where the maxima do not stand out from the noise level there is no beat: in noise of any colour they reach
  about twice the level, in an ECG three times or more;
- a small beat beside large ones (bigeminy, a single ectopic beat) is compared with the noise, not with them,
  if it is too far from other beats to be a T wave or a P wave;
- a pulse shorter than 8 ms is cut down to the usual roughness of the signal by the median of three samples
  8 ms apart, which leaves every slope as it is: pacing is no beat, and does not hide one;
- leads are combined by the power mean (exponent 1/2, between arithmetic and geometric mean) of energies in
  units of each lead's own level, weighted by how far its beats stand out: a beat is what most leads see;
- the position is that of the largest deflection near the maximum of the energy; of two of about one size,
  that of the sign that most beats of the row have: neither sign is preferred.

The constants were chosen on the records of benchmarks/r_peaks.py (mitdb, ludb, cpsc2019, also with noise), on
the agreement of two other detectors over the twelve leads of 2,656 PTB-XL records, and on how much the
aligned beats of a window agree; --sensitivity of that script shows what each of them does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ecggen.data.signal import fill_gaps, rate_in_hz
from ecggen.data.sliding import (
    curvature,
    decimate,
    extend,
    local_maxima,
    moving_average,
    moving_max,
    moving_sum,
    repeat_blocks,
    split_blocks,
)
from ecggen.data.windows import DataError

FS_RANGE = (50.0, 2000.0)  # Hz
REFRACTORY_S = 0.25
_SPIKE_S = 0.008  # a pulse shorter than this is not the heart's ...
_SPIKE_TIMES = 1.5  # ... and is cut where it stands out this many times as far as the roughness of the signal
_SMOOTH_S = 0.02  # moving average
_STEP_S = 0.022  # half width of the second difference after it: together their gain peaks near 20 Hz
_EDGE_S = 0.02  # this far from both ends the second difference is not known, and the next value stands for it
_INTEGRATE_S = 0.1  # width of a QRS
_BLOCK_S = 0.1  # resolution of the running levels
_NEAR_S = 0.5  # a beat is expected within +- this
_LEVEL_S = 3.0  # the signal level is an average over +- this
_NOISE_S, _NOISE_QUANTILE = 1.5, 0.3  # the noise level is this quantile within +- this
_NOISE_STEP_S = 1.0  # ... computed this often
_LEAST_CONTRAST = 2.5  # maxima in units of the noise level; below this, nothing stands out
_NO_CONTRAST = 1.5  # ... and a lead with this counts for nothing among others
_MOST_LEADS = 3.0  # noises of more leads than this are not taken to be independent
_SHARE = 0.31  # of the way from noise to signal level: a beat
_PAUSE_SHARE = 0.17  # ... a beat in a pause,
_PAUSE = 1.5  # which is a gap of this many typical intervals
_FAR_S = 0.5  # a beat further than this from others on both sides
_FAR_NOISE, _FAR_SHARE = 2.2, 0.15  # ... needs this many noise levels and this share of the signal level
_FLOOR_MV = 0.008  # below this everything is noise ...
_OFF_MV = 1e-4  # ... and below this there is no electrode
_SITE_SMOOTH_S = 0.03  # the deflection that gives a beat its position: a second moving average ...
_SITE_STEP_S = 0.05  # ... and the value against those this far on both sides
_REFINE_S = 0.04  # reach of the search for it from the maximum of the energy,
_SHARPEN_S = 0.02  # then of the search for the extremum of the signal itself
_USUAL_SIGN = 1.35  # how much more a deflection counts that has the sign of most beats of the row
_MIN_RATE = 125.0  # Hz; faster signals are averaged down to between this and twice this
_PIECE_S, _CONTEXT_S = 40.0, 5.0  # a long recording is cut into pieces seen with context on both sides
_PIECES = 16  # leads times pieces worked on at once


def max_beats(n_samples: int, fs: float) -> int:
    """The most beats that n_samples can hold: they lie more than the refractory time apart."""
    return (n_samples - 1) // (_refractory(fs) + 1) + 1


def check_rate(fs: Any) -> float:
    """The sampling rate in Hz, from whatever holds one number. Raises DataError out of FS_RANGE."""
    rate = rate_in_hz(fs)
    low, high = FS_RANGE
    if not low <= rate <= high:
        raise DataError(f"The sampling rate is {fs!r}: R-peaks are detected at {low:g} to {high:g} Hz.")
    return rate


def detect_r_peaks(signal_mv: Any, fs: float) -> NDArray[np.int64]:
    """R-peaks of a recording of any length.

    signal_mv [n_samples] or [n_leads, n_samples] in mV, NaN allowed; of several leads all are used together
    that are neither flat nor mostly NaN, in any order. fs in Hz (50 to 2000). Returns ascending sample
    positions, int64, more than 0.25 s apart; none where nothing stands out from noise. Memory does not grow
    with the length. Raises DataError for a shape, a type or a rate that cannot be used.
    """
    fs = check_rate(fs)
    signal = np.asarray(signal_mv)
    if signal.ndim not in (1, 2) or signal.dtype.kind not in "fiu":
        raise DataError(
            f"The signal is {signal.dtype} of shape {signal.shape}: numbers in mV, [n_samples] or "
            "[n_leads, n_samples], are needed."
        )
    n = signal.shape[-1]
    if signal.ndim == 2 and len(signal) > n > 0:
        raise DataError(
            f"The signal has shape {signal.shape}, more leads than samples: it looks transposed; give "
            "[n_leads, n_samples], for example signal.T."
        )
    leads = [signal] if signal.ndim == 1 else [signal[row] for row in _usable_rows(signal)]
    if not leads or n == 0:
        return np.zeros(0, dtype=np.int64)
    piece, context = round(_PIECE_S * fs), round(_CONTEXT_S * fs)
    length = min(n, piece + 2 * context)
    starts = np.arange(0, n if n > length else 1, piece)
    stops = np.append(starts[1:], n)
    groups = np.array_split(np.arange(len(starts)), -(-len(starts) * len(leads) // max(_PIECES, len(leads))))
    beats = []
    for group in groups:
        # Pieces at the ends are shifted inwards rather than padded: padding would look like a pause.
        first = np.clip(starts[group] - context, 0, n - length)
        row, at = _detect_rows([[lead[begin : begin + length] for lead in leads] for begin in first], fs)
        at = at + first[row]
        beats.append(at[(at >= starts[group][row]) & (at < stops[group][row])])
    peaks, refractory = np.sort(np.concatenate(beats)), _refractory(fs)
    # Two pieces may place one beat on either side of their border: the first is kept.
    return peaks[np.diff(peaks, prepend=-refractory - 1) > refractory]


def detect_r_peaks_batch(x: Tensor, fs: float, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """R-peaks of rows, each row on its own, of one lead or of several together.

    x [B, T] or [B, C, T] in mV (NaN counts as 0), fs in Hz (50 to 2000), observed [B, C] bool: the leads to
    use (default all; flat ones count for nothing, the order makes no difference). Returns (positions [B, M]
    long, ascending, padded with -1; valid [B, M] bool) with M = max_beats(T, fs), the same for every input
    of this length. Raises DataError for a rate out of range.
    """
    fs = check_rate(fs)
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
    raw = x.flatten(0, 1)
    clean = _flatten_spikes(raw, fs)
    slow_fs = fs / factor
    smooth = moving_average(decimate(clean, factor), _SMOOTH_S * slow_fs)
    energy, weight, independent = _fuse(_energy(smooth, slow_fs), leads)
    at, beat = _candidates(energy, smooth.shape[1], slow_fs, independent)
    site = curvature(moving_average(smooth, _SITE_SMOOTH_S * slow_fs), _SITE_STEP_S * slow_fs, mirrored=True)
    raw, clean, site = (rows.unflatten(0, (batch, leads)) for rows in (raw, clean, site))
    positions, size = _place(raw, clean, site, weight, at.clamp(min=0), beat, fs, factor)
    positions = _separate(torch.where(beat, positions, -1), size, _refractory(fs))
    # A negative number of columns cuts some that hold no beat.
    positions = functional.pad(positions, (0, max_beats(n, fs) - positions.shape[1]), value=-1)
    return positions, positions >= 0


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
    rough = split_blocks(rest.abs(), round(_BLOCK_S * fs)).amax(dim=2)
    limit = _SPIKE_TIMES * rough.median(dim=1, keepdim=True).values
    return middle + rest.clamp(-limit, limit)


def _energy(smooth: Tensor, fs: float) -> Tensor:
    """Squared second difference, averaged over a QRS width, mV^2, in blocks: [R, blocks, samples]."""
    power = curvature(smooth, _STEP_S * fs).square()
    edge = min((power.shape[1] - 1) // 2, math.ceil(_EDGE_S * fs))
    power = extend(power[:, edge : power.shape[1] - edge], edge, edge)
    # A jump at the last sample is not a QRS: its energy must not be taken to go on.
    power = moving_average(power, _INTEGRATE_S * fs, silent_outside=True)
    return split_blocks(power, max(1, round(_BLOCK_S * fs)))


def _levels(top: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Running levels of beats and of noise in mV, [R, blocks], from the largest value of each block; and the
    contrast: how far maxima stand out from noise, 1 = not at all."""
    last = top.shape[1] - 1
    near, reach = (min(round(s / _BLOCK_S), last) for s in (_NEAR_S, _LEVEL_S))
    noise = _noise_level(top)
    maxima = moving_max(top, near)
    # Noise that comes and goes is compared with what it is at the time; 2 uV: there is always some.
    both = torch.cat([maxima, maxima / noise.clamp(min=0.25 * _FLOOR_MV)])
    # Shorter at the ends: what lies outside is not known to be silent.
    at = torch.arange(last + 1, device=top.device)
    count = (at + reach).clamp(max=last) - (at - reach).clamp(min=0) + 1
    beats, contrast = (moving_sum(both, reach) / count).chunk(2)
    return beats, torch.minimum(noise, 0.9 * beats), contrast


def _noise_level(top: Tensor) -> Tensor:
    """Quantile of top [R, blocks] within _NOISE_S around; windows at the ends are shifted inwards."""
    n, step = top.shape[1], round(_NOISE_STEP_S / _BLOCK_S)
    width = min(2 * round(_NOISE_S / _BLOCK_S) + 1, n)
    first = (torch.arange(0, n, step, device=top.device) + (step - width) // 2).clamp(0, n - width)
    around = top.unfold(1, width, 1)[:, first]
    level = around.kthvalue(1 + round(_NOISE_QUANTILE * (width - 1)), dim=2).values
    return repeat_blocks(level, step, n)


def _add_leads(x: Tensor) -> Tensor:
    """x [B, C, ...] to [B, ...]. In halves: the order of a reduction may depend on the shape of the batch."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        pairs = x[:, :half] + x[:, half : 2 * half]
        x = pairs if x.shape[1] % 2 == 0 else torch.cat([pairs, x[:, -1:]], dim=1)
    return x[:, 0]


def _fuse(energy: Tensor, leads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Energies of the leads [B * C, blocks, samples], mV^2, put together.

    Returns (one energy [B, blocks, samples], weight of a mV in each lead [B, C, blocks], how many leads of a
    like weight there are [B, blocks]). With one lead they are its energy, 1 and 1.
    """
    if leads == 1:
        one = torch.ones_like(energy[:, :, 0])
        return energy, one[:, None], one
    top = energy.amax(dim=2).sqrt()
    beats, _, contrast = _levels(top)
    beats = beats.clamp(min=1e-9)
    # Where a lead does not move at all, it is off or missing: the others decide.
    present = (moving_max(top, min(1, top.shape[1] - 1)) > _OFF_MV) & (beats > _FLOOR_MV)
    trust = (1 - _NO_CONTRAST / contrast.clamp(min=1e-9)).clamp(min=0.01) * present
    share = trust.square()
    root = (energy * beats.pow(-2)[:, :, None]).sqrt_().sqrt_().mul_(share[:, :, None])
    sums = torch.stack([share, share * beats.square(), share.square()], dim=1).unflatten(0, (-1, leads))
    total, size, squares = _add_leads(sums).clamp(min=1e-12).unbind(1)
    mean = _add_leads(root.unflatten(0, (-1, leads))) / total[:, :, None]
    fused = mean.square().square() * (size / total)[:, :, None]
    return fused, (trust / beats).unflatten(0, (-1, leads)), (total.square() / squares).clamp(min=1.0)


def _candidates(energy: Tensor, n: int, fs: float, independent: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima of the first n samples of an energy [R, blocks, samples]: [R, M], -1 = none; beats or not."""
    beats, noise, contrast = _levels(energy.amax(dim=2).sqrt())
    # Noises of several leads level each other out: the maxima of their mean stand out less.
    least = 1 + (_LEAST_CONTRAST - 1) * independent.clamp(max=_MOST_LEADS).rsqrt()
    beats = torch.where(contrast > least, beats, torch.inf)
    above_noise = beats - noise
    limits = torch.stack(
        [
            noise + _SHARE * above_noise,
            noise + _PAUSE_SHARE * above_noise,
            torch.maximum(_FAR_NOISE * noise, _FAR_SHARE * beats),
        ]
    ).clamp(min=_FLOOR_MV)
    large = energy > limits.amin(dim=0).square()[:, :, None]
    block, energy = energy.shape[2], energy.flatten(1)[:, :n]
    at = _positions(local_maxima(energy, _refractory(fs)) & large.flatten(1)[:, :n])
    here = at.clamp(min=0)
    root = energy.gather(1, here).sqrt()
    above = (at >= 0) & (root > limits.gather(2, (here // block).expand(len(limits), -1, -1)))
    strong, weak, distinct = above.unbind(0)
    return at, _with_weak_beats(at, strong, weak, distinct, n, fs)


def _positions(mask: Tensor) -> Tensor:
    """Positions of True in each row of mask [R, T], ascending: [R, M] long, padded with -1."""
    row, at = mask.nonzero(as_tuple=True)
    count = mask.sum(dim=1)
    rank = torch.arange(len(at), device=mask.device) - (count.cumsum(0) - count)[row]
    out = torch.full((len(mask), 1 + int(rank.max()) if len(rank) else 1), -1, device=mask.device)
    out[row, rank] = at
    return out


def _with_weak_beats(at: Tensor, strong: Tensor, weak: Tensor, distinct: Tensor, n: int, fs: float) -> Tensor:
    """Which of the candidates at [R, M] are beats: bool masks in, a bool mask out.

    The strong ones; weak ones in a pause of these (Pan and Tompkins' search back); and those that are
    distinct from noise and far from the strong ones on both sides.
    """
    before = functional.pad(torch.where(strong, at, -1).cummax(dim=1).values[:, :-1], (1, 0), value=-1)
    after = torch.where(strong, at, n).flip(1).cummin(dim=1).values.flip(1)
    inside = (before >= 0) & (after < n)
    gap = torch.where(strong & (before >= 0), at - before, n + 1)
    count = (gap <= n).sum(dim=1, keepdim=True)
    middle = gap.sort(dim=1).values.gather(1, (count // 2).clamp(max=gap.shape[1] - 1))
    typical = torch.where(count >= 2, middle, n)
    in_pause = weak & inside & (after - before > _PAUSE * typical)
    far = ((before < 0) | (at - before > _FAR_S * fs)) & ((after >= n) | (after - at > _FAR_S * fs))
    return strong | in_pause | (distinct & far)


def _place(
    raw: Tensor, clean: Tensor, site: Tensor, weight: Tensor, at: Tensor, beat: Tensor, fs: float, factor: int
) -> tuple[Tensor, Tensor]:
    """From maxima of the energy, at [B, M] in samples of factor / fs, to the largest deflection near by.

    raw, clean (spikes flattened) [B, C, T] mV; site [B, C, T / factor] mV, height over both sides; weight
    [B, C, blocks] of it; beat [B, M] bool: the beats among at. Returns (samples at rate fs, size) [B, M].
    """
    n, slow_n = raw.shape[2], site.shape[2]
    block = max(1, round(_BLOCK_S * fs / factor))
    near = _reach(at, max(1, round(_REFINE_S * fs / factor)), slow_n)
    heights = _take(site, near) * _take(weight, near // block)
    # R here and S there, where both are of a size, would make intervals of equal beats differ.
    up = (heights.amax(dim=3) > -heights.amin(dim=3)) & beat[:, None]
    usual = 2.0 * (2 * up.sum(dim=2) >= beat.sum(dim=1, keepdim=True)) - 1.0
    has_usual = _add_leads(heights * usual[:, :, None, None]) > 0
    size = _add_leads(heights.abs()) * (1.0 + (_USUAL_SIGN - 1.0) * has_usual)
    size, best = size.max(dim=2, keepdim=True)
    coarse = near.gather(2, best)
    sign = heights.gather(3, best[:, None].expand(-1, heights.shape[1], -1, -1)).sign()
    sign = sign * _take(weight, coarse // block)
    at = coarse[:, :, 0] * factor + factor // 2
    at = _extremum(clean, sign, _reach(at, factor // 2 + round(_SHARPEN_S * fs), n))
    if (spike := round(_SPIKE_S * fs)) > 1:
        # What was flattened may be the tip of a narrow QRS: half a spike's width is looked at as recorded.
        at = _extremum(raw, sign, _reach(at, (spike + 1) // 2, n))
    return at, size[:, :, 0]


def _extremum(x: Tensor, sign: Tensor, near: Tensor) -> Tensor:
    """The sample of near [B, M, K] where x [B, C, T] times sign [B, C, M, 1] is largest: [B, M]."""
    best = _add_leads(sign * _take(x, near)).max(dim=2, keepdim=True).indices
    return near.gather(2, best)[:, :, 0]


def _reach(at: Tensor, reach: int, n: int) -> Tensor:
    """Samples within +-reach of at [B, M], kept inside [0, n): [B, M, 2 * reach + 1]."""
    return (at[:, :, None] + torch.arange(-reach, reach + 1, device=at.device)).clamp(0, n - 1)


def _take(x: Tensor, at: Tensor) -> Tensor:
    """x [B, C, T] at [B, M, K], the same in each lead: [B, C, M, K]."""
    index = at.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.gather(2, index).unflatten(2, at.shape[1:])


def _separate(positions: Tensor, size: Tensor, refractory: int) -> Tensor:
    """Drop the smaller of two neighbours within the refractory time; [B, M], -1 = none, last."""
    none = torch.iinfo(positions.dtype).max
    positions, order = torch.where(positions < 0, none, positions).sort(dim=1, stable=True)
    size = size.gather(1, order)
    near = (positions.diff(dim=1) <= refractory) & (positions[:, 1:] < none)
    later = near & (size[:, 1:] <= size[:, :-1])
    earlier = near & ~later
    drop = functional.pad(later, (1, 0)) | functional.pad(earlier, (0, 1))
    positions = torch.where(drop, none, positions).sort(dim=1).values
    return torch.where(positions == none, -1, positions)


def _detect_rows(pieces: list[list[NDArray[Any]]], fs: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row, sample) of each beat in pieces [B, C, T]. Gaps are bridged: their borders are no beats."""
    rows = np.array(pieces, dtype=np.float32)
    for at in zip(*np.nonzero(~np.isfinite(rows).all(axis=2)), strict=True):
        rows[at] = fill_gaps(rows[at], 0)[0]
    positions, valid = detect_r_peaks_batch(torch.from_numpy(rows), fs)
    row, column = np.nonzero(valid.numpy())
    return row, positions.numpy()[row, column]


def _usable_rows(signal: NDArray[Any]) -> NDArray[np.int64]:
    """Leads of signal [C, T] neither flat nor mostly NaN; looked at in blocks to stay small in memory."""
    known = np.zeros(len(signal))
    low, high = np.full(len(signal), np.inf), np.full(len(signal), -np.inf)
    for at in range(0, signal.shape[1], 1 << 16):
        block = signal[:, at : at + (1 << 16)].astype(np.float64, copy=False)
        finite = np.isfinite(block)
        known += finite.sum(axis=1)
        low = np.minimum(low, block.min(axis=1, where=finite, initial=np.inf))
        high = np.maximum(high, block.max(axis=1, where=finite, initial=-np.inf))
    return np.flatnonzero((2 * known > signal.shape[1]) & (high - low > _FLOOR_MV))
