"""WFDB annotation files: beats, where they are, and their class in ANSI/AAMI EC57.

Classes: N: any beat not in the other classes, S: supraventricular ectopic, V: ventricular ectopic, F: fusion
of a normal and a ventricular beat, Q: paced, fusion of paced and normal, or unclassifiable. The assignment of
the MIT-BIH symbols is that of de Chazal, O'Dwyer, Reilly, IEEE Trans Biomed Eng 51 (2004) 1196, table I; the
rarer symbols of other databases (B, n, r) go by the same definition.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ecggen.io.header import find_file, regular_size
from ecggen.utils.errors import EcggenError

REFERENCE = "atr"  # the suffix of reference annotations on PhysioNet
CLASSES = ("N", "S", "V", "F", "Q")
#: Beat symbol of a WFDB annotation file -> class. Symbols that are no beats (rhythm, noise ...) are absent.
CLASS_OF = {
    **dict.fromkeys(("N", "L", "R", "B", "e", "j"), "N"),
    **dict.fromkeys(("A", "a", "J", "S", "n"), "S"),
    **dict.fromkeys(("V", "E", "r"), "V"),
    "F": "F",
    **dict.fromkeys(("/", "f", "Q"), "Q"),
}
_SKIP, _AUX = 59, 63  # codes of annot(5): a long interval, a text
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


def annotation_file(record: Path) -> Path | None:
    """The file of reference annotations of a record (path without suffix), None if there is none."""
    path = find_file(record.parent, f"{record.name}.{REFERENCE}")
    return path if path.exists() or path.is_symlink() else None


def read_beats(record: Path, fs: float, seconds: float = math.inf) -> list[Beat]:
    """The annotated beats of a record in order of time, or none without a file of annotations.

    record: path without suffix; fs in Hz; seconds: how long it is. Annotations that are no beats are left
    out. Raises AnnotationError for a file that is cut off, that cannot be read, or whose times are not in the
    record.
    """
    path = annotation_file(record)
    if path is None:
        return []
    try:
        if regular_size(path) > _MAX_BYTES:
            raise AnnotationError(f"Annotations {path.name} have more than {_MAX_BYTES} bytes.")
        if not _has_end(path.read_bytes()):
            raise AnnotationError(f"Annotations {path.name} are cut off: the mark of their end is missing.")
        import wfdb

        table = wfdb.rdann(str(path.with_suffix("")), path.suffix[1:])
        rate = float(table.fs or fs)
        symbols = zip(table.sample.tolist(), table.symbol, strict=True)
        beats = [Beat(sample / rate, symbol) for sample, symbol in symbols if symbol in CLASS_OF]
    except AnnotationError:
        raise
    except Exception as error:  # wfdb raises whatever its parser trips over
        words = " ".join(str(error).split()).rstrip(".")[:200]
        raise AnnotationError(
            f"Annotations {path.name} cannot be read: {words} ({type(error).__name__})."
        ) from error
    beats.sort(key=lambda beat: beat.time_s)
    if beats and (beats[0].time_s < 0 or beats[-1].time_s > seconds + _LATE_S):
        raise AnnotationError(
            f"Annotations {path.name} have beats from {beats[0].time_s:.1f} to {beats[-1].time_s:.1f} s, and "
            f"the record lasts {seconds:.1f} s: they belong to another one."
        )
    return beats


def _has_end(data: bytes) -> bool:
    """Whether an annotation file in MIT format has its end mark, a zero word in the place of an annotation.

    Each annotation is a little-endian word, the code in the upper six bits; a skip is followed by four bytes,
    a text by as many as the lower ten bits say, padded to an even number (annot(5)).
    """
    at = 0
    while at + 2 <= len(data):
        word = int.from_bytes(data[at : at + 2], "little")
        if word == 0:
            return True
        code, value = word >> 10, word & 1023
        at += 2 + (4 if code == _SKIP else value + value % 2 if code == _AUX else 0)
    return False
