"""Band-pass filter and resampling of recordings, as products in the spectrum, and gaps in them.

The filter is a digital Butterworth forwards and backwards: zero phase, gain |H|^2, so the amplitude is
halved (-6 dB) at both corners. It is that of the record's own rate, before resampling. Resampling is a
polyphase Kaiser-windowed sinc (the filter of scipy.signal.resample_poly).

A zero-phase filter multiplies the spectrum by its gain; resampling multiplies it by the response of the
anti-aliasing kernel and folds what lies above the new Nyquist frequency (Oppenheim & Schafer, Discrete-Time
Signal Processing, 3rd ed., 4.6), so that one transform at the old rate and one back at the new rate suffice.
The recording is continued at both ends by point reflection, far enough for the slowest filter to settle, and
a straight line between the ends of that is taken out first: the periodic continuation then has no step.

The backend "scipy" runs sosfiltfilt and resample_poly instead and takes several times as long. The two differ
only because the recursion has not quite settled after its start: on real ECGs of 10 s and more (PTB-XL, LUDB,
Challenge) by at most 0.00005 mV (tested); more where a record is so short that it cannot be continued far
enough.

Arrays are [..., n_samples]; NaN must be dealt with before (fill_gaps). scipy is imported where it is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.utils.config import ConfigError

Array = NDArray[np.float64]
Index = slice | NDArray[np.intp]

#: The highest corner, as a share of the sampling rate, that leaves room below Nyquist.
MAX_CORNER = 0.45
_KAISER_BETA = 5.0  # as scipy.signal.resample_poly
_HALF_ZEROS = 10  # sinc zero crossings on each side, as scipy.signal.resample_poly
_MAX_DENOMINATOR = 1000
_MOST_BINS = 1 << 21  # of the upsampled spectrum; beyond, resampling by polyphase is cheaper
_BLOCK, _LARGEST_BAND = 32, 1 << 20  # samples; weights of resampling, beyond which it is left to scipy
_NEGLIGIBLE = 1e-10  # a gain below this leaves nothing of an ECG in mV


@dataclass(frozen=True)
class Spectrum:
    """A recording as its Fourier transform, to be filtered and resampled.

    values [..., length // 2 + 1]; fs in Hz; length: samples of the transform, `pad` of them before the
    recording and n of the recording itself; gain: what values are yet to be multiplied by; line [..., 2]:
    the straight line that was taken out, its values at the first and last padded sample, `span_s` apart.
    """

    values: NDArray[np.complex128]
    fs: float
    length: int
    pad: int
    n: int
    span_s: float
    line: Array | None
    gain: Array | None = None

    def filtered(self, low_hz: float, high_hz: float, order: int = 3) -> Spectrum:
        """Butterworth forwards and backwards, designed at fs; low_hz = 0 is a low-pass and keeps the line."""
        gain = _gain(self.length, self.fs, low_hz, high_hz, order)
        gain = gain if self.gain is None else self.gain * gain
        # A line has no power where a band-pass has: its zero at 0 Hz is of order 2 * order.
        return dataclasses.replace(self, gain=gain, line=None if low_hz else self.line)

    def resampled(self, fs_out: float) -> Spectrum:
        """The same at fs_out, without aliases; fs_out must be one of the rates given to `transform`."""
        up, down = resample_ratio(self.fs, fs_out)
        if up == down:
            return self
        assert self.length % down == 0 == self.pad % down, (self.length, self.pad, down)
        length = self.length // down * up
        out = np.zeros((*self.values.shape[:-1], length // 2 + 1), dtype=np.complex128)
        for here, mirrored, response in _folds(self.length, up, down):
            weights = response if self.gain is None else response * self.gain[here]
            if np.abs(weights).max() < _NEGLIGIBLE:
                continue
            part = self.values[..., here] * weights
            if mirrored is True:
                np.conjugate(part, out=part)
            elif mirrored is not False:
                np.conjugate(part, out=part, where=mirrored)
            out += part
        n = -(-self.n * up // down)
        return Spectrum(out, fs_out, length, self.pad // down * up, n, self.span_s, self.line)

    def signal(self) -> Array:
        """[..., n] the recording itself, without what was added at its ends."""
        values = self.values if self.gain is None else self.values * self.gain
        out = np.fft.irfft(values, n=self.length, axis=-1)[..., self.pad : self.pad + self.n]
        if self.line is None:
            return np.ascontiguousarray(out)
        return out + _on_line(self.line, self.pad, self.n, self.span_s * self.fs)

    def rows(self, take: NDArray[np.bool_] | NDArray[np.intp]) -> Spectrum:
        """Some leads of a recording [L, n]."""
        line = None if self.line is None else self.line[take]
        return dataclasses.replace(self, values=self.values[take], line=line)


def transform(
    signal: NDArray[np.floating], fs: float, low_hz: float, rates: Sequence[float] = ()
) -> Spectrum | None:
    """Spectrum of signal [..., n] sampled at fs, for filters down to low_hz and resampling to these rates.

    None where a rate is so odd a multiple of fs that its spectrum would be too long to be worth it.
    """
    x = np.asarray(signal, dtype=np.float64)
    n = x.shape[-1]
    ratios = [resample_ratio(fs, rate) for rate in rates]
    step = math.lcm(*(down for _, down in ratios))
    pad = min(-(-_padding(n, fs, low_hz) // step), (n - 1) // step) * step
    padded = n + 2 * pad
    length = step * _fast_length(-(-padded // step))
    if length * max((up for up, _ in ratios), default=1) > _MOST_BINS and step > 1:
        return None
    ends = 2 * x[..., [0, -1]] - x[..., [pad, n - 1 - pad]]  # of the padded recording
    whole = np.zeros((*x.shape[:-1], length))
    # Point reflection of a line is the line: it can be taken out before.
    _odd_pad(x - _on_line(ends, pad, n, padded - 1), pad, out=whole[..., :padded])
    values = np.fft.rfft(whole, axis=-1)
    return Spectrum(values, fs, length, pad, n, (padded - 1) / fs, ends)


def _on_line(ends: Array, first: int, n: int, span: float) -> Array:
    """[..., n] samples from `first` on of the line that is ends[..., 0] at 0 and ends[..., 1] at `span`."""
    share = (first + np.arange(n)) / max(span, 1)
    return ends[..., :1] + (ends[..., 1:] - ends[..., :1]) * share


def choose_backend(backend: str = "auto") -> str:
    """ "numpy" or "scipy"; auto is numpy. Raises ConfigError for another word."""
    if backend not in ("auto", "scipy", "numpy"):
        raise ConfigError(f"Filter backend {backend!r}: use auto, scipy or numpy.")
    return "scipy" if backend == "scipy" else "numpy"


def effective_high(high_hz: float, *rates: float) -> float:
    """The upper corner that can be applied: high_hz, at most MAX_CORNER of each of the rates in Hz."""
    return min([high_hz, *(MAX_CORNER * rate for rate in rates)])


def bandpass(
    signal: NDArray[np.floating],
    fs: float,
    low_hz: float,
    high_hz: float,
    order: int = 3,
    *,
    backend: str = "auto",
) -> Array:
    """Zero-phase Butterworth band-pass of signal [..., n] sampled at fs; low_hz = 0 is a low-pass.

    high_hz is clipped to MAX_CORNER * fs. The ends are continued by point reflection. Raises ConfigError
    where low_hz is not below high_hz.
    """
    high = effective_high(high_hz, fs)
    if not 0 <= low_hz < high:
        raise ConfigError(
            f"Band-pass from {low_hz:g} to {high:g} Hz at {fs:g} Hz sampling: the lower corner must lie "
            "below the upper one, which is at most 0.45 of the sampling rate."
        )
    x = np.asarray(signal, dtype=np.float64)
    if choose_backend(backend) == "scipy":
        from scipy.signal import butter, sosfiltfilt

        corners = [low_hz, high] if low_hz else high
        sos = butter(order, corners, "bandpass" if low_hz else "lowpass", fs=fs, output="sos")
        pad = _padding(x.shape[-1], fs, low_hz)
        out = sosfiltfilt(sos, x, axis=-1, padtype="odd" if pad else None, padlen=pad)
        return np.ascontiguousarray(out)
    spectrum = transform(x, fs, low_hz)
    assert spectrum is not None  # nothing is resampled
    return spectrum.filtered(low_hz, high, order).signal()


def resample(signal: NDArray[np.floating], fs_in: float, fs_out: float, *, n_out: int | None = None) -> Array:
    """Anti-aliased resampling of signal [..., n]; sample 0 keeps its time, the phase is not shifted.

    The result has ceil(n * fs_out / fs_in) samples, or n_out: cut, or continued with the last value.
    """
    x = np.asarray(signal, dtype=np.float64)
    up, down = resample_ratio(fs_in, fs_out)
    reach = -(-_HALF_ZEROS * max(up, down) // up)  # samples on each side that a result depends on
    if (down + 2 * reach) * up > _LARGEST_BAND:
        out = _polyphase(x, fs_in, fs_out)
    else:
        # A block of results is the product of the samples around it with a banded matrix.
        n, block = x.shape[-1], max(1, _BLOCK // down) * down
        count = -(-n // block)
        padded = np.zeros((*x.shape[:-1], count * block + 2 * reach))
        pad = min(reach, n - 1)
        padded[..., reach - pad : reach + n + pad] = _odd_pad(x, pad)
        around = np.lib.stride_tricks.sliding_window_view(padded, block + 2 * reach, axis=-1)
        blocks = around[..., ::block, :] @ _band(up, down, block, reach)
        out = blocks.reshape(*x.shape[:-1], -1)[..., : -(-n * up // down)]
    if n_out is not None and n_out != out.shape[-1]:
        missing = max(0, n_out - out.shape[-1])
        out = np.concatenate([out[..., :n_out], np.repeat(out[..., -1:], missing, -1)], -1)
    return out


@functools.lru_cache(maxsize=16)
def _band(up: int, down: int, block: int, reach: int) -> Array:
    """[block + 2 reach, results of block] weights of resampling: `_kernel` around each result."""
    kernel = _kernel(up, down)
    results, samples = np.arange(block // down * up), np.arange(block + 2 * reach)[:, None] - reach
    tap = results * down - samples * up + len(kernel) // 2
    return np.where((tap >= 0) & (tap < len(kernel)), kernel[tap.clip(0, len(kernel) - 1)], 0.0)


def _polyphase(x: Array, fs_in: float, fs_out: float) -> Array:
    """`resample` by scipy's sum over the samples around each."""
    from scipy.signal import resample_poly

    up, down = resample_ratio(fs_in, fs_out)
    n = x.shape[-1]
    # Padding by whole multiples of `down` keeps the output grid where it is.
    reach = -(-_HALF_ZEROS * max(up, down) // up)
    pad = min(-(-reach // down) + 1, (n - 1) // down) * down
    window: Any = _kernel(up, down) / up  # an array is allowed, the type stubs do not know it
    out = resample_poly(_odd_pad(x, pad), up, down, axis=-1, window=window)
    first = pad // down * up
    return np.asarray(out[..., first : first - (-n * up // down)], dtype=np.float64)


def condition(
    signal: NDArray[np.floating],
    fs_in: float,
    fs_out: float,
    *,
    low_hz: float,
    high_hz: float,
    order: int = 3,
    backend: str = "auto",
    spectrum: Spectrum | None = None,
) -> Array:
    """Preprocessing of every recording: band-pass at its own rate, then resampling; [..., n] -> [..., m].

    The upper corner is clipped to 0.45 of both rates, so that resampling has nothing to fold. spectrum: of
    the signal, where it is known.
    """
    high = effective_high(high_hz, fs_in, fs_out)
    if choose_backend(backend) == "numpy" and 0 <= low_hz < high:
        spectrum = spectrum or transform(signal, fs_in, low_hz, [fs_out])
        if spectrum is not None:
            return spectrum.filtered(low_hz, high, order).resampled(fs_out).signal()
    filtered = bandpass(signal, fs_in, low_hz, high, order, backend=backend)
    return _polyphase(filtered, fs_in, fs_out)


def find_runs(flag: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[k, 2] start and stop (exclusive) of every run of True in flag [n]."""
    edges = np.diff(np.concatenate([[0], flag.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def fill_gaps(signal: NDArray[np.floating], max_gap: int) -> tuple[Array, NDArray[np.int64]]:
    """Interpolate the NaN of one lead [n] linearly (ends are held).

    Returns (signal without NaN, [k, 2] runs longer than max_gap samples). Long runs are filled as well, so
    that the filter does not ring on them; they are not data, and the caller must treat them so.
    """
    x = np.array(signal, dtype=np.float64)
    bad = ~np.isfinite(x)
    if not bad.any():
        return x, np.zeros((0, 2), dtype=np.int64)
    runs = find_runs(bad)
    if bad.all():
        return np.zeros_like(x), runs
    x[bad] = np.interp(np.flatnonzero(bad), np.flatnonzero(~bad), x[~bad])
    return x, runs[runs[:, 1] - runs[:, 0] > max_gap]


def rate_in_hz(fs: Any) -> float:
    """The one number that fs holds (a number, a text, an array or a tensor); NaN where it holds none."""
    try:
        return float(np.asarray(fs, dtype=np.float64).reshape(()))
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor that needs a gradient
        return math.nan


def _padding(n: int, fs: float, low_hz: float) -> int:
    """Samples on each side: long enough for the slow corner's response to fade within them."""
    return min(n - 1, int(np.ceil(fs * (min(4.0 / low_hz, 30.0) if low_hz else 1.0))))


def _odd_pad(x: Array, pad: int, out: Array | None = None) -> Array:
    """Continue x [..., n] by `pad` samples at both ends, reflected through the end points (pad < n).

    out [..., n + 2 pad], where given, is written to.
    """
    n = x.shape[-1]
    if out is None:
        out = np.empty((*x.shape[:-1], n + 2 * pad), dtype=x.dtype)
    out[..., pad : pad + n] = x
    if pad > 0:
        np.subtract(2 * x[..., :1], x[..., pad:0:-1], out=out[..., :pad])
        np.subtract(2 * x[..., -1:], x[..., -2 : -pad - 2 : -1], out=out[..., pad + n :])
    return out


@functools.lru_cache(maxsize=64)
def _gain(n: int, fs: float, low: float, high: float, order: int) -> Array:
    """|H|^2 of the digital Butterworth (bilinear transform with prewarping), the gain of both passes, at the
    frequencies of n samples."""
    omega = np.tan(np.pi * np.minimum(np.fft.rfftfreq(n, 1 / fs), fs / 2 * (1 - 1e-12)) / fs)
    upper = np.tan(np.pi * high / fs)
    if not low:
        return 1.0 / (1.0 + (omega / upper) ** (2 * order))
    lower = np.tan(np.pi * low / fs)
    omega = np.maximum(omega, 1e-12)
    return 1.0 / (1.0 + ((omega**2 - lower * upper) / ((upper - lower) * omega)) ** (2 * order))


@functools.lru_cache(maxsize=4096)
def resample_ratio(fs_in: float, fs_out: float) -> tuple[int, int]:
    """(up, down) with fs_in * up / down = fs_out, to a relative error below 1e-5 for odd rates."""
    if not (fs_in > 0 and fs_out > 0):
        raise ConfigError(f"Resampling from {fs_in:g} to {fs_out:g} Hz: both rates must be above 0.")
    exact = Fraction(str(fs_out)) / Fraction(str(fs_in))
    ratio = exact.limit_denominator(_MAX_DENOMINATOR)
    if ratio == 0 or abs(float(ratio / exact) - 1) > 1e-5:
        ratio = exact.limit_denominator(_MAX_DENOMINATOR * 100)
    if ratio == 0:
        raise ConfigError(f"Resampling from {fs_in:g} to {fs_out:g} Hz: the rates are too far apart.")
    return ratio.numerator, ratio.denominator


def _kernel(up: int, down: int) -> Array:
    """[2 half + 1] the anti-aliasing filter between the samples of up times the rate, its sum is `up`.

    Kaiser-windowed sinc with its zeros at the lower of the two rates (scipy.signal.resample_poly's).
    """
    half = _HALF_ZEROS * max(up, down)
    m = np.arange(-half, half + 1)
    taps = np.sinc(m / max(up, down)) * np.kaiser(2 * half + 1, _KAISER_BETA)
    return np.asarray(taps * (up / taps.sum()))


@functools.lru_cache(maxsize=64)
def _folds(length: int, up: int, down: int) -> list[tuple[Index, bool | NDArray[np.bool_], Array]]:
    """What the resampled spectrum is the sum of: bins of the spectrum of `length` samples, whether their
    conjugates are meant (of all, of none, or of each), and the response there; parts that are nothing are
    left out.

    `up` repeats the spectrum (zeros between the samples), `down` adds what lies whole new rates apart.
    """
    long, short = length * up, length // down * up
    taps = _kernel(up, down)
    around = np.zeros(long)
    np.add.at(around, (np.arange(len(taps)) - len(taps) // 2) % long, taps)
    response = np.fft.rfft(around).real / down
    bins = np.arange(short // 2 + 1)
    parts: list[tuple[Index, bool | NDArray[np.bool_], Array]] = []
    for part in range(down):
        at = bins + part * short
        mirrored = at > long // 2
        at = np.where(mirrored, long - at, at)
        weights = response[at]
        if np.abs(weights).max() < _NEGLIGIBLE:
            continue
        at %= length
        beyond = at > length // 2
        at, mirrored = np.where(beyond, length - at, at), mirrored ^ beyond
        each: bool | NDArray[np.bool_] = bool(mirrored[-1]) if len(set(mirrored[1:])) == 1 else mirrored
        parts.append((_as_slice(at), each, weights))
    return parts


def _as_slice(at: NDArray[np.intp]) -> Index:
    """The same places as a slice, where they follow each other: a view instead of a copy."""
    if len(at) > 1 and (np.diff(at) == at[1] - at[0]).all() and abs(at[1] - at[0]) == 1:
        step = int(at[1] - at[0])
        stop = int(at[-1]) + step
        return slice(int(at[0]), stop if stop >= 0 else None, step)
    return at


@functools.lru_cache(maxsize=1024)
def _fast_length(n: int) -> int:
    """The least number from n on without a prime factor above 5: transforms of other lengths are slower."""
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1
