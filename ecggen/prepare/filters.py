"""Band-pass and resampling, with scipy or with NumPy alone.

The filter is a digital Butterworth run forwards and backwards: zero phase, gain |H|^2, so the amplitude is
halved (-6 dB) at both corners. It runs at the record's own rate, before resampling. Resampling is a
polyphase Kaiser-windowed sinc (the filter of scipy.signal.resample_poly).

The NumPy path multiplies the spectrum by the same |H|^2, written analytically, and applies the same
resampling kernel directly. Resampling agrees to rounding. Filtering differs only because the recursion has
not quite forgotten its start: on real ECGs of 10 s and more (PTB-XL, LUDB, Challenge) by at most 0.00005 mV
(tested); more where a record is so short that it cannot be continued far enough.

Arrays are [..., n_samples]; NaN must be dealt with before.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.utils.config import ConfigError

Array = NDArray[np.float64]

#: The highest corner, as a share of the sampling rate, that leaves room below Nyquist.
MAX_CORNER = 0.45
_KAISER_BETA = 5.0  # as scipy.signal.resample_poly
_HALF_ZEROS = 10  # sinc zero crossings on each side, as scipy.signal.resample_poly
_MAX_DENOMINATOR = 1000
_GROUP, _GROUPED_UP_TO = 16, 64  # results computed together, and up * down from which they are not


@functools.cache
def has_scipy() -> bool:
    """Whether scipy can be imported."""
    return importlib.util.find_spec("scipy") is not None


def choose_backend(backend: str = "auto") -> str:
    """ "scipy" or "numpy". Raises ConfigError for another word, or for scipy where it is missing."""
    if backend == "auto":
        return "scipy" if has_scipy() else "numpy"
    if backend not in ("scipy", "numpy"):
        raise ConfigError(f"Filter backend {backend!r}: use auto, scipy or numpy.")
    if backend == "scipy" and not has_scipy():
        raise ConfigError("Filter backend 'scipy' is not installed: pip install scipy, or use numpy.")
    return backend


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

    high_hz is clipped to MAX_CORNER * fs, because nothing above Nyquist exists to be removed. The ends are
    continued by point reflection. Raises ConfigError where low_hz is not below high_hz.
    """
    high = effective_high(high_hz, fs)
    if not 0 <= low_hz < high:
        raise ConfigError(
            f"Band-pass from {low_hz:g} to {high:g} Hz at {fs:g} Hz sampling: the lower corner must lie "
            "below the upper one, which is at most 0.45 of the sampling rate."
        )
    x = np.asarray(signal, dtype=np.float64)
    pad = _padding(x.shape[-1], fs, low_hz)
    padded = odd_pad(x, pad)
    if choose_backend(backend) == "scipy":
        return _bandpass_scipy(padded, pad, fs, low_hz, high, order)
    out = _bandpass_numpy(padded, fs, low_hz, high, order)
    return np.ascontiguousarray(out[..., pad : pad + x.shape[-1]], dtype=np.float64)


def spectral_bands(
    signal: NDArray[np.floating], fs: float, bands: Sequence[tuple[float, float]], order: int = 3
) -> list[Array]:
    """bandpass with NumPy of signal [..., n] for several bands of one lower corner, by one transform."""
    low = bands[0][0]
    assert all(other == low < effective_high(high, fs) for other, high in bands), bands
    x = np.asarray(signal, dtype=np.float64)
    pad = _padding(x.shape[-1], fs, low)
    clipped = [(low, effective_high(high, fs)) for low, high in bands]
    found = _bands_numpy(odd_pad(x, pad), fs, clipped, order)
    return [np.ascontiguousarray(made[..., pad : pad + x.shape[-1]]) for made in found]


def _padding(n: int, fs: float, low: float) -> int:
    """Samples on each side: long enough for the slow corner's response to fade within them."""
    return min(n - 1, int(np.ceil(fs * (min(4.0 / low, 30.0) if low else 1.0))))


@functools.lru_cache(maxsize=64)
def _sections(fs: float, low: float, high: float, order: int) -> tuple[Array, Array]:
    """Second-order sections of the Butterworth filter, and their state after a long step of height one."""
    from scipy.signal import butter, sosfilt_zi

    corners = [low, high] if low else high
    sos = butter(order, corners, "bandpass" if low else "lowpass", fs=fs, output="sos")
    return sos, sosfilt_zi(sos)


