"""WFDB headers as checked values. Nothing is allocated or opened because a header says so.

Format: header(5) of the WFDB Applications Guide (Moody, PhysioNet). Also accepted, because such files are in
circulation: spaces or tabs between fields, CRLF, blank lines, trailing spaces, a byte order mark, UTF-8 or
Latin-1 text, and optional numbers left out in front of the description. More signal lines than announced are
ignored, as the guide asks; fewer are an error. Standard library only.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ecggen.utils.errors import EcggenError

#: Bytes of a header. 24 hours cut into segments of one second take 1.7 MB.
MAX_HEADER_BYTES = 2 << 20
_MAX_LINE = 4096  # characters of a line that is not a comment; the guide allows 255
_MAX_SIGNALS = 1024
_MAX_INT = 10**18
_FS_RANGE = (0.1, 200_000.0)  # Hz
_GAIN_RANGE = (1e-12, 1e12)  # steps per unit
_DEFAULT_GAIN = 200.0  # DEFGAIN of the guide: what an uncalibrated signal may be read with

#: Factor to mV by unit, compared in lower case; the two Greek letters are micro sign and mu.
MV_PER_UNIT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}

#: What stands in place of a gain that was left out: the description.
_WORD = re.compile(r"(?!(?:nan|inf|infinity)\Z)[^\W\d_]", re.IGNORECASE)
_FORMAT = re.compile(r"([0-9]+)(?:x([0-9]+))?(?::([0-9]+))?(?:\+([0-9]+))?")
_GAIN = re.compile(r"([^(/]*)(?:\(([^)]*)\))?(?:/(.*))?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_INT = re.compile(r"[+-]?[0-9]+")


class RecordError(EcggenError):
    """A record that cannot be read or written: which one, why.

    unknown_channels: names of its channels that were not understood, where that may be the reason.
    """

    unknown_channels: tuple[str, ...] = ()


def mv_per_unit(unit: str) -> float | None:
    """mV per unit; None for a unit that is not one of voltage."""
    return MV_PER_UNIT.get(unit.strip().lower())


@dataclass(frozen=True)
class SignalLine:
    """One signal specification line.

    file: name in the header's folder, "~" = none; fmt: storage format; per_frame: samples per frame; skew:
    frames before sample 0; offset: bytes before the first sample (FLAC: samples); gain in steps per unit;
    baseline in steps; calibrated: the header states a gain; initial, checksum: None = not stated.
    """

    file: str
    fmt: str
    name: str
    per_frame: int = 1
    skew: int = 0
    offset: int = 0
    gain: float = _DEFAULT_GAIN
    calibrated: bool = False
    baseline: int = 0
    unit: str = "mV"
    adc_zero: int = 0
    initial: int | None = None
    checksum: int | None = None


@dataclass(frozen=True)
class Header:
    """One header: fs is the frame rate in Hz; n_frames 0 = not stated; segments: (name, frames)."""

    name: str
    fs: float
    n_frames: int
    signals: tuple[SignalLine, ...] = ()
    segments: tuple[tuple[str, int], ...] = ()
    comments: list[str] = field(default_factory=list)

    @property
    def multi(self) -> bool:
        """Whether this is the master header of a multi-segment record."""
        return bool(self.segments)


def read_header(record: Path) -> Header:
    """The header of a record (path without suffix). Raises RecordError."""
    path = find_file(record.parent, f"{record.name}.hea")
    if not os.path.lexists(path):
        raise RecordError(f"Record {record.name} has no header: {record.name}.hea does not exist.")
    try:
        size = regular_size(path)
        if size > MAX_HEADER_BYTES:
            raise _bad(record.name, f"{size} bytes, at most {MAX_HEADER_BYTES} are allowed")
        with path.open("rb") as stream:
            data = stream.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise _bad(record.name, error.strerror or str(error)) from error
    return parse_header(record.name, data)


def find_file(folder: Path, name: str) -> Path:
    """The file of that name, also in upper or lower case (A.DAT for A.dat); folder/name if there is none."""
    stem, dot, suffix = name.rpartition(".")
    names = (name, f"{stem}{dot}{suffix.upper()}", f"{stem}{dot}{suffix.lower()}", name.upper(), name.lower())
    return next((folder / each for each in names if os.path.lexists(folder / each)), folder / name)


def regular_size(path: Path) -> int:
    """Bytes of a regular file (links are followed). Raises OSError for anything else."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a regular file")
    return status.st_size


