"""WFDB records packed bit by bit, as signal(5) and header(5) of the WFDB Applications Guide describe them.

Plain integers and `struct`, sample by sample: it shares nothing with the reader that it tests, nor with wfdb.
FLAC alone is written by libsndfile.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

#: Format -> (smallest valid number, largest); one below the smallest stands for an invalid sample.
RANGES = {
    "8": (-128, 127),
    "16": (-32767, 32767),
    "24": (-(2**23) + 1, 2**23 - 1),
    "32": (-(2**31) + 1, 2**31 - 1),
    "61": (-32767, 32767),
    "80": (-127, 127),
    "160": (-32767, 32767),
    "212": (-2047, 2047),
    "310": (-511, 511),
    "311": (-511, 511),
    "508": (-127, 127),
    "516": (-32767, 32767),
    "524": (-(2**23) + 1, 2**23 - 1),
}


@dataclass
class Signal:
    """samples: [frames * per_frame] integers as stored; gain in steps per unit."""

    name: str
    samples: Sequence[int]
    per_frame: int = 1
    gain: float = 100.0
    baseline: int = 0
    unit: str = "mV"
    skew: int = 0
    initial: int = 0  # of format 8: what the first difference is added to


@dataclass
class File:
    """One signal file: its signals share a format; preamble: bytes in front (FLAC: a number of samples)."""

    name: str
    fmt: str
    signals: list[Signal] = field(default_factory=list)
    preamble: bytes = b""
    skip: int = 0


def pack(fmt: str, samples: Iterable[int]) -> bytes:
    """Samples of a packed format, in the order in which they are stored."""
    x = [int(v) for v in samples]
    if fmt in ("16", "61"):
        return b"".join(struct.pack("<h" if fmt == "16" else ">h", v) for v in x)
    if fmt == "80":
        return bytes(v + 128 for v in x)
    if fmt == "160":
        return b"".join(struct.pack("<H", v + 32768) for v in x)
    if fmt in ("24", "32"):
        return b"".join(v.to_bytes(int(fmt) // 8, "little", signed=True) for v in x)
    size = {"212": 2, "310": 3, "311": 3}[fmt]
    x += [0] * (-len(x) % size)
    blocks = (x[i : i + size] for i in range(0, len(x), size))
    return b"".join({"212": _pair, "310": _triple_310, "311": _triple_311}[fmt](block) for block in blocks)


def write(
    folder: Path,
    name: str,
    fs: float,
    files: Sequence[File],
    *,
    comments: Sequence[str] = (),
    length: int | None = None,
    checksums: bool = True,
    eol: str = "\n",
) -> Path:
    """Write one ordinary record and return its path without suffix. length: the header's, 0 = not said."""
    folder.mkdir(parents=True, exist_ok=True)
    first = files[0].signals[0]
    frames = len(first.samples) // first.per_frame
    count = sum(len(file.signals) for file in files)
    lines = [f"{name} {count} {fs:g} {frames if length is None else length}".removesuffix(" 0")]
    for file in files:
        _write_file(folder / file.name, file, frames)
        for s in file.signals:
            modifiers = f"x{s.per_frame}" if s.per_frame > 1 else ""
            modifiers += f":{s.skew}" if s.skew else ""
            offset = file.skip or len(file.preamble)
            modifiers += f"+{offset}" if offset else ""
            start = s.initial if file.fmt == "8" else s.samples[0]
            total = (sum(int(v) for v in s.samples) + 32768) % 65536 - 32768 if checksums else 0
            numbers = f"{s.gain!r}({s.baseline})/{s.unit} 0 0 {start} {total} 0"
            lines.append(f"{file.name} {file.fmt}{modifiers} {numbers} {s.name}")
    lines += [f"# {text}" for text in comments]
    (folder / f"{name}.hea").write_bytes((eol.join(lines) + eol).encode())
    return folder / name


def write_master(folder: Path, name: str, fs: float, count: int, segments: Sequence[tuple[str, int]]) -> Path:
    """The master header of a multi-segment record with `count` signals."""
    total = sum(length for _, length in segments)
    lines = [f"{name}/{len(segments)} {count} {fs:g} {total}"]
    lines += [f"{segment} {length}" for segment, length in segments]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    return folder / name


def write_layout(folder: Path, name: str, fs: float, units: Mapping[str, str]) -> Path:
    """A layout header: the signals of a variable-layout record, which holds no samples itself."""
    lines = [f"{name} {len(units)} {fs:g} 0"]
    lines += [f"~ 0 200/{unit} 0 0 0 0 0 {signal}" for signal, unit in units.items()]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")
    return folder / name


def mat_header(rows: int, columns: int, name: str = "val") -> bytes:
    """The 24 bytes in front of an int16 matrix in a MATLAB level 4 file (type 30 = little endian, int16)."""
    text = name.encode() + b"\0"
    return struct.pack("<5i", 30, rows, columns, 0, len(text)) + text


def _write_file(path: Path, file: File, frames: int) -> None:
    if file.fmt in ("508", "516", "524"):
        import soundfile

        bits = int(file.fmt) - 500
        columns = np.array([s.samples for s in file.signals], dtype=np.int64).T
        columns = np.concatenate([np.zeros((file.skip, columns.shape[1]), dtype=np.int64), columns])
        kind = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}[bits]
        # libsndfile takes 32-bit numbers, of which the format keeps the upper bits.
        soundfile.write(path, (columns << (32 - bits)).astype(np.int32), 96, subtype=kind, format="FLAC")
        return
    mixed: list[int] = []
    before = {id(s): s.initial for s in file.signals}
    for frame in range(frames):
        for s in file.signals:
            for value in s.samples[frame * s.per_frame : (frame + 1) * s.per_frame]:
                mixed.append(int(value) - before[id(s)] if file.fmt == "8" else int(value))
                before[id(s)] = int(value)
    body = struct.pack(f"{len(mixed)}b", *mixed) if file.fmt == "8" else pack(file.fmt, mixed)
    path.write_bytes(file.preamble + body)


def _pair(block: Sequence[int]) -> bytes:
    a, b = (v & 0xFFF for v in block)
    return bytes([a & 0xFF, a >> 8 | b >> 8 << 4, b & 0xFF])


def _triple_310(block: Sequence[int]) -> bytes:
    a, b, c = (v & 0x3FF for v in block)
    return struct.pack("<HH", a << 1 | (c & 0x1F) << 11, b << 1 | c >> 5 << 11)


def _triple_311(block: Sequence[int]) -> bytes:
    a, b, c = (v & 0x3FF for v in block)
    return struct.pack("<I", a | b << 10 | c << 20)
