"""Filter and resampling against closed forms, and the two paths against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecggen.data import filters
from ecggen.data.spectrum import butterworth_gain
from ecggen.io.records import read_record
from ecggen.utils.config import ConfigError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
BOTH = pytest.mark.parametrize("backend", ["scipy", "numpy"])


def sine(freq: float, fs: float, seconds: float = 30.0) -> np.ndarray:
    return np.sin(2 * np.pi * freq * np.arange(int(seconds * fs)) / fs + 0.3)


def fit(x: np.ndarray, freq: float, fs: float) -> tuple[float, float]:
    """Amplitude and phase in the middle half."""
    n = len(x)
    t = np.arange(n)[n // 4 : 3 * n // 4] / fs
    basis = np.stack([np.sin(2 * np.pi * freq * t), np.cos(2 * np.pi * freq * t)], axis=1)
    a, b = np.linalg.lstsq(basis, x[n // 4 : 3 * n // 4], rcond=None)[0]
    return float(np.hypot(a, b)), float(np.arctan2(b, a))


@BOTH
@pytest.mark.parametrize(
    ("freq", "gain"), [(0.67, 0.5), (40.0, 0.5), (10.0, 1.0), (0.2, 0.0007), (100.0, 0.002)]
)
def test_filter_response(backend, freq, gain):
    out = filters.bandpass(sine(freq, 500), 500, 0.67, 40, 3, backend=backend)
    amplitude, phase = fit(out, freq, 500)
    assert amplitude == pytest.approx(gain, rel=0.005, abs=0.001)
    if gain > 0.1:
        assert phase == pytest.approx(0.3, abs=1e-3)


@BOTH
def test_low_pass_keeps_the_baseline(backend):
    x = 2.0 + 0.1 * np.arange(1000) / 100
    np.testing.assert_allclose(filters.bandpass(x, 100, 0, 40, backend=backend), x, atol=1e-9)


@BOTH
def test_band_pass_removes_offset_and_drift(backend):
    x = 300.0 + 0.5 * np.arange(1000) / 100
    assert np.abs(filters.bandpass(x, 100, 0.67, 40, backend=backend)).max() < 0.01


def test_analytic_gain_is_that_of_scipy():
    from scipy.signal import butter, sosfreqz

    freq = np.linspace(0.01, 249, 500)
    _, h = sosfreqz(butter(3, [0.67, 40], "bandpass", fs=500, output="sos"), freq, fs=500)
    np.testing.assert_allclose(butterworth_gain(freq, 500, 0.67, 40, 3), np.abs(h) ** 2, atol=1e-9)


@BOTH
@pytest.mark.parametrize("fs", [500, 360, 1000, 257, 128.5, 250])
def test_resampling_keeps_amplitude_and_phase(backend, fs):
    out = filters.resample(sine(7.0, fs), fs, 100, backend=backend)
    assert len(out) == pytest.approx(3000, abs=1)
    amplitude, phase = fit(out, 7.0, 100)
    assert amplitude == pytest.approx(1, abs=2e-3) and phase == pytest.approx(0.3, abs=2e-3)


@BOTH
def test_resampling_removes_aliases(backend):
    # 93 Hz would fold to 7 Hz; every fifth sample alone would keep it whole.
    x = sine(93.0, 500)
    assert fit(x[::5], 7.0, 100)[0] == pytest.approx(1, abs=1e-3)
    assert fit(filters.resample(x, 500, 100, backend=backend), 7.0, 100)[0] < 2e-3


@BOTH
def test_resampling_up_and_back(backend):
    x = filters.bandpass(np.random.default_rng(0).normal(size=(3, 2000)), 100, 0.67, 30)
    up = filters.resample(x, 100, 360, backend=backend)
    back = filters.resample(up, 360, 100, n_out=2000, backend=backend)
    assert np.abs(back - x)[:, 50:-50].max() < 0.02 * x.std()
    assert filters.resample(x, 100, 360, n_out=7000).shape == (3, 7000)


@pytest.mark.parametrize(("fs_in", "fs_out"), [(500, 100), (360, 100), (257, 100), (100, 360), (128.3, 100)])
@pytest.mark.parametrize("n", [5, 40, 1001])
def test_both_resamplers_are_one(fs_in, fs_out, n):
    x = np.random.default_rng(n).normal(size=(2, n))
    a, b = (filters.resample(x, fs_in, fs_out, backend=k) for k in ("scipy", "numpy"))
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_odd_rates():
    assert filters.resample_ratio(360, 100) == (5, 18)
    up, down = filters.resample_ratio(249.87, 100)
    assert 249.87 * up / down == pytest.approx(100, rel=1e-5)
    with pytest.raises(ConfigError, match="above 0"):
        filters.resample_ratio(0, 100)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real records beside the checkout")
def test_paths_differ_by_what_is_stated_on_real_ecgs():
    """The numbers in the docstring of ecggen.data.filters."""
    headers = sorted(REAL.glob("challenge/*/*.hea"))[::2] + sorted(REAL.glob("ludb/data/*.hea"))[:20]
    headers += sorted(REAL.glob("ptbxl/records100/*/*.hea"))[:60]
    worst = 0.0
    for header in headers:
        record = read_record(header.with_suffix(""))
        a, b = (
            filters.condition(np.nan_to_num(record.ecg), record.fs, 100, low_hz=0.67, high_hz=40, backend=k)
            for k in ("scipy", "numpy")
        )
        worst = max(worst, float(np.abs(a - b).max()))
    assert 0 < worst < 5e-5
    assert "0.00005 mV" in (filters.__doc__ or "")


def test_filter_runs_before_resampling():
    """A 60 Hz hum at 500 Hz must not appear at 40 Hz after resampling."""
    x = sine(60.0, 500)
    out = filters.condition(x, 500, 100, low_hz=0.67, high_hz=40)
    assert fit(out, 40.0, 100)[0] < 0.02


def test_corners_that_make_no_sense():
    assert filters.effective_high(40, 500, 60) == pytest.approx(27)
    with pytest.raises(ConfigError, match="lower corner must lie below"):
        filters.bandpass(np.zeros(100), 100, 50, 40)
    with pytest.raises(ConfigError, match="use auto, scipy or numpy"):
        filters.choose_backend("matlab")


def test_without_scipy(monkeypatch):
    monkeypatch.setattr(filters, "has_scipy", lambda: False)
    assert filters.choose_backend("auto") == "numpy"
    with pytest.raises(ConfigError, match="pip install scipy"):
        filters.choose_backend("scipy")


def test_gaps():
    x = np.arange(20.0)
    holed = x.copy()
    holed[[0, 5, 6, 12, 13, 14, 15]] = np.nan
    filled, runs = filters.fill_gaps(holed, 2)
    np.testing.assert_allclose(filled[1:], x[1:])
    assert filled[0] == 1.0 and runs.tolist() == [[12, 16]]
    nothing, runs = filters.fill_gaps(np.full(5, np.nan), 2)
    assert not nothing.any() and runs.tolist() == [[0, 5]]
