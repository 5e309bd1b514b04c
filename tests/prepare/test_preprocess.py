"""Records in, one table and one array out: content, reasons, and nothing half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecggen.data.filters import condition
from ecggen.io.records import RecordError, read_record, write_record
from ecggen.leads import EXPAND, FRANK, LEADS
from ecggen.prepare.download.source import list_source, write_source
from ecggen.prepare.preprocess.stage import condition_recording, preprocess, preprocessing_settings
from ecggen.utils.config import ConfigError, DataConfig, PreprocessConfig
from ecggen.utils.files import read_csv, read_json

DATA, RULES = DataConfig(), PreprocessConfig()


def heart(seconds: float, fs: float, seed: int, frank: bool = False) -> np.ndarray:
    """[n, 12 or 15] mV: something with peaks, limb algebra exact."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * fs)) / fs
    beats = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.02) ** 2)
    sources = rng.normal(size=(8, 1)) * beats + 0.01 * rng.normal(size=(8, len(t)))
    ecg = EXPAND @ sources
    return np.concatenate([ecg, sources[:3]]).T if frank else ecg.T


def make(tmp_path: Path, data: DataConfig = DATA) -> tuple[Path, Path]:
    """(raw, out) for the records in tmp_path/wfdb."""
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    write_source(raw, list_source(tmp_path / "wfdb", fs=data.fs))
    return raw, tmp_path / "records"


def test_content_and_tables(tmp_path):
    wfdb = tmp_path / "wfdb"
    write_record(wfdb, "a", 500, heart(6, 500, 1), LEADS, ["Dx: X,Y", "Patient: p1", "Age: 50", "Sex: M"])
    write_record(wfdb, "b", 360, heart(4, 360, 2)[:, [1, 7]], ["II", "V2"])
    write_record(wfdb, "c", 100, heart(1, 100, 3), LEADS)  # too short
    (wfdb / "d.hea").write_text("d 1 100 10\nd.dat 16 200 16 0 0 0 0 I\n")
    raw, out = make(tmp_path)
    counts = preprocess(raw, out, DATA, RULES)
    assert (counts["listed"], counts["records"], counts["rejected"], counts["frank"]) == (4, 2, 2, False)
    a, b = read_csv(out / "records.csv")
    assert (a["patient"], a["labels"], a["age"], a["sex"], a["reasons"]) == ("p1", "X;Y", "50", "male", "")
    assert (b["patient"], b["observed"], b["fs_raw"]) == ("b", "010000010000", "360")
    assert b["reasons"].count("missing:") == 10 and float(b["quality"]) == pytest.approx(2 / 12, abs=1e-5)
    assert (int(a["offset"]), int(a["n_samples"]), int(b["offset"]), int(b["n_samples"])) == (
        0,
        600,
        600,
        400,
    )
    signals = np.load(out / "signals.npy", mmap_mode="r")
    assert signals.shape == (1000, 12) and signals.dtype == np.float32
    recording = read_record(wfdb / "a")
    wanted = condition(recording.ecg, 500, 100, low_hz=0.67, high_hz=40)
    np.testing.assert_array_equal(signals[:600].T, wanted.astype(np.float32))
    assert not signals[600:, 0].any() and signals[600:, 1].any()
    reasons = {row["record"]: row["reason"] for row in read_csv(out / "rejected.csv")}
    assert reasons["c"].startswith("too short: 1.00 s") and "no signal file" in reasons["d"]
    meta = read_json(out / "meta.json")
    assert (
        meta["preprocessing"]["high_hz"] == 40 and meta["preprocessing"]["order"] == 3 and meta["fs"] == 100
    )
    assert not (out / "frank.npy").exists()


def test_same_input_same_bytes(tmp_path):
    write_record(tmp_path / "wfdb", "a", 250, heart(5, 250, 1), LEADS)
    raw, out = make(tmp_path)
    preprocess(raw, out, DATA, RULES)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    preprocess(raw, out, DATA, RULES)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_frank_only_if_every_record_has_it(tmp_path):
    wfdb = tmp_path / "wfdb"
    channels = [*LEADS, *FRANK]
    write_record(wfdb, "a", 500, heart(5, 500, 1, frank=True), channels)
    raw, out = make(tmp_path)
    assert preprocess(raw, out, DATA, RULES)["frank"]
    frank, signals = np.load(out / "frank.npy"), np.load(out / "signals.npy")
    # The sources of I and II are the first two Frank rows here.
    np.testing.assert_allclose(frank[:, :2], signals[:, :2], atol=1e-3)
    write_record(wfdb, "b", 500, heart(5, 500, 1), LEADS)
    raw, out = make(tmp_path)
    assert not preprocess(raw, out, DATA, RULES)["frank"] and not (out / "frank.npy").exists()


