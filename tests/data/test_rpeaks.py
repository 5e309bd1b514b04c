"""The R-peak detector: known beats, hard input, invariances, and floors on annotated records."""

from __future__ import annotations

import importlib
import itertools
import tracemalloc
from dataclasses import replace
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


REGULAR = np.arange(0.5, 9.6, 0.85)


def assert_beats(signal, fs: float, beats_s, atol: float = 0.004) -> None:
    """The detector finds beats_s, to atol seconds, and no others."""
    peaks = ecggen.detect_r_peaks(signal, fs)
    assert peaks.dtype == np.int64 and len(peaks) == len(beats_s)
    np.testing.assert_allclose(peaks / fs, beats_s, atol=atol)


def with_gap(x: np.ndarray, fs: float, start_s: float, stop_s: float) -> np.ndarray:
    x[round(start_s * fs) : round(stop_s * fs)] = np.nan
    return x


IRREGULAR, EVEN = np.array([0.4, 1.2, 1.9, 3.0, 3.6, 4.5]), np.arange(0.5, 9.6, 0.8)
WEAK = 1 - 0.7 * (np.abs(np.arange(1000) / 100 - EVEN[5]) < 0.1)
WHITE = np.random.default_rng(1).normal(size=20_000)
CASES = [  # signal, rate, seconds of the beats, tolerance
    *((heart(IRREGULAR, fs, 5.12), fs, IRREGULAR, max(0.004, 0.51 / fs)) for fs in RATES),
    *((sign * gain * heart(REGULAR, 250, 10), 250, REGULAR, 0.004) for sign in (1, -1) for gain in (0.1, 8)),
    (heart(REGULAR + 0.05, 100, 10, t_wave=0.9), 100, REGULAR + 0.05, 0.011),
    *((heart(beats, 100, 5.12), 100, beats, 0.011) for beats in ([], [2.0], [1.0, 3.1], [0.0, 5.11])),
    *((np.full(3000, value), 250, [], 0.0) for value in (0.0, 3.0, np.nan)),
    (np.where(np.arange(5000) % 400 == 100, 5.0, 0.0), 500, [], 0.0),  # pacing without a heart
    # An offset, so that a gap filled with 0 would look like two beats; one beat is gone.
    (with_gap(heart(EVEN, 250, 10) + 5, 250, 4.2, 4.8), 250, np.delete(EVEN, 5), 0.004),
    (WEAK * heart(EVEN, 100, 10, t_wave=0.0), 100, EVEN, 0.021),  # in a pause of the others
    *((heart(REGULAR, fs, 10) + 0.08 * WHITE[: 10 * fs], fs, REGULAR, 0.025) for fs in (100, 500)),
    *((0.1 * heart(REGULAR, fs, 10) + 0.01 * WHITE[: 10 * fs], fs, REGULAR, 0.031) for fs in (100, 500)),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_beats_are_found_where_they_are(case):
    assert_beats(*CASES[case])


@pytest.mark.parametrize("fs", [250.0, 360.0, 500.0, 1000.0, 2000.0])
@pytest.mark.parametrize("height", [-3.0, 1.0, 30.0])
def test_pacing_spikes_are_no_beats_and_move_none(fs, height):
    beats = np.arange(0.5, 9.6, 0.8)
    x = heart(beats, fs, 10)
    for at in beats:
        for before in (0.04, 0.2):  # 2 ms before each QRS, and before each P wave
            first = round((at - before) * fs)
            x[first : first + max(1, round(0.002 * fs))] += height
    assert_beats(x, fs, beats, 0.0061)


def test_a_wide_beat_among_narrow_ones_and_a_run_of_wide_ones():
    fs, narrow = 360.0, np.arange(0.5, 29, 0.8)
    wide = np.concatenate([[10.45], 20.0 + 0.31 * np.arange(6)])
    narrow = narrow[np.abs(narrow[:, None] - wide).min(axis=1) > 0.35]
    x, t = heart(narrow, fs, 30, t_wave=0.2), np.arange(round(30 * fs)) / fs
    for at in wide:
        x -= 1.8 * np.exp(-0.5 * ((t - at) / 0.04) ** 2)
    assert_beats(x, fs, np.sort(np.concatenate([narrow, wide])), 0.02)


def test_equal_deflections_of_both_signs_are_not_mixed():
    """R and S of about one size, 50 ms apart: which is larger varies, the intervals must not."""
    fs, beats = 500.0, np.arange(0.5, 29, 0.8)
    rng, t = np.random.default_rng(0), np.arange(15_000) / 500
    x = 0.005 * rng.normal(size=len(t))
    for at in beats:
        share = rng.uniform(0.9, 1.1)
        x += np.exp(-0.5 * ((t - at) / 0.01) ** 2) - share * np.exp(-0.5 * ((t - at - 0.05) / 0.01) ** 2)
    for sign in (1, -1):
        peaks = detect_r_peaks(sign * x, fs) / fs
        assert len(peaks) == len(beats) and np.abs(np.diff(peaks) - 0.8).max() < 0.005


def leads_of_a_heart(beats_s, fs: float, seconds: float, noise_mv: float, seed: int = 0) -> np.ndarray:
    """[5, n]: views of one heart of several sizes and signs, each with noise of its own."""
    rng = np.random.default_rng(seed)
    clean = heart(beats_s, fs, seconds)
    return np.array([1.0, -0.8, 0.5, -0.4, 0.3])[:, None] * clean + noise_mv * rng.normal(
        size=(5, len(clean))
    )


def test_leads_that_are_flat_missing_or_far_noisier_make_no_difference():
    fs, beats = 250.0, np.arange(0.5, 19.6, 0.8)
    good = leads_of_a_heart(beats, fs, 20, 0.01)
    n = good.shape[1]
    nan, flat = np.full((1, n), np.nan), np.full((1, n), 0.7)
    noise = np.random.default_rng(5).normal(size=(1, n))
    for leads in (good[:1], good, [*nan, *good], [*flat, *good[:2]], [*good, *nan], [*noise, *good]):
        assert_beats(np.stack(leads), fs, beats, 0.0061)
    assert_beats(np.concatenate([nan, flat]), fs, [])
    for value in (np.nan, 0.3):  # a lead that drops out does not take beats with it
        half = good[:2].copy()
        half[0, round(9 * fs) :] = value
        assert_beats(half, fs, beats, 0.0061)


def test_the_order_of_the_leads_makes_no_difference():
    leads = leads_of_a_heart(np.arange(0.5, 59, 0.7), 250, 60, 0.15)
    once = detect_r_peaks(leads, 250)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        np.testing.assert_array_equal(detect_r_peaks(leads[order], 250), once)


def test_a_long_recording_in_bounded_memory():
    beat, counts, peaks = heart([0.3], 250, 0.8).astype(np.float32), [1500, 6000], []
    for count in counts:
        x = np.tile(beat, (2, count))
        tracemalloc.start()
        assert_beats(x, 250, 0.3 + 0.8 * np.arange(count), 0.005)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 1e6


def test_refractory_time_holds_on_noise_and_mains():
    for n, fs in itertools.product([0, 1, 2, 3, 7, 20, 60], [50.0, 100.0, 2000.0]):
        peaks = detect_r_peaks(WHITE[:n], fs)
        assert len(peaks) <= 1 + n / fs / 0.25 and np.isin(peaks, np.arange(n)).all()
    rng = np.random.default_rng(0)
    t = np.arange(10_000) / 500
    for x in (rng.normal(size=10_000), np.sign(np.sin(2 * np.pi * 10 * t)), np.sin(2 * np.pi * 50 * t)):
        peaks = detect_r_peaks(x, 500)
        assert len(peaks) <= max_beats(len(x), 500)
        assert len(peaks) < 2 or np.diff(peaks).min() > 125


def test_batch_shapes_padding_and_agreement_with_the_numpy_function():
    rows = [heart(np.arange(0.4, 5, step), 100, 5.12) for step in (0.3, 0.5, 0.8, 1.7)] + [np.zeros(512)]
    x = torch.tensor(np.stack(rows), dtype=torch.float32)
    positions, valid = detect_r_peaks_batch(x, 100.0)
    assert positions.shape == valid.shape == (5, max_beats(512, 100.0)) and positions.dtype == torch.int64
    assert torch.equal(valid, positions >= 0) and (positions[~valid] == -1).all()
    assert (valid[:, 1:] <= valid[:, :-1]).all()  # beats first, padding last
    for row, at, ok in zip(rows, positions, valid, strict=True):
        np.testing.assert_array_equal(at[ok].numpy(), detect_r_peaks(row, 100.0))
    assert valid.sum(dim=1).tolist() == [16, 10, 6, 3, 0]


def test_hidden_leads_are_not_read_and_one_observed_lead_is_that_lead():
    leads = torch.tensor(leads_of_a_heart(np.arange(0.5, 9.5, 0.8), 100, 10, 0.1), dtype=torch.float32)
    x = leads.expand(7, -1, -1).clone()
    observed = torch.eye(5, dtype=torch.bool).repeat(2, 1)[:7]
    observed[5], observed[6] = True, False
    junk = torch.where(observed[:, :, None], x, torch.nan)
    positions, valid = detect_r_peaks_batch(x, 100.0, observed)
    assert torch.equal(detect_r_peaks_batch(junk, 100.0, observed)[0], positions)
    assert torch.equal(detect_r_peaks_batch(leads, 100.0)[0], positions[:5])
    assert torch.equal(detect_r_peaks_batch(leads[None], 100.0)[0][0], positions[5])
    assert not valid[6].any()


@pytest.mark.parametrize("shape", [(700,), (2, 700), (3, 700), (12, 700)])
def test_a_row_does_not_depend_on_its_batch(shape):
    x = torch.randn(9, *shape, generator=torch.Generator().manual_seed(len(shape))).cumsum(dim=-1) * 0.1
    together, _ = detect_r_peaks_batch(x, 250.0)
    for i in range(9):
        assert torch.equal(detect_r_peaks_batch(x[i : i + 1], 250.0)[0][0], together[i])
    assert torch.equal(detect_r_peaks_batch(x.flip(0), 250.0)[0].flip(0), together)


NUMBERS, RATE = "numbers in mV", "50 to 2000 Hz"
TURNED = r"looks transposed; give \[n_leads, n_samples\]"


@pytest.mark.parametrize(
    ("signal", "fs", "words"),
    [
        *((np.zeros(100), fs, RATE) for fs in (0, 49.9, 2001, float("nan"), None, "fast", [100, 200])),
        *((x, 100, NUMBERS) for x in (np.zeros((2, 3, 4)), np.array(["a"]), np.zeros(5, complex), 3.0)),
        *((np.zeros((2500, leads)), 250, TURNED) for leads in (1, 2, 12)),
    ],
)
def test_what_cannot_be_used(signal, fs, words):
    with pytest.raises(DataError, match=words):
        detect_r_peaks(signal, fs)


def noise(kind: str, fs: float, count: int = 30, seconds: float = 10.0) -> np.ndarray:
    """[count, n] of unit RMS."""
    rng = np.random.default_rng(0)
    n = round(seconds * fs)
    hertz, t = np.fft.rfftfreq(n, 1 / fs), np.arange(n) / fs
    if kind == "mains":
        return np.sqrt(2) * np.sin(2 * np.pi * (50 + rng.normal(0, 0.02, (count, 1))) * t)
    low, high, slope = {
        "white": (0.05, fs, 0.0),
        "pink": (0.05, fs, -0.5),
        "muscle": (15, 150, 0.0),
        "wander": (0.05, 0.5, -1.0),
    }[kind.split()[0]]
    gain = np.where((hertz >= low) & (hertz <= high), np.maximum(hertz, low) ** slope, 0.0)
    x = np.fft.irfft(gain * np.exp(2j * np.pi * rng.random((count, len(hertz)))), n)
    if kind.endswith("comes and goes"):
        x = x * (1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.05, 0.2, (count, 1)) * t))
    return x / x.std(axis=1, keepdims=True)


