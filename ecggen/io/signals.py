"""The signal files of one WFDB record or segment: checked against the header, then read a stretch at a time.

The integer formats of signal(5) are unpacked here with NumPy, so that a stretch costs its own bytes and no
header is parsed twice. FLAC is read through libsndfile, and MATLAB files that are not the plain integer
matrix of the Challenges (level 4) through SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import Header, RecordError, find_file, regular_size

Array = NDArray[np.float64]
Integers = NDArray[Any]

#: Format -> samples that are whole in the first 0, 1, 2 ... bytes of a block.
PACKED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("8", "80"), (0, 1)),
    **dict.fromkeys(("16", "61", "160"), (0, 0, 1)),
    "24": (0, 0, 0, 1),
    "32": (0, 0, 0, 0, 1),
    "212": (0, 0, 1, 2),
    "310": (0, 0, 1, 1, 3),
    "311": (0, 0, 1, 2, 3),
}
#: FLAC formats -> bits of a sample.
FLAC: dict[str, int] = {"508": 8, "516": 16, "524": 24}
#: Format -> bits of a sample; the most negative number stands for an invalid one. Not so in format 8.
_BITS = FLAC | {"16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10, "311": 10}
_PLAIN = {"8": "<i1", "16": "<i2", "61": ">i2", "32": "<i4", "80": "<u1", "160": "<u2"}
_MATLAB = {"16": 30, "32": 20}  # formats of MATLAB files -> their type in level 4
_MAX_MATLAB = 1 << 25  # values of a MATLAB file that is read as a whole
_MAX_SKEW_S = 60.0


def unpack(fmt: str, data: bytes) -> Integers:
    """The samples of a packed format; bytes that a last block lacks count as zero."""
    if fmt in _PLAIN:
        x = np.frombuffer(data, _PLAIN[fmt])
        return x.astype(np.int32) - (1 << _BITS[fmt] - 1) if fmt in ("80", "160") else x  # offset binary
    width, count = len(PACKED[fmt]) - 1, PACKED[fmt][-1]
    byte = np.frombuffer(data + bytes(-len(data) % width), np.uint8).reshape(-1, width).astype(np.int32)
    x = np.empty((len(byte), count), dtype=np.int32)
    if fmt == "24":
        x[:, 0] = byte[:, 0] | byte[:, 1] << 8 | byte[:, 2] << 16
    elif fmt == "212":
        x[:, 0] = byte[:, 0] | (byte[:, 1] & 15) << 8
        x[:, 1] = byte[:, 2] | byte[:, 1] >> 4 << 8
    elif fmt == "310":
        x[:, 0] = byte[:, 0] >> 1 | (byte[:, 1] & 7) << 7
        x[:, 1] = byte[:, 2] >> 1 | (byte[:, 3] & 7) << 7
        x[:, 2] = byte[:, 1] >> 3 | byte[:, 3] >> 3 << 5
    else:  # 311; the upper two bits of a block are not used
        x[:, 0] = byte[:, 0] | (byte[:, 1] & 3) << 8
        x[:, 1] = byte[:, 1] >> 2 | (byte[:, 2] & 15) << 6
        x[:, 2] = byte[:, 2] >> 4 | (byte[:, 3] & 63) << 4
    sign = 1 << _BITS[fmt] - 1
    return (x.reshape(-1) ^ sign) - sign


class SignalFile:
    """One signal file with the signals `rows` (positions in the header), all of one format.

    total: samples of a frame, in order of the signals; columns: signal -> its samples of a frame; frames: how
    many the file holds. Raises RecordError for a file that is missing, not regular, or not what the header
    says.
    """

    def __init__(self, folder: Path, record: str, name: str, header: Header) -> None:
        self.record, self.name, self.path = record, name, find_file(folder, name)
        self.rows = [i for i, line in enumerate(header.signals) if line.file == name]
        self.lines = [header.signals[i] for i in self.rows]
        self._starts = np.cumsum([0, *(line.per_frame for line in self.lines)])
        self.total = int(self._starts[-1])
        bounds = zip(self.rows, self._starts.tolist(), self._starts[1:].tolist(), strict=False)
        self.columns = {row: slice(start, stop) for row, start, stop in bounds}
        self.fmt, self.offset = self.lines[0].fmt, self.lines[0].offset
        if any((line.fmt, line.offset) != (self.fmt, self.offset) for line in self.lines):
            raise RecordError(
                f"Header of record {record} gives signal file {name} two formats or offsets: one is allowed."
            )
        if self.fmt not in (*PACKED, *FLAC):
            known = ", ".join(sorted((*PACKED, *FLAC), key=int))
            raise self._error(f"is in format {self.fmt[:20]}: {known} can be read")
        self.invalid = -(1 << _BITS[self.fmt] - 1) if self.fmt in _BITS else None
        try:
            self._size = regular_size(self.path)
            self._matlab = None if self._is_plain() else self._load_matlab(header.n_frames)
            self.frames = self._count_flac_frames() if self.fmt in FLAC else self._count_frames()
        except FileNotFoundError as error:
            raise RecordError(f"Record {record} has no signal file: {name} does not exist.") from error
        except OSError as error:
            raise self._unreadable(error) from error
        if self.frames < (promised := max(header.n_frames, 1)):
            size, unit = self.frames, "frames"
            if self.fmt in PACKED and self._matlab is None:
                blocks, rest = divmod(promised * self.total, PACKED[self.fmt][-1])
                part = next(bytes_ for bytes_, whole in enumerate(PACKED[self.fmt]) if whole >= rest)
                promised = self.offset + blocks * (len(PACKED[self.fmt]) - 1) + part
                size, unit = self._size, "bytes"
            raise self._error(f"is truncated: {size} {unit}, the header promises {promised}")
        self._promised = header.n_frames
        self._seen = 0  # frames that sums and initial values are of
        self._sums = self._initial = np.zeros(len(self.rows), dtype=np.int64)
        self._differences = (0, self._sums)  # of format 8: until which frame, sums

    def read(self, first: int, last: int) -> Integers:
        """[total, last - first] as stored. Raises RecordError."""
        try:
            x = np.ascontiguousarray(self._read(first, last).T)
            if x.shape[1] < last - first:
                raise OSError(0, f"{self.name} has become shorter")
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise self._unreadable(error) from error
        if first == 0 and self._seen < self._promised:
            self._seen, self._sums, self._initial = 0, np.zeros_like(self._sums), x[self._starts[:-1], 0]
        if first <= self._seen < last:
            sums = x[:, self._seen - first :].sum(axis=1, dtype=np.int64)
            self._sums = (self._sums + np.add.reduceat(sums, self._starts[:-1])) % 65536
            self._seen = last
        return x

    def contradictions(self) -> set[int]:
        """Signals of which the header's checksum or initial value is wrong; none before all frames were read.

        The checksum is the sum of all samples modulo 65536, invalid ones included, skew aside (header(5)). It
        cannot be checked where the header gives no length, or 0 for both numbers, as converters write that do
        not compute them (so does PTBDB for a part of its Frank leads).
        """
        if not self._promised or self._seen < self._promised:
            return set()
        wrong: set[int] = set()
        for row, line, total, first in zip(self.rows, self.lines, self._sums, self._initial, strict=True):
            if line.checksum is not None and (line.checksum or line.initial):
                other = line.initial not in (None, first) and self.fmt != "8" and first != self.invalid
                if (int(total) - line.checksum) % 65536 or other:
                    wrong.add(row)
        return wrong

    def _error(self, words: str) -> RecordError:
        return RecordError(f"Signal file {self.name} of record {self.record} {words}.")

    def _unreadable(self, error: BaseException) -> RecordError:
        words = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        return self._error(f"cannot be read: {words[:200].rstrip('.')}")

    def _count_frames(self) -> int:
        if self._matlab is not None:
            return len(self._matlab)
        blocks, rest = divmod(max(0, self._size - self.offset), len(PACKED[self.fmt]) - 1)
        return (blocks * PACKED[self.fmt][-1] + PACKED[self.fmt][rest]) // self.total

    def _read(self, first: int, last: int) -> Integers:
        """[last - first, total], or fewer frames at the end of the file."""
        if self.fmt in FLAC:
            return self._read_flac(first, last)
        if self._matlab is not None:
            return self._matlab[first:last]
        width, count = len(PACKED[self.fmt]) - 1, PACKED[self.fmt][-1]
        block, skip = divmod(first * self.total, count)
        with self.path.open("rb") as stream:
            stream.seek(self.offset + block * width)
            samples = unpack(self.fmt, stream.read((-(-last * self.total // count) - block) * width))
        samples = samples[skip : skip + (last - first) * self.total]
        x = samples[: len(samples) // self.total * self.total].reshape(-1, self.total)
        return self._add_differences(x, first) if self.fmt == "8" else x

    def _add_differences(self, x: Integers, first: int) -> Integers:
        """Format 8 stores first differences: their sums, from the initial value on."""
        at, sums = self._differences if self._differences[0] <= first else (0, 0 * self._differences[1])
        step = max(1, (1 << 20) // self.total)
        with self.path.open("rb") as stream:
            stream.seek(self.offset + at * self.total)
            while at < first:
                part = np.frombuffer(stream.read(min(step, first - at) * self.total), np.int8)
                columns = part.reshape(-1, self.total).sum(axis=0, dtype=np.int64)
                sums, at = sums + np.add.reduceat(columns, self._starts[:-1]), min(first, at + step)
        self._differences = (first, sums)
        out = np.empty(x.shape, dtype=np.int64)
        for row, line, before in zip(self.rows, self.lines, sums, strict=True):
            initial = line.adc_zero if line.initial is None else line.initial
            values = x[:, self.columns[row]].reshape(-1).cumsum(dtype=np.int64) + (initial + before)
            out[:, self.columns[row]] = values.reshape(len(x), -1)
        return out

    def _count_flac_frames(self) -> int:
        """Frames by the STREAMINFO block that a FLAC file begins with (RFC 9639, 8.2)."""
        with self.path.open("rb") as stream:
            head = stream.read(42)
        if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
            raise self._error("is not a FLAC file")
        word = int.from_bytes(head[18:26], "big")
        channels, self._flac_bits, samples = (word >> 41 & 7) + 1, (word >> 36 & 31) + 1, word & (1 << 36) - 1
        most, k = FLAC[self.fmt], self.lines[0].per_frame
        if channels != len(self.rows) or self._flac_bits > most or self.total != k * channels:
            raise self._error(
                f"has {channels} channels of {self._flac_bits} bits: the header says {len(self.rows)} of up "
                f"to {most} bits, and one rate is allowed"
            )
        return max(0, samples - self.offset) // k

    def _read_flac(self, first: int, last: int) -> Integers:
        import soundfile

        k = self.lines[0].per_frame
        with soundfile.SoundFile(self.path) as stream:
            stream.seek(self.offset + first * k)  # the offset of a FLAC file is one of samples
            x = stream.read((last - first) * k, dtype="int32", always_2d=True)
        x = x[: len(x) // k * k] >> 32 - self._flac_bits  # they come in the upper bits
        return x.reshape(-1, k, len(self.rows)).transpose(0, 2, 1).reshape(-1, self.total)

    def _is_plain(self) -> bool:
        """Whether samples lie at the offset as the format says; False for another kind of MATLAB file.

        Those of the Challenges are level 4 (MATLAB's MAT-file format, appendix): five little-endian integers
        (30 = int16 or 20 = int32, rows = signals, columns = samples, 0, length of the name), then the name.
        """
        if self.fmt not in _MATLAB:
            return True
        with self.path.open("rb") as stream:
            head = stream.read(128)
        if head.startswith(b"MATLAB ") and head[126:128] in (b"IM", b"MI"):
            return False
        if self.path.suffix.lower() != ".mat" or len(head) < 20:
            return True
        kind, signals, _, _, name = np.frombuffer(head[:20], "<i4").tolist()
        return (kind, signals, name) == (_MATLAB[self.fmt], self.total, self.offset - 20)

    def _load_matlab(self, promised: int) -> Integers:
        """[frames, total] of a MATLAB file with one matrix [signals, frames] of whole numbers."""
        from scipy.io import loadmat, whosmat

        try:
            matrices = whosmat(self.path, appendmat=False)
            names = ", ".join(f"{name} {list(shape)} {kind}" for name, shape, kind in matrices[:5])
            if len(matrices) != 1 or matrices[0][1] != (self.total, promised or matrices[0][1][-1]):
                raise ValueError(f"it holds {names or 'nothing'}, one [{self.total}, {promised}] is needed")
            if math.prod(matrices[0][1]) > _MAX_MATLAB:
                raise ValueError(f"{names} is more than {_MAX_MATLAB} values: save it as level 4 (-v4)")
            x = loadmat(self.path, appendmat=False)[matrices[0][0]]
            if x.dtype.kind == "f":
                x = np.where(np.isnan(x), float(self.invalid or 0), x)
            bits = _BITS[self.fmt]
            if x.dtype.kind not in "iuf" or not ((np.abs(x) <= 1 << bits - 1) & (x == np.round(x))).all():
                raise ValueError(
                    f"its numbers are no integers of {bits} bits, so the header's gain does not hold"
                )
        except Exception as error:  # SciPy raises whatever its parser trips over
            words = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
            raise self._error(f"is a MATLAB file that is not read: {words}") from error
        return np.ascontiguousarray(x.T.astype(np.int64))


class SignalFiles:
    """Signals `wanted` (positions in the header) of one ordinary record or segment, read lazily.

    n_frames is what the header says, or what the files hold where it says nothing. Raises RecordError for a
    file that is missing, not regular, shorter than promised, or of an unknown format.
    """

    def __init__(self, folder: Path, record: str, header: Header, wanted: Iterable[int]) -> None:
        self.header = header
        self._wanted = sorted(wanted)
        names = dict.fromkeys(header.signals[i].file for i in self._wanted)
        self._files = [SignalFile(folder, record, name, header) for name in names]
        self.n_frames = header.n_frames or min(file.frames for file in self._files)
        self._skew = max((header.signals[i].skew for i in self._wanted), default=0)
        if self._skew > max(int(_MAX_SKEW_S * header.fs), 1):
            raise RecordError(
                f"Record {record} has a skew of {self._skew} frames: at most {_MAX_SKEW_S:g} s are allowed."
            )
        for file in self._files:  # a FLAC file may state a length and be empty
            if file.fmt in FLAC:
                file.read(self.n_frames - 1, self.n_frames)

    def read(self, first: int, last: int) -> dict[int, Array]:
        """Stored numbers of frames first ... last - 1: signal -> [(last - first) * per_frame], NaN = invalid.

        Skew is taken into account; what lies behind the end of the file is NaN.
        """
        stop = min(last + self._skew, self.n_frames)
        out: dict[int, Array] = {}
        for file in self._files:
            raw = file.read(first, stop) if first < stop else np.zeros((file.total, 0))
            x = raw.astype(np.float64)
            if raw.size and raw.min() == file.invalid:
                x[raw == file.invalid] = np.nan
            for i in set(file.rows) & set(self._wanted):
                skew = self.header.signals[i].skew
                part = x[file.columns[i], skew : skew + last - first]
                if part.shape[1] < last - first:
                    part = np.pad(part, ((0, 0), (0, last - first - part.shape[1])), constant_values=np.nan)
                out[i] = part.T.reshape(-1)
        return out

    def contradictions(self) -> set[int]:
        """As those of its files."""
        return set().union(*(file.contradictions() for file in self._files))
