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
        data = read_regular(path, MAX_HEADER_BYTES)
    except OSError as error:
        raise _unreadable(record.name, error.strerror or error) from error
    return parse_header(record.name, data)


def find_file(folder: Path, name: str) -> Path:
    """The file of that name, also in upper or lower case (A.DAT for A.dat); folder/name if there is none."""
    stem, dot, suffix = name.rpartition(".")
    names = (name, f"{stem}{dot}{suffix.upper()}", f"{stem}{dot}{suffix.lower()}", name.upper(), name.lower())
    return next((folder / each for each in names if os.path.lexists(folder / each)), folder / name)


def read_regular(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file. Raises OSError for anything else, and for more than `most` bytes."""
    if (size := regular_size(path)) > most:
        raise OSError(0, f"{size} bytes, at most {most} are allowed")
    with Path(path).open("rb") as stream:
        return stream.read(most)


def regular_size(path: str | Path) -> int:
    """Bytes of a regular file (links are followed). Raises OSError for anything else, which may block."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a regular file")
    return status.st_size


def header_lines(data: bytes) -> tuple[list[str], list[str]]:
    """(lines, comments) of a header; empty lines are left out."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = [line for raw in re.split(r"\r\n|\n|\r", text) if (line := raw.strip())]
    comments = [line.strip(" \t#") for line in lines if line[0] == "#"]
    return [line for line in lines if line[0] != "#"], comments


def named_files(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """(segments, signal files) that the lines of a header name, as they stand there, each once.

    The first line is `name[/segments] signals ...`; then follows one line per segment or per signal, each
    with its name first; `~` is none.
    """
    first, *others = [line.split(None, 1)[0] for line in lines] or [""]
    names = [name for name in dict.fromkeys(others) if name != "~"]
    return (names, []) if "/" in first else ([], names)


def parse_header(record: str, data: bytes) -> Header:
    """The bytes of a header. Raises RecordError in one sentence."""
    try:
        return _parse(record, data)
    except ValueError as error:
        raise _unreadable(record, error) from error


def _unreadable(record: str, why: object) -> RecordError:
    return RecordError(f"Header {record}.hea cannot be read: {why}.")


# What follows raises ValueError, in words that complete "cannot be read:".


def _parse(record: str, data: bytes) -> Header:
    if b"\0" in data:
        raise ValueError("it holds NUL bytes, so it is not text")
    lines, comments = header_lines(data)
    if not lines:
        raise ValueError("it is empty")
    if (longest := max(map(len, lines))) > _MAX_LINE:
        raise ValueError(f"a line of {longest} characters, at most {_MAX_LINE} are allowed")
    first, count, rate, length = [*lines[0].split(), "", "", ""][:4]
    name, slash, segments = first.partition("/")
    n_signals = _integer("number of signals", count)
    fs = _number(rate.partition("/")[0])  # fs/counter(base)
    if not _FS_RANGE[0] <= fs <= _FS_RANGE[1]:  # header(5) takes 250 Hz where none is stated
        low, high = _FS_RANGE
        stated = f"the sampling rate is {rate[:40]!r}" if rate else "it states no sampling rate"
        raise ValueError(f"{stated}, {low:g} to {high:g} Hz are allowed")
    n_frames = _integer("number of samples", length) if length else 0
    if slash:
        parts = _segments(record, _integer("number of segments", segments), lines[1:])
        return Header(name, fs, n_frames, segments=parts, comments=comments)
    if not 0 < n_signals <= _MAX_SIGNALS:
        raise ValueError(f"it has {n_signals or 'no'} signals, at most {_MAX_SIGNALS} are allowed")
    if len(lines) - 1 < n_signals:
        raise ValueError(f"it announces {n_signals} signals and describes {len(lines) - 1}")
    signals = tuple(_signal(f"signal {i}", line) for i, line in enumerate(lines[1 : n_signals + 1]))
    return Header(name, fs, n_frames, signals=signals, comments=comments)


def _segments(record: str, count: int, lines: Sequence[str]) -> tuple[tuple[str, int], ...]:
    if not count or len(lines) < count:
        raise ValueError(f"it announces {count} segments and lists {len(lines)}")
    segments: list[tuple[str, int]] = []
    names = {record}
    for line in lines[:count]:
        name, length = [*line.split(), ""][:2]
        segments.append((name, _integer(f"length of segment {name[:40]}", length)))
        if name != "~":
            _check_file_name(name)
            if name in names:
                what = "itself as a segment" if name == record else f"segment {name} twice"
                raise ValueError(f"it names {what}")
            names.add(name)
    return tuple(segments)


def _check_file_name(name: str) -> None:
    if name in ("", ".", "..", "-") or re.search(r"[/\\:\x00-\x1f]", name) or len(name) > 200:
        raise ValueError(
            f"it names the file {name[:80]!r}, only a plain name in the header's own folder is allowed"
        )


def _signal(where: str, line: str) -> SignalLine:
    """where: what the signal is called in a reason, and where it has no description."""
    file, storage, *rest = [*line.split(), ""]
    if file != "~":
        _check_file_name(file)
    modifiers = _FORMAT.fullmatch(storage)
    if not modifiers:
        stated = f"the format {storage[:40]!r}, 16x1:0+24 is the pattern" if storage else "no format"
        raise ValueError(f"{where} has {stated}")
    per_frame, skew, offset = (_integer(where, text) if text else 0 for text in modifiers.groups()[1:])
    if modifiers[2] and not per_frame:
        raise ValueError(f"{where} has 0 samples per frame")
    gain, baseline, unit = 0.0, None, "mV"
    scale = _GAIN.fullmatch(rest[0]) if rest[0] else None
    if scale and (scale[2] is not None or scale[3] is not None or not _WORD.match(scale[1])):
        rest = rest[1:]
        gain = _number(scale[1] or "0")
        if gain and not _GAIN_RANGE[0] <= abs(gain) <= _GAIN_RANGE[1]:
            raise ValueError(f"{where} has the gain {scale[1][:40]!r}, a number of steps per unit is needed")
        baseline = _integer(f"baseline of {where}", scale[2], signed=True) if scale[2] else None
        unit = scale[3] or "mV"
    numbers: list[int | None] = []
    while len(numbers) < 5 and _INT.fullmatch(rest[0]):
        numbers.append(_integer(where, rest.pop(0), signed=True))
    _resolution, adc_zero, initial, checksum, _block = numbers + [None] * (5 - len(numbers))
    return SignalLine(
        file=file,
        fmt=str(int(modifiers[1])),
        name=line.split(None, len(line.split()) - len(rest) + 1)[-1] if rest[0] else where,
        per_frame=per_frame or 1,
        skew=skew,
        offset=offset,
        gain=gain or _DEFAULT_GAIN,
        calibrated=gain != 0,
        baseline=baseline if baseline is not None else adc_zero or 0,
        unit=unit,
        adc_zero=adc_zero or 0,
        initial=initial,
        checksum=checksum,
    )


def _number(text: str) -> float:
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def _integer(what: str, text: str, *, signed: bool = False) -> int:
    value = int(text) if _INT.fullmatch(text) and len(text) <= 20 else None
    if value is None or abs(value) > _MAX_INT or (value < 0 and not signed):
        raise ValueError(f"{what}: {text[:40]!r} is not an integer{'' if signed else ' from 0'}")
    return value
