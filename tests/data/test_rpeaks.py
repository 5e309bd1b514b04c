"""The R-peak detector: known beats, hard input, invariances, and floors on annotated records."""

from __future__ import annotations

import importlib.util
import tracemalloc
from types import ModuleType

import numpy as np
import pytest
import torch

import ecggen
from ecggen.data.pipeline import DataError
from ecggen.data.rpeaks import detect_r_peaks, detect_r_peaks_batch, max_beats

RATES = (50.0, 100.0, 128.0, 250.0, 360.0, 500.0, 1000.0, 2000.0)


def heart(beats_s, fs: float, seconds: float, *, sign: float = 1.0, t_wave: float = 0.25) -> np.ndarray:
    """Beats at known times: a narrow QRS, a T wave 250 ms later, wander; [n] mV."""
    t = np.arange(round(seconds * fs)) / fs
    x = 0.2 * np.sin(2 * np.pi * 0.25 * t)
    for at in beats_s:
        x = x + sign * np.exp(-0.5 * ((t - at) / 0.012) ** 2)
        x = x + t_wave * np.exp(-0.5 * ((t - at - 0.25) / 0.05) ** 2)
    return x


def test_it_is_public():
    assert ecggen.detect_r_peaks is detect_r_peaks


@pytest.mark.parametrize("fs", RATES)
def test_beats_are_found_where_they_are_at_every_rate(fs):
    beats = np.array([0.4, 1.2, 1.9, 3.0, 3.6, 4.5])
    found = detect_r_peaks(heart(beats, fs, 5.12), fs)
    assert found.dtype == np.int64
    np.testing.assert_allclose(found / fs, beats, atol=max(0.004, 0.51 / fs))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gain", [0.1, 1.0, 8.0])
def test_polarity_and_amplitude_do_not_matter(sign, gain):
    beats = np.arange(0.5, 9.6, 0.85)
    found = detect_r_peaks(gain * heart(beats, 250, 10, sign=sign), 250)
    np.testing.assert_allclose(found / 250, beats, atol=0.004)


def test_a_large_t_wave_is_not_a_beat():
    beats = np.arange(0.5, 9.6, 0.9)
    found = detect_r_peaks(heart(beats, 100, 10, t_wave=0.9), 100)
    np.testing.assert_allclose(found / 100, beats, atol=0.011)


@pytest.mark.parametrize("beats", [[], [2.0], [1.0, 3.1], [0.0, 5.11]])
def test_no_one_and_two_beats(beats):
    found = detect_r_peaks(heart(beats, 100, 5.12), 100)
    np.testing.assert_allclose(found / 100, beats, atol=0.011)


def test_pacing_spikes_do_not_count_twice():
    beats = np.arange(0.5, 9.6, 0.8)
    x = heart(beats, 500, 10)
    for at in beats:
        x[round((at - 0.04) * 500)] += 3.0  # a spike of 2 ms before each QRS
    found = detect_r_peaks(x, 500)
    assert len(found) == len(beats)
    np.testing.assert_allclose(found / 500, beats, atol=0.06)


def test_a_weak_beat_in_a_pause_is_found():
    beats = np.arange(0.5, 9.6, 0.8)
    x = heart(beats, 100, 10, t_wave=0.0)
    weak = np.abs(np.arange(1000) / 100 - beats[5]) < 0.1
    x[weak] = 0.3 * (x[weak] - x[weak].min()) + x[weak].min()
    np.testing.assert_allclose(detect_r_peaks(x, 100) / 100, beats, atol=0.021)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 20, 60])
@pytest.mark.parametrize("fs", [50.0, 100.0, 2000.0])
def test_very_short_signals(n, fs):
    x = np.random.default_rng(n).normal(size=n)
    found = detect_r_peaks(x, fs)
    assert len(found) <= 1 + n / fs / 0.25
    assert np.isin(found, np.arange(n)).all()


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_nothing_in_a_flat_signal(value):
    assert len(detect_r_peaks(np.full(3000, value), 250)) == 0


def test_nan_is_bridged():
    beats = np.arange(0.5, 9.6, 0.8)
    x = heart(beats, 250, 10) + 5.0  # an offset, so that a gap filled with 0 would look like two beats
    x[round(4.6 * 250) : round(5.2 * 250)] = np.nan  # one beat is gone
    expected = beats[(beats < 4.6) | (beats > 5.2)]
    np.testing.assert_allclose(detect_r_peaks(x, 250) / 250, expected, atol=0.004)


def test_lead_choice():
    beats = np.arange(0.5, 9.6, 0.8)
    good, other = heart(beats, 100, 10), heart(beats[::2], 100, 10)
    nan, flat = np.full(1000, np.nan), np.full(1000, 0.7)
    for leads, count in [
        ([good, other], len(beats)),
        ([other, good], len(beats[::2])),
        ([flat, nan, good, other], len(beats)),
        ([nan, flat], 0),
    ]:
        assert len(detect_r_peaks(np.stack(leads), 100)) == count