def _bandpass_scipy(padded: Array, pad: int, fs: float, low: float, high: float, order: int) -> Array:
    """scipy.signal.sosfiltfilt of what is between the two paddings, to the bit.

    The way back ends where the padding begins: what the filter makes of it is not wanted.
    """
    from scipy.signal import sosfilt

    sos, state = _sections(fs, low, high, order)
    state = state.reshape(len(sos), *(1,) * (padded.ndim - 1), 2)
    there, _ = sosfilt(sos, padded, axis=-1, zi=state * padded[..., :1])
    back, _ = sosfilt(sos, there[..., : pad - 1 if pad else None : -1], axis=-1, zi=state * there[..., -1:])
    return np.ascontiguousarray(back[..., : pad - 1 if pad else None : -1])


def butterworth_gain(freq_hz: NDArray[np.floating], fs: float, low: float, high: float, order: int) -> Array:
    """|H|^2 of the digital Butterworth (bilinear transform with prewarping), the gain of both passes."""
    omega = np.tan(np.pi * np.minimum(np.asarray(freq_hz, dtype=np.float64), fs / 2 * (1 - 1e-12)) / fs)
    upper = np.tan(np.pi * high / fs)
    if not low:
        return 1.0 / (1.0 + (omega / upper) ** (2 * order))
    lower = np.tan(np.pi * low / fs)
    omega = np.maximum(omega, 1e-12)
    return 1.0 / (1.0 + ((omega**2 - lower * upper) / ((upper - lower) * omega)) ** (2 * order))


def _bandpass_numpy(x: Array, fs: float, low: float, high: float, order: int) -> Array:
    return _bands_numpy(x, fs, [(low, high)], order)[0]


def _bands_numpy(x: Array, fs: float, bands: Sequence[tuple[float, float]], order: int) -> list[Array]:
    n = x.shape[-1]
    # A straight line between the ends is taken out first, so that the periodic continuation has no step. The
    # band-pass would remove a line anyway (zero of order 2 * order at 0 Hz); the low-pass leaves it as it is.
    ramp = np.linspace(0.0, 1.0, n)
    line = x[..., :1] * (1 - ramp) + x[..., -1:] * ramp
    length = _fast_length(n)  # zeros behind the end: it is zero there
    spectrum = np.fft.rfft(x - line, n=length, axis=-1)
    out = []
    for low, high in bands:
        made = np.fft.irfft(spectrum * _gain(length, fs, low, high, order), n=length, axis=-1)[..., :n]
        out.append(made if low else made + line)
    return out


@functools.lru_cache(maxsize=64)
def _gain(n: int, fs: float, low: float, high: float, order: int) -> Array:
    return butterworth_gain(np.fft.rfftfreq(n, 1 / fs), fs, low, high, order)


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


