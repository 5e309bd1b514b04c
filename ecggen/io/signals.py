"""The signal files of one WFDB record or segment: checked against the header, then read a stretch at a time.

The integer formats of signal(5) are unpacked here with NumPy, so that a stretch costs its own bytes and no
header is parsed twice. FLAC is read through libsndfile, and MATLAB files that are not the plain integer
matrix of the Challenges (level 4) through SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import Header, RecordError, SignalLine, find_file, regular_size

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
#: Format -> each sample of a block, cut out of the block as one little-endian number.
_CUTS: dict[str, tuple[Callable[[Integers], Integers], ...]] = {
    "24": (lambda w: w,),
    "212": (lambda w: w & 0xFFF, lambda w: w >> 16 | w >> 4 & 0xF00),
    "310": (lambda w: w >> 1 & 0x3FF, lambda w: w >> 17 & 0x3FF, lambda w: w >> 11 & 0x1F | w >> 22 & 0x3E0),
    "311": (lambda w: w & 0x3FF, lambda w: w >> 10 & 0x3FF, lambda w: w >> 20 & 0x3FF),
}
_MATLAB = {"16": 30, "32": 20}  # formats of MATLAB files -> their type in level 4
_MAX_MATLAB = 1 << 25  # values of a MATLAB file that is read as a whole
_MAX_SKEW_S = 60.0


class SignalFile:
    """One signal file with the signals `rows` (positions in the header), all of one format.

    total: samples of a frame, in order of the signals; columns: signal -> its samples of a frame; frames: how
    many the file holds. Raises RecordError for a file that is missing, not regular, or not what the header
    says.
    """

    def __init__(self, folder: Path, record: str, name: str, header: Header) -> None:
        self.record, self.name, self.promised = record, name, header.n_frames
        self.rows = [i for i, line in enumerate(header.signals) if line.file == name]
        self._lines = [header.signals[i] for i in self.rows]
        self._starts = np.cumsum([0, *(line.per_frame for line in self._lines)])
        self.total = int(self._starts[-1])
        bounds = zip(self.rows, self._starts.tolist(), self._starts[1:].tolist(), strict=False)
        self.columns = {row: slice(start, stop) for row, start, stop in bounds}
        fmt = self._lines[0].fmt
        if len({(line.fmt, line.offset) for line in self._lines}) > 1:
            raise self._error("has two formats or offsets in the header: one is allowed")
        if fmt not in (*PACKED, *FLAC):
            known = ", ".join(sorted((*PACKED, *FLAC), key=int))
            raise self._error(f"is in format {fmt[:20]}: {known} can be read")
        self.invalid = -(1 << _BITS[fmt] - 1) if fmt in _BITS else None
        self._source = self._open(find_file(folder, name), fmt)
        self.frames = self._source.frames
        if self.frames < max(self.promised, 1):
            promised = max(self.promised, 1)
            raise self._error(f"is truncated: {self.frames} frames, the header promises {promised}")
        self._seen = 0  # frames that sums and initial values are of
        self._sums = self._initial = np.zeros(len(self.rows), dtype=np.int64)

    def read(self, first: int, last: int) -> Integers:
        """[total, last - first] as stored. Raises RecordError."""
        try:
            x = np.ascontiguousarray(self._source.read(first, last).T)
            if x.shape[1] < last - first:
                raise OSError(0, f"{self.name} has become shorter")
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            raise self._error(f"cannot be read: {_words(error)}") from error
        if first == 0 and self._seen < self.promised:
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
        if not self.promised or self._seen < self.promised:
            return set()
        wrong: set[int] = set()
        for row, line, total, first in zip(self.rows, self._lines, self._sums, self._initial, strict=True):
            if line.checksum is not None and (line.checksum or line.initial):
                other = line.initial not in (None, first) and line.fmt != "8" and first != self.invalid
                if (int(total) - line.checksum) % 65536 or other:
                    wrong.add(row)
        return wrong

    def _open(self, path: Path, fmt: str) -> _Packed | _Flac | _Matlab:
        try:
            regular_size(path)
            if fmt in FLAC:
                return _Flac(path, self._lines)
            if fmt in _MATLAB and _must_be_parsed(path, fmt, self._lines[0].offset, self.total):
                return _Matlab(path, fmt, self.total, self.promised)
            return _Packed(path, self._lines)
        except FileNotFoundError as error:
            raise RecordError(
                f"Record {self.record} has no signal file: {self.name} does not exist."
            ) from error
        except OSError as error:
            raise self._error(f"cannot be read: {_words(error)}") from error
        except ValueError as error:  # the file is not what the header says
            raise self._error(str(error)) from error

    def _error(self, words: str) -> RecordError:
        return RecordError(f"Signal file {self.name} of record {self.record} {words}.")


def _words(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return words[:300].rstrip(".")


class _Packed:
    """Samples that lie at the offset as the format says."""

    def __init__(self, path: Path, lines: Sequence[SignalLine]) -> None:
        self._path, self._lines, self._fmt = path, lines, lines[0].fmt
        self._width, self._count = len(PACKED[self._fmt]) - 1, PACKED[self._fmt][-1]
        self._edges = np.cumsum([0, *(line.per_frame for line in lines)])
        self._total = int(self._edges[-1])
        blocks, rest = divmod(max(0, path.stat().st_size - lines[0].offset), self._width)
        self.frames = (blocks * self._count + PACKED[self._fmt][rest]) // self._total
        self._sums = (0, np.zeros(len(lines), dtype=np.int64))  # of format 8: until which frame, sums

    def read(self, first: int, last: int) -> Integers:
        """[last - first, total], or fewer frames at the end of the file."""
        block, skip = divmod(first * self._total, self._count)
        x = self._unpack(block, -(-last * self._total // self._count))
        x = x[skip : skip + (last - first) * self._total]
        x = x[: len(x) // self._total * self._total].reshape(-1, self._total)
        return self._integrate(x, first) if self._fmt == "8" else x

    def _unpack(self, first: int, last: int) -> Integers:
        """The samples of blocks; bytes that the last block lacks count as zero."""
        fmt, start = self._fmt, self._lines[0].offset + first * self._width
        byte = np.fromfile(self._path, np.uint8, (last - first) * self._width, offset=start)
        sign = 1 << _BITS.get(fmt, 8) - 1
        if fmt in _PLAIN:
            x = byte.view(_PLAIN[fmt])
            return x.astype(np.int32) - sign if fmt in ("80", "160") else x  # offset binary
        rows = np.pad(byte, (0, -len(byte) % self._width)).reshape(-1, self._width).astype(np.int64)
        word = rows @ (1 << 8 * np.arange(self._width))
        return (np.stack([cut(word) for cut in _CUTS[fmt]], axis=1).reshape(-1) ^ sign) - sign

    def _integrate(self, x: Integers, first: int) -> Integers:
        """Format 8 stores first differences: their sums, from the initial value on."""
        at, sums = self._sums if self._sums[0] <= first else (0, 0 * self._sums[1])
        step = max(1, (1 << 20) // self._total)
        for begin in range(at, first, step):
            part = self._unpack(begin * self._total, min(begin + step, first) * self._total)
            columns = part.reshape(-1, self._total).sum(axis=0, dtype=np.int64)
            sums = sums + np.add.reduceat(columns, self._edges[:-1])
        self._sums = (first, sums)
        parts = []
        for line, edge, before in zip(self._lines, self._edges, sums, strict=False):
            initial = line.adc_zero if line.initial is None else line.initial
            values = x[:, edge : edge + line.per_frame].reshape(-1).cumsum(dtype=np.int64)
            parts.append((values + (initial + before)).reshape(len(x), -1))
        return np.concatenate(parts, axis=1)


class _Flac:
    """A FLAC file with a channel for each signal; its offset is one of samples."""

    def __init__(self, path: Path, lines: Sequence[SignalLine]) -> None:
        import soundfile

        self._path, self._offset, self._per_frame = path, lines[0].offset, lines[0].per_frame
        try:
            about = soundfile.info(str(path))
        except RuntimeError as error:
            raise ValueError("is not a FLAC file") from error
        self._bits, most = (
            {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(about.subtype, 32),
            FLAC[lines[0].fmt],
        )
        if about.channels != len(lines) or self._bits > most or len({line.per_frame for line in lines}) > 1:
            raise ValueError(
                f"has {about.channels} channels of {self._bits} bits: the header says {len(lines)} of up to "
                f"{most} bits, and one rate is allowed"
            )
        self.frames = max(0, about.frames - self._offset) // self._per_frame

    def read(self, first: int, last: int) -> Integers:
        import soundfile

        k = self._per_frame
        with soundfile.SoundFile(self._path) as stream:
            stream.seek(self._offset + first * k)
            x = stream.read((last - first) * k, dtype="int32", always_2d=True) >> 32 - self._bits
        frames = x[: len(x) // k * k].reshape(-1, k, x.shape[1]).transpose(0, 2, 1)
        return frames.reshape(len(frames), -1)


class _Matlab:
    """A MATLAB file with one matrix [signals, frames] of whole numbers, read as a whole through SciPy."""

    def __init__(self, path: Path, fmt: str, total: int, promised: int) -> None:
        from scipy.io import loadmat, whosmat

        bits = _BITS[fmt]
        try:
            matrices = whosmat(path, appendmat=False)
            names = ", ".join(f"{name} {list(shape)} {kind}" for name, shape, kind in matrices[:5])
            if len(matrices) != 1 or matrices[0][1] != (total, promised or matrices[0][1][-1]):
                raise ValueError(f"it holds {names or 'nothing'}, one [{total}, {promised}] is needed")
            if math.prod(matrices[0][1]) > _MAX_MATLAB:
                raise ValueError(f"{names} is more than {_MAX_MATLAB} values: save it as level 4 (-v4)")
            x = loadmat(path, appendmat=False)[matrices[0][0]]
            if x.dtype.kind == "f":
                x = np.where(np.isnan(x), -(2.0 ** (bits - 1)), x)
            if x.dtype.kind not in "iuf" or not ((np.abs(x) <= 1 << bits - 1) & (x == np.round(x))).all():
                raise ValueError(
                    f"its numbers are no integers of {bits} bits, so the header's gain does not hold"
                )
        except Exception as error:  # SciPy raises whatever its parser trips over
            raise ValueError(f"is a MATLAB file that is not read: {_words(error)[:200]}") from error
        self._samples = np.ascontiguousarray(x.T.astype(np.int64))
        self.frames = len(self._samples)

    def read(self, first: int, last: int) -> Integers:
        return self._samples[first:last]


def _must_be_parsed(path: Path, fmt: str, offset: int, total: int) -> bool:
    """Whether a MATLAB file is another one than those of the Challenges, whose samples lie at the offset.

    Those are level 4 (MATLAB's MAT-file format, appendix): five little-endian integers (30 = int16 or 20 =
    int32, rows = signals, columns = samples, 0, length of the name), then the name.
    """
    with path.open("rb") as stream:
        head = stream.read(128)
    if head.startswith(b"MATLAB ") and head[126:128] in (b"IM", b"MI"):
        return True
    if path.suffix.lower() != ".mat" or len(head) < 20:
        return False
    kind, signals, _, _, name = np.frombuffer(head[:20], "<i4").tolist()
    return (kind, signals, name) != (_MATLAB[fmt], total, offset - 20)


class SignalFiles:
    """Signals `wanted` (positions in the header) of one ordinary record or segment, read lazily.

    n_frames is what the header says, or what the files hold where it says nothing. Raises RecordError for a
    file that is missing, not regular, shorter than promised, or of an unknown format.
    """

    def __init__(self, folder: Path, record: str, header: Header, wanted: Iterable[int]) -> None:
        self.header, self._wanted = header, set(wanted)
        names = dict.fromkeys(header.signals[i].file for i in sorted(self._wanted))
        self._files = [SignalFile(folder, record, name, header) for name in names]
        self.n_frames = header.n_frames or min(file.frames for file in self._files)
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
            raw = file.read(first, stop) if first < stop else np.zeros((file.total, 0))
            x = raw.astype(np.float64)
            if raw.size and raw.min() == file.invalid:
                x[raw == file.invalid] = np.nan
            for i in self._wanted & file.columns.keys():
                skew = self.header.signals[i].skew
                part = x[file.columns[i], skew : skew + last - first]
                if part.shape[1] < last - first:
                    part = np.pad(part, ((0, 0), (0, last - first - part.shape[1])), constant_values=np.nan)
                out[i] = part.T.reshape(-1)
        return out

    def contradictions(self) -> set[int]:
        """As those of its files."""
        return set().union(*(file.contradictions() for file in self._files))
