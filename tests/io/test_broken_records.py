"""Headers that lie, and files that are no files: one sentence, at once, nothing allocated on their word."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ecggen.io.header import MAX_HEADER_BYTES
from ecggen.io.records import RecordError, open_record, read_record, write_record
from ecggen.leads import LEADS

SECONDS = 2
ROOM = 300 << 20  # bytes of address space beyond what the test process has


@contextmanager
def bounded() -> Iterator[None]:
    """Little time (of this process; the machine may be busy), and little memory beyond what is in use."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, before[1]))
    began = time.process_time()
    old = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - began < SECONDS


def reject(folder: Path, header: str | bytes, reason: str) -> None:
    """The header, with a signal file (2000 samples unless there is one), is refused for that reason."""
    (folder / "r.hea").write_bytes(header.encode() if isinstance(header, str) else header)
    if not (folder / "r.dat").exists():
        (folder / "r.dat").write_bytes(np.arange(2000, dtype="<i2").tobytes())
    with bounded(), pytest.raises(RecordError, match=reason) as error:
        read_record(folder / "r")
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 700, sentence


BIG = 10**12
HUGE = "9" * 400


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            f"r 1 500 {BIG}\nr.dat 16 200 16 0 0 0 0 I",
            f"truncated: 2000 frames, the .* {BIG}",
        ),
        (f"r 1 500 {BIG}\nr.dat 516 200 16 0 0 0 0 I", "not a FLAC file"),
        (f"r 1 500 {HUGE}\nr.dat 16 200 16 0 0 0 0 I", "number of samples: '9+' is not an integer"),
        ("r 1 500 -5\nr.dat 16 200 16 0 0 0 0 I", "number of samples: '-5' is not an integer from 0"),
        ("r 1000000000 500 100\nr.dat 16 200 16 0 0 0 0 I", "1000000000 signals, at most 1024"),
        ("r 900 500 100\nr.dat 16 200 16 0 0 0 0 I", "announces 900 signals and describes 1"),
        ("r -1 500 100\nr.dat 16 200", "number of signals: '-1'"),
        ("r", "number of signals: ''"),
        ("r 0 500 100", "has no signals"),
        ("r 1\nr.dat 16 200 16 0 0 0 0 I", "it states no sampling rate"),
        ("r 1 0 100\nr.dat 16 200 16 0 0 0 0 I", "sampling rate is '0'"),
        ("r 1 1e400 100\nr.dat 16 200 16 0 0 0 0 I", "sampling rate is '1e400'"),
        ("r 1 nan 100\nr.dat 16 200 16 0 0 0 0 I", "sampling rate is 'nan'"),
        ("r 1 2 100\nr.dat 16 200 16 0 0 0 0 I", "has its ECG at 2 Hz: 20 to 200000 Hz"),
        ("r 1 100e3 100\nr.dat 16x9 200 16 0 0 0 0 I", "has its ECG at 900000 Hz: 20 to 200000 Hz"),
        ("r 1 500 100\nr.dat 16x1000000000 200 16 0 0 0 0 I", r"has its ECG at 5e\+11 Hz"),
        ("r 1 500 100\nr.dat 16x400 200 16 0 0 0 0 I", "truncated: 5 frames, the header promises 100"),
        ("r 1 500 100\nr.dat 16x0 200 16 0 0 0 0 I", "0 samples per frame"),
        ("r 1 500 100\nr.dat 16:1000000000 200 16 0 0 0 0 I", "skew of 1000000000 frames"),
        ("r 1 500 100\nr.dat 16+1000000000000 200 16 0 0 0 0 I", "truncated"),
        ("r 1 500 100\nr.dat 16+-24 200 16 0 0 0 0 I", r"the format '16\+-24'"),
        ("r 1 500 100\nr.dat 77 200 16 0 0 0 0 I", "format 77: 8, 16, 24"),
        (f"r 1 500 100\nr.dat {HUGE} 200 16 0 0 0 0 I", "format 9+: 8, 16"),
        ("r 1 500 100\nr.dat sixteen 200 16 0 0 0 0 I", "the format 'sixteen'"),
        ("r 1 500 100\nr.dat", "signal 0 has no format"),
        ("r 1 500 100\nr.dat 16 nan/mV 16 0 0 0 0 I", "gain 'nan'"),
        ("r 1 500 100\nr.dat 16 1e300/mV 16 0 0 0 0 I", "gain '1e300'"),
        (f"r 1 500 100\nr.dat 16 200({HUGE})/mV 16 0 0 0 0 I", "baseline of signal 0: '9+'"),
        ("r 1 500 100\nr.dat 16 200/mmHg 16 0 0 0 0 I", "lead I in 'mmHg'"),
        ("r 1 500 100\n../../etc/passwd 16 200 16 0 0 0 0 I", r"names the file '\.\./\.\./etc/passwd'"),
        ("r 1 500 100\n/etc/passwd 16 200 16 0 0 0 0 I", "names the file '/etc/passwd'"),
        ("r 1 500 100\n..\\x 16 200 16 0 0 0 0 I", "only a plain name"),
        ("r 2 500 100\nr.dat 16 200 16 0 0 0 0 I\nr.dat 212 200 16 0 0 0 0 II", "two formats or offsets"),
        ("r 2 500 100\nr.dat 16 200 16 0 0 0 0 I\nr.dat 16+2 200 16 0 0 0 0 II", "two formats or offsets"),
        ("r/2 1 500 200\nr 100\nr 100", "names itself as a segment"),
        ("r/0 1 500 200\nx 100", "announces 0 segments"),
        ("r/3 1 500 200\nx 100", "announces 3 segments and lists 1"),
        ("r/1 1 500 200\nx", "length of segment x: ''"),
        (f"r/2 1 500 200\n~ {BIG}\n~ {BIG}", "null segments alone"),
        ("r/1 1 500 200\n../x 200", r"names the file '\.\./x'"),
        (b"r 1 500 100\nr.dat 16 200 16 0 0 0 0 I\0", "NUL bytes"),
        (b"\xff\xfe\x00r", "NUL bytes"),
        (b"\x80\x81\x82 \x90", "number of signals"),
        ("\n \t\n# only a comment", "it is empty"),
        ("r 1 500 100 " + "9" * 5000, "a line of 5012 characters"),
    ],
)
def test_a_header_that_lies(tmp_path, header, reason):
    reject(tmp_path, header, reason)


