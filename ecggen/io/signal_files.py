"""The signal files of one segment: checked against the header first, then read frame by frame.

Whole numbers in two's complement (formats 16, 61 and 32: nearly all ECG databases) are an array as they lie
in the file. All other formats wfdb decodes; what it is told is written here. It never sees the record's own
header but one of a few lines for the stretch that is wanted (a temporary file beside links to the signal
files), in which each signal file is one signal with as many samples per frame as the file holds of all its
signals. So a header cannot
make it allocate more than the stretch, its parser costs 1 ms and not 10, and these departures of wfdb 4.3
from signal(5) and header(5), each seen on packed records, have no effect: two signals with different skew
are an error, and the end of a skewed signal with several samples per frame is not all marked invalid;
format 8 starts anew at each stretch, and at 0 where the initial value is left out; bit 30 of format 311
leaks into a sample; segments in other units are joined under the units of the first.
"""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import Header, RecordError, SignalLine, regular_size

Array = NDArray[np.float64]

#: Format -> bytes and samples of one block; the number that stands for an invalid sample (None: none does).
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
#: FLAC, by the bits of a sample.
FLAC: dict[str, int] = {"508": 8, "516": 16, "524": 24}
#: Format -> how NumPy calls it, where each sample is a whole number of its own.
PLAIN: dict[str, str] = {"16": "<i2", "61": ">i2", "32": "<i4"}
_ALIGN = 6  # frames: a whole number of blocks in every packed format
_MAX_SKEW_S = 60.0
_NUMBERS = itertools.count()


