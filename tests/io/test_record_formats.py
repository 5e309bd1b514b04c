"""Every format that WFDB writes, packed bit by bit, against the closed form (stored - baseline) / gain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb_by_hand as hand
from scipy.io import loadmat, savemat

from ecggen.io.records import RecordError, open_record, read_record
from ecggen.leads import FRANK, LEADS

FORMATS = list(hand.RANGES)


def numbers(fmt: str, n: int, seed: int = 0) -> np.ndarray:
    """n integers over the whole range of the format, both ends included; format 8: steps of up to 127."""
    low, high = hand.RANGES[fmt]
    rng = np.random.default_rng(seed)
    if fmt == "8":
        return np.cumsum(rng.integers(-127, 128, n))
    x = rng.integers(low, high, n, endpoint=True)
    x[[0, n // 2]] = low, high
    return x


def frames_of(fmt: str, names: dict[str, int], frames: int, seed: int = 0) -> list:
    """Signals name -> samples per frame, each with its own gain and baseline."""
    return [
        hand.Signal(name, numbers(fmt, frames * k, seed + i), k, 50.0 + 7 * i, 3 * i - 5)
        for i, (name, k) in enumerate(names.items())
    ]


def row(recording, name: str) -> np.ndarray:
    return recording.ecg[LEADS.index(name)]


def assert_leads(recording, signals: list) -> None:
    for signal in signals:
        if signal.name in LEADS:
            np.testing.assert_array_equal(row(recording, signal.name), signal.truth)


def matlab_record(folder: Path) -> tuple[Path, hand.File]:
    """As the Challenge files: a level 4 matrix [leads, samples], column by column, after 24 bytes."""
    file = hand.File("r.mat", "16", frames_of("16", dict.fromkeys(LEADS, 1), 80), hand.mat_header(12, 80))
    return hand.write(folder, "r", 500, [file]), file


def change_header(path: Path, old: str, new: str) -> None:
    header = path.with_suffix(".hea")
    text = header.read_text()
    assert old in text
    header.write_text(text.replace(old, new))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("frames", [1, 2, 101])
@pytest.mark.parametrize("names", [{"II": 1}, {"RESP": 1, "I": 3, "abp": 2, "V5": 3}])
def test_every_format_in_whole_and_in_part(tmp_path, fmt, frames, names):
    """Several signals have several frequencies, an offset, and no length in the header."""
    flac, several = fmt.startswith("5"), len(names) > 1
    skip = (b"", 7) if flac else (b"preamble!", 0)
    names = {"I": 3, "V5": 3} if flac and several else names
    file = hand.File("s.bin", fmt, frames_of(fmt, names, frames), *skip if several else ())
    record = open_record(hand.write(tmp_path, "r", 200, [file], length=0 if several else None))
    n = max(names.values()) * frames
    assert record.fs == 200 * n // frames
    assert record.n_samples >= n if several else n  # padding of a packed block may look like samples
    whole = record.read(0, n)
    assert not whole.doubts
    assert_leads(whole, file.signals)
    for start in {0, 1, 2, n // 2, n - 1} & set(range(n)):
        for stop in {start + 1, start + 5, n}:
            part = record.read(start, min(stop, n))
            np.testing.assert_array_equal(part.ecg, whole.ecg[:, start:stop])


def test_ecg_channels_of_two_rates_are_averaged_to_the_frame(tmp_path):
    file = hand.File("s.dat", "16", frames_of("16", {"I": 4, "II": 1, **dict.fromkeys(FRANK, 2)}, 50))
    back = read_record(hand.write(tmp_path, "r", 100, [file]))
    assert back.fs == 100
    mean = [s.truth.reshape(50, -1).mean(axis=1) for s in file.signals]
    np.testing.assert_allclose(row(back, "I"), mean[0])
    np.testing.assert_allclose(row(back, "II"), mean[1])
    np.testing.assert_allclose(back.frank, mean[2:])


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f != "8"])
def test_invalid_samples_are_nan(tmp_path, fmt):
    signals = frames_of(fmt, {"I": 1, "II": 1}, 90)
    lowest = hand.RANGES[fmt][0] - 1
    signals[1].samples[10:20] = lowest
    back = read_record(hand.write(tmp_path, "r", 100, [hand.File("s", fmt, signals)]))
    assert np.isnan(back.ecg[1, 10:20]).all() and np.isfinite(back.ecg[0]).all() and not back.doubts
    assert np.isfinite(back.ecg[1]).sum() == 80


@pytest.mark.parametrize(
    ("kind", "name", "how"),
    [
        (np.int16, "val", {}),
        (float, "val", {}),
        (np.int32, "val", {}),
        (np.int16, "val", {"do_compression": True}),
        (float, "val", {"format": "4"}),
        (np.int16, "longer_name", {"format": "4"}),
    ],
)
def test_a_matlab_file_and_what_it_becomes_when_it_is_saved_anew(tmp_path, kind, name, how):
    """MATLAB 5, or numbers of another type: what was 24 bytes in front of int16 is not there any more."""
    path, file = matlab_record(tmp_path)
    np.testing.assert_array_equal(loadmat(tmp_path / "r.mat")["val"], [s.samples for s in file.signals])
    np.testing.assert_array_equal(read_record(path).ecg, [s.truth for s in file.signals])
    savemat(tmp_path / "r.mat", {name: np.array([s.samples for s in file.signals]).astype(kind)}, **how)
    back = read_record(path)
    np.testing.assert_array_equal(back.ecg, [s.truth for s in file.signals])
    assert back.doubts == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"val": np.full((12, 80), 0.5)}, "its numbers are no integers of 16 bits, so the header's gain"),
        ({"val": np.full((12, 80), 1e30)}, "its numbers are no integers of 16 bits"),
        ({"val": np.zeros((80, 12))}, r"it holds val \[80, 12\] double, one \[12, 80\] is needed"),
        ({"val": np.zeros((12, 79))}, r"val \[12, 79\] double"),
        ({"val": np.zeros((12, 80)), "fs": 500.0}, r"val \[12, 80\] double, fs \[1, 1\] double"),
        ({"val": np.array(["a"] * 12, dtype=object)[:, None]}, r"val \[12, 1\] cell"),
        ({}, "it holds nothing"),
        (None, "is a MATLAB file that is not read"),
    ],
)
def test_a_matlab_file_that_is_not_plain(tmp_path, content, reason):
    path, _ = matlab_record(tmp_path)
    if content is None:  # MATLAB 7.3
        (tmp_path / "r.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(2000))
    else:
        savemat(tmp_path / "r.mat", content)
    with pytest.raises(RecordError, match=r"r\.mat of record r is a MATLAB file that is not read: ") as error:
        read_record(path)
    assert error.match(reason) and "\n" not in str(error.value)


def test_several_files_of_several_formats(tmp_path):
    a = hand.File("a.dat", "212", frames_of("212", {"I": 1, "II": 1}, 77))
    b = hand.File("b.xyz", "80", frames_of("80", dict.fromkeys(FRANK, 1), 77, seed=5), b"1234567")
    c = hand.File("c.dat", "32", frames_of("32", {"PLETH": 1}, 77, seed=9))
    path = hand.write(tmp_path, "r", 360, [a, b, c])
    back = read_record(path)
    np.testing.assert_array_equal(back.ecg[:2], [s.truth for s in a.signals])
    np.testing.assert_array_equal(back.frank, [s.truth for s in b.signals])
    (tmp_path / "c.dat").unlink()  # no lead lies in it
    assert read_record(path).frank is not None
    (tmp_path / "b.xyz").unlink()
    with pytest.raises(RecordError, match=r"no signal file: b\.xyz does not exist"):
        read_record(path)


def segments(folder: Path, **units: str) -> list:
    """Three segments at 250 Hz: I, II, V1; the third in other units and in another order."""
    parts = [frames_of("16", {"I": 1, "II": 1, "V1": 1}, n, seed=n) for n in (50, 31, 64)]
    for signal in parts[2]:
        signal.unit, signal.gain = "uV", 2.0
    for number, signals in enumerate(parts):
        hand.write(folder, f"seg{number}", 250, [hand.File(f"seg{number}.dat", "16", signals)])
    return parts


def test_fixed_layout(tmp_path):
    parts = segments(tmp_path)
    path = hand.write_master(tmp_path, "m", 250, 3, [("seg0", 50), ("seg1", 31), ("seg2", 64)])
    record = open_record(path)
    assert (record.n_samples, record.fs) == (145, 250)
    whole = record.read()
    scale = (1, 1, 1e-3)
    for lead in range(3):
        wanted = np.concatenate([part[lead].truth * k for part, k in zip(parts, scale, strict=True)])
        np.testing.assert_allclose(whole.ecg[(0, 1, 6)[lead]], wanted, rtol=1e-15)
    for start, stop in ((0, 145), (49, 51), (50, 81), (60, 144), (100, 101)):
        np.testing.assert_array_equal(record.read(start, stop).ecg, whole.ecg[:, start:stop])


def test_variable_layout_with_null_segments(tmp_path):
    parts = segments(tmp_path)
    other = frames_of("16", {"RESP": 1, "V1": 1}, 20, seed=3)
    hand.write(tmp_path, "seg3", 250, [hand.File("seg3.dat", "16", other)])
    hand.write(tmp_path, "seg4", 250, [hand.File("seg4.dat", "16", frames_of("16", {"RESP": 1}, 9))])
    hand.write_layout(tmp_path, "m_layout", 250, {"RESP": "Ohm", "I": "mV", "V1": "mV"})
    names = [("m_layout", 0), ("~", 12), ("seg0", 50), ("seg3", 20), ("~", 5), ("seg4", 9), ("seg1", 31)]
    record = open_record(hand.write_master(tmp_path, "m", 250, 3, names))
    whole = record.read()
    assert record.n_samples == 127
    assert [LEADS[i] for i in np.flatnonzero(record.observed)] == ["I", "V1"]
    nothing = [np.full(n, np.nan) for n in (12, 20, 5, 9)]
    first = [nothing[0], parts[0][0].truth, nothing[1], nothing[2], nothing[3], parts[1][0].truth]
    np.testing.assert_array_equal(row(whole, "I"), np.concatenate(first))
    v1 = [nothing[0], parts[0][2].truth, other[1].truth, nothing[2], nothing[3], parts[1][2].truth]
    np.testing.assert_array_equal(row(whole, "V1"), np.concatenate(v1))
    assert np.isnan(record.read(0, 12).ecg).all()


def test_segments_are_read_lazily(tmp_path):
    segments(tmp_path)
    path = hand.write_master(tmp_path, "m", 250, 3, [("seg0", 50), ("seg1", 31), ("seg2", 64)])
    record = open_record(path)
    (tmp_path / "seg0.dat").write_bytes(b"")
    (tmp_path / "seg2.dat").write_bytes(b"")
    assert np.isfinite(record.read(50, 81).ecg[0]).all()
    with pytest.raises(RecordError, match="cannot be read"):
        record.read(40, 60)


THREE = {"seg0": 50, "seg1": 31, "seg2": 64}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (THREE | {"seg1": 32}, r"takes 32 samples from its segment seg1, which has 31"),
        (THREE | {"m": 1}, r"names itself"),
        (THREE | {"other": 1}, r"segment other, which is multi-segment itself"),
        (THREE | {"slow": 5}, r"sampled at 250 Hz and its segment slow at 125 Hz"),
        (THREE | {"gone": 5}, r"Record gone has no header"),
        (THREE | {"less": 9}, r"no lead (I|II) in its segment less"),
        (THREE | {"../seg1": 31}, r"names the file '\.\./seg1'"),
        (THREE | {"~": 10**12}, r"signals for 145 of 1000000000145 samples"),
        ([("seg0", 50), ("seg0", 50)], "names segment seg0 twice"),
        (THREE, "promises 146 samples and its segments add up to 145"),
    ],
)
def test_segments_that_cannot_be(tmp_path, names, reason):
    segments(tmp_path)
    hand.write_master(tmp_path, "other", 250, 3, [("seg0", 50)])
    hand.write(tmp_path, "slow", 125, [hand.File("slow.dat", "16", frames_of("16", {"I": 1}, 5))])
    hand.write(tmp_path, "less", 250, [hand.File("less.dat", "16", frames_of("16", {"V1": 1}, 9))])
    path = hand.write_master(tmp_path, "m", 250, 3, list(getattr(names, "items", lambda: names)()))
    if names == THREE:
        change_header(path, " 145", " 146")
    with pytest.raises(RecordError, match=reason):
        open_record(path)


@pytest.mark.parametrize("field", ["initial value", "checksum"])
@pytest.mark.parametrize("fmt", ["16", "212", "80", "516"])
def test_a_signal_that_contradicts_its_header_is_doubted(tmp_path, fmt, field):
    signals = frames_of(fmt, {"RESP": 1, "I": 1, "II": 1, "V1": 1}, 100)
    path = hand.write(tmp_path, "r", 100, [hand.File("s", fmt, signals)])
    line = path.with_suffix(".hea").read_text().splitlines()[3]
    words = line.split()
    place = 5 if field == "initial value" else 6
    words[place] = str(int(words[place]) + 1)
    change_header(path, line, " ".join(words))
    record = open_record(path)
    assert record.read(0, 99).doubts == []  # not all of it
    assert record.read().doubts == [("checksum", "II")]
    again = open_record(path)
    for start in range(0, 100, 30):  # in stretches that overlap
        again.read(max(0, start - 7), start + 30)
    assert again.doubts() == [("checksum", "II")]


def test_an_uncalibrated_signal_is_doubted(tmp_path):
    """Gain 0 or none: the guide allows 200 steps per mV to be assumed, and so says the doubt."""
    path = hand.write(tmp_path, "r", 100, [hand.File("s", "16", frames_of("16", {"I": 1, "II": 1}, 9))])
    change_header(path, "s 16 50.0(-5)/mV ", "s 16 0 ")
    back = read_record(path)
    assert back.doubts == [("uncalibrated", "I")]
    np.testing.assert_array_equal(back.ecg[0], numbers("16", 9) / 200)
    path.with_suffix(".hea").write_text("r 2 100 9\ns 16\ns 16\n")
    with pytest.raises(RecordError, match="no ECG lead: its channels are signal 0, signal 1"):
        read_record(path)