def test_a_header_of_100_mb_is_not_read(tmp_path):
    with (tmp_path / "r.hea").open("wb") as stream:
        stream.truncate(100 << 20)
    with bounded(), pytest.raises(RecordError, match=f"104857600 bytes, at most {MAX_HEADER_BYTES}"):
        read_record(tmp_path / "r")


@pytest.mark.parametrize("line", ["x 1\n", "~ 1\n", "a" * 4000 + " ", "\r", "(" * 50 + "\n"])
def test_a_header_of_full_size_is_refused_in_time(tmp_path, line):
    text = "r/300000 1 500 300000\n" + line * ((MAX_HEADER_BYTES - 30) // len(line))
    (tmp_path / "r.hea").write_text(text)
    with bounded(), pytest.raises(RecordError):
        read_record(tmp_path / "r")


@pytest.mark.parametrize("what", ["fifo", "directory", "link to itself", "broken link", "device", "nothing"])
@pytest.mark.parametrize("name", ["r.hea", "r.dat"])
def test_a_file_that_is_none(tmp_path, what, name):
    write_record(tmp_path, "r", 100, np.zeros((100, 12)), LEADS)
    path = tmp_path / name
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what != "nothing":
        path.symlink_to({"link to itself": path, "broken link": tmp_path / "x", "device": "/dev/zero"}[what])
    with bounded(), pytest.raises(RecordError, match=r"cannot be read|does not exist"):
        read_record(tmp_path / "r")


def test_links_to_files_are_followed(tmp_path):
    """Data under version control are often links."""
    store = tmp_path / "store"
    path = write_record(store, "r", 100, np.ones((100, 12)), LEADS)
    for suffix in (".hea", ".dat"):
        (tmp_path / f"r{suffix}").symlink_to(path.with_suffix(suffix))
    np.testing.assert_array_equal(read_record(tmp_path / "r").ecg, np.ones((12, 100)))


def test_a_flac_file_that_promises_more_than_it_has(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    zeros = np.zeros((500, 1), dtype=np.int16)
    soundfile.write(tmp_path / "r.dat", zeros, 96, format="FLAC", subtype="PCM_16")
    (tmp_path / "r.hea").write_text("r 1 100 500\nr.dat 516 200 16 0 0 0 0 I\n")
    assert read_record(tmp_path / "r").ecg.shape == (12, 500)
    body = bytearray((tmp_path / "r.dat").read_bytes())
    promised = (1 << 36) - 1  # samples, in the last 36 bits of bytes 18 to 25
    body[18:26] = (int.from_bytes(body[18:26], "big") | promised).to_bytes(8, "big")
    (tmp_path / "r.dat").write_bytes(body)
    line = "r.dat 516 200 16 0 0 0 0 I\n"
    reject(tmp_path, f"r 1 100 {promised}\n{line}", "cannot be read")
    reject(tmp_path, f"r 1 100\n{line}", "cannot be read")
    reject(tmp_path, f"r 2 100\n{line}r.dat 516", "has 1 channels of 16 bits: the header")
    reject(tmp_path, f"r 1 100\n{line}".replace("516", "508"), "16 bits: the header says 1 of up to 8 bits")


CLEAN = "r 2 500 100\nr.dat 16 200(-3)/mV 16 0 0 -1 0 I\nr.dat 16 200(-3)/mV 16 0 1 -1 0 II\n# Dx: A\n"


@pytest.mark.parametrize(
    "header",
    [
        CLEAN,
        CLEAN.replace("\n", "\r\n"),
        CLEAN.replace("\n", "\r"),
        CLEAN.replace("\n", "  \t \n"),
        CLEAN.replace(" ", "\t").replace("Dx:\t", "Dx: "),
        CLEAN.replace("\n", "\n\n \n"),
        "\ufeff" + CLEAN,
        "# before\n" + CLEAN,
        CLEAN.replace("r 2", "another.name-of-its-own 2"),
        CLEAN.replace("500 100", "500/1000(0.5) 100 12:00:00 31/12/2020"),
        CLEAN.replace("500 100", "5e2 100 not a time"),
        CLEAN.replace("500 100", "500"),
        CLEAN.replace("500 100", "500 0"),
        CLEAN.replace(" 16 0 0 -1 0 I\n", " I\n").replace(" 16 0 1 -1 0 II\n", " II\n"),
        CLEAN.replace("II\n", "II\nr.dat 16 200 a line too many\n"),
        CLEAN.replace("200(-3)/mV", "0.2(-3)/uV"),
    ],
)
def test_headers_that_are_untidy_but_clear(tmp_path, header):
    (tmp_path / "r.hea").write_bytes(header.encode())
    (tmp_path / "r.dat").write_bytes(np.arange(200, dtype="<i2").tobytes())
    back = read_record(tmp_path / "r")
    assert back.fs == 500 and "Dx: A" in open_record(tmp_path / "r").comments
    np.testing.assert_allclose(back.ecg[:2], (np.arange(200).reshape(100, 2).T + 3) / 200, rtol=1e-12)


def test_upper_case_suffix_and_latin_1(tmp_path):
    header = "r 1 500 100\nmüll.dat 16 200/µV 16 0 0 0 0 I\n# Müller\n"
    (tmp_path / "r.HEA").write_bytes(header.encode("latin-1"))
    (tmp_path / "müll.dat").write_bytes(np.arange(100, dtype="<i2").tobytes())
    back = read_record(tmp_path / "r")
    assert open_record(tmp_path / "r").comments == ["Müller"]
    np.testing.assert_allclose(back.ecg[0], np.arange(100) / 200e3)


def test_stretches_that_are_none(tmp_path):
    record = open_record(write_record(tmp_path, "r", 100, np.zeros((100, 12)), LEADS))
    assert record.read(90, 10**9).ecg.shape == (12, 10)
    for start, stop in ((-1, 5), (5, 5), (7, 3), (100, 101)):
        with pytest.raises(RecordError, match=r"has 100 samples: .* is no stretch of it"):
            record.read(start, stop)
