"""Beat types in the five classes of ANSI/AAMI EC57.

N: any beat not in the other classes, S: supraventricular ectopic, V: ventricular ectopic, F: fusion of a
normal and a ventricular beat, Q: paced, fusion of paced and normal, or unclassifiable. The assignment of the
MIT-BIH symbols is that of de Chazal, O'Dwyer, Reilly, IEEE Trans Biomed Eng 51 (2004) 1196, table I; the
rarer symbols of other databases (B, n, r) go by the same definition.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CLASSES = ("N", "S", "V", "F", "Q")

#: Beat symbol of a WFDB annotation file -> class. Symbols that are no beats (rhythm, noise ...) are absent.
CLASS_OF = {
    **dict.fromkeys(("N", "L", "R", "B", "e", "j"), "N"),
    **dict.fromkeys(("A", "a", "J", "S", "n"), "S"),
    **dict.fromkeys(("V", "E", "r"), "V"),
    "F": "F",
    **dict.fromkeys(("/", "f", "Q"), "Q"),
}


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
    found = {CLASS_OF[symbol] for symbol in symbols}
    return [name for name in CLASSES if name in found]


def within(beats: Sequence[Beat], start_s: float, stop_s: float) -> list[Beat]:
    """Beats of a window, start_s <= time < stop_s; beats are in order of time."""
    first, last = (bisect_left(beats, time, key=lambda beat: beat.time_s) for time in (start_s, stop_s))
    return list(beats[first:last])