class SignalFiles:
    """Signals `wanted` (positions in the header) of one ordinary record or segment, read lazily.

    n_frames is what the header says, or what the files hold where it says nothing. Raises RecordError for a
    file that is missing, not regular, shorter than promised, or of an unknown format.
    """

    def __init__(self, folder: Path, record: str, header: Header, wanted: Iterable[int]) -> None:
        self.record, self.header = record, header
        self._folder = folder
        wanted = sorted(wanted)
        names = dict.fromkeys(header.signals[i].file for i in wanted)
        self._groups = {n: [i for i, s in enumerate(header.signals) if s.file == n] for n in names}
        self.wanted = wanted
        held = {name: self._held(name, rows) for name, rows in self._groups.items()}
        self.n_frames = header.n_frames or min(held.values())
        for name, frames in held.items():
            if frames < self.n_frames or not frames:
                self._refuse_truncated(name)
        longest = int(_MAX_SKEW_S * header.fs)
        self._skew = max((header.signals[i].skew for i in wanted), default=0)
        if self._skew > max(longest, 1):
            raise RecordError(
                f"Record {record} has a skew of {self._skew} frames: at most {_MAX_SKEW_S:g} s are allowed."
            )
        self._tally = _Tally([header.signals[i] for i in wanted], self.n_frames)
        self._start = (0, {i: _initial(header.signals[i]) for i in wanted})  # of format 8
        self._check_flac_end()

    def read(self, first: int, last: int) -> dict[int, Array]:
        """Stored numbers of frames first ... last - 1: signal -> [(last - first) * per_frame], NaN = invalid.

        Skew is taken into account; what lies behind the end of the file is NaN.
        """
        stop = min(last + self._skew, self.n_frames)
        frames = self._frames(first, stop) if first < stop else {}
        if frames:
            self._tally.add(first, frames)
        if not self._skew:
            return {i: x.reshape(-1) for i, x in frames.items()}
        out = {}
        for i in self.wanted:
            line = self.header.signals[i]
            x = np.full((last - first, line.per_frame), np.nan)
            part = frames[i][line.skew : line.skew + last - first] if frames else x[:0]
            x[: len(part)] = part
            out[i] = x.reshape(-1)
        return out

    def contradicted(self) -> list[int] | None:
        """Signals of which the header's checksum or initial value is wrong; None before all was read."""
        places = self._tally.verdict()
        return None if places is None else [self.wanted[place] for place in places]

    def _held(self, name: str, rows: Sequence[int]) -> int:
        """Frames that one file holds."""
        first = self.header.signals[rows[0]]
        for i in rows:
            other = self.header.signals[i]
            if (other.fmt, other.offset) != (first.fmt, first.offset):
                raise RecordError(
                    f"Header of record {self.record} gives signal file {name} two formats or offsets: "
                    "one is allowed."
                )
        size = self._size(name)
        if first.fmt in FLAC:
            return self._flac_frames(name, rows)
        if first.fmt not in PACKED:
            raise RecordError(
                f"Record {self.record} has signal file {name} in format {first.fmt[:20]}: "
                f"{', '.join([*PACKED, *FLAC])} can be read."
            )
        width, count, _ = PACKED[first.fmt]
        blocks, rest = divmod(max(0, size - first.offset), width)
        return (blocks * count + _part_of_block(first.fmt, rest)) // self._per_frame(rows)

    def _size(self, name: str) -> int:
        try:
            return regular_size(self._folder / name)
        except FileNotFoundError as error:
            raise RecordError(f"Record {self.record} has no signal file: {name} does not exist.") from error
        except OSError as error:
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: OSError) -> RecordError:
        return RecordError(
            f"Signal file {name} of record {self.record} cannot be read: {error.strerror or error}."
        )

    def _per_frame(self, rows: Sequence[int]) -> int:
        return sum(self.header.signals[i].per_frame for i in rows)

    def _refuse_truncated(self, name: str) -> None:
        rows = self._groups[name]
        first, frames, size = self.header.signals[rows[0]], max(self.n_frames, 1), self._size(name)
        if first.fmt in FLAC:
            held = self._flac_frames(name, rows)
            said = f"{held} frames, the header promises {frames}"
        else:
            samples = frames * self._per_frame(rows)
            said = f"{size} bytes, the header promises {first.offset + _bytes(first.fmt, samples)}"
        raise RecordError(f"Signal file {name} of record {self.record} is truncated: {said}.")

    def _flac_frames(self, name: str, rows: Sequence[int]) -> int:
        """Frames of a FLAC file, by the STREAMINFO block that it begins with (RFC 9639, 8.2)."""
        try:
            with (self._folder / name).open("rb") as stream:
                head = stream.read(42)
        except OSError as error:
            raise self._unreadable(name, error) from error
        lines = [self.header.signals[i] for i in rows]
        if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
            raise RecordError(f"Signal file {name} of record {self.record} is not a FLAC file.")
        word = int.from_bytes(head[18:26], "big")
        channels, bits, total = (word >> 41 & 7) + 1, (word >> 36 & 31) + 1, word & (1 << 36) - 1
        if channels != len(rows) or bits > FLAC[lines[0].fmt] or len({s.per_frame for s in lines}) > 1:
            raise RecordError(
                f"Signal file {name} of record {self.record} has {channels} channels of {bits} bits: the "
                f"header says {len(rows)} of up to {FLAC[lines[0].fmt]} bits, and one rate is allowed."
            )
        return max(0, total - lines[0].offset) // lines[0].per_frame

    def _check_flac_end(self) -> None:
        """A FLAC file may say that it is long and be empty: its last frame is read."""
        if any(self.header.signals[i].fmt in FLAC for i in self.wanted):
            self._frames(self.n_frames - 1, self.n_frames)

    def _frames(self, first: int, last: int) -> dict[int, Array]:
        """Signal -> [frames, per_frame], as stored: no skew."""
        try:
            if all(self.header.signals[rows[0]].fmt in PLAIN for rows in self._groups.values()):
                return self._plain(first, last)
            begin = first - first % _ALIGN
            lines, where = self._piece(begin, last)
            raw = self._decode(lines, last - begin)
        except Exception as error:
            raise RecordError(f"Signals of record {self.record} cannot be read: {_cause(error)}.") from error
        out = {}
        for i in self.wanted:
            line = self.header.signals[i]
            at, start, total = where[i]
            x = np.asarray(raw[at], dtype=np.float64).reshape(-1, total)[first - begin :]
            x = x[:, start : start + line.per_frame]
            if line.fmt == "311":
                x = np.where(x > 511, x - 1024, x)
            out[i] = x
        return out

    def _plain(self, first: int, last: int) -> dict[int, Array]:
        """As _frames, of files in which every sample is a whole number of its own."""
        found: dict[int, Array] = {}
        for name, rows in self._groups.items():
            line, total = self.header.signals[rows[0]], self._per_frame(rows)
            kind = np.dtype(PLAIN[line.fmt])
            offset = line.offset + first * total * kind.itemsize
            raw = np.fromfile(self._folder / name, kind, (last - first) * total, offset=offset)
            if len(raw) < (last - first) * total:
                raise OSError(f"{name} has become shorter")
            raw = raw.reshape(-1, total)
            x = raw.T.astype(np.float64, order="C")
            invalid = PACKED[line.fmt][2]
            if invalid is not None and raw.min() == invalid:
                x[x == invalid] = np.nan
            starts = itertools.accumulate((self.header.signals[i].per_frame for i in rows), initial=0)
            for i, start in zip(rows, starts, strict=False):
                found[i] = x[start : start + self.header.signals[i].per_frame].T
        return {i: found[i] for i in self.wanted}

    def _piece(self, begin: int, last: int) -> tuple[list[str], dict[int, tuple[int, int, int]]]:
        """Signal lines for wfdb, and for each signal: line, first sample of a frame, samples of a frame."""
        lines: list[str] = []
        where: dict[int, tuple[int, int, int]] = {}
        initial = self._first_differences(begin)
        for number, (_, rows) in enumerate(self._groups.items()):
            first = self.header.signals[rows[0]]
            total = self._per_frame(rows)
            if first.fmt in FLAC or first.fmt == "8":  # these are not interleaved, or not independent
                offset = first.offset + (begin * (first.per_frame if first.fmt in FLAC else total))
                for i in rows:
                    where[i] = (len(lines), 0, self.header.signals[i].per_frame)
                    lines.append(_line(number, first.fmt, where[i][2], offset, initial.get(i, 0)))
                continue
            width, count, _ = PACKED[first.fmt]
            starts = np.cumsum([0, *(self.header.signals[i].per_frame for i in rows)])
            for i, start in zip(rows, starts, strict=False):
                where[i] = (len(lines), int(start), total)
            lines.append(_line(number, first.fmt, total, first.offset + begin * total // count * width))
        return lines, where

    def _decode(self, lines: Sequence[str], frames: int) -> list[Any]:
        import wfdb

        made: list[Path] = []
        try:
            folder = _scratch_folder()
            number = next(_NUMBERS)
            made.append(folder / f"r{number}.hea")
            text = "\n".join([f"r {len(lines)} 1 {frames}", *lines, ""]).replace("@", f"s{number}x")
            made[0].write_text(text, encoding="ascii")
            for group, name in enumerate(self._groups):
                made.append(folder / f"s{number}x{group}")
                made[-1].symlink_to((self._folder / name).absolute())
            raw = wfdb.rdrecord(str(folder / f"r{number}"), smooth_frames=False).e_p_signal
        finally:
            for path in made:
                path.unlink(missing_ok=True)
        return list(raw)

    def _first_differences(self, begin: int) -> Mapping[int, int]:
        """Value before frame `begin` of each wanted signal in format 8: the sum of its differences."""
        rows = [i for i in self.wanted if self.header.signals[i].fmt == "8"]
        if not rows:
            return {}
        if self._start[0] > begin:
            self._start = (0, {i: _initial(self.header.signals[i]) for i in rows})
        at, values = self._start[0], dict(self._start[1])
        for name, group in self._groups.items():
            if self.header.signals[group[0]].fmt != "8":
                continue
            total, offset = self._per_frame(group), self.header.signals[group[0]].offset
            widths = [self.header.signals[i].per_frame for i in group]
            starts = dict(zip(group, np.cumsum([0, *widths]), strict=False))
            step = max(1, (1 << 20) // total)
            for first in range(at, begin, step):
                count = min(step, begin - first) * total
                part = np.fromfile(self._folder / name, "i1", count, offset=offset + first * total)
                part = part.reshape(-1, total)
                for i in set(group) & set(rows):
                    width = self.header.signals[i].per_frame
                    values[i] += int(part[:, starts[i] : starts[i] + width].sum(dtype=np.int64))
        self._start = (begin, values)
        return values


@functools.cache
def _scratch(process: int) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ecggen-")


def _scratch_folder() -> Path:
    """A folder of this process for the headers that wfdb reads; gone when the process ends.

    Making one for each read would take longer than the read.
    """
    folder = Path(_scratch(os.getpid()).name)
    if not folder.is_dir():  # swept away, by a child of this process or by a cleaner of old files
        _scratch.cache_clear()
        folder = Path(_scratch(os.getpid()).name)
    return folder


class _Tally:
    """Checksum and first value of each signal, collected while a record is read from its start to its end.

    The checksum is the sum of all samples modulo 65536, invalid ones included, skew aside (header(5)). It
    cannot be judged where the header gives no length, or 0 for both numbers, as converters write that do not
    compute them (so does PTBDB for a part of its Frank leads).
    """

    def __init__(self, lines: Sequence[SignalLine], n_frames: int) -> None:
        self._lines, self._n_frames = list(lines), n_frames
        self._next = 0
        self._sums = [0] * len(self._lines)
        self._firsts: list[float] = []

    def add(self, first: int, frames: Mapping[int, Array]) -> None:
        """frames: signal -> [frames, per_frame] in the order of the lines, from frame `first` on."""
        blocks = list(frames.values())
        length = len(blocks[0])
        if first == 0 and self._next < self._n_frames:
            self._next, self._sums = 0, [0] * len(self._lines)
            self._firsts = [float(x[0, 0]) for x in blocks]
        if first > self._next or first + length <= self._next:
            return
        for i, (line, x) in enumerate(zip(self._lines, blocks, strict=True)):
            new = x[self._next - first :]
            total = new.sum()  # whole numbers, and few enough to be exact
            if not np.isnan(total):
                self._sums[i] = (self._sums[i] + int(total)) % 65536
                continue
            invalid = np.isnan(new)
            lowest = PACKED[line.fmt][2] if line.fmt in PACKED else -(1 << FLAC[line.fmt] - 1)
            total = int(np.where(invalid, 0.0, new).sum()) + int(invalid.sum()) * (lowest or 0)
            self._sums[i] = (self._sums[i] + total) % 65536
        self._next = first + length

    def verdict(self) -> list[int] | None:
        """Places in `lines` of those that do not agree; None before all was seen."""
        if self._next < self._n_frames:
            return None
        wrong = []
        for i, line in enumerate(self._lines):
            if line.checksum is None or (line.checksum == 0 and not line.initial):
                continue
            start = line.initial is None or line.fmt == "8" or np.isnan(self._firsts[i])
            if (self._sums[i] - line.checksum) % 65536 or not (start or self._firsts[i] == line.initial):
                wrong.append(i)
        return wrong


def _line(file: int, fmt: str, per_frame: int, offset: int, initial: int = 0) -> str:
    return f"@{file} {fmt}x{per_frame}+{offset} 1(0)/mV 0 0 {initial} 0 0 x"


def _initial(line: SignalLine) -> int:
    return line.adc_zero if line.initial is None else line.initial


def _bytes(fmt: str, samples: int) -> int:
    """Bytes that this many samples fill: the last block may be cut where its samples end."""
    width, count, _ = PACKED[fmt]
    whole, rest = divmod(samples, count)
    return whole * width + next(size for size in range(width + 1) if _part_of_block(fmt, size) >= rest)


def _part_of_block(fmt: str, size: int) -> int:
    """Whole samples in the first `size` bytes of a block."""
    width, count, _ = PACKED[fmt]
    if size >= width:
        return count
    return {"212": (0, 0, 1), "310": (0, 0, 1, 1), "311": (0, 0, 1, 2)}[fmt][size] if count > 1 else 0


def _cause(error: BaseException) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    return f"{words[:200]} ({type(error).__name__})" if words else type(error).__name__