def resample(
    signal: NDArray[np.floating],
    fs_in: float,
    fs_out: float,
    *,
    n_out: int | None = None,
    backend: str = "auto",
) -> Array:
    """Anti-aliased resampling of signal [..., n]; sample 0 keeps its time, the phase is not shifted.

    The result has ceil(n * fs_out / fs_in) samples, or n_out: cut, or continued with the last value.
    """
    x = np.asarray(signal, dtype=np.float64)
    up, down = resample_ratio(fs_in, fs_out)
    n = x.shape[-1]
    length = -(-n * up // down)
    if up == down:
        out = x
    else:
        # Padding by whole multiples of `down` keeps the output grid where it is.
        reach = -(-_HALF_ZEROS * max(up, down) // up)
        pad = min(-(-reach // down) + 1, (n - 1) // down) * down
        padded = odd_pad(x, pad)
        if choose_backend(backend) == "scipy":
            from scipy.signal import resample_poly

            kernel: Any = _kernel_scipy(max(up, down))  # an array is allowed, the type stubs do not know it
            out = resample_poly(padded, up, down, axis=-1, window=kernel)
        else:
            out = _resample_numpy(padded, up, down)
        first = pad // down * up
        out = out[..., first : first + length]
    if n_out is not None and n_out != out.shape[-1]:
        short = n_out - out.shape[-1]
        out = (
            np.concatenate([out, np.repeat(out[..., -1:], short, -1)], -1) if short > 0 else out[..., :n_out]
        )
    return np.array(out, dtype=np.float64)


@functools.lru_cache(maxsize=64)
def _kernel_scipy(longest: int) -> Array:
    """The filter that resample_poly designs by itself, at each call."""
    from scipy.signal import firwin

    return np.asarray(firwin(2 * _HALF_ZEROS * longest + 1, 1.0 / longest, window=("kaiser", _KAISER_BETA)))


def _resample_numpy(x: Array, up: int, down: int) -> Array:
    """The sum that resample_poly computes: y[k] = sum_j h[k * down - j * up] x[j], one phase at a time.

    Some samples of a phase in a row are one product with a banded matrix, so that BLAS has something to do.
    """
    n = x.shape[-1]
    length = -(-n * up // down)
    out = np.zeros((*x.shape[:-1], length))
    reach = _reach(up, down)
    group = _GROUP if up * down <= _GROUPED_UP_TO else 1
    tail = reach + group * down
    padded = np.zeros((*x.shape[:-1], reach + n + tail))
    padded[..., reach : reach + n] = x
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1 + (group - 1) * down, axis=-1)
    for phase, (centre, weights) in enumerate(_phases(up, down, group)[:length]):
        count = len(range(phase, length, up))
        groups = -(-count // group)
        rows = frames[..., centre : centre + (groups - 1) * group * down + 1 : group * down, :]
        made = (rows @ weights).reshape(*x.shape[:-1], groups * group)
        out[..., phase::up] = made[..., :count]
    return out


def _reach(up: int, down: int) -> int:
    """Samples on each side of a result that the kernel reaches."""
    return _HALF_ZEROS * max(up, down) // up + 1


@functools.lru_cache(maxsize=16)
def _phases(up: int, down: int, group: int) -> list[tuple[int, Array]]:
    """Of each phase the first sample, and the matrix [samples, group] for `group` results in a row."""
    half = _HALF_ZEROS * max(up, down)
    m = np.arange(-half, half + 1)
    kernel = np.sinc(m / max(up, down)) * np.kaiser(2 * half + 1, _KAISER_BETA)
    kernel *= up / kernel.sum()
    reach = _reach(up, down)
    out = []
    for phase in range(up):
        centre, rest = divmod(phase * down, up)
        taps = rest - np.arange(-reach, reach + 1) * up + half
        inside = (taps >= 0) & (taps < len(kernel))
        weights = np.where(inside, kernel[np.clip(taps, 0, len(kernel) - 1)], 0.0)
        band = np.zeros((len(weights) + (group - 1) * down, group))
        for column in range(group):
            band[column * down : column * down + len(weights), column] = weights
        out.append((centre, band))
    return out


def condition(
    signal: NDArray[np.floating],
    fs_in: float,
    fs_out: float,
    *,
    low_hz: float,
    high_hz: float,
    order: int = 3,
    backend: str = "auto",
) -> Array:
    """What every recording goes through: band-pass at its own rate, then resampling; [..., n] -> [..., m].

    The upper corner is clipped to 0.45 of both rates, so that resampling has nothing to fold.
    """
    high = effective_high(high_hz, fs_in, fs_out)
    filtered = bandpass(signal, fs_in, low_hz, high, order, backend=backend)
    return resample(filtered, fs_in, fs_out, backend=backend)


def odd_pad(x: Array, pad: int) -> Array:
    """Continue x [..., n] by `pad` samples at both ends, reflected through the end points (pad < n)."""
    if pad <= 0:
        return x
    n = x.shape[-1]
    out = np.empty((*x.shape[:-1], n + 2 * pad), dtype=x.dtype)
    out[..., pad : pad + n] = x
    np.subtract(2 * x[..., :1], x[..., pad:0:-1], out=out[..., :pad])
    np.subtract(2 * x[..., -1:], x[..., -2 : -pad - 2 : -1], out=out[..., pad + n :])
    return out


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