@pytest.mark.parametrize("fs", [100.0, 500.0])
@pytest.mark.parametrize("level", [0.005, 0.02, 0.05, 0.5])
@pytest.mark.parametrize("kind", ["white", "pink", "muscle", "muscle comes and goes", "wander", "mains"])
def test_there_is_no_beat_in_noise(kind, level, fs):
    rows = level * noise(kind, fs)
    for signals in (rows, rows.reshape(15, 2, -1)):
        counts = [len(detect_r_peaks(signal, fs)) for signal in signals]
        # Where mains begin and end there may be one.
        assert np.mean(counts) <= (1.0 if kind == "mains" else 0.25) and max(counts) <= 3


@pytest.mark.parametrize("fs", [100.0, 360.0])
def test_small_beats_beside_large_ones_are_found(fs):
    """Bigeminy whose normal beats have a tenth of the ectopic beats' height, and one large beat alone."""
    t = np.arange(round(10 * fs)) / fs
    normal = np.arange(0.6, 9.9, 1.5)
    x = 0.16 * heart(normal, fs, 10, t_wave=0.2)
    for at in (early := normal[:-1] + 0.62):
        x += 1.6 * np.exp(-0.5 * ((t - at) / 0.03) ** 2) - 0.5 * np.exp(-0.5 * ((t - at - 0.25) / 0.06) ** 2)
    assert_beats(x, fs, np.sort(np.concatenate([normal, early])), 0.021)
    beats = np.arange(0.6, 9.9, 0.8)
    x = 0.2 * heart(beats, fs, 10, t_wave=0.2)
    x += 2.5 * np.exp(-0.5 * ((t - beats[5]) / 0.03) ** 2)
    assert_beats(x, fs, beats, 0.021)