def parse_header(record: str, data: bytes) -> Header:
    """The bytes of a header. Raises RecordError in one sentence."""
    if b"\0" in data:
        raise _bad(record, "it holds NUL bytes, so it is not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines: list[str] = []
    comments: list[str] = []
    for raw in re.split(r"\r\n|\n|\r", text):
        line = raw.strip()
        if line.startswith("#"):
            comments.append(line.strip(" \t#"))
        elif len(line) > _MAX_LINE:
            raise _bad(record, f"a line of {len(line)} characters, at most {_MAX_LINE} are allowed")
        elif line:
            lines.append(line)
    if not lines:
        raise _bad(record, "it is empty")
    first = lines[0].split()
    name, slash, count = first[0].partition("/")
    n_signals = _int(record, "number of signals", first[1] if len(first) > 1 else "")
    fs = _rate(record, first[2] if len(first) > 2 else "")
    n_frames = _int(record, "number of samples", first[3]) if len(first) > 3 else 0
    if slash:
        segments = _segments(record, _int(record, "number of segments", count), lines[1:])
        return Header(name, fs, n_frames, segments=segments, comments=comments)
    if not n_signals:
        raise RecordError(f"Record {record} has no signals: its header names none.")
    if n_signals > _MAX_SIGNALS:
        raise _bad(record, f"{n_signals} signals, at most {_MAX_SIGNALS} are allowed")
    if len(lines) - 1 < n_signals:
        raise _bad(record, f"it announces {n_signals} signals and describes {len(lines) - 1}")
    signals = tuple(_signal(record, i, line) for i, line in enumerate(lines[1 : n_signals + 1]))
    return Header(name, fs, n_frames, signals=signals, comments=comments)


def check_file_name(record: str, name: str) -> None:
    """A file of a record lies in the record's own folder. Raises RecordError."""
    if name in ("", ".", "..", "-") or re.search(r"[/\\:\x00-\x1f]", name) or len(name) > 200:
        raise RecordError(
            f"Record {record} names the file {name[:80]!r}: "
            "only a plain name in the header's own folder is allowed."
        )


def _signal(record: str, index: int, line: str) -> SignalLine:
    where = f"signal {index}"
    words = line.split()
    if len(words) < 2:
        raise _bad(record, f"{where} has no format")
    if words[0] != "~":
        check_file_name(record, words[0])
    storage = _FORMAT.fullmatch(words[1])
    if not storage:
        raise _bad(record, f"{where} has the format {words[1][:40]!r}, 16x1:0+24 is the pattern")
    per_frame, skew, offset = (_int(record, where, text) if text else 0 for text in storage.groups()[1:])
    if storage[2] and not per_frame:
        raise _bad(record, f"{where} has 0 samples per frame")
    rest = words[2:]
    gain, baseline, unit, calibrated = _DEFAULT_GAIN, None, "mV", False
    scale = _GAIN.fullmatch(rest[0]) if rest else None
    if scale and (scale[2] is not None or scale[3] is not None or not _WORD.match(scale[1])):
        rest = rest[1:]
        value = _float(scale[1] or "0")
        if value != 0 and not _GAIN_RANGE[0] <= abs(value) <= _GAIN_RANGE[1]:
            raise _bad(
                record, f"{where} has the gain {scale[1][:40]!r}, a number of steps per unit is needed"
            )
        calibrated = value != 0
        gain = value or _DEFAULT_GAIN
        baseline = _int(record, f"baseline of {where}", scale[2], signed=True) if scale[2] else None
        unit = scale[3] or "mV"
    numbers: list[int] = []
    while rest and len(numbers) < 5 and _INT.fullmatch(rest[0]):
        numbers.append(_int(record, where, rest[0], signed=True))
        rest = rest[1:]
    _resolution, adc_zero, initial, checksum, _block = numbers + [None] * (5 - len(numbers))
    return SignalLine(
        file=words[0],
        fmt=str(int(storage[1])),
        name=line.split(None, len(words) - len(rest))[-1] if rest else where,
        per_frame=per_frame or 1,
        skew=skew,
        offset=offset,
        gain=gain,
        calibrated=calibrated,
        baseline=baseline if baseline is not None else adc_zero or 0,
        unit=unit,
        adc_zero=adc_zero or 0,
        initial=initial,
        checksum=checksum,
    )


def _segments(record: str, count: int, lines: Sequence[str]) -> tuple[tuple[str, int], ...]:
    if not count or len(lines) < count:
        raise _bad(record, f"it announces {count} segments and lists {len(lines)}")
    segments: list[tuple[str, int]] = []
    names = {record}
    for line in lines[:count]:
        name, *words = line.split()
        length = _int(record, f"length of segment {name[:40]}", words[0] if words else "")
        if name != "~":
            check_file_name(record, name)
            if name in names:
                what = "itself as a segment" if name == record else f"segment {name} twice"
                raise _bad(record, f"it names {what}")
            names.add(name)
        segments.append((name, length))
    return tuple(segments)


def _rate(record: str, text: str) -> float:
    """Hz, from `fs/counter(base)`. header(5) takes 250 Hz where no rate is stated; here that is an error."""
    if not text:
        raise _bad(record, "it states no sampling rate")
    number, (low, high) = text.partition("/")[0], _FS_RANGE
    value = _float(number)
    if not low <= value <= high:
        raise _bad(record, f"the sampling rate is {number[:40]!r}, {low:g} to {high:g} Hz are allowed")
    return value


def _float(text: str) -> float:
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def _int(record: str, what: str, text: str, *, signed: bool = False) -> int:
    value = int(text) if _INT.fullmatch(text) and len(text) <= 20 else None
    if value is None or abs(value) > _MAX_INT or (value < 0 and not signed):
        kind = "an integer" if signed else "an integer from 0"
        raise _bad(record, f"{what}: {text[:40]!r} is not {kind}")
    return value


def _bad(record: str, why: str) -> RecordError:
    return RecordError(f"Header {record}.hea cannot be read: {why}.")