def test_gaps_short_and_long(tmp_path):
    x = heart(10, 100, 1)
    clean = read_record(write_record(tmp_path, "clean", 100, x, LEADS))
    x[300:310, 6] = np.nan  # 0.1 s of V1: interpolated
    x[500:560, 7] = np.nan  # 0.6 s of V2: a gap
    x[:700, 8] = np.nan  # most of V3
    x[:, 9] = np.nan  # all of V4
    made = condition_recording(read_record(write_record(tmp_path, "g", 100, x, LEADS)), 100, RULES)
    assert made.words == ["gap"] and np.isfinite(made.ecg).all()
    assert [LEADS[i] for i in np.flatnonzero(~made.observed)] == ["V3", "V4"]
    assert not made.ecg[8:10].any()
    (gap,) = [s for s in made.spans if s.lead == "V2"]
    assert (gap.start_s, gap.stop_s) == (5.0, 5.6)
    assert not [s for s in made.spans if s.lead == "V1"]
    whole = condition_recording(clean, 100, RULES)
    np.testing.assert_array_equal(made.ecg[0], whole.ecg[0])


def test_flat_leads(tmp_path):
    x = heart(10, 100, 1)
    x[:, 11] = 0.2
    made = condition_recording(read_record(write_record(tmp_path, "f", 100, x, LEADS)), 100, RULES)
    assert made.words == ["flat:V6"] and not made.observed[11] and made.quality == pytest.approx(11 / 12)
    x[:] = 0
    with pytest.raises(RecordError, match="no usable lead: flat:I; flat:II"):
        condition_recording(read_record(write_record(tmp_path, "z", 100, x, LEADS)), 100, RULES)


def test_noise_and_inverted_leads_reach_the_tables(tmp_path):
    x = heart(20, 500, 1)
    x[2500:5000, 8] += 0.5 * np.random.default_rng(0).normal(size=2500)  # 5 to 10 s of V3
    x[:, 2] *= -1  # III upside down
    write_record(tmp_path / "wfdb", "a", 500, x, LEADS)
    raw, out = make(tmp_path)
    assert preprocess(raw, out, DATA, RULES)["records_by_flag"] == {"algebra": 1, "noise": 1, "polarity": 1}
    (row,) = read_csv(out / "records.csv")
    assert row["reasons"] == "algebra;noise:V3;polarity:III" and row["observed"] == "1" * 12
    assert float(row["quality"]) == pytest.approx(11 / 12, abs=1e-5)  # V3 is noisy for a quarter of the time
    spans = {r["flag"]: r for r in read_csv(out / "spans.csv")}
    assert 4 <= float(spans["noise"]["start_s"]) <= 5.25 and 9.75 <= float(spans["noise"]["stop_s"]) <= 11
    assert (spans["polarity"]["lead"], spans["polarity"]["start_s"]) == ("III", "0.0000")
    assert float(spans["polarity"]["stop_s"]) == 20


def test_no_usable_record_says_why_and_leaves_nothing(tmp_path):
    for name in ("a", "b", "c"):
        write_record(tmp_path / "wfdb", name, 100, heart(1, 100, 1), LEADS)
    (tmp_path / "wfdb" / "c.dat").write_bytes(b"")
    raw, out = make(tmp_path)
    with pytest.raises(
        RecordError, match=r"None of the 3 records is usable: too short: 1\.00 s.* \(2\); .*truncated"
    ):
        preprocess(raw, out, DATA, RULES)
    assert not out.exists() and {path.name for path in tmp_path.iterdir()} == {"raw", "wfdb"}


def test_corner_above_nyquist_is_lowered_and_said():
    settings = preprocessing_settings(DataConfig(fs=60), RULES)
    assert settings["high_hz"] == pytest.approx(27) and settings["high_hz_asked"] == 40
    assert "high_hz_asked" not in preprocessing_settings(DATA, RULES)
    with pytest.raises(ConfigError, match=r"preprocess\.low_hz is 30"):
        preprocessing_settings(DataConfig(fs=60), PreprocessConfig(low_hz=30))


def test_limit(tmp_path):
    for name in ("a", "b", "c"):
        write_record(tmp_path / "wfdb", name, 100, heart(5, 100, 1), LEADS)
    raw, out = make(tmp_path)
    assert preprocess(raw, out, DataConfig(limit=2), RULES)["records"] == 2


def test_real_500_hz_agrees_with_real_100_hz(shared_data, tmp_path):
    """PTB-XL's derived 100 Hz files were made by someone else's resampling of the same 500 Hz records."""
    name = "00020"
    slow = condition_recording(read_record(shared_data / f"ptbxl/records100/00000/{name}_lr"), 100, RULES)
    fast = condition_recording(read_record(shared_data / f"ptbxl/records500/00000/{name}_hr"), 100, RULES)
    inner = slice(50, -50)
    r = [np.corrcoef(slow.ecg[i, inner], fast.ecg[i, inner])[0, 1] for i in range(12)]
    assert min(r) > 0.98
