"""One record conditioned at once, and a long one in stretches: the same signal, the same findings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_databases import heart

from ecggen.io.arrays import ArrayRecord
from ecggen.io.records import RecordError, open_record, write_record
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.preprocess import conditioning
from ecggen.prepare.preprocess.conditioning import condition_record, preprocessing_settings
from ecggen.utils.config import ConfigError, DataConfig, PreprocessConfig

CONFIG = PreprocessConfig()
LOCAL = ("noise", "swap", "polarity")  # flags of the shape of a lead, which differ between stretches


def conditioned(record, fs: float = 100, config: PreprocessConfig = CONFIG, **how) -> SimpleNamespace:
    """Findings of a record, ecg [12, m] zero where not observed, frank [3, m] or None; record: or samples."""
    parts = []
    if isinstance(record, np.ndarray):
        record = ArrayRecord("r", 100, record.T, LEADS, "mV")
    findings = condition_record(record, fs, config, lambda *part: parts.append(part), **how)
    ecg = np.concatenate([part[0] for part in parts], axis=1)
    ecg[~findings.observed] = 0.0
    frank = [part[1] for part in parts if part[1] is not None]
    whole = np.concatenate(frank, axis=1) if len(frank) == len(parts) else None
    return SimpleNamespace(ecg=ecg, frank=whole, parts=len(parts), **vars(findings))


def test_gaps_short_and_long() -> None:
    x = heart(1000, 100)
    clean = conditioned(x)
    x[300:310, 6] = np.nan  # 0.1 s of V1: interpolated
    x[500:560, 7] = np.nan  # 0.6 s of V2: a gap
    x[:700, 8] = np.nan  # most of V3
    x[:, 9] = np.nan  # all of V4
    result = conditioned(x)
    assert result.words == ["gap"] and np.isfinite(result.ecg).all()
    assert [LEADS[i] for i in np.flatnonzero(~result.observed)] == ["V3", "V4"]
    (gap,) = [span for span in result.spans if span.lead == "V2"]
    assert (gap.start_s, gap.stop_s) == (5.0, 5.6)
    assert not [span for span in result.spans if span.lead == "V1"]
    np.testing.assert_allclose(result.ecg[0], clean.ecg[0], atol=1e-9)


def test_flat_leads_and_flags_of_the_database() -> None:
    x = heart(1000, 100)
    x[:, 11] = 0.2
    result = conditioned(x, flags=("uncalibrated",))
    assert result.words == ["flat:V6", "uncalibrated"] and not result.observed[11]
    assert result.quality == pytest.approx(11 / 12)
    with pytest.raises(RecordError, match=r"too short: 1\.00 s, at least 2 s"):
        conditioned(x[:100])


def test_corner_above_nyquist_is_lowered_and_said() -> None:
    settings = preprocessing_settings(DataConfig(fs=60), CONFIG)
    assert settings["high_hz"] == pytest.approx(27) and settings["high_hz_asked"] == 40
    assert "high_hz_asked" not in preprocessing_settings(DataConfig(), CONFIG)
    with pytest.raises(ConfigError, match=r"preprocess\.low_hz is 30"):
        preprocessing_settings(DataConfig(fs=60), PreprocessConfig(low_hz=30))


def test_real_500_hz_agrees_with_real_100_hz(shared_data: Path) -> None:
    """PTB-XL's derived 100 Hz files were made by someone else's resampling of the same 500 Hz records."""
    names = ("records100/00000/00020_lr", "records500/00000/00020_hr")
    slow, fast = (conditioned(open_record(shared_data / "ptbxl" / name)).ecg[:, 50:-50] for name in names)
    assert min(np.corrcoef(slow[i], fast[i])[0, 1] for i in range(12)) > 0.98


def assert_stretches_are_as_the_whole(
    path: Path,
    config: PreprocessConfig = CONFIG,
    backend: str = "scipy",
    atol: float = 1e-6,
    piece: int = 3000,
) -> SimpleNamespace:
    """Stretches of `piece` samples, about 20 s, so that a record of three minutes has several."""
    both = []
    for longest in (1 << 30, 2 * piece):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conditioning, "PIECE", piece)
            patch.setattr(conditioning, "WHOLE", longest)
            both.append(conditioned(open_record(path), 100, config, backend=backend))
    whole, results = both
    assert whole.parts == 1 < results.parts and results.ecg.shape == whole.ecg.shape
    np.testing.assert_array_equal(results.observed, whole.observed)
    assert np.abs(results.ecg - whole.ecg).max() < atol
    assert (results.frank is None) == (whole.frank is None)
    assert whole.frank is None or np.abs(results.frank - whole.frank).max() < atol
    words, spans = [], []
    for each in (results, whole):
        words.append([word for word in each.words if word.partition(":")[0] not in LOCAL])
        spans.append(sorted((span for span in each.spans if span.flag not in LOCAL), key=str))
    assert words[0] == words[1]
    assert [(s.flag, s.lead) for s in spans[0]] == [(s.flag, s.lead) for s in spans[1]]
    times = [[(s.start_s, s.stop_s) for s in part] for part in spans]
    np.testing.assert_allclose(times[0], times[1], atol=CONFIG.flat_seconds / 4)  # a block of the check
    results.whole = whole
    return results


@pytest.mark.parametrize(("rate", "backend"), [(100, "scipy"), (257.3, "numpy"), (500, "numpy")])
def test_the_signal_of_stretches_is_that_of_the_whole(tmp_path: Path, rate, backend) -> None:
    path = write_record(tmp_path, "r", rate, heart(20_011, rate, frank=True), [*LEADS, *FRANK])
    # The NumPy filter continues a stretch periodically.
    assert_stretches_are_as_the_whole(path, CONFIG, backend, 1e-6 if backend == "scipy" else 1e-5)


@pytest.mark.parametrize(("low_hz", "order"), [(0.0, 3), (0.25, 3), (0.67, 8)])
def test_the_context_is_as_long_as_the_filter_remembers(tmp_path: Path, low_hz, order) -> None:
    path = write_record(tmp_path, "r", 125, heart(25_000, 125), LEADS)
    assert_stretches_are_as_the_whole(path, PreprocessConfig(low_hz=low_hz, order=order))


def damaged(fs: float) -> np.ndarray:
    """Something of every flag, over the borders of stretches (every 3000 samples) and at both ends."""
    x = heart(30_000, fs, frank=True)
    x[:50, 0] = np.nan  # a gap at the start
    x[2990:3070, 0] = np.nan
    x[5995:6000, 0] = np.nan  # short, up to a border
    x[6000:6003, 2] = np.nan  # short, from a border on
    x[4000:11_500, 6] = np.nan  # more than two stretches
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


def test_the_findings_of_stretches_are_those_of_the_whole(tmp_path: Path) -> None:
    path = write_record(tmp_path, "r", 125, damaged(125), [*LEADS, *FRANK], gain=500)
    result = assert_stretches_are_as_the_whole(path, atol=1e-3)  # a gap is longer than the context
    flags = {span.flag for span in result.whole.spans} - {*LOCAL}
    assert flags == {"gap", "flat", "saturated", "algebra", "amplitude"} and not result.observed[10]


def test_noise_a_wrong_checksum_and_a_gap_of_a_frank_lead_over_stretches(tmp_path: Path) -> None:
    x = heart(30_000, 125, frank=True)
    x[10_000:12_500, 8] += 0.3 * np.random.default_rng(5).normal(size=2500)  # 80 to 100 s, over a border
    x[9000:9100, 13] = np.nan
    path = write_record(tmp_path, "r", 125, x, [*LEADS, *FRANK])
    data = bytearray(path.with_suffix(".dat").read_bytes())
    data[15 * 2 * 9000] ^= 1
    path.with_suffix(".dat").write_bytes(data)
    stretches = assert_stretches_are_as_the_whole(path)
    for result in (stretches.whole, stretches):
        assert result.words == ["checksum", "noise:V3"] and result.frank is None
        spans = {span.flag: span for span in result.spans}
        np.testing.assert_allclose((spans["noise"].start_s, spans["noise"].stop_s), (80.0, 100.0), atol=1.0)
        checksum = spans["checksum"]
        assert (checksum.lead, checksum.start_s, checksum.stop_s) == ("I", 0.0, 240.0)


@pytest.mark.parametrize("n", [1000, 1 << 19])
def test_a_record_without_a_usable_lead(n: int) -> None:
    with pytest.raises(RecordError, match="no usable lead: flat:I; flat:II"):
        conditioned(np.zeros((n, 12), np.float32))


MEASURE = """
import sys
from pathlib import Path
from ecggen.prepare.preprocess import conditioning
from ecggen.io.records import open_record
from ecggen.utils.config import PreprocessConfig
import numpy, scipy.signal
def peak():  # KiB; getrusage would count the process that started this one
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
before = peak()
conditioning.PIECE = conditioning.WHOLE = 1 << 15
record = open_record(Path(sys.argv[1]))
conditioning.condition_record(record, 100, PreprocessConfig(), lambda ecg, frank: None)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_record(tmp_path: Path) -> None:
    """MiB above the imports for 3 and for 9 minutes of twelve leads at 500 Hz, a minute at a time."""
    peaks = []
    for minutes in (3, 9):
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


def test_real_half_hour_in_stretches(shared_data: Path) -> None:
    """mitdb 100: 30 minutes at 360 Hz, at the stretches' real size."""
    assert_stretches_are_as_the_whole(shared_data / "mitdb" / "100", piece=conditioning.PIECE)
