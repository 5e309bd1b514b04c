"""Frequency bands of the raw signal, and the noise of a lead in them.

Two measures of noise in the raw recording at 100 Hz, each in mV and each local in time. Neither looks for
beats, so that no arrhythmia looks like noise:

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

import functools
import itertools

import numpy as np
from numpy.typing import NDArray

from ecggen.data.signal import Spectrum, find_runs, transform
from ecggen.leads import LEADS

Array = NDArray[np.float64]

STEP = 25  # samples, a quarter of a second: the resolution of both measures
_LEVEL_STEPS, _EXCESS_STEPS = 3, 4  # windows of three quarters of a second and of a second
_QUARTILE = 3.1387  # standard deviations of a normal distribution in the lower quartile of its magnitude
_SEGMENT = 1000  # samples, ten seconds: over which leads explain each other
_RIDGE_MV = 0.005  # what a lead may differ from the others for nothing
_MIN_OTHERS = 4  # leads that explain one
#: Hz: the rate at which signals are checked, whatever they were recorded at, so that limits mean the same.
CHECK_FS = 100.0
#: Hz: where noise is looked for, where leads explain each other, a beat without wander, and its QRS.
LEVEL_BAND, EXCESS_BAND, BEAT_BAND, QRS_BAND = (20.0, 45.0), (0.67, 10.0), (0.67, 40.0), (5.0, 25.0)
#: Hz: the lowest corner of them.
LOWEST_HZ = min(band[0] for band in (LEVEL_BAND, EXCESS_BAND, BEAT_BAND, QRS_BAND))


class Bands:
    """The usable [12] leads at CHECK_FS in mV, [12, n] in each band, zero where a lead is not usable.

    qrs is beat in QRS_BAND. A band is filtered when it is first asked for.
    """

    def __init__(self, spectrum: Spectrum, usable: NDArray[np.bool_]) -> None:
        """spectrum: of the usable leads, ready to be resampled to CHECK_FS."""
        self._spectrum, self._usable = spectrum.resampled(CHECK_FS), usable
        self.n = self._spectrum.n

    @functools.cached_property
    def level(self) -> Array:
        return self._filtered(LEVEL_BAND)

    @functools.cached_property
    def excess(self) -> Array:
        return self._filtered(EXCESS_BAND)

    @functools.cached_property
    def beat(self) -> Array:
        return self._filtered(BEAT_BAND)

    @functools.cached_property
    def qrs(self) -> Array:
        return self._filtered(BEAT_BAND, QRS_BAND)

    def _filtered(self, *bands: tuple[float, float]) -> Array:
        spectrum = self._spectrum
        for band in bands:
            spectrum = spectrum.filtered(*band)
        out = np.zeros((len(LEADS), self.n))
        out[self._usable] = spectrum.signal()
        return out


def bands_at_100(slow: Array, usable: NDArray[np.bool_] | None = None) -> Bands:
    """The bands of slow [12, n] mV at CHECK_FS."""
    usable = np.ones(len(LEADS), dtype=bool) if usable is None else usable
    spectrum = transform(slow[usable], CHECK_FS, LOWEST_HZ)
    assert spectrum is not None  # nothing is resampled
    return Bands(spectrum, usable)


def noise_level(band: Array) -> Array:
    """[L, k] mV of leads in LEVEL_BAND [L, n] at 100 Hz: the noise level, one value per quarter of a second.

    A value is the largest of the windows that hold its quarter. Fewer than 75 samples: [L, 0].
    """
    count = band.shape[-1] // STEP
    if count < _LEVEL_STEPS:
        return np.zeros((*band.shape[:-1], 0))
    width = _LEVEL_STEPS * STEP
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(band[..., : count * STEP]), width, axis=-1)
    quartile = np.sort(windows[..., ::STEP, :], axis=-1)[..., width // 4]
    return _repeat_largest(_QUARTILE * quartile, _LEVEL_STEPS)


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
        residual = np.zeros_like(gram)  # row: what is left of a lead, of all leads
        if len(limbs) and len(chest) >= _MIN_OTHERS:
            weights = np.linalg.solve(gram[np.ix_(chest, chest)], gram[np.ix_(chest, limbs)])
            residual[limbs, limbs] = 1.0
            residual[np.ix_(limbs, chest)] = -weights.T
        if len(chest) and len(shared) > _MIN_OTHERS:
            # Regression of each on all others: rows of the inverse, divided by their diagonal.
            inverse = np.linalg.inv(gram[np.ix_(shared, shared)])
            residual[np.ix_(chest, shared)] = (inverse / inverse.diagonal()[:, None])[-len(chest) :]
        out[:, start:stop] = residual @ part
    return out


def noise_excess(band: Array, usable: NDArray[np.bool_]) -> Array:
    """[12, k] mV of leads in EXCESS_BAND [12, n] at 100 Hz: the excess within about +-0.5 s, one value per
    quarter of a second.
    """
    count = band.shape[1] // STEP
    if count < _EXCESS_STEPS or usable[6:].sum() < _MIN_OTHERS:
        return np.zeros((len(LEADS), count if count >= _EXCESS_STEPS else 0))
    rest = unexplained(band, usable)[:, : count * STEP].reshape(len(LEADS), count, STEP)
    span = largest_of(rest.max(axis=-1), _EXCESS_STEPS) + largest_of(-rest.min(axis=-1), _EXCESS_STEPS)
    # The median is that of the seconds around, so that one bad hour does not hide in a bad day.
    parts = np.array_split(span, max(1, round(span.shape[1] * STEP / _SEGMENT)), axis=1)
    excess = np.concatenate([part - median(part, axis=1)[:, None] for part in parts], axis=1)
    return _repeat_largest(excess, _EXCESS_STEPS)


def noisy_runs(
    bands: Bands, usable: NDArray[np.bool_], max_noise_mv: float, max_motion_mv: float
) -> dict[int, NDArray[np.int64]]:
    """Row -> [k, 2] runs in samples at 100 Hz in which a lead's level or excess pass their limits."""
    noisy = np.zeros((len(LEADS), bands.n // STEP), dtype=bool)
    level = noise_level(bands.level[usable])
    noisy[usable, : level.shape[1]] = level > max_noise_mv
    if usable[6:].sum() >= _MIN_OTHERS:
        excess = noise_excess(bands.excess, usable)
        noisy[:, : excess.shape[1]] |= excess > max_motion_mv
    return {int(row): find_runs(noisy[row]) * STEP for row in np.flatnonzero(noisy.any(axis=1) & usable)}


def largest_of(x: Array, width: int) -> Array:
    """[..., k - width + 1] the largest of each `width` values in a row of x [..., k]."""
    count = x.shape[-1] - width + 1
    return functools.reduce(np.maximum, (x[..., at : at + count] for at in range(width)))


def _repeat_largest(windows: Array, width: int) -> Array:
    """[..., k] from overlapping windows [..., k - width + 1]: the largest of the windows that hold a step."""
    ends = (width - 1, width - 1)
    return largest_of(np.pad(windows, ((0, 0), ends), constant_values=-np.inf), width)


# By sorting: NumPy sorts with vector instructions and partitions without, so that on arrays of a recording's
# size numpy.median and numpy.quantile take three times as long. The values are theirs.


def median(x: Array, axis: int) -> Array:
    """The median of x along an axis, as numpy.median; no NaN."""
    placed = np.sort(x, axis=axis)
    n = x.shape[axis]
    return np.asarray((placed.take((n - 1) // 2, axis) + placed.take(n // 2, axis)) / 2)


def quantile(x: Array, share: float) -> Array:
    """[...] the quantile of x [..., n], as numpy.quantile to rounding; no NaN."""
    placed = np.sort(x, axis=-1)
    place = share * (x.shape[-1] - 1)
    below = int(place)
    low, high = placed[..., below], placed[..., min(below + 1, x.shape[-1] - 1)]
    return np.asarray(low + (high - low) * (place - below))
