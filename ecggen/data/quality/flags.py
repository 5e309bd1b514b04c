"""The vocabulary of signal quality: flags, the spans in which they hold, and what follows from them.

A `Span` is a flag, the lead (or "" for the whole record) and the time in which it holds. A record's flags are
the words of its spans; a window inherits the spans it overlaps. spans.py makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import LEADS, LIMB

#: Electrodes that a swap may name; where three, the cables RA, LA, LL hang on them in turn. RL: right leg.
SWAPS: tuple[str, ...] = (
    *("RA-LA", "RA-LL", "LA-LL", "LA-LL-RA", "LL-RA-LA", "RA-RL", "LA-RL", "RA-RL+LA-LL"),
    *("V1-V2", "V2-V3", "V3-V4", "V4-V5", "V5-V6", "V1-V3"),
)
#: What each flag may name after a colon; nothing = it stands alone.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "flat": LEADS,
    "saturated": LEADS,
    "algebra": (),
    "amplitude": (),
    "gap": (),
    "missing": LEADS,
    "noise": LEADS,
    "swap": SWAPS,
    "polarity": LEADS,
    "checksum": (),
    "uncalibrated": (),
}
#: Flags that say that a lead is not there to be used, in a window that overlaps them.
UNUSABLE = ("flat", "gap")


@dataclass(frozen=True)
class Span:
    """Where a flag holds: lead ("" = the record; of a swap the electrodes), seconds from the start."""

    flag: str
    lead: str
    start_s: float
    stop_s: float

    @property
    def word(self) -> str:
        """How the flag is written in tables; those that FLAGS lets name nothing carry no lead."""
        return f"{self.flag}:{self.lead}" if FLAGS.get(self.flag, LEADS) else self.flag


def mostly_unusable(spans: Iterable[Span], lead: str, seconds: float) -> bool:
    """Whether flat or missing stretches cover half of a lead of `seconds` or more."""
    total = reached = 0.0
    for start, stop in sorted((s.start_s, s.stop_s) for s in spans if s.lead == lead and s.flag in UNUSABLE):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total >= seconds / 2


def usable_leads(observed: NDArray[np.bool_], spans: Sequence[Span], seconds: float) -> NDArray[np.bool_]:
    """[12] the observed leads that are not mostly_unusable."""
    pairs = zip(observed, LEADS, strict=True)
    return np.array([seen and not mostly_unusable(spans, lead, seconds) for seen, lead in pairs])


def flag_words(spans: Iterable[Span], observed_in_file: NDArray[np.bool_]) -> list[str]:
    """Sorted distinct flags: those of the spans and missing:<lead> for leads that the file does not have."""
    words = {span.word for span in spans}
    words |= {f"missing:{LEADS[row]}" for row in np.flatnonzero(~observed_in_file)}
    return sorted(words)


def kinds(words: Iterable[str]) -> set[str]:
    """The flags of these words, without the leads that they name."""
    return {word.partition(":")[0] for word in words if word}


def concerned(word: str) -> frozenset[str]:
    """Leads that a flag makes doubtful: the lead it names, or those that a swap moves."""
    flag, _, what = word.partition(":")
    if flag != "swap":
        return frozenset({what} & set(LEADS))
    return frozenset(what.split("-")) if what.startswith("V") else frozenset(LIMB)


def usable_share(observed: NDArray[np.bool_], words: Sequence[str]) -> float:
    """Share of the 12 leads that are observed and that no flag concerns; zero for impossible amplitudes."""
    if "amplitude" in words:
        return 0.0
    doubtful = frozenset[str]().union(*map(concerned, words))
    usable = [seen and lead not in doubtful for lead, seen in zip(LEADS, observed.tolist(), strict=True)]
    return sum(usable) / len(LEADS)


def lasting(words: Sequence[str], spans: Sequence[Span], seconds: float) -> list[str]:
    """The words of a record of `seconds`, without noise that holds for less than half of it."""
    held = {word: sum(s.stop_s - s.start_s for s in spans if s.word == word) for word in words}
    return [word for word in words if not word.startswith("noise:") or held[word] >= seconds / 2]


def check_words(words: Iterable[str]) -> str:
    """Empty, or what is wrong with the first of these flags (with or without a lead)."""
    for word in words:
        flag, colon, what = word.partition(":")
        if flag not in FLAGS:
            return f"{word!r}: use any of {', '.join(FLAGS)}"
        if colon and what not in FLAGS[flag]:
            allowed = ", ".join(FLAGS[flag]) if FLAGS[flag] else "nothing"
            return f"{word!r}: after {flag}: comes {allowed}"
    return ""
