"""Band-pass and resampling, with NumPy alone or with scipy's recursion as the reference.

The filter is a digital Butterworth forwards and backwards: zero phase, gain |H|^2, so the amplitude is
halved (-6 dB) at both corners. It is that of the record's own rate, before resampling. Resampling is a
polyphase Kaiser-windowed sinc (the filter of scipy.signal.resample_poly).

NumPy multiplies the spectrum by both (spectrum.py): one transform there and one, at the new rate, back. scipy
runs sosfiltfilt and resample_poly and takes several times as long. They differ only because the recursion has
not quite forgotten its start: on real ECGs of 10 s and more (PTB-XL, LUDB, Challenge) by at most 0.00005 mV
(tested); more where a record is so short that it cannot be continued far enough.

Arrays are [..., n_samples]; NaN must be dealt with before.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.spectrum import (
    HALF_ZEROS,
    KAISER_BETA,
    Spectrum,
    kernel,
    odd_pad,
    padding,
    resample_ratio,
    transform,
)
from ecggen.utils.config import ConfigError

Array = NDArray[np.float64]

#: The highest corner, as a share of the sampling rate, that leaves room below Nyquist.
MAX_CORNER = 0.45
_GROUP, _GROUPED_UP_TO = 16, 64  # results computed together, and up * down from which they are not


@functools.cache
def has_scipy() -> bool:
    """Whether scipy can be imported."""
    return importlib.util.find_spec("scipy") is not None


def choose_backend(backend: str = "auto") -> str:
    """ "numpy" or "scipy"; auto is numpy. Raises ConfigError for another word, or a scipy that is missing."""
    if backend == "auto":
        return "numpy"
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
    if choose_backend(backend) == "scipy":
        return _bandpass_scipy(np.asarray(signal, dtype=np.float64), fs, low_hz, high, order)
    spectrum = transform(signal, fs, low_hz)
    assert spectrum is not None
    return spectrum.filtered(low_hz, high, order).signal()


@functools.lru_cache(maxsize=64)
def _sections(fs: float, low: float, high: float, order: int) -> tuple[Array, Array]:
    """Second-order sections of the Butterworth filter, and their state after a long step of height one."""
    from scipy.signal import butter, sosfilt_zi

    corners = [low, high] if low else high
    sos = butter(order, corners, "bandpass" if low else "lowpass", fs=fs, output="sos")
    return sos, sosfilt_zi(sos)


def _bandpass_scipy(x: Array, fs: float, low: float, high: float, order: int) -> Array:
    """scipy.signal.sosfiltfilt with an odd continuation, to the bit.

    The way back ends where the padding begins: what the filter makes of it is not wanted.
    """
    from scipy.signal import sosfilt

    pad = padding(x.shape[-1], fs, low)
    padded = odd_pad(x, pad)
    sos, state = _sections(fs, low, high, order)
    state = state.reshape(len(sos), *(1,) * (padded.ndim - 1), 2)
    there, _ = sosfilt(sos, padded, axis=-1, zi=state * padded[..., :1])
    back, _ = sosfilt(sos, there[..., : pad - 1 if pad else None : -1], axis=-1, zi=state * there[..., -1:])
    return np.ascontiguousarray(back[..., : pad - 1 if pad else None : -1])


def resample(
    signal: NDArray[np.floating],
    fs_in: float,
    fs_out: float,
    *,
    n_out: int | None = None,
    backend: str = "auto",
) -> Array:
    """Anti-aliased resampling of signal [..., n]; sample 0 keeps its time, the phase is not shifted.

    The result has ceil(n * fs_out / fs_in) samples, or n_out: cut, or continued with the last value. The
    backends agree to rounding; auto is NumPy, but for ratios with many phases scipy, if it is there.
    """
    x = np.asarray(signal, dtype=np.float64)
    up, down = resample_ratio(fs_in, fs_out)
    n = x.shape[-1]
    length = -(-n * up // down)
    if up == down:
        out = x
    else:
        # Padding by whole multiples of `down` keeps the output grid where it is.
        reach = -(-HALF_ZEROS * max(up, down) // up)
        pad = min(-(-reach // down) + 1, (n - 1) // down) * down
        padded = odd_pad(x, pad)
        many = backend == "auto" and up * down > _GROUPED_UP_TO and has_scipy()
        if many or choose_backend(backend) == "scipy":
            from scipy.signal import resample_poly

            window: Any = _kernel_scipy(max(up, down))  # an array is allowed, the type stubs do not know it
            out = resample_poly(padded, up, down, axis=-1, window=window)
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

    return np.asarray(firwin(2 * HALF_ZEROS * longest + 1, 1.0 / longest, window=("kaiser", KAISER_BETA)))


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
    return HALF_ZEROS * max(up, down) // up + 1


@functools.lru_cache(maxsize=16)
def _phases(up: int, down: int, group: int) -> list[tuple[int, Array]]:
    """Of each phase the first sample, and the matrix [samples, group] for `group` results in a row."""
    half, h = HALF_ZEROS * max(up, down), kernel(up, down)
    reach = _reach(up, down)
    out = []
    for phase in range(up):
        centre, rest = divmod(phase * down, up)
        taps = rest - np.arange(-reach, reach + 1) * up + half
        inside = (taps >= 0) & (taps < len(h))
        weights = np.where(inside, h[np.clip(taps, 0, len(h) - 1)], 0.0)
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
    if choose_backend(backend) == "numpy" and 0 <= low_hz < high:
        spectrum = transform(signal, fs_in, low_hz, [fs_out])
        if spectrum is not None:
            return condition_spectrum(spectrum, fs_out, low_hz=low_hz, high_hz=high_hz, order=order)
    filtered = bandpass(signal, fs_in, low_hz, high, order, backend=backend)
    return resample(filtered, fs_in, fs_out, backend=backend)


def condition_spectrum(
    spectrum: Spectrum, fs_out: float, *, low_hz: float, high_hz: float, order: int = 3
) -> Array:
    """`condition` of a recording whose spectrum is known, 0 <= low_hz below the upper corner."""
    high = effective_high(high_hz, spectrum.fs, fs_out)
    return spectrum.filtered(low_hz, high, order).resampled(fs_out).signal()


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
