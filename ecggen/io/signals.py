"""The signal files of one WFDB record or segment: checked against the header, then read a stretch at a time.

All integer formats of signal(5) are unpacked here with NumPy, so that a stretch costs its own bytes and no
header is parsed a second time; FLAC is read through libsndfile, and MATLAB files that are not the plain
int16 matrix of the Challenges (level 4) through SciPy. A stretch of a file is an integer array [frames,
samples of a frame], the samples of each signal of a frame side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import Header, RecordError, SignalLine, find_file, regular_size

Array = NDArray[np.float64]
Integers = NDArray[Any]

#: Format -> bytes and samples of one block, and the number that stands for an invalid sample (None: none).
PACKED: dict[str, tuple[int, int, int | None]] = {
    "8": (1, 1, None),
    "16": (2, 1, -(1 << 15)),
    "24": (3, 1, -(1 << 23)),
    "32": (4, 1, -(1 << 31)),
    "61": (2, 1, -(1 << 15)),
    "80": (1, 1, -(1 << 7)),
    "160": (2, 1, -(1 << 15)),
    "212": (3, 2, -(1 << 11)),
    "310": (4, 3, -(1 << 9)),
    "311": (4, 3, -(1 << 9)),
}
#: FLAC formats -> bits of a sample.
FLAC: dict[str, int] = {"508": 8, "516": 16, "524": 24}
_PLAIN = {"8": "<i1", "16": "<i2", "61": ">i2", "32": "<i4", "80": "<u1", "160": "<u2"}
_ZERO = {"80": 128, "160": 32768}  # formats in offset binary -> what stands for 0
_MATLAB = {"16": 30, "32": 20}  # formats of MATLAB files -> their type in level 4
_MAX_SKEW_S = 60.0
_MAX_MATLAB = 1 << 25  # values of a MATLAB file that is read as a whole


def unpack(fmt: str, data: bytes) -> Integers:
    """The samples of a packed format; those of a last block that is cut are made up."""
    if fmt in _PLAIN:
        x = np.frombuffer(data, _PLAIN[fmt])
        return x.astype(np.int32) - _ZERO[fmt] if fmt in _ZERO else x
    width = PACKED[fmt][0]
    data += bytes(-len(data) % width)
    if fmt == "24":
        byte = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        return _signed(byte[:, 0] | byte[:, 1] << 8 | byte[:, 2] << 16, 24)
    if fmt == "212":
        byte = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int16)
        pair = byte[:, 0] | (byte[:, 1] & 15) << 8, byte[:, 2] | byte[:, 1] >> 4 << 8
        return _signed(np.stack(pair, axis=1).reshape(-1), 12)
    if fmt == "310":
        word = np.frombuffer(data, "<u2").reshape(-1, 2).astype(np.int32)
        last = word[:, 0] >> 11 | word[:, 1] >> 11 << 5
        return _signed(np.stack([word[:, 0] >> 1, word[:, 1] >> 1, last], axis=1).reshape(-1) & 1023, 10)
    long = np.frombuffer(data, "<u4")  # 311: bits 30 and 31 are not used
    triple = np.stack([long, long >> 10, long >> 20], axis=1).reshape(-1) & 1023
    return _signed(triple.astype(np.int32), 10)


def _signed(x: Integers, bits: int) -> Integers:
    """Two's complement of that many bits."""
    sign = 1 << bits - 1
    return (x ^ sign) - sign


