"""Noise of a lead, and where: without beats, so that no arrhythmia looks like it.

Two measures of the recording as it came, brought to 100 Hz, each in mV and each local in time:

level: the standard deviation of the 20 to 45 Hz band over three quarters of a second, from the lower quartile
of its magnitude (3.14 times; a normal distribution has a quarter below .319 sigma). Donoho & Johnstone,
Biometrika 81 (1994) 425, take the median of the finest wavelet scale to be blind to what is rare; QRS
complexes are not rare enough for that, and a tall one rings: with the median, tall leads look noisy.
excess: the range within one second of what the other leads do not explain (0.67 to 10 Hz, least squares over
ten seconds), above the median of these ranges. Leads see one heart and share it, motion of one electrode is
in one lead alone: the redundancy of leads as a measure of quality, as in Xia et al., Comput Cardiol 38
(2011) 461. A limb lead is explained by the precordial leads only, because one arm is in several limb leads;
a precordial lead by I, II and the other precordial leads.

Power ratios (pSQI, basSQI) and kurtosis (kSQI) after Li, Mark & Clifford, Physiol Meas 29 (2008) 15, and
Clifford et al., Physiol Meas 33 (2012) 1419, tell static noise of real records hardly better than chance;
benchmarks/quality.py measures all of them side by side. Baseline wander and mains are not noise here: the
band-pass takes them away.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.bands import Bands
from ecggen.data.quality.order import median
from ecggen.data.signal import find_runs
from ecggen.leads import LEADS

Array = NDArray[np.float64]

STEP = 25  # samples, a quarter of a second: the resolution of both measures
_LEVEL_STEPS, _EXCESS_STEPS = 3, 4  # windows of three quarters of a second and of a second
_QUARTILE = 3.1387  # standard deviations of a normal distribution in the lower quartile of its magnitude
_SEGMENT = 1000  # samples, ten seconds: over which leads explain each other
_RIDGE_MV = 0.005  # what a lead may differ from the others for nothing
_MIN_OTHERS = 4  # leads that explain one


def noise_level(band: Array) -> Array:
    """[L, k] mV of leads in LEVEL_BAND [L, n] at 100 Hz: the noise level, one value per quarter of a second.

    A value is the largest of the windows that hold its quarter. Fewer than 75 samples: [L, 0].
    """
    count = band.shape[-1] // STEP
    if count < _LEVEL_STEPS:
        return np.zeros((*band.shape[:-1], 0))
    quarters = np.abs(band[..., : count * STEP]).reshape(*band.shape[:-1], count, STEP)
    starts = range(_LEVEL_STEPS)
    windows = [quarters[..., at : count - _LEVEL_STEPS + 1 + at, :] for at in starts]
    joined = np.concatenate(windows, axis=-1)
    quarter = joined.shape[-1] // 4
    joined.sort(axis=-1)
    return _spread(_QUARTILE * joined[..., quarter], _LEVEL_STEPS)


def unexplained(band: Array, usable: NDArray[np.bool_]) -> Array:
    """[12, n] mV of leads in EXCESS_BAND [12, n] at 100 Hz: what the others leave unexplained; 0 if few."""
    out = np.zeros_like(band)
    n = band.shape[1]
    borders = np.linspace(0, n, max(1, round(n / _SEGMENT)) + 1).astype(int)
    rows = np.flatnonzero(usable)
    chest = rows[rows >= 6]
    shared = np.concatenate([rows[rows < 2], chest])  # of the limb leads I and II say it all
    limbs = rows[rows < 6]
    for start, stop in itertools.pairwise(borders):
        part = band[:, start:stop]
        gram = part @ part.T
        gram[np.diag_indices(len(gram))] += (stop - start) * _RIDGE_MV**2
        own = np.zeros((len(LEADS), len(LEADS)))  # row: what is left of a lead, of all leads
        if len(limbs) and len(chest) >= _MIN_OTHERS:
            own[limbs] = np.eye(len(LEADS))[limbs]
            own[np.ix_(limbs, chest)] = -np.linalg.solve(
                gram[np.ix_(chest, chest)], gram[np.ix_(chest, limbs)]
            ).T
        if len(chest) and len(shared) > _MIN_OTHERS:
            others = np.stack([shared[shared != row] for row in chest])
            square = gram[others[:, :, None], others[:, None, :]]
            weights = np.linalg.solve(square, gram[others, chest[:, None]][..., None])[..., 0]
            own[chest] = np.eye(len(LEADS))[chest]
            own[chest[:, None], others] = -weights
        out[:, start:stop] = own @ part
    return out


def noise_excess(band: Array, usable: NDArray[np.bool_]) -> Array:
    """[12, k] mV of leads in EXCESS_BAND [12, n] at 100 Hz: the excess within about +-0.5 s, one value per
    quarter of a second.
    """
    count = band.shape[1] // STEP
    if count < _EXCESS_STEPS or usable[6:].sum() < _MIN_OTHERS:
        return np.zeros((len(LEADS), count if count >= _EXCESS_STEPS else 0))
    rest = unexplained(band, usable)[:, : count * STEP].reshape(len(LEADS), count, STEP)
    span = _largest(rest.max(axis=-1), _EXCESS_STEPS) + _largest(-rest.min(axis=-1), _EXCESS_STEPS)
    # The median is that of the seconds around, so that one bad hour does not hide in a bad day.
    parts = np.array_split(span, max(1, round(span.shape[1] * STEP / _SEGMENT)), axis=1)
    excess = np.concatenate([part - median(part, axis=1)[:, None] for part in parts], axis=1)
    return _spread(excess, _EXCESS_STEPS)


def noisy_runs(
    bands: Bands, usable: NDArray[np.bool_], max_noise_mv: float, max_motion_mv: float
) -> dict[int, NDArray[np.int64]]:
    """Row -> [k, 2] runs in samples at 100 Hz in which a lead's level or excess pass their limits."""
    noisy = np.zeros((len(LEADS), bands.level.shape[1] // STEP), dtype=bool)
    level, excess = noise_level(bands.level), noise_excess(bands.excess, usable)
    noisy[:, : level.shape[1]] = level > max_noise_mv
    noisy[:, : excess.shape[1]] |= excess > max_motion_mv
    return {int(row): find_runs(noisy[row]) * STEP for row in np.flatnonzero(noisy.any(axis=1) & usable)}


def _largest(x: Array, width: int) -> Array:
    """[..., k - width + 1] the largest of each `width` values in a row of x [..., k]."""
    count = x.shape[-1] - width + 1
    out = x[..., :count].copy()
    for at in range(1, width):
        np.maximum(out, x[..., at : at + count], out=out)
    return out


def _spread(windows: Array, width: int) -> Array:
    """[..., k] from overlapping windows [..., k - width + 1]: the largest of the windows that hold a step."""
    padded = np.full((*windows.shape[:-1], windows.shape[-1] + 2 * (width - 1)), -np.inf)
    padded[..., width - 1 : width - 1 + windows.shape[-1]] = windows
    return _largest(padded, width)
