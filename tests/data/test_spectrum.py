"""The spectrum against scipy's recursion and polyphase filter, and against what is known of lines."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.data.filters import bandpass, condition, resample
from ecggen.data.spectrum import odd_pad, transform

RATES = [(500, 100), (360, 100), (257, 100), (100, 360), (1000, 100), (250, 100), (200, 100), (500, 125)]


def slow_signal(fs: float, n: int, seed: int = 0) -> np.ndarray:
    """[3, n] mV with nothing near either Nyquist frequency, far from zero."""
    noise = np.random.default_rng(seed).normal(size=(3, n))
    offsets = np.array([[300.0], [-5.0], [0.0]])
    return offsets + bandpass(noise, fs, 1, min(30, 0.4 * fs), backend="scipy")


@pytest.mark.parametrize(("fs", "fs_out"), RATES)
@pytest.mark.parametrize("seconds", [10, 13.37])
def test_band_pass_and_resampling_are_those_of_scipy(fs, fs_out, seconds):
    x = slow_signal(fs, int(seconds * fs))
    spectrum = transform(x, fs, 0.67, [fs_out])
    made = spectrum.filtered(0.67, 40).resampled(fs_out).signal()
    wanted = condition(x, fs, fs_out, low_hz=0.67, high_hz=40, backend="scipy")
    assert made.shape == wanted.shape
    np.testing.assert_allclose(made, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("fs", "fs_out", "phases"), [(500, 100, 0), (200, 100, 0), (360, 100, 1e-4), (100, 360, 1e-3)]
)
def test_resampling_alone_is_the_polyphase_sum(fs, fs_out, phases):
    """White noise: everything is folded. The ends differ, which are continued further here; and where there
    are several phases, their sums have slightly different gains at 0 Hz, while here the line stays as it is.
    """
    x = np.random.default_rng(1).normal(size=(2, 5 * fs))
    made = transform(x, fs, 0.67, [fs_out]).resampled(fs_out).signal()
    wanted = resample(x, fs, fs_out, backend="scipy")
    inner = slice(fs_out // 2, -(fs_out // 2))
    np.testing.assert_allclose(made[:, inner], wanted[:, inner], atol=phases + 1e-6)


def test_resampling_alone_keeps_the_line():
    t = np.arange(5000) / 500
    x = np.stack([3.0 + 0.2 * t, -7 + 0 * t])
    made = transform(x, 500, 0.67, [100]).resampled(100).signal()
    np.testing.assert_allclose(made, x[:, ::5], atol=1e-9)


def test_a_low_pass_keeps_the_line_and_a_band_pass_does_not():
    x = 2.0 + 0.1 * np.arange(1000)[None] / 100
    spectrum = transform(x, 100, 0.67)
    np.testing.assert_allclose(spectrum.filtered(0, 40).signal(), x, atol=1e-9)
    assert np.abs(spectrum.filtered(0.67, 40).signal()).max() < 1e-9


def test_one_transform_serves_several_filters_rates_and_leads():
    x = slow_signal(500, 5000)
    shared = transform(x, 500, 0.67, [100, 250])
    for rate, band in ((100, (0.67, 40)), (250, (5, 25)), (500, (0.67, 100))):
        alone = transform(x, 500, 0.67, [rate]).filtered(*band).resampled(rate).signal()
        both = shared.filtered(*band).resampled(rate)
        np.testing.assert_allclose(both.signal(), alone, atol=1e-5)
        np.testing.assert_array_equal(both.rows(np.array([2, 0])).signal(), both.signal()[[2, 0]])
    with_line = shared.resampled(100)
    np.testing.assert_array_equal(with_line.rows(np.array([1])).signal(), with_line.signal()[[1]])


def test_a_filter_after_resampling_is_designed_at_the_new_rate():
    x = slow_signal(500, 5001)  # both rates have a sample at the end, where they are reflected
    made = transform(x, 500, 0.67, [100]).resampled(100).filtered(0.67, 10).signal()
    wanted = bandpass(resample(x, 500, 100, backend="scipy"), 100, 0.67, 10, backend="scipy")
    np.testing.assert_allclose(made, wanted, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 40, 301])
def test_short_signals_keep_their_length(n):
    x = np.random.default_rng(n).normal(size=(2, n))
    made = transform(x, 500, 0.67, [100]).filtered(0.67, 40).resampled(100).signal()
    assert made.shape == (2, -(-n // 5)) and np.isfinite(made).all()


def test_a_rate_that_is_not_worth_it():
    assert transform(np.zeros((1, 12830)), 128.3, 0.67, [100]) is None
    x = slow_signal(128.3, 1500)
    made, wanted = (
        condition(x, 128.3, 100, low_hz=0.67, high_hz=40, backend=backend) for backend in ("numpy", "scipy")
    )
    np.testing.assert_allclose(made, wanted, atol=1e-5)


def test_continued_by_point_reflection():
    x = np.array([[1.0, 2.0, 4.0]])
    assert odd_pad(x, 2).tolist() == [[-2.0, 0.0, 1.0, 2.0, 4.0, 6.0, 7.0]]
    assert odd_pad(x, 0).tolist() == x.tolist()
