"""The reader against the writer, against wfdb itself, and against broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecggen.io.records import RecordError, read_record, write_record
from ecggen.leads import FRANK, LEADS


def signals(n: int = 700, channels: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.5, size=(n, channels)).round(3)


def write_plain(folder: Path, x: np.ndarray, channels: list[str], units: list[str], fmt: str = "16") -> Path:
    """Record u, straight through wfdb, so that units and formats are free."""
    formats = [fmt] * len(channels)
    wfdb.wrsamp("u", 100, units, channels, p_signal=x, fmt=formats, write_dir=str(folder))
    return folder / "u"


@pytest.mark.parametrize("fs", [250, 128.5])
@pytest.mark.parametrize("unit", ["mV", "uV", "nV", "V"])
def test_round_trip(tmp_path, fs, unit):
    x, names = signals(channels=15), [*LEADS, *FRANK]
    x[100:120, 0] = x[0, 1] = x[:, 2] = np.nan
    path = write_record(tmp_path, "a_1", fs, x, names, ["Dx: A,B", "Patient: p"], unit=unit)
    back = read_record(path)
    assert back.fs == fs and back.name == "a_1" and back.comments == ["Dx: A,B", "Patient: p"]
    np.testing.assert_allclose(back.ecg, x[:, :12].T, atol=0.00026)
    np.testing.assert_allclose(back.frank, x[:, 12:].T, atol=0.00026)
    assert back.observed.all() and back.units["I"] == unit
    assert read_record(path, limit=100).ecg.shape == (12, 100)


def test_order_is_by_name(tmp_path):
    x = signals()
    shuffled = np.random.default_rng(1).permutation(12)
    names = [LEADS[i].upper() for i in shuffled]
    straight = read_record(write_record(tmp_path, "s", 100, x, LEADS))
    mixed = read_record(write_record(tmp_path, "m", 100, x[:, shuffled], names))
    np.testing.assert_array_equal(straight.ecg, mixed.ecg)


@pytest.mark.parametrize(("unit", "per_mv"), [("mV", 1), ("uV", 1e3), ("V", 1e-3), ("nV", 1e6), ("UV", 1e3)])
def test_units_come_from_the_header(tmp_path, unit, per_mv):
    x = signals(channels=2)
    # The header of the second channel says mV although the numbers are the same: amplitude decides nothing.
    back = read_record(write_plain(tmp_path, x * per_mv, ["I", "V2"], [unit, "mV"]))
    np.testing.assert_allclose(back.ecg[0], x[:, 0], atol=2e-4)
    np.testing.assert_allclose(back.ecg[LEADS.index("V2")], x[:, 1] * per_mv, rtol=2e-4, atol=2e-4 * per_mv)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_micro_sign_is_not_lost(tmp_path, encoding):
    """wfdb itself reads this header as V, a million times too much."""
    x = signals(channels=1)
    header = write_plain(tmp_path, x * 1e3, ["I"], ["uV"]).with_suffix(".hea")
    header.write_bytes(header.read_text().replace("/uV", "/µV").encode(encoding))
    assert wfdb.rdheader(str(tmp_path / "u")).units == ["V"]
    np.testing.assert_allclose(read_record(tmp_path / "u").ecg[0], x[:, 0], atol=2e-4)


def test_other_channels_may_have_any_unit(tmp_path):
    names, units = ["II", "RESP", "x", "y", "z"], ["mV", "Ohm", "g", "g", "g"]
    back = read_record(write_plain(tmp_path, signals(channels=5), names, units))
    assert back.observed.sum() == 1 and back.frank is None


def test_missing_leads_are_unobserved(tmp_path):
    x = signals(channels=2)
    back = read_record(write_record(tmp_path, "m", 100, x, ["V5", "I"]))
    assert [LEADS[i] for i in np.flatnonzero(back.observed)] == ["I", "V5"]
    np.testing.assert_allclose(back.ecg[0], x[:, 1], atol=3e-4)
    assert np.isnan(back.ecg[1]).all() and back.frank is None


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32", "80"])
@pytest.mark.parametrize("share", [0.0, 0.999])
def test_truncated_signal_file(tmp_path, fmt, share):
    path = write_plain(tmp_path, signals(channels=3), ["I", "II", "V1"], ["mV"] * 3, fmt)
    read_record(path)
    dat = path.with_suffix(".dat")
    dat.write_bytes(dat.read_bytes()[: int(share * dat.stat().st_size)])
    with pytest.raises(RecordError, match=r"u\.dat of record u is truncated: \d+ frames"):
        read_record(path)


def test_repeated_lead(tmp_path):
    path = write_record(tmp_path, "d", 100, signals(channels=2), ["I", "i"])
    with pytest.raises(RecordError, match="lead I twice, as 'I' and 'i'"):
        read_record(path)


def test_names_that_are_not_understood_are_listed(tmp_path):
    names = ["DI", "\u2161", "Lead III (mV)", "-aVR", "ch9", "RESP", "vx"]
    back = read_record(write_record(tmp_path, "a", 100, signals(channels=7), names))
    assert [LEADS[i] for i in np.flatnonzero(back.observed)] == ["I", "II", "III"]
    assert back.unknown_channels == ("-aVR", "ch9") and back.channels == names
    with pytest.raises(RecordError, match="no ECG lead: its channels are ch1, RESP") as error:
        read_record(write_record(tmp_path, "b", 100, signals(channels=2), ["ch1", "RESP"]))
    assert error.value.unknown_channels == ("ch1",)


def test_a_name_that_contradicts_the_unit(tmp_path):
    x = signals(channels=1)
    assert read_record(write_record(tmp_path, "a", 100, x, ["I (mV)"])).observed[0]
    with pytest.raises(RecordError, match=r"calls a channel 'I \(uV\)' and gives its unit as mV"):
        read_record(write_record(tmp_path, "b", 100, x, ["I (uV)"]))


def test_files_in_upper_case(tmp_path):
    """As from a FAT disk: the header names a.dat, the files are called A.HEA and A.DAT."""
    path = write_record(tmp_path, "a", 100, signals(), LEADS)
    whole = read_record(path)
    for suffix in (".hea", ".dat"):
        path.with_suffix(suffix).rename(tmp_path / f"A{suffix.upper()}")
    for name in ("a", "A"):
        np.testing.assert_array_equal(read_record(tmp_path / name).ecg, whole.ecg)


def test_amplitudes_beyond_16_bits_are_not_written(tmp_path):
    for largest in (20.0, np.inf):
        with pytest.raises(RecordError, match=f"{largest:g} mV does not fit 16 bits"):
            write_record(tmp_path, "a", 100, np.full((10, 12), largest), LEADS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "ptbxl/records100/00000/00001_lr",
        "ptbdb/patient001/s0010_re",
        "challenge/cpsc2018/A0001",
        "ludb/data/1",
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
