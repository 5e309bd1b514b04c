"""WFDB records, whole or a stretch at a time.

Inside the package a recording is in mV, in standard lead order, with NaN where a sample is not valid. Lead
names and units come from the header; nothing is guessed from amplitude or column.

Opening a record reads its headers (of all segments, for a multi-segment record) and compares them with the
sizes of the signal files, without reading a sample. Whatever the header promises is then there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.io.header import Header, RecordError, mv_per_unit, read_header
from ecggen.io.signals import SignalFiles
from ecggen.io.writer import write_record
from ecggen.leads import FRANK, LEADS, lead_channels, unit_in_name

__all__ = [
    "AnyRecord",
    "OpenRecord",
    "RecordError",
    "Recording",
    "open_record",
    "read_record",
    "write_record",
]

#: Hz of the ECG channels. Below, no QRS complex is in the signal, and a few bytes would be hours of it.
_FS_RANGE = (20.0, 200_000.0)
#: Null segments may last this many times as long as the segments with signals: no ECG is in such a record.
_MAX_NULL_SHARE = 20
_LEADS_AND_FRANK = (*LEADS, *FRANK)


@dataclass(frozen=True)
class Recording:
    """The signals of a record, or of a stretch of it.

    ecg [12, n] float64 mV in LEADS order, NaN where invalid or not recorded; observed [12] bool, True = the
    lead is in the record; frank [3, n] mV (vx, vy, vz) or None; fs in Hz; doubts: see OpenRecord.doubts.
    """

    fs: float
    ecg: NDArray[np.float64]
    observed: NDArray[np.bool_]
    frank: NDArray[np.float64] | None
    doubts: list[tuple[str, str]]


class AnyRecord(ABC):
    """What is read a stretch at a time, a WFDB record or an array.

    n_samples counts at the rate fs; observed as in Recording; frank: whether vx, vy and vz are all there;
    comments: of the header; unknown_channels: names of channels that were not understood.
    """

    name: str
    fs: float
    n_samples: int
    observed: NDArray[np.bool_]
    frank: bool
    comments: list[str]
    unknown_channels: tuple[str, ...]

    def read(self, start: int = 0, stop: int | None = None) -> Recording:
        """Samples start ... stop - 1 (default: to the end). Raises RecordError."""
        stop = self.n_samples if stop is None else min(stop, self.n_samples)
        if not 0 <= start < stop:
            raise self._error(f"has {self.n_samples} samples: {start} to {stop} is no stretch of it")
        mv = self._millivolts(start, stop)
        frank = mv[len(LEADS) :] if self.frank else None
        return Recording(self.fs, mv[: len(LEADS)], self.observed.copy(), frank, self.doubts())

    def doubts(self) -> list[tuple[str, str]]:
        """(flag, lead) of leads that may not be what they seem."""
        return []

    @abstractmethod
    def _millivolts(self, start: int, stop: int) -> NDArray[np.float64]:
        """[12, stop - start], or [15, ...] with Frank leads; NaN where invalid or not recorded."""

    def _error(self, words: str) -> RecordError:
        return RecordError(f"Record {self.name} {words}.")


def open_record(path: str | Path) -> OpenRecord:
    """Open one record; path has no suffix. No sample is read (of FLAC files, the last frame).

    Any rate, length and format that WFDB writes, several signal files, several frequencies, skew,
    multi-segment records of fixed and variable layout. Raises RecordError in one sentence: unreadable header,
    missing or truncated signal file, repeated lead, unknown unit, no ECG lead.
    """
    return OpenRecord(Path(path))


def read_record(path: str | Path, limit: int = 0) -> Recording:
    """Read one record; limit > 0 reads only that many samples from the start. Errors as in open_record."""
    return open_record(path).read(0, limit or None)


@dataclass(frozen=True)
class _Part:
    """frames of the record from `start` on; channels: lead -> (its channel in `files`, mV per unit)."""

    start: int
    frames: int
    files: SignalFiles | None = None
    channels: dict[str, tuple[int, float]] = field(default_factory=dict)


class OpenRecord(AnyRecord):
    """A record of which any stretch can be read.

    fs is the rate of the ECG channels in Hz and n_samples counts at that rate: channels with more samples per
    frame than one keep their own rate if all ECG channels share it, else they are averaged to the frame rate.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._folder = path.parent
        header = read_header(path)
        layout = self._layout(header) if header.multi else header
        self.comments = header.comments
        channels = [line.name for line in layout.signals]
        where, unknown = _lead_channels(self.name, channels)
        self.unknown_channels = tuple(unknown)
        present = {lead for lead, i in where.items() if header.multi or layout.signals[i].file != "~"}
        if not present & set(LEADS):
            listed = f"{', '.join(channels)[:400]}, wanted is any of {', '.join(LEADS)}"
            error = self._error(f"has no ECG lead: its channels are {listed}")
            error.unknown_channels = self.unknown_channels
            raise error
        self.observed = np.array([lead in present for lead in LEADS])
        # Channels called x, y, z may well be an accelerometer.
        self.frank = present >= set(FRANK) and all(
            mv_per_unit(layout.signals[where[lead]].unit) is not None for lead in FRANK
        )
        self._leads = [lead for lead in LEADS if lead in present] + (list(FRANK) if self.frank else [])
        rates = {layout.signals[where[lead]].per_frame for lead in self._leads if lead in LEADS}
        self._per_frame = rates.pop() if len(rates) == 1 else 1
        self.fs = header.fs * self._per_frame
        low, high = _FS_RANGE
        if not low <= self.fs <= high:
            raise self._error(f"has its ECG at {self.fs:g} Hz: {low:g} to {high:g} Hz are allowed")
        self._parts = self._open_parts(header)
        self._starts = [part.start for part in self._parts]
        self._wrong: set[str] = set()
        self._uncalibrated = {
            lead
            for part in self._parts
            for lead, (i, _) in part.channels.items()
            if part.files and not part.files.header.signals[i].calibrated
        }
        frames = self._parts[-1].start + self._parts[-1].frames
        self.n_samples = frames * self._per_frame
        if not self.n_samples:
            raise self._error("holds no samples")
        if header.multi and header.n_frames not in (0, frames):
            raise self._error(
                f"promises {header.n_frames} samples and its segments add up to {frames}: one of the two is "
                "wrong"
            )

    def _millivolts(self, start: int, stop: int) -> NDArray[np.float64]:
        k = self._per_frame
        first, last = start // k, -(-stop // k)
        out = np.full((len(_LEADS_AND_FRANK) if self.frank else len(LEADS), (last - first) * k), np.nan)
        for part in self._parts[bisect_right(self._starts, first) - 1 : bisect_left(self._starts, last)]:
            begin, end = max(first, part.start), min(last, part.start + part.frames)
            if part.files is None or begin >= end:
                continue
            signals = part.files.read(begin - part.start, end - part.start)
            wrong = part.files.contradictions()
            self._wrong |= {lead for lead, (channel, _) in part.channels.items() if channel in wrong}
            for lead, (channel, factor) in part.channels.items():
                line = part.files.header.signals[channel]
                x = (signals[channel] - float(line.baseline)) / line.gain
                if line.per_frame != k:  # Frank leads or mixed rates: average to the frame rate, then hold
                    x = np.repeat(x.reshape(-1, line.per_frame).mean(axis=1), k)
                out[_LEADS_AND_FRANK.index(lead), (begin - first) * k : (end - first) * k] = x * factor
        return out[:, start - first * k : stop - first * k]

    def doubts(self) -> list[tuple[str, str]]:
        """(flag, lead): `uncalibrated` leads, those that contradict the header's `checksum` or first value.

        The latter are known once all of a segment has been read, in one stretch or in stretches from its
        start to its end.
        """
        flags = (("uncalibrated", self._uncalibrated), ("checksum", self._wrong))
        return [(flag, lead) for flag, leads in flags for lead in _LEADS_AND_FRANK if lead in leads]

    def _layout(self, header: Header) -> Header:
        """The header that names the channels of a multi-segment record: its layout, or its first segment."""
        named = {name: length for name, length in header.segments if name != "~"}
        if not named:
            raise self._error("has null segments alone: no signal is in it")
        total, recorded = sum(length for _, length in header.segments), sum(named.values())
        if total - recorded > _MAX_NULL_SHARE * recorded:
            raise self._error(f"has signals for {recorded} of {total} samples: too little to be an ECG")
        return self._segment(next(iter(named)), header.fs)

    def _segment(self, name: str, fs: float) -> Header:
        segment = read_header(self._folder / name)
        if segment.multi:
            raise self._error(f"has segment {name}, which is multi-segment itself: one level is allowed")
        if abs(segment.fs - fs) > 1e-6 * fs:
            raise self._error(
                f"is sampled at {fs:g} Hz and its segment {name} at {segment.fs:g} Hz: one rate is allowed"
            )
        return segment

    def _open_parts(self, header: Header) -> list[_Part]:
        if not header.multi:
            return [self._open_part(self.name, header, 0, None)]
        variable = header.segments[0][1] == 0
        parts: list[_Part] = []
        start = 0
        for name, length in header.segments[1:] if variable else header.segments:
            if name == "~":
                parts.append(_Part(start, length))
            elif length:
                segment = self._segment(name, header.fs)
                parts.append(self._open_part(name, segment, start, length))
                missing = sorted(set(self._leads) - set(parts[-1].channels))
                if missing and not variable:
                    raise self._error(
                        f"has no lead {missing[0]} in its segment {name}: all segments of a fixed layout "
                        "have the same signals"
                    )
            start += length
        return parts or [_Part(0, 0)]

    def _open_part(self, name: str, header: Header, start: int, length: int | None) -> _Part:
        """One ordinary record, or `length` frames of a segment of that name."""
        where, _ = _lead_channels(name, [line.name for line in header.signals])
        channels: dict[str, tuple[int, float]] = {}
        for lead in self._leads:
            if lead not in where or (line := header.signals[where[lead]]).file == "~":
                continue
            factor = mv_per_unit(line.unit)
            if factor is None:
                raise RecordError(
                    f"Record {name} has lead {line.name} in {line.unit[:40]!r}: mV, uV, V or nV is needed."
                )
            if factor != (mv_per_unit(unit_in_name(line.name)) or factor):
                raise RecordError(
                    f"Record {name} calls a channel {line.name[:40]!r} and gives its unit as {line.unit}: "
                    "one of the two is wrong."
                )
            if 1 < self._per_frame != line.per_frame and lead in LEADS:
                raise self._error(
                    f"has {self._per_frame} samples of lead {lead} per frame and its segment {name} "
                    f"{line.per_frame}: one rate is allowed"
                )
            channels[lead] = where[lead], factor
        if not channels:  # a stretch of a variable layout without any of the leads
            return _Part(start, length or 0)
        files = SignalFiles(self._folder, name, header, (channel for channel, _ in channels.values()))
        if length is not None and files.n_frames < length:
            raise self._error(f"takes {length} samples from its segment {name}, which has {files.n_frames}")
        return _Part(start, files.n_frames if length is None else length, files, channels)


def _lead_channels(record: str, names: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """(lead -> channel, names not understood). Raises RecordError for a lead that appears twice."""
    channels, unknown = lead_channels(names)
    for lead, places in channels.items():
        if len(places) > 1:
            raise RecordError(
                f"Record {record} has lead {lead} twice, as {names[places[0]]!r} and {names[places[1]]!r}: "
                "each lead may appear once."
            )
    return {lead: places[0] for lead, places in channels.items()}, unknown