class SignalFile:
    """One signal file, which holds the signals `rows` (positions in the header), all of one format.

    frames: how many it holds, at most; total: samples of a frame; columns: signal -> its first column. Raises
    RecordError for a file that is missing, not regular, or not what the header says.
    """

    def __init__(self, folder: Path, record: str, name: str, header: Header) -> None:
        self.record, self.name = record, name
        self.rows = [i for i, line in enumerate(header.signals) if line.file == name]
        self._lines = [header.signals[i] for i in self.rows]
        self._first = self._lines[0]
        if any((x.fmt, x.offset) != (self._first.fmt, self._first.offset) for x in self._lines):
            raise RecordError(
                f"Header of record {record} gives signal file {name} two formats or offsets: one is allowed."
            )
        widths = [line.per_frame for line in self._lines]
        self.starts = np.cumsum([0, *widths])
        self.total = int(self.starts[-1])
        self.columns = dict(zip(self.rows, self.starts.tolist(), strict=False))
        self.path = find_file(folder, name)
        self.size = self._measure()
        self._matlab: Integers | None = None
        self._before = (
            0,
            np.zeros(len(self.rows), dtype=np.int64),
        )  # format 8: frame, differences until there
        self.frames = self._count_frames(header.n_frames)
        self.tally = _Tally(self._lines, self.starts)

    @property
    def invalid(self) -> int | None:
        """The number that stands for an invalid sample."""
        fmt = self._first.fmt
        return PACKED[fmt][2] if fmt in PACKED else -(1 << FLAC[fmt] - 1)

    def read(self, first: int, last: int) -> Integers:
        """[last - first, total] as stored. Raises RecordError."""
        try:
            x = self._read(first, last)
            if len(x) < last - first:
                raise OSError(0, f"{self.name} has become shorter")
        except (OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
            raise self._unreadable(error) from error
        self.tally.add(first, x)
        return x

    def refuse_truncated(self, frames: int) -> None:
        """Raises RecordError: it holds less than the header promises."""
        frames = max(frames, 1)
        if self._first.fmt in FLAC:
            words = f"{self.frames} frames, the header promises {frames}"
        else:
            promised = self._first.offset + _bytes(self._first.fmt, frames * self.total)
            words = f"{self.size} bytes, the header promises {promised}"
        raise RecordError(f"Signal file {self.name} of record {self.record} is truncated: {words}.")

    def _measure(self) -> int:
        try:
            return regular_size(self.path)
        except FileNotFoundError as error:
            text = f"Record {self.record} has no signal file: {self.name} does not exist."
            raise RecordError(text) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException) -> RecordError:
        words = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        return RecordError(
            f"Signal file {self.name} of record {self.record} cannot be read: {words[:200].rstrip('.')}."
        )

    def _wrong(self, words: str) -> RecordError:
        return RecordError(f"Signal file {self.name} of record {self.record} {words}.")

    def _count_frames(self, promised: int) -> int:
        fmt = self._first.fmt
        if fmt in FLAC:
            return self._flac_frames()
        if fmt not in PACKED:
            known = ", ".join([*PACKED, *FLAC])
            raise self._wrong(f"is in format {fmt[:20]}: {known} can be read")
        if fmt in _MATLAB and not self._is_plain():
            self._matlab = self._load_matlab(promised)
            return len(self._matlab)
        width, count, _ = PACKED[fmt]
        blocks, rest = divmod(max(0, self.size - self._first.offset), width)
        return (blocks * count + _samples_of_part(fmt, rest)) // self.total

    def _read(self, first: int, last: int) -> Integers:
        fmt = self._first.fmt
        if fmt in FLAC:
            return self._read_flac(first, last)
        if self._matlab is not None:
            return self._matlab[first:last]
        width, count, _ = PACKED[fmt]
        begin, end = first * self.total, last * self.total
        block = begin // count
        with self.path.open("rb") as stream:
            stream.seek(self._first.offset + block * width)
            samples = unpack(fmt, stream.read((-(-end // count) - block) * width))
        samples = samples[begin - block * count : end - block * count]
        x = samples[: len(samples) // self.total * self.total].reshape(-1, self.total)
        return self._undo_differences(x, first) if fmt == "8" else x

    def _undo_differences(self, x: Integers, first: int) -> Integers:
        """Format 8 holds first differences: add up, from the initial values on."""
        at, sums = self._before if self._before[0] <= first else (0, np.zeros_like(self._before[1]))
        step = max(1, (1 << 20) // self.total)
        with self.path.open("rb") as stream:
            stream.seek(self._first.offset + at * self.total)
            while at < first:
                part = np.frombuffer(stream.read(min(step, first - at) * self.total), np.int8)
                columns = part.reshape(-1, self.total).sum(axis=0, dtype=np.int64)
                sums, at = sums + np.add.reduceat(columns, self.starts[:-1]), min(first, at + step)
        self._before = (first, sums)
        out = np.empty(x.shape, dtype=np.int64)
        for line, start, stop, before in zip(self._lines, self.starts, self.starts[1:], sums, strict=False):
            initial = line.adc_zero if line.initial is None else line.initial
            values = x[:, start:stop].reshape(-1).cumsum(dtype=np.int64) + (initial + before)
            out[:, start:stop] = values.reshape(len(x), -1)
        return out

    def _flac_frames(self) -> int:
        """Frames by the STREAMINFO block that a FLAC file begins with (RFC 9639, 8.2)."""
        with self.path.open("rb") as stream:
            head = stream.read(42)
        if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
            raise self._wrong("is not a FLAC file")
        word = int.from_bytes(head[18:26], "big")
        channels, self._bits, samples = (word >> 41 & 7) + 1, (word >> 36 & 31) + 1, word & (1 << 36) - 1
        most, k = FLAC[self._first.fmt], self._first.per_frame
        if channels != len(self.rows) or self._bits > most or self.total != k * channels:
            raise self._wrong(
                f"has {channels} channels of {self._bits} bits: the header says {len(self.rows)} of up to "
                f"{most} bits, and one rate is allowed"
            )
        return max(0, samples - self._first.offset) // k

    def _read_flac(self, first: int, last: int) -> Integers:
        import soundfile

        k = self._first.per_frame
        with soundfile.SoundFile(self.path) as stream:
            stream.seek(self._first.offset + first * k)
            x = stream.read((last - first) * k, dtype="int32", always_2d=True)  # in the upper bits
        if len(x) < (last - first) * k:
            raise OSError(0, "it ends before the length that it states")
        x = x >> 32 - self._bits
        return x.reshape(last - first, k, -1).transpose(0, 2, 1).reshape(last - first, -1)

    def _is_plain(self) -> bool:
        """Whether samples lie at the offset as the format says; False for another kind of MATLAB file.

        Those of the Challenges are level 4 (MATLAB's MAT-file format, appendix): five little-endian integers
        (30 = int16 or 20 = int32, rows = signals, columns = samples, 0, length of the name), then the name.
        """
        with self.path.open("rb") as stream:
            head = stream.read(128)
        if head.startswith(b"MATLAB ") and head[126:128] in (b"IM", b"MI"):
            return False
        if self.path.suffix.lower() != ".mat" or len(head) < 20:
            return True
        kind, signals, _, _, name = np.frombuffer(head[:20], "<i4").tolist()
        expected = (_MATLAB[self._first.fmt], self.total, self._first.offset - 20)
        return (kind, signals, name) == expected

    def _load_matlab(self, promised: int) -> Integers:
        """[frames, total] of a MATLAB file with one matrix [signals, frames] of whole numbers."""
        from scipy.io import loadmat, whosmat

        try:
            matrices = whosmat(self.path, appendmat=False)
            shapes = ", ".join(f"{name} {list(shape)} {kind}" for name, shape, kind in matrices[:5])
            if len(matrices) != 1 or matrices[0][1] != (self.total, promised or matrices[0][1][-1]):
                raise ValueError(f"it holds {shapes or 'nothing'}, one [{self.total}, {promised}] is needed")
            if math.prod(matrices[0][1]) > _MAX_MATLAB:
                raise ValueError(f"{shapes} is more than {_MAX_MATLAB} values: save it as level 4 (-v4)")
            x = loadmat(self.path, appendmat=False)[matrices[0][0]]
            if x.dtype.kind == "f":
                x = np.where(np.isnan(x), float(self.invalid or 0), x)
            if x.dtype.kind not in "iuf" or not (np.isfinite(x) & (x == np.round(x))).all():
                raise ValueError("its numbers are not whole, so the header's gain does not hold for them")
        except Exception as error:  # SciPy raises whatever its parser trips over
            words = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
            raise self._wrong(f"is a MATLAB file that is not read: {words}") from error
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
        for file in self._files:
            if file.frames < self.n_frames or not file.frames:
                file.refuse_truncated(self.n_frames)
            file.tally.frames = self.n_frames
        self._skew = max((header.signals[i].skew for i in self._wanted), default=0)
        if self._skew > max(int(_MAX_SKEW_S * header.fs), 1):
            raise RecordError(
                f"Record {record} has a skew of {self._skew} frames: at most {_MAX_SKEW_S:g} s are allowed."
            )
        for file in self._files:  # a FLAC file may state a length and be empty
            if header.signals[file.rows[0]].fmt in FLAC:
                file.read(self.n_frames - 1, self.n_frames)

    def read(self, first: int, last: int) -> dict[int, Array]:
        """Stored numbers of frames first ... last - 1: signal -> [(last - first) * per_frame], NaN = invalid.

        Skew is taken into account; what lies behind the end of the file is NaN.
        """
        stop = min(last + self._skew, self.n_frames)
        out: dict[int, Array] = {}
        for file in self._files:
            raw = file.read(first, stop) if first < stop else np.zeros((0, file.total))
            x = raw.T.astype(np.float64, order="C")
            if file.invalid is not None and raw.size and raw.min() == file.invalid:
                x[x == file.invalid] = np.nan
            for i in set(file.rows) & set(self._wanted):
                line, column = self.header.signals[i], file.columns[i]
                part = x[column : column + line.per_frame, line.skew : line.skew + last - first]
                if part.shape[1] < last - first:
                    part = np.pad(part, ((0, 0), (0, last - first - part.shape[1])), constant_values=np.nan)
                out[i] = part.T.reshape(-1)
        return out

    def contradictions(self) -> set[int]:
        """Signals of which the header's checksum or initial value is wrong; known once all was read."""
        return {i for file in self._files for i in file.tally.contradictions(file.rows)}


class _Tally:
    """Checksum and first value of each signal, collected while a file is read from its start to its end.

    The checksum is the sum of all samples modulo 65536, invalid ones included, skew aside (header(5)). It
    cannot be checked where the header gives no length, or 0 for both numbers, as converters write that do not
    compute them (so does PTBDB for a part of its Frank leads).
    """

    def __init__(self, lines: Sequence[SignalLine], starts: NDArray[np.int64]) -> None:
        self.frames = 0
        self._lines, self._starts = lines, starts[:-1]
        self._next = 0
        self._sums = np.zeros(len(lines), dtype=np.int64)
        self._initial: Integers = self._sums

    def add(self, first: int, x: Integers) -> None:
        """x [frames, samples of a frame]: the frames from `first` on."""
        if first == 0 and self._next < self.frames:
            self._next, self._sums, self._initial = 0, np.zeros_like(self._sums), x[0, self._starts]
        if first <= self._next < first + len(x):
            columns = x[self._next - first :].sum(axis=0, dtype=np.int64)
            self._sums = (self._sums + np.add.reduceat(columns, self._starts)) % 65536
            self._next = first + len(x)

    def contradictions(self, rows: Sequence[int]) -> list[int]:
        """Those of `rows` that do not agree with the header; none before all was read."""
        wrong = []
        for row, line, total, start in zip(rows, self._lines, self._sums, self._initial, strict=True):
            if self._next < self.frames or line.checksum is None or not (line.checksum or line.initial):
                continue
            invalid = line.fmt in PACKED and start == PACKED[line.fmt][2]
            unknown = line.initial is None or line.fmt == "8" or invalid
            if (int(total) - line.checksum) % 65536 or not (unknown or start == line.initial):
                wrong.append(row)
        return wrong


def _bytes(fmt: str, samples: int) -> int:
    """Bytes that this many samples fill: the last block may be cut where its samples end."""
    width, count, _ = PACKED[fmt]
    whole, rest = divmod(samples, count)
    return whole * width + next(size for size in range(width + 1) if _samples_of_part(fmt, size) >= rest)


def _samples_of_part(fmt: str, size: int) -> int:
    """Whole samples in the first `size` bytes of a block."""
    width, count, _ = PACKED[fmt]
    if size >= width:
        return count
    return {"212": (0, 0, 1), "310": (0, 0, 1, 1), "311": (0, 0, 1, 2)}[fmt][size] if count > 1 else 0