@pytest.fixture(scope="module")
def benchmark(repository) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        return importlib.import_module("r_peaks")


def test_the_score_counts_hits_misses_and_false_beats_between_the_annotations(benchmark):
    truth, peaks = np.array([100, 200, 300]), np.array([95, 150, 205, 206, 400])
    assert benchmark.match(peaks, truth, 15) == (2, 1, 3)
    assert benchmark.match(peaks[:0], truth, 15) == (0, 3, 0)
    assert benchmark.f1((2, 1, 3)) == pytest.approx(0.5)
    truth, peaks = np.array([100, 200, 450]), np.array([20, 101, 250, 300, 449, 500])
    record = benchmark.Record("a", 100.0, ("0",), None, {"0": truth}, ((210, 400),))
    assert benchmark.score(record, "0", peaks, 0.075) == (2, 1, 2)
    assert benchmark.score(record, "0", peaks, 0.075, flutter=True) == (2, 1, 4)
    assert benchmark.score(replace(record, open_ended=True), "0", peaks, 0.075) == (2, 1, 0)


#: True positives at least, missed and false beats at most, within 75 ms, of one lead.
MITDB = {
    "100": (2273, 0, 0),
    "105": (2558, 14, 26),
    "119": (1987, 0, 1),
    "203": (2942, 38, 13),
    "207": (1850, 10, 18),
    "217": (2201, 7, 7),
}


