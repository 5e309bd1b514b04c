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

_BITS = {"16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}
FLAC_BITS = {"508": 8, "516": 16, "524": 24}
#: Format -> (smallest valid number, largest); one below the smallest stands for an invalid sample.
RANGES = {"8": (-128, 127)} | {
    fmt: (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) for fmt, bits in (_BITS | FLAC_BITS).items()
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

    @property
    def truth(self) -> np.ndarray:
        """The samples in `unit`."""
        return (np.asarray(self.samples, dtype=np.float64) - self.baseline) / self.gain


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
    if fmt in ("8", "16", "61"):
        return struct.pack({"8": "<%db", "16": "<%dh", "61": ">%dh"}[fmt] % len(x), *x)
    if fmt in ("80", "160"):  # offset binary
        return b"".join((v + (1 << _BITS[fmt] - 1)).to_bytes(_BITS[fmt] // 8, "little") for v in x)
    if fmt in ("24", "32"):
        return b"".join(v.to_bytes(int(fmt) // 8, "little", signed=True) for v in x)
    size = {"212": 2, "310": 3, "311": 3}[fmt]
    x += [0] * (-len(x) % size)
    return b"".join(_pack_block(fmt, x[at : at + size]) for at in range(0, len(x), size))


def _pack_block(fmt: str, block: Sequence[int]) -> bytes:
    if fmt == "212":
        a, b = (v & 0xFFF for v in block)
        return bytes([a & 0xFF, a >> 8 | b >> 8 << 4, b & 0xFF])
    a, b, c = (v & 0x3FF for v in block)
    if fmt == "310":
        return struct.pack("<HH", a << 1 | (c & 0x1F) << 11, b << 1 | c >> 5 << 11)
    return struct.pack("<I", a | b << 10 | c << 20)


def write(
    folder: Path,
    name: str,
    fs: float,
    files: Sequence[File],
    *,
    comments: Sequence[str] = (),
    length: int | None = None,
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
            start = 0 if file.fmt == "8" else s.samples[0]
            total = (sum(int(v) for v in s.samples) + 32768) % 65536 - 32768
            numbers = f"{s.gain!r}({s.baseline})/{s.unit} 0 0 {start} {total} 0"
            lines.append(f"{file.name} {file.fmt}{modifiers} {numbers} {s.name}")
    return _write_header(folder / name, [*lines, *(f"# {text}" for text in comments)])


def write_master(folder: Path, name: str, fs: float, count: int, segments: Sequence[tuple[str, int]]) -> Path:
    """The master header of a multi-segment record with `count` signals."""
    first = f"{name}/{len(segments)} {count} {fs:g} {sum(length for _, length in segments)}"
    return _write_header(folder / name, [first, *(f"{segment} {length}" for segment, length in segments)])


def write_layout(folder: Path, name: str, fs: float, units: Mapping[str, str]) -> Path:
    """A layout header: the signals of a variable-layout record, which holds no samples itself."""
    lines = [f"~ 0 200/{unit} 0 0 0 0 0 {signal}" for signal, unit in units.items()]
    return _write_header(folder / name, [f"{name} {len(units)} {fs:g} 0", *lines])


def mat_header(rows: int, columns: int) -> bytes:
    """The 24 bytes in front of an int16 matrix in a MATLAB level 4 file (type 30 = little endian, int16)."""
    return struct.pack("<5i", 30, rows, columns, 0, 4) + b"val\0"


def _write_header(path: Path, lines: Sequence[str]) -> Path:
    path.with_name(f"{path.name}.hea").write_bytes(("\n".join(lines) + "\n").encode())
    return path


def _write_file(path: Path, file: File, frames: int) -> None:
    if bits := FLAC_BITS.get(file.fmt):
        import soundfile

        columns = np.array([s.samples for s in file.signals], dtype=np.int64).T
        columns = np.concatenate([np.zeros((file.skip, columns.shape[1]), dtype=np.int64), columns])
        kind = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}[bits]
        # libsndfile takes 32-bit numbers, of which the format keeps the upper bits.
        soundfile.write(path, (columns << (32 - bits)).astype(np.int32), 96, subtype=kind, format="FLAC")
        return
    mixed: list[int] = []
    before = [0] * len(file.signals)  # format 8 stores differences
    for frame in range(frames):
        for i, s in enumerate(file.signals):
            for value in s.samples[frame * s.per_frame : (frame + 1) * s.per_frame]:
                mixed.append(int(value) - before[i] if file.fmt == "8" else int(value))
                before[i] = int(value)
    path.write_bytes(file.preamble + pack(file.fmt, mixed))
