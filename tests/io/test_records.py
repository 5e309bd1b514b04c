"""The reader against the writer, against wfdb itself, and against broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecggen.io.records import RecordError, open_record, read_record, write_record
from ecggen.leads import FRANK, LEADS

ROWS = [(lead, i) for i, lead in enumerate(LEADS)]


def signals(n: int = 700, channels: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.5, size=(n, channels)).round(3)


def write_plain(folder: Path, x: np.ndarray, channels: list[str], units: list[str], fmt: str = "16") -> Path:
    """Record u, straight through wfdb, so that units and formats are free."""
    formats = [fmt] * len(channels)
    wfdb.wrsamp("u", 100, units, channels, p_signal=x, fmt=formats, write_dir=str(folder))
    return folder / "u"


@pytest.mark.parametrize(("fs", "unit"), [(250, "mV"), (128.5, "uV"), (250, "nV"), (250, "V")])
def test_round_trip(tmp_path, fs, unit):
    x, names = signals(channels=15), [*LEADS, *FRANK]
    x[100:120, 0] = x[0, 1] = x[:, 2] = np.nan
    path = write_record(tmp_path, "a_1", fs, x, names, ["Dx: A,B", "Patient: p"], unit=unit)
    record, back = open_record(path), read_record(path)
    assert back.fs == fs and record.name == "a_1" and record.comments == ["Dx: A,B", "Patient: p"]
    np.testing.assert_allclose(back.ecg, x[:, :12].T, atol=0.00026)
    np.testing.assert_allclose(back.frank, x[:, 12:].T, atol=0.00026)
    assert back.observed.all() and wfdb.rdheader(str(path)).units == [unit] * 15
    assert read_record(path, limit=100).ecg.shape == (12, 100)


@pytest.mark.parametrize(("fs", "unit", "factor"), [(250, "mV", 1.0), (128.5, "uV", 1e-3)])
def test_the_same_bytes_as_wfdb_writes(tmp_path, fs, unit, factor):
    x, names, comments = signals(channels=15), [*LEADS, *FRANK], ["Dx: A,B", "Sex: M"]
    x[100:120, 0] = x[0, 1] = x[:, 2] = np.nan
    ours = write_record(tmp_path / "ours", "a_1", fs, x, names, comments, unit=unit)
    gains = {"adc_gain": [2000 * factor] * 15, "baseline": [0] * 15, "fmt": ["16"] * 15}
    (tmp_path / "wfdb").mkdir()
    write = {"p_signal": x / factor, "comments": comments, "write_dir": str(tmp_path / "wfdb")}
    wfdb.wrsamp("a_1", fs, [unit] * 15, names, **write, **gains)
    for suffix in (".hea", ".dat"):
        theirs = (tmp_path / "wfdb" / "a_1").with_suffix(suffix)
        assert ours.with_suffix(suffix).read_bytes() == theirs.read_bytes()


def test_amplitudes_beyond_16_bits_are_not_written(tmp_path):
    for largest in (20.0, np.inf):
        with pytest.raises(RecordError, match=f"{largest:g} mV does not fit 16 bits"):
            write_record(tmp_path, "a", 100, np.full((10, 12), largest), LEADS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("channels", "units", "leads", "unknown"),
    [
        (["V5", "I"], ["mV"] * 2, {"I": 1, "V5": 0}, ()),
        ([lead.upper() for lead in LEADS[::-1]], ["mV"] * 12, {lead: 11 - i for lead, i in ROWS}, ()),
        (["II", "RESP", "x", "y", "z"], ["mV", "Ohm", "g", "g", "g"], {"II": 0}, ()),  # not the Frank leads
        (["-aVR", "DI", "\u2161", "ch9", "vx"], ["mV"] * 5, {"I": 1, "II": 2}, ("-aVR", "ch9")),
        # Amplitude decides nothing.
        (["I", "V2"], ["uV", "V"], {"I": 0, "V2": 1}, ()),
        (["I", "V2"], ["UV", "nV"], {"I": 0, "V2": 1}, ()),
    ],
)  # fmt: skip
def test_leads_are_found_by_name_and_scaled_by_unit(tmp_path, channels, units, leads, unknown):
    x = signals(channels=len(channels))
    per_mv = np.array([{"uv": 1e3, "nv": 1e6, "v": 1e-3}.get(unit.lower(), 1.0) for unit in units])
    record = open_record(write_plain(tmp_path, x * per_mv, channels, units))
    back = record.read()
    assert {LEADS[i] for i in np.flatnonzero(back.observed)} == set(leads) and back.frank is None
    assert record.unknown_channels == unknown
    for row, lead in enumerate(LEADS):
        truth = x[:, leads[lead]] if lead in leads else np.full(len(x), np.nan)
        np.testing.assert_allclose(back.ecg[row], truth, atol=3e-4)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_micro_sign_is_not_lost(tmp_path, encoding):
    """wfdb itself reads this header as V, a million times too much."""
    x = signals(channels=1)
    header = write_plain(tmp_path, x * 1e3, ["I"], ["uV"]).with_suffix(".hea")
    header.write_bytes(header.read_text().replace("/uV", "/µV").encode(encoding))
    assert wfdb.rdheader(str(tmp_path / "u")).units == ["V"]
    np.testing.assert_allclose(read_record(tmp_path / "u").ecg[0], x[:, 0], atol=2e-4)


@pytest.mark.parametrize(
    ("channels", "reason"),
    [
        (["I", "i"], "lead I twice, as 'I' and 'i'"),
        (["ch1", "RESP"], "no ECG lead: its channels are ch1, RESP"),
        (["I (uV)"], r"calls a channel 'I \(uV\)' and gives its unit as mV"),
    ],
)
def test_channels_that_are_refused(tmp_path, channels, reason):
    path = write_record(tmp_path, "r", 100, signals(channels=len(channels)), channels)
    with pytest.raises(RecordError, match=reason) as error:
        read_record(path)
    assert error.value.unknown_channels == (("ch1",) if "ch1" in channels else ())


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32", "80"])
@pytest.mark.parametrize("share", [0.0, 0.999])
def test_truncated_signal_file(tmp_path, fmt, share):
    path = write_plain(tmp_path, signals(channels=3), ["I", "II", "V1"], ["mV"] * 3, fmt)
    read_record(path)
    dat = path.with_suffix(".dat")
    dat.write_bytes(dat.read_bytes()[: int(share * dat.stat().st_size)])
    with pytest.raises(RecordError, match=r"u\.dat of record u is truncated: \d+ frames"):
        read_record(path)


def test_files_in_upper_case(tmp_path):
    """As from a FAT disk: the header names a.dat, the files are called A.HEA and A.DAT."""
    path = write_record(tmp_path, "a", 100, signals(), LEADS)
    whole = read_record(path)
    for suffix in (".hea", ".dat"):
        path.with_suffix(suffix).rename(tmp_path / f"A{suffix.upper()}")
    for name in ("a", "A"):
        np.testing.assert_array_equal(read_record(tmp_path / name).ecg, whole.ecg)


@pytest.mark.parametrize(
    "name",
    [
        *("ptbxl/records100/00000/00001_lr", "ptbdb/patient001/s0010_re"),
        *("challenge/cpsc2018/A0001", "ludb/data/1"),
    ],
)
def test_real_records_equal_wfdb(shared_data, name):
    plain = wfdb.rdrecord(str(shared_data / name))
    back = read_record(shared_data / name)
    where = {n.lower(): i for i, n in enumerate(plain.sig_name)}
    assert back.fs == plain.fs and back.observed.all()
    for row, lead in enumerate(LEADS):
        np.testing.assert_array_equal(back.ecg[row], plain.p_signal[:, where[lead.lower()]])
    if "ptbdb" in name:
        np.testing.assert_array_equal(back.frank, plain.p_signal[:, [where[n] for n in FRANK]].T)


def test_real_golden_numbers(shared_data):
    # First samples of 00001_lr as PTB-XL's own header states them: initial values in uV.
    back = read_record(shared_data / "ptbxl/records100/00000/00001_lr")
    np.testing.assert_allclose(back.ecg[:3, 0], [-0.119, -0.055, 0.064], atol=1e-12)
    mitdb = read_record(shared_data / "mitdb/100", limit=500)
    assert [LEADS[i] for i in np.flatnonzero(mitdb.observed)] == ["V5"]