def records_of(benchmark, name: str, folder, count: int) -> dict:
    records = {record.name: record for record in getattr(benchmark, name)(folder)}
    if len(records) != count:
        pytest.skip(f"not the {count} records of {name} below {folder}")
    return records


@pytest.fixture(scope="module")
def mitdb(benchmark, shared_data):
    return records_of(benchmark, "mitdb", shared_data, len(MITDB))


@pytest.fixture(scope="module")
def ludb(benchmark, shared_data):
    return list(records_of(benchmark, "ludb", shared_data, 100).values())


@pytest.fixture(scope="module")
def cpsc2019(benchmark, shared_data):
    return records_of(benchmark, "cpsc2019", shared_data, 21)


@pytest.mark.parametrize("name", sorted(MITDB))
def test_floor_on_the_mit_bih_arrhythmia_database(benchmark, mitdb, name):
    true, missed, false = benchmark.total([mitdb[name]], detect_r_peaks, "0")[0]
    least, most_missed, most_false = MITDB[name]
    assert true >= least and missed <= most_missed and false <= most_false


def test_both_leads_of_the_mit_bih_arrhythmia_database_are_better_than_the_first(benchmark, mitdb):
    one = benchmark.total(list(mitdb.values()), detect_r_peaks, "0")
    both = benchmark.total(list(mitdb.values()), detect_r_peaks, "0", every=True)
    assert one[0][0] >= 13_810 and benchmark.f1(one[0]) > 0.994
    assert both[0][0] >= 13_832 and benchmark.f1(both[0]) > 0.996
    assert both[0][1:].sum() < one[0][1:].sum()


@pytest.mark.parametrize(("lead", "within_75_ms"), [("i", 900), ("v2", 907), ("avl", 900)])
def test_floor_on_the_lobachevsky_database(benchmark, ludb, lead, within_75_ms):
    counts = benchmark.total(ludb, detect_r_peaks, lead)
    assert counts[0][0] >= within_75_ms
    assert benchmark.f1(counts[0]) > 0.9945 and benchmark.f1(counts[1]) > 0.998


def test_twelve_leads_of_the_lobachevsky_database_miss_no_beat_and_add_none(benchmark, ludb):
    counts = benchmark.total(ludb, detect_r_peaks, "i", every=True)
    assert counts[1].tolist() == [906, 0, 0]
    assert benchmark.f1(counts[0]) > 0.997 > benchmark.f1(benchmark.total(ludb, detect_r_peaks, "i")[0])


def test_floor_on_the_hard_leads_of_cpsc2019(benchmark, cpsc2019):
    """NeuroKit2 reaches .905 here, sleepecg .876 (benchmarks/r_peaks.py)."""
    counts = benchmark.total(list(cpsc2019.values()), detect_r_peaks, "0")
    assert benchmark.f1(counts[0]) > 0.955


@pytest.mark.parametrize("name", ["data_01389", "data_01170"])
def test_beats_of_two_sizes_in_one_real_lead_are_all_found(benchmark, cpsc2019, name):
    true, missed, false = benchmark.total([cpsc2019[name]], detect_r_peaks, "0")[0]
    assert (true, missed) in {(13, 0), (12, 0)} and false <= 1
