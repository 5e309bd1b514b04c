"""Properties of the reader: what is packed comes out, in every stretch; what is broken is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import wfdb
import wfdb_by_hand as hand
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_records as fuzz
from ecggen.io.header import parse_header, read_header
from ecggen.io.records import RecordError, open_record
from ecggen.leads import LEADS

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
CORPUS = fuzz.seeds(None)

gains = st.floats(1e-3, 1e5).map(lambda g: float(f"{g:.6g}")) | st.sampled_from([200.0, -200.0])
names = st.lists(st.sampled_from([*LEADS, "RESP", "PLETH", "note 1"]), min_size=1, max_size=5, unique=True)


@st.composite
def records(draw) -> tuple[float, list, int]:
    """(frame rate, files, frames): ECG leads all at one rate, other channels at any."""
    frames = draw(st.integers(1, 40))
    per_frame = draw(st.integers(1, 4))
    channels = draw(names.filter(lambda channels: set(channels) & set(LEADS)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    files = []
    while channels:
        count = draw(st.integers(1, len(channels)))
        fmt = draw(st.sampled_from(list(hand.RANGES)))
        file = hand.File(f"s{len(files)}.dat", fmt)
        for name in channels[:count]:
            k = per_frame if name in LEADS or fmt.startswith("5") else draw(st.integers(1, 4))
            low, high = (-60, 60) if fmt == "8" else hand.RANGES[fmt]
            x = rng.integers(low, high, frames * k, endpoint=True)
            skew = draw(st.integers(0, min(5, frames)))
            baseline = draw(st.integers(-(2**31), 2**31 - 1) | st.just(0))
            file.signals.append(hand.Signal(name, x, k, draw(gains), baseline, "mV", skew))
        if fmt.startswith("5"):
            file.skip = draw(st.integers(0, 9))
        else:
            file.preamble = draw(st.binary(max_size=30))
        files.append(file)
        channels = channels[count:]
    return draw(st.sampled_from([50, 100, 257, 360.5])), files, frames * per_frame


@quick
@given(records(), st.data())
def test_what_is_packed_comes_out(record, data):
    fs, files, n = record
    with tempfile.TemporaryDirectory() as folder:
        opened = open_record(hand.write(Path(folder), "r", fs, files))
        start = data.draw(st.integers(0, n - 1))
        stop = data.draw(st.integers(start + 1, n))
        assert opened.n_samples == n
        back = opened.read(start, stop)
        assert not opened.read().doubts
    for signal in (s for file in files for s in file.signals if s.name in LEADS):
        shift = signal.skew * signal.per_frame
        truth = np.append(signal.truth[shift:], np.full(shift, np.nan))
        np.testing.assert_array_equal(back.ecg[LEADS.index(signal.name)], truth[start:stop])


@quick
@given(st.integers(0, 10**9))
def test_a_mutated_record_is_read_or_refused(number):
    """As benchmarks/fuzz_records.py does it at length."""
    case = fuzz.mutate(CORPUS, 7, number)
    with tempfile.TemporaryDirectory() as folder:
        outcome, detail = fuzz.judge(fuzz.put(Path(folder) / "case", case))
    assert outcome in ("read", "rejected"), f"{number}: {outcome} {detail}"


token = st.sampled_from([*fuzz.NUMBERS, *fuzz.NAMES, *fuzz.WORDS, *fuzz.FORMATS]) | st.text(max_size=6)
line = st.lists(token, max_size=11).map(" ".join)


@settings(quick, max_examples=100)
@given(
    st.lists(line, max_size=6).map("\n".join).map(lambda text: text.encode("utf-8", "replace")) | st.binary()
)
def test_any_bytes_are_a_header_or_one_sentence(data):
    try:
        header = parse_header("r", data)
    except RecordError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert header.signals or header.segments


@settings(quick, max_examples=30)
@given(records())
def test_a_good_header_says_what_wfdb_reads_in_it(record):
    fs, files, _ = record
    with tempfile.TemporaryDirectory() as folder:
        path = hand.write(Path(folder), "r", fs, files, comments=["Age: 5"])
        assert_same_header(path)


def assert_same_header(path: Path) -> None:
    ours, theirs = read_header(path), wfdb.rdheader(str(path))
    assert (ours.fs, ours.n_frames, ours.comments) == (theirs.fs, theirs.sig_len, theirs.comments)
    for i, signal in enumerate(ours.signals):
        values = (signal.file, signal.fmt, signal.per_frame, signal.gain, signal.baseline, signal.name)
        fields = ("file_name", "fmt", "samps_per_frame", "adc_gain", "baseline", "sig_name")
        assert values == tuple(getattr(theirs, field)[i] for field in fields)
        assert (signal.skew, signal.offset) == (theirs.skew[i] or 0, theirs.byte_offset[i] or 0)
        assert (signal.initial, signal.checksum) == (theirs.init_value[i], theirs.checksum[i])


def test_real_headers_say_what_wfdb_reads_in_them(shared_data):
    folders = [shared_data / name for name in ("ludb", "mitdb", "ptbdb", "challenge")]
    headers = [path for folder in folders for path in folder.rglob("*.hea")]
    for path in [*headers, *sorted((shared_data / "ptbxl").rglob("*.hea"))[::200]]:
        assert_same_header(path.with_suffix(""))


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_the_seed_records_themselves_are_read(tmp_path, number):
    assert fuzz.judge(fuzz.put(tmp_path / "case", CORPUS[number]))[0] == "read"
