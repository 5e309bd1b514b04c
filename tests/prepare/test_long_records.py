"""Pieces of a record against the record as a whole: the same signal, the same findings, little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecggen.io.records import RecordError, open_record, write_record
from ecggen.leads import EXPAND, FRANK, LEADS
from ecggen.prepare.download.source import list_source, write_source
from ecggen.prepare.preprocess import long_records
from ecggen.prepare.preprocess.long_records import condition_long, context_seconds
from ecggen.prepare.preprocess.stage import condition_recording, preprocess
from ecggen.utils.config import DataConfig, PreprocessConfig
from ecggen.utils.files import read_csv

RULES = PreprocessConfig()
#: Flags of the shape of a lead, which in a long record are judged piece by piece.
LOCAL = ("noise", "swap", "polarity")


@pytest.fixture
def small(monkeypatch):
    """Pieces of about 20 s, so that a record of three minutes has several."""
    monkeypatch.setattr(long_records, "PIECE", 3000)
    monkeypatch.setattr(long_records, "WHOLE", 6000)


def heart(n: int, fs: float, frank: bool = False) -> np.ndarray:
    """[n, 12 or 15] mV: beats, a slow drift, noise; limb algebra exact."""
    rng = np.random.default_rng(3)
    t = np.arange(n) / fs
    beats = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.02) ** 2)
    sources = rng.normal(size=(8, 1)) * beats + 0.01 * rng.normal(size=(8, n))
    sources += 0.3 * np.sin(2 * np.pi * t / 7 + np.arange(8)[:, None])
    ecg = EXPAND @ sources
    return (np.concatenate([ecg, sources[:3]]) if frank else ecg).T


def both(path: Path, fs: float, rules: PreprocessConfig, backend: str = "scipy"):
    """(whole, verdict of the pieces, their ecg [12, m], their frank [3, m] or None)"""
    whole = condition_recording(open_record(path).read(), fs, rules, backend=backend)
    ecg, frank = [], []

    def write(a, b):
        ecg.append(a)
        frank.append(b)

    verdict = condition_long(open_record(path), fs, rules, write, backend=backend)
    assert len(ecg) > 1
    vcg = None if frank[0] is None else np.concatenate(frank, axis=1)
    return whole, verdict, np.concatenate(ecg, axis=1), vcg


def assert_equal(whole, verdict, ecg, frank, atol=1e-6):
    assert ecg.shape == whole.ecg.shape
    assert np.abs(ecg - whole.ecg).max() < atol
    assert (frank is None) == (whole.frank is None)
    if frank is not None:
        assert np.abs(frank - whole.frank).max() < atol
    np.testing.assert_array_equal(verdict.observed, whole.observed)
    spans = [[s for s in v.spans if s.flag not in LOCAL] for v in (verdict, whole)]
    words = [[w for w in v.words if w.partition(":")[0] not in LOCAL] for v in (verdict, whole)]
    assert words[0] == words[1]
    assert [(s.flag, s.lead) for s in spans[0]] == [(s.flag, s.lead) for s in spans[1]]
    times = [[(s.start_s, s.stop_s) for s in part] for part in spans]
    np.testing.assert_allclose(times[0], times[1], atol=1e-9)


@pytest.mark.parametrize("rate", [100, 250, 257.3, 360, 500])
@pytest.mark.parametrize("backend", ["scipy", "numpy"])
def test_the_signal_is_that_of_the_whole(tmp_path, small, rate, backend):
    path = write_record(tmp_path, "r", rate, heart(20_011, rate, frank=True), [*LEADS, *FRANK])
    # The NumPy path continues a piece periodically, as it does the record.
    assert_equal(*both(path, 100, RULES, backend), atol=1e-6 if backend == "scipy" else 1e-5)


@pytest.mark.parametrize(("low_hz", "order"), [(0.0, 3), (0.25, 3), (0.67, 8)])
def test_the_context_is_as_long_as_the_filter_remembers(tmp_path, small, low_hz, order):
    rules = PreprocessConfig(low_hz=low_hz, order=order)
    path = write_record(tmp_path, "r", 125, heart(25_000, 125), LEADS)
    assert_equal(*both(path, 100, rules))


def test_context_follows_the_slowest_pole():
    """scipy's own step response has died down by then, and not much earlier."""
    from scipy.signal import butter, sosfilt

    for low, order in ((0.67, 3), (0.05, 2), (0.5, 8)):
        n = round(context_seconds(low, order) * 100)
        step = sosfilt(butter(order, [low, 40], "bandpass", fs=100, output="sos"), np.ones(n))
        assert np.abs(step[-100:]).max() < 1e-8 < np.abs(step[n // 4 : n // 3]).max()
    assert context_seconds(0.0, 3) == 1.0 and context_seconds(1e-4, 3) == 901.0


def damaged(fs: float) -> np.ndarray:
    """Something of every flag, over the borders of pieces (every 3000 samples) and at both ends."""
    x = heart(30_000, fs, frank=True)
    x[:50, 0] = np.nan  # a gap at the start
    x[2990:3070, 0] = np.nan
    x[5995:6000, 0] = np.nan  # short, up to a border
    x[6000:6003, 2] = np.nan  # short, from a border on
    x[4000:11_500, 6] = np.nan  # more than two pieces
    x[14_000:14_400, 6] = np.nan
    x[-300:, 7] = np.nan  # a gap at the end
    x[8700:9900, 8] = 0.3  # flat over a border
    x[11_900:12_700, 1] = -0.1
    x[20_000:, 9] = 0.0  # flat to the end, not half of it
    x[1000:, 10] = np.nan  # mostly missing
    peak = 1.01 * np.abs(x[np.isfinite(x[:, 11]), 11]).max()
    for at in range(500, 30_000, 500):
        x[at : at + 20, 11] = peak  # saturated, and at every border
    x[17_000:18_500, 3] += 2.0  # breaks the algebra over a border
    x[23_900:24_100, 5] += 40.0 * np.sin(np.arange(200))  # no heart
    return x


@pytest.mark.parametrize("rate", [125, 250])
def test_the_findings_are_those_of_the_whole(tmp_path, small, rate):
    path = write_record(tmp_path, "r", rate, damaged(rate), [*LEADS, *FRANK], gain=500)
    whole, verdict, ecg, frank = both(path, 100, RULES)
    flags = {span.flag for span in whole.spans} - {*LOCAL}
    assert flags == {"gap", "flat", "saturated", "algebra", "amplitude"} and not whole.observed[10]
    assert_equal(whole, verdict, ecg, frank)


def test_noise_is_found_where_it_is(tmp_path, small):
    x = heart(30_000, 125)
    rng = np.random.default_rng(5)
    x[10_000:12_500, 8] += 0.3 * rng.normal(size=2500)  # 80 to 100 s, over a border of pieces
    x[20_000:20_500, 3] += 0.3 * rng.normal(size=500)  # 160 to 164 s
    whole, verdict, *_ = both(write_record(tmp_path, "r", 125, x, LEADS), 100, RULES)
    for found in (whole, verdict):
        noise = [s for s in found.spans if s.flag == "noise"]
        assert [s.lead for s in noise] == ["aVR", "V3"] or [s.lead for s in noise] == ["V3", "aVR"]
        for span in noise:
            wanted = (160.0, 164.0) if span.lead == "aVR" else (80.0, 100.0)
            np.testing.assert_allclose((span.start_s, span.stop_s), wanted, atol=1.0)
    assert whole.words == verdict.words


@pytest.mark.parametrize("rate", [60, 80])
def test_stretches_too_short_for_blocks(tmp_path, small, rate):
    """Six samples in flat_seconds, then eight: leads are judged as a whole, then by blocks."""
    x = heart(20_000, rate)
    x[:, 2] = 0.001
    x[5000:5100, 3] = 0.0
    path = write_record(tmp_path, "r", rate, x, LEADS)
    assert_equal(*both(path, 50, PreprocessConfig(flat_seconds=0.1, high_hz=20)))


def test_frank_leads_with_a_gap_are_left_out(tmp_path, small):
    x = heart(20_000, 125, frank=True)
    x[9000:9100, 13] = np.nan
    path = write_record(tmp_path, "r", 125, x, [*LEADS, *FRANK])
    _, _, ecg, frank = both(path, 100, RULES)
    assert frank is None and ecg.shape == (12, 16_000)


def test_rejects_are_those_of_the_whole(tmp_path, small):
    record = open_record(write_record(tmp_path, "z", 100, np.zeros((9000, 12)), LEADS))
    with pytest.raises(RecordError) as whole:
        condition_recording(record.read(), 100, RULES)
    written = []
    with pytest.raises(RecordError) as pieces:
        condition_long(record, 100, RULES, lambda *made: written.append(made))
    assert str(pieces.value) == str(whole.value) and not written


def test_checksum_is_checked_on_the_way(tmp_path, small):
    path = write_record(tmp_path, "r", 125, heart(20_000, 125), LEADS)
    data = bytearray(path.with_suffix(".dat").read_bytes())
    data[12 * 2 * 9000] ^= 1
    path.with_suffix(".dat").write_bytes(data)
    whole, verdict, *_ = both(path, 100, RULES)
    assert verdict.words == whole.words == ["checksum"]
    assert verdict.spans[-1] == whole.spans[-1]


def test_long_and_short_records_in_one_table(tmp_path, small):
    folder = tmp_path / "wfdb"
    write_record(folder, "a", 250, heart(2000, 250, frank=True), [*LEADS, *FRANK])
    write_record(folder, "b", 125, heart(20_000, 125, frank=True), [*LEADS, *FRANK])
    broken = write_record(folder, "c", 125, np.zeros((20_000, 12)), LEADS)
    write_record(folder, "d", 250, heart(2000, 250, frank=True), [*LEADS, *FRANK])
    raw = tmp_path / "raw"
    raw.mkdir()
    write_source(raw, list_source(folder))
    counts = preprocess(raw, tmp_path / "out", DataConfig(), RULES)
    assert (counts["records"], counts["rejected"], counts["frank"]) == (3, 1, True)
    signals = np.load(tmp_path / "out" / "signals.npy")
    rows = read_csv(tmp_path / "out" / "records.csv")
    assert [(r["record"], int(r["offset"]), int(r["n_samples"])) for r in rows] == [
        ("a", 0, 800),
        ("b", 800, 16_000),
        ("d", 16_800, 800),
    ]
    np.testing.assert_array_equal(signals[:800], signals[16_800:])
    assert len(np.load(tmp_path / "out" / "frank.npy")) == len(signals) and broken.name == "c"


def test_a_record_that_breaks_half_way_leaves_nothing(tmp_path, small, monkeypatch):
    folder = tmp_path / "wfdb"
    write_record(folder, "a", 250, heart(2000, 250), LEADS)
    write_record(folder, "b", 125, heart(20_000, 125), LEADS)
    raw = tmp_path / "raw"
    raw.mkdir()
    write_source(raw, list_source(folder))
    made = long_records.quality.conditioned_spans
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # the first is that of record a
            raise RecordError("Signals of record b cannot be read: the disk is gone.")
        return made(*arguments)

    monkeypatch.setattr(long_records.quality, "conditioned_spans", fail)
    counts = preprocess(raw, tmp_path / "out", DataConfig(), RULES)
    assert (counts["records"], counts["rejected"]) == (1, 1)
    assert np.load(tmp_path / "out" / "signals.npy").shape == (800, 12)


MEASURE = """
import sys
from pathlib import Path
from ecggen.prepare.preprocess import long_records
from ecggen.io.records import open_record
from ecggen.utils.config import PreprocessConfig
import numpy, scipy.signal, wfdb
def peak():  # KiB; getrusage would count the process that started this one
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
before = peak()
long_records.PIECE = 1 << 15
long_records.condition_long(open_record(Path(sys.argv[1])), 100, PreprocessConfig(), lambda ecg, frank: None)
print((peak() - before) / 1024)
"""


def test_memory_does_not_grow_with_the_record(tmp_path):
    """MiB above the imports for 4 and for 16 minutes of twelve leads at 500 Hz, a minute at a time."""
    peaks = []
    for minutes in (4, 16):
        n = minutes * 60 * 500
        header = [f"r{minutes} 12 500 {n}"]
        header += [f"r{minutes}.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS]
        (tmp_path / f"r{minutes}.hea").write_text("\n".join(header) + "\n")
        noise = np.random.default_rng(0).integers(-500, 500, (5000, 12)).astype("<i2").tobytes()
        with (tmp_path / f"r{minutes}.dat").open("wb") as stream:
            for _ in range(n // 5000):
                stream.write(noise)
        command = [sys.executable, "-c", MEASURE, str(tmp_path / f"r{minutes}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        peaks.append(float(done.stdout))
    assert peaks[1] < 1.25 * peaks[0] + 5, peaks


def test_real_half_hour_in_pieces(shared_data):
    """mitdb 100: 30 minutes at 360 Hz, at the pieces' real size."""
    whole, verdict, ecg, frank = both(shared_data / "mitdb" / "100", 100, RULES)
    assert_equal(whole, verdict, ecg, frank)
