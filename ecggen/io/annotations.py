"""WFDB annotation files: beats, where they are, and their class in ANSI/AAMI EC57.

Classes: N: any beat not in the other classes, S: supraventricular ectopic, V: ventricular ectopic, F: fusion
of a normal and a ventricular beat, Q: paced, fusion of paced and normal, or unclassifiable. The assignment of
the MIT-BIH symbols is that of de Chazal, O'Dwyer, Reilly, IEEE Trans Biomed Eng 51 (2004) 1196, table I; the
rarer symbols of other databases (B, n, r) go by the same definition.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ecggen.io.header import find_file, regular_size
from ecggen.utils.errors import EcggenError

REFERENCE = "atr"  # the suffix of reference annotations on PhysioNet
CLASSES = ("N", "S", "V", "F", "Q")
#: Beat symbol -> class. Symbols that are no beats (rhythm, noise ...) are absent.
CLASS_OF = {
    **dict.fromkeys(("N", "L", "R", "B", "e", "j"), "N"),
    **dict.fromkeys(("A", "a", "J", "S", "n"), "S"),
    **dict.fromkeys(("V", "E", "r"), "V"),
    "F": "F",
    **dict.fromkeys(("/", "f", "Q"), "Q"),
}
#: Code in an annotation file -> beat symbol (ecgcodes.h of the WFDB library).
_SYMBOLS = dict(enumerate("NLRaVFJASEj/Q", start=1)) | {25: "B", 34: "e", 35: "n", 38: "f", 41: "r"}
_NOTE, _SKIP, _NUM, _CHN, _AUX = 22, 59, 60, 62, 63
_RESOLUTION = re.compile(rb"## time resolution: ([0-9]{1,9}(?:\.[0-9]{1,9})?)\0?")
_LATE_S = 1.0  # annotations may lie that far behind the end of the signal
_MAX_BYTES = 64 << 20


class AnnotationError(EcggenError):
    """An annotation file that cannot be used."""


@dataclass(frozen=True)
class Beat:
    """One annotated beat: time in seconds from the record's start, symbol as annotated."""

    time_s: float
    symbol: str

    @property
    def aami(self) -> str:
        """Class of ANSI/AAMI EC57."""
        return CLASS_OF[self.symbol]


def present(symbols: Iterable[str]) -> list[str]:
    """The classes among beat symbols, in the order of CLASSES."""
    classes = {CLASS_OF[symbol] for symbol in symbols}
    return [name for name in CLASSES if name in classes]


def within(beats: Sequence[Beat], start_s: float, stop_s: float) -> list[Beat]:
    """Beats of a window, start_s <= time < stop_s; beats are in order of time."""
    first, last = (bisect_left(beats, time, key=lambda beat: beat.time_s) for time in (start_s, stop_s))
    return list(beats[first:last])


def read_beats(record: Path, fs: float, seconds: float = math.inf) -> list[Beat]:
    """The annotated beats of a record in order of time, or none without a file of annotations.

    record: path without suffix; fs in Hz; seconds: how long it is. Annotations that are no beats are left
    out. Raises AnnotationError for a file that is cut off, that cannot be read, or whose times are not in the
    record.
    """
    path = find_file(record.parent, f"{record.name}.{REFERENCE}")
    if not os.path.lexists(path):
        return []
    try:
        if regular_size(path) > _MAX_BYTES:
            raise OSError(0, f"more than {_MAX_BYTES} bytes")
        beats = _parse(path.read_bytes(), fs)
    except OSError as error:
        raise AnnotationError(
            f"Annotations {path.name} cannot be read: {error.strerror or error}."
        ) from error
    if beats is None:
        raise AnnotationError(f"Annotations {path.name} are cut off: the mark of their end is missing.")
    beats.sort(key=lambda beat: beat.time_s)
    if beats and (beats[0].time_s < 0 or beats[-1].time_s > seconds + _LATE_S):
        raise AnnotationError(
            f"Annotations {path.name} have beats from {beats[0].time_s:.1f} to {beats[-1].time_s:.1f} s, and "
            f"the record lasts {seconds:.1f} s: they belong to another one."
        )
    return beats


def _parse(data: bytes, fs: float) -> list[Beat] | None:
    """The beats of an annotation file in MIT format (annot(5)), None if it has no end.

    Each annotation is a little-endian word: a code in the upper six bits, in the others the time since the
    annotation before. A skip is followed by four bytes of time, upper half first, a text by as many bytes as
    the word's lower bits say, padded to an even number. A zero word is the end.
    """
    at = time = code = 0
    rate = fs
    beats: list[tuple[int, str]] = []
    while at + 2 <= len(data):
        word, at = int.from_bytes(data[at : at + 2], "little"), at + 2
        if word == 0:
            return [Beat(sample / rate, symbol) for sample, symbol in beats]
        kind, value = word >> 10, word & 1023
        if kind == _SKIP:
            time += int.from_bytes(data[at + 2 : at + 4] + data[at : at + 2], "little", signed=True)
            at += 4
        elif kind == _AUX:
            resolution = _RESOLUTION.fullmatch(data[at : at + value])
            if resolution and time == 0 and code == _NOTE:
                rate = float(resolution[1]) or fs
            at += value + value % 2
        elif not _NUM <= kind <= _CHN:
            code, time = kind, time + value
            if code in _SYMBOLS:
                beats.append((time, _SYMBOLS[code]))
    return None