def test_a_long_recording_in_pieces_equals_the_beats_that_are_there():
    fs, every = 128.0, 0.8
    beats = np.arange(0.5, 599, every) + 0.05 * np.sin(np.arange(len(np.arange(0.5, 599, every))))
    t = np.arange(round(600 * fs)) / fs
    x = np.zeros(len(t), dtype=np.float32)
    for at in beats:
        near = slice(max(0, round((at - 0.1) * fs)), round((at + 0.1) * fs))
        x[near] += np.exp(-0.5 * ((t[near] - at) / 0.012) ** 2)
    found = detect_r_peaks(x, fs)
    np.testing.assert_allclose(found / fs, beats, atol=0.005)
    assert np.diff(found).min() > 0.25 * fs


def test_memory_does_not_grow_with_the_length():
    fs = 250.0
    beat = heart([0.3], fs, 0.8).astype(np.float32)
    peaks = []
    for minutes in (20, 80):
        x = np.tile(beat, round(minutes * 60 / 0.8))
        tracemalloc.start()
        found = detect_r_peaks(x, fs)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert abs(len(found) - round(minutes * 60 / 0.8)) <= 1
    assert peaks[1] < 1.5 * peaks[0] + 1e6


def test_refractory_time_holds_on_noise_and_mains():
    rng = np.random.default_rng(0)
    t = np.arange(10_000) / 500
    for x in (rng.normal(size=10_000), np.sign(np.sin(2 * np.pi * 10 * t)), np.sin(2 * np.pi * 50 * t)):
        found = detect_r_peaks(x, 500)
        assert len(found) <= max_beats(len(x), 500)
        assert len(found) < 2 or np.diff(found).min() > 125


def test_batch_shapes_padding_and_agreement_with_the_numpy_function():
    rows = [heart(np.arange(0.4, 5, step), 100, 5.12) for step in (0.3, 0.5, 0.8, 1.7)] + [np.zeros(512)]
    x = torch.tensor(np.stack(rows), dtype=torch.float32)
    positions, valid = detect_r_peaks_batch(x, 100.0)
    assert positions.shape == valid.shape == (5, max_beats(512, 100.0)) and positions.dtype == torch.int64
    assert torch.equal(valid, positions >= 0) and (positions[~valid] == -1).all()
    assert (valid[:, 1:] <= valid[:, :-1]).all()  # beats first, padding last
    for row, own, ok in zip(rows, positions, valid, strict=True):
        np.testing.assert_array_equal(own[ok].numpy(), detect_r_peaks(row, 100.0))
    assert valid.sum(dim=1).tolist() == [16, 10, 6, 3, 0]


def test_a_row_does_not_depend_on_its_batch():
    x = torch.randn(17, 700, generator=torch.Generator().manual_seed(3)).cumsum(dim=1) * 0.1
    together, _ = detect_r_peaks_batch(x, 250.0)
    for i in range(17):
        assert torch.equal(detect_r_peaks_batch(x[i : i + 1], 250.0)[0][0], together[i])
    assert torch.equal(detect_r_peaks_batch(x.flip(0), 250.0)[0].flip(0), together)


@pytest.mark.parametrize("fs", [0, 49.9, 2001, float("nan")])
def test_rates_out_of_range(fs):
    with pytest.raises(DataError, match="50 to 2000 Hz"):
        detect_r_peaks(np.zeros(100), fs)


@pytest.mark.parametrize("signal", [np.zeros((2, 3, 4)), np.array(["a"]), np.zeros(5, dtype=complex), 3.0])
def test_signals_that_are_none(signal):
    with pytest.raises(DataError, match="numbers in mV"):
        detect_r_peaks(signal, 100)


@pytest.fixture(scope="module")
def benchmark(repository) -> ModuleType:
    path = repository / "benchmarks" / "r_peaks.py"
    spec = importlib.util.spec_from_file_location("r_peaks_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_score_counts_hits_misses_and_false_alarms(benchmark):
    truth, found = np.array([100, 200, 300]), np.array([95, 150, 205, 206, 400])
    assert benchmark.match(found, truth, 15) == (2, 1, 3)
    assert benchmark.match(found[:0], truth, 15) == (0, 3, 0)


@pytest.mark.parametrize("record", ["100", "105", "119", "203", "207", "217"])
def test_floor_on_the_mit_bih_arrhythmia_database(shared_data, benchmark, record):
    path = shared_data / "mitdb" / record
    if not path.with_suffix(".atr").is_file():
        pytest.skip(f"no record {path}")
    sensitivity, ppv = benchmark.shares(*benchmark.score_mitdb(path))
    assert sensitivity > 0.985 and ppv > 0.98


@pytest.mark.parametrize("lead", ["i", "v2"])
def test_floor_on_the_lobachevsky_database(shared_data, benchmark, lead):
    records = sorted((shared_data / "ludb" / "data").glob("*.hea"))
    if not records:
        pytest.skip(f"no ludb record below {shared_data}")
    counts = np.array([benchmark.score_ludb(p.with_suffix(""), lead) for p in records]).sum(axis=0)
    sensitivity, ppv = benchmark.shares(*counts)
    assert sensitivity > 0.995 and ppv > 0.995
