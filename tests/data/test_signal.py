"""Filter and resampling against closed forms and against scipy's recursion and polyphase filter; gaps."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

from ecggen.data import signal
from ecggen.data.signal import bandpass, condition, rate_in_hz, resample, transform
from ecggen.io.records import read_record
from ecggen.utils.config import ConfigError

BOTH = pytest.mark.parametrize("backend", ["scipy", "numpy"])
RATES = [(500, 100), (360, 100), (257, 100), (100, 360), (1000, 100), (250, 100), (200, 100), (500, 125)]


def sine(freq: float, fs: float, seconds: float = 30.0) -> np.ndarray:
    return np.sin(2 * np.pi * freq * np.arange(int(seconds * fs)) / fs + 0.3)


def fit(x: np.ndarray, freq: float, fs: float) -> tuple[float, float]:
    """Amplitude and phase in the middle half."""
    n = len(x)
    t = np.arange(n)[n // 4 : 3 * n // 4] / fs
    basis = np.stack([np.sin(2 * np.pi * freq * t), np.cos(2 * np.pi * freq * t)], axis=1)
    a, b = np.linalg.lstsq(basis, x[n // 4 : 3 * n // 4], rcond=None)[0]
    return float(np.hypot(a, b)), float(np.arctan2(b, a))


def slow_signal(fs: float, n: int, seed: int = 0) -> np.ndarray:
    """[3, n] mV with nothing near either Nyquist frequency, far from zero."""
    noise = np.random.default_rng(seed).normal(size=(3, n))
    offsets = np.array([[300.0], [-5.0], [0.0]])
    return offsets + bandpass(noise, fs, 1, min(30, 0.4 * fs), backend="scipy")


def conditioned(x: np.ndarray, fs: float, backend: str, fs_out: float = 100) -> np.ndarray:
    return condition(x, fs, fs_out, low_hz=0.67, high_hz=40, backend=backend)


@BOTH
@pytest.mark.parametrize(
    ("freq", "gain"), [(0.67, 0.5), (40.0, 0.5), (10.0, 1.0), (0.2, 0.0007), (100.0, 0.002)]
)
def test_filter_response(backend, freq, gain):
    amplitude, phase = fit(bandpass(sine(freq, 500), 500, 0.67, 40, 3, backend=backend), freq, 500)
    assert amplitude == pytest.approx(gain, rel=0.005, abs=0.001)
    if gain > 0.1:
        assert phase == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("fs", [500, 360, 1000, 257, 128.5, 250])
def test_resampling_keeps_amplitude_and_phase(fs):
    out = resample(sine(7.0, fs), fs, 100)
    assert len(out) == pytest.approx(3000, abs=1)
    amplitude, phase = fit(out, 7.0, 100)
    assert amplitude == pytest.approx(1, abs=2e-3) and phase == pytest.approx(0.3, abs=2e-3)


def test_resampling_removes_aliases():
    # 93 Hz would fold to 7 Hz; every fifth sample alone would keep it whole.
    x = sine(93.0, 500)
    assert fit(x[::5], 7.0, 100)[0] == pytest.approx(1, abs=1e-3)
    assert fit(resample(x, 500, 100), 7.0, 100)[0] < 2e-3
    # The filter runs first: a 60 Hz hum at 500 Hz must not appear at 40 Hz after resampling.
    assert fit(conditioned(sine(60.0, 500), 500, "auto"), 40.0, 100)[0] < 0.02


def test_odd_rates_and_lengths():
    longer = resample(np.ones((3, 2000)), 100, 360, n_out=7203)
    assert longer.shape == (3, 7203) and (longer[:, -3:] == longer[:, 7199:7200]).all()
    assert resample(np.ones(2000), 100, 360, n_out=70).shape == (70,)
    assert signal.resample_ratio(360, 100) == (5, 18)
    up, down = signal.resample_ratio(249.87, 100)
    assert 249.87 * up / down == pytest.approx(100, rel=1e-5)
    with pytest.raises(ConfigError, match="above 0"):
        signal.resample_ratio(0, 100)


@pytest.mark.parametrize(("fs", "fs_out"), RATES)
def test_band_pass_and_resampling_are_those_of_scipy(fs, fs_out):
    for seconds in (10, 13.37):
        x = slow_signal(fs, int(seconds * fs))
        ours, scipys = conditioned(x, fs, "numpy", fs_out), conditioned(x, fs, "scipy", fs_out)
        assert ours.shape == scipys.shape
        np.testing.assert_allclose(ours, scipys, atol=1e-5)


@pytest.mark.parametrize(
    ("fs", "fs_out", "phases"), [(500, 100, 0), (200, 100, 0), (360, 100, 1e-4), (100, 360, 1e-3)]
)
def test_resampling_is_scipys_polyphase_sum(fs, fs_out, phases):
    """White noise: everything is folded. The ends differ, which are continued further here; and where there
    are several phases, their sums have slightly different gains at 0 Hz, while here the line stays as it is.
    """
    x = np.random.default_rng(1).normal(size=(2, 5 * fs))
    up, down = signal.resample_ratio(fs, fs_out)
    inner = slice(fs_out // 2, -(fs_out // 2))
    scipys = scipy.signal.resample_poly(x, up, down, axis=1)
    np.testing.assert_allclose(resample(x, fs, fs_out)[:, inner], scipys[:, inner], atol=phases + 1e-6)


def test_one_transform_serves_several_filters_rates_and_leads():
    x = slow_signal(500, 5000)
    shared = transform(x, 500, 0.67, [100, 250])
    for rate, band in ((100, (0.67, 40)), (250, (5, 25)), (500, (0.67, 100))):
        alone = transform(x, 500, 0.67, [rate]).filtered(*band).resampled(rate).signal()
        both = shared.filtered(*band).resampled(rate)
        np.testing.assert_allclose(both.signal(), alone, atol=1e-5)
        np.testing.assert_array_equal(both.rows(np.array([2, 0])).signal(), both.signal()[[2, 0]])
    line = np.stack([3.0 + 0.2 * np.arange(5000) / 500, np.full(5000, -7.0)])
    lines = transform(line, 500, 0.67, [100]).resampled(100)
    np.testing.assert_allclose(lines.signal(), line[:, ::5], atol=1e-9)
    np.testing.assert_array_equal(lines.rows(np.array([1])).signal(), lines.signal()[[1]])


@BOTH
def test_short_signals_keep_their_length(backend):
    for n in (1, 2, 5, 6, 40, 301):
        out = conditioned(np.random.default_rng(n).normal(size=(2, n)), 500, backend)
        assert out.shape == (2, -(-n // 5)) and np.isfinite(out).all()


def test_a_rate_whose_spectrum_would_be_too_long():
    assert transform(np.zeros((1, 12830)), 128.3, 0.67, [100]) is None
    x = slow_signal(128.3, 1500)
    np.testing.assert_allclose(conditioned(x, 128.3, "numpy"), conditioned(x, 128.3, "scipy"), atol=1e-5)


def test_backends_differ_by_what_is_stated_on_real_ecgs(shared_data):
    """The number in the docstring of ecggen.data.signal."""
    headers = sorted(shared_data.glob("challenge/*/*.hea"))[::2]
    headers += sorted(shared_data.glob("ludb/data/*.hea"))[:20]
    headers += sorted(shared_data.glob("ptbxl/records100/*/*.hea"))[:60]
    worst = 0.0
    for header in headers:
        record = read_record(header.with_suffix(""))
        a, b = (conditioned(np.nan_to_num(record.ecg), record.fs, k) for k in ("scipy", "numpy"))
        worst = max(worst, float(np.abs(a - b).max()))
    assert 0 < worst < 5e-5
    assert "0.00005 mV" in (signal.__doc__ or "")


def test_settings_that_make_no_sense():
    assert signal.effective_high(40, 500, 60) == pytest.approx(27)
    with pytest.raises(ConfigError, match="lower corner must lie below"):
        bandpass(np.zeros(100), 100, 50, 40)
    with pytest.raises(ConfigError, match="use auto, scipy or numpy"):
        signal.choose_backend("matlab")


def test_a_rate_is_read_from_whatever_holds_one_number():
    for fs in (500, 500.0, "500", np.array(500), np.array([500.0]), torch.tensor(500, requires_grad=False)):
        assert rate_in_hz(fs) == 500.0
    for fs in (None, "fast", [100, 200], 1j, {}, torch.ones(1, requires_grad=True) * 2):
        assert np.isnan(rate_in_hz(fs))


def test_gaps():
    x = np.arange(20.0)
    holed = x.copy()
    holed[[0, 5, 6, 12, 13, 14, 15]] = np.nan
    filled, runs = signal.fill_gaps(holed, 2)
    np.testing.assert_allclose(filled[1:], x[1:])
    assert filled[0] == 1.0 and runs.tolist() == [[12, 16]]
    nothing, runs = signal.fill_gaps(np.full(5, np.nan), 2)
    assert not nothing.any() and runs.tolist() == [[0, 5]]
