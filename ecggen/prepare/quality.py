"""Signal quality in words: which lead is flat, saturated or missing, and where.

A finding is a `Span`: a flag, the lead (or "" for the whole record) and when. A record's flags are the words
of its spans; a window inherits the spans it overlaps. Thresholds are those of PreprocessConfig.

flat: the lead's range stays below flat_mv for at least flat_seconds. saturated: runs of at least 20 ms (and
three samples) that sit exactly at the lead's largest or smallest value, where together they make more than
saturated_share of the record. algebra: limb leads further than max_algebra_mv from what Einthoven and
Goldberger ask. amplitude: |signal| above max_abs_mv. gap: NaN for longer than max_gap_s.
All but amplitude are judged on the raw signal, because a filter hides them; for the algebra each relation's
own median is taken out first, because leads may be stored with different offsets, and stretches where a limb
lead is flat or missing do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import EXPAND, LEADS, LIMB
from ecggen.prepare.filters import find_runs
from ecggen.utils.config import PreprocessConfig

#: Flags that say that a lead is not there to be used, in a window that overlaps them.
UNUSABLE = ("flat", "gap")
_MERGE_S = 1.0  # findings closer than this are one span


@dataclass(frozen=True)
class Span:
    """One finding: flag, lead ("" = the record) and its time in seconds from the record's start."""

    flag: str
    lead: str
    start_s: float
    stop_s: float

    @property
    def word(self) -> str:
        """How the flag is written in tables; gap, algebra and amplitude carry no lead."""
        return f"{self.flag}:{self.lead}" if self.flag in ("flat", "saturated", "missing") else self.flag


def raw_spans(
    ecg: NDArray[np.floating],
    observed: NDArray[np.bool_],
    fs: float,
    rules: PreprocessConfig,
    gaps: Sequence[Span] = (),
) -> list[Span]:
    """Flat, saturated and algebra spans of ecg [12, n] (mV, no NaN) at its own rate fs in Hz."""
    spans: list[Span] = []
    for row in np.flatnonzero(observed):
        flat = flat_runs(ecg[row], fs, rules)
        spans += flat_spans(LEADS[row], flat, fs, gaps)
        if not len(flat):
            spans += _spans("saturated", LEADS[row], saturated_runs(ecg[row], fs, rules), fs)
    broken = algebra_deviation(ecg, observed) > rules.max_algebra_mv
    for span in (*gaps, *spans):
        if span.flag in UNUSABLE and span.lead in LIMB:
            broken[int(span.start_s * fs) : int(np.ceil(span.stop_s * fs)) + 1] = False
    return spans + _spans("algebra", "", find_runs(broken), fs)


def conditioned_spans(
    ecg: NDArray[np.floating], observed: NDArray[np.bool_], fs: float, rules: PreprocessConfig
) -> list[Span]:
    """Amplitude spans of filtered ecg [12, n] in mV at fs in Hz."""
    spans: list[Span] = []
    for row in np.flatnonzero(observed):
        spans += _spans("amplitude", LEADS[row], find_runs(np.abs(ecg[row]) > rules.max_abs_mv), fs)
    return spans


def gap_spans(lead: str, runs: NDArray[np.int64], fs: float) -> list[Span]:
    """Spans of the runs [k, 2] of invalid samples of one lead."""
    return _spans("gap", lead, runs, fs)


def flat_runs(x: NDArray[np.floating], fs: float, rules: PreprocessConfig) -> NDArray[np.int64]:
    """[k, 2] runs of x [n] in mV whose range stays below flat_mv for at least flat_seconds.

    A record shorter than flat_seconds is judged as a whole.
    """
    width = min(len(x), max(2, round(rules.flat_seconds * fs)))
    limit = max(rules.flat_mv, 1e-12)
    block = max(1, width // 4)
    count = len(x) // block
    if count < 4 or width < 8:  # too short for blocks
        whole = float(np.ptp(x)) < limit
        return np.array([[0, len(x)]] if whole else np.zeros((0, 2)), dtype=np.int64)
    parts = x[: count * block].reshape(count, block)
    # Blocks of a quarter of flat_seconds, four in a row: the range is exact, the ends to one block.
    low = np.lib.stride_tricks.sliding_window_view(parts.min(axis=1), 4).min(axis=1)
    high = np.lib.stride_tricks.sliding_window_view(parts.max(axis=1), 4).max(axis=1)
    flat = np.zeros(count, dtype=bool)
    for shift in range(4):
        flat[shift : shift + count - 3] |= high - low < limit
    runs = find_runs(flat) * block
    if len(runs) and runs[-1, 1] == count * block and float(np.ptp(x[runs[-1, 1] - block :])) < limit:
        runs[-1, 1] = len(x)
    return runs


def saturated_runs(x: NDArray[np.floating], fs: float, rules: PreprocessConfig) -> NDArray[np.int64]:
    """[k, 2] runs of x [n] stuck at its extremes, if they make more than saturated_share; else none."""
    least = max(3, int(np.ceil(0.02 * fs)))
    found = []
    for extreme in (x.min(), x.max()):
        runs = find_runs(x == extreme)
        found.append(runs[runs[:, 1] - runs[:, 0] >= least])
    runs = np.concatenate(found)
    stuck = int((runs[:, 1] - runs[:, 0]).sum())
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    return runs if stuck > rules.saturated_share * len(x) else runs[:0]


def algebra_deviation(ecg: NDArray[np.floating], observed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n] largest departure in mV of the observed limb leads from the limb-lead algebra.

    Each relation's median over time is taken out. Against leads I and II where both are observed, else
    against the least-squares fit of (I, II) to the observed limb leads; zero with fewer than three limb
    leads, which always agree.
    """
    deviation = limb_deviation(ecg, observed)
    if not len(deviation):
        return np.zeros(ecg.shape[-1])
    return np.abs(deviation - np.median(deviation, axis=1, keepdims=True)).max(axis=0)


def limb_deviation(ecg: NDArray[np.floating], observed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[k, n] what the algebra asks of each observed limb lead less what it is; k = 0 below three leads."""
    limb = np.flatnonzero(observed[:6])
    if len(limb) < 3:
        return np.zeros((0, ecg.shape[-1]))
    algebra = EXPAND[:6, :2]
    i_ii = ecg[:2] if observed[:2].all() else np.linalg.pinv(algebra[limb]) @ ecg[limb]
    return algebra[limb] @ i_ii - ecg[limb]


def mostly_unusable(spans: Iterable[Span], lead: str, seconds: float) -> bool:
    """Whether flat or missing stretches cover half of a lead of `seconds` or more."""
    total = reached = 0.0
    for start, stop in sorted((s.start_s, s.stop_s) for s in spans if s.lead == lead and s.flag in UNUSABLE):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total >= seconds / 2


def flag_words(spans: Iterable[Span], observed_in_file: NDArray[np.bool_]) -> list[str]:
    """Sorted distinct flags: those of the spans and missing:<lead> for leads that the file does not have."""
    words = {span.word for span in spans}
    words |= {f"missing:{LEADS[row]}" for row in np.flatnonzero(~observed_in_file)}
    return sorted(words)


def usable_share(observed: NDArray[np.bool_], words: Sequence[str]) -> float:
    """Share of the 12 leads that are observed and not saturated; zero if the amplitude is impossible."""
    if "amplitude" in words:
        return 0.0
    saturated = {word.split(":", 1)[1] for word in words if word.startswith("saturated:")}
    return sum(
        bool(seen) and lead not in saturated for lead, seen in zip(LEADS, observed, strict=True)
    ) / len(LEADS)


def _mostly_gap(span: Span, gaps: Iterable[Span]) -> bool:
    """Whether a flat span is the straight line that fills a gap."""
    shared = [min(span.stop_s, g.stop_s) - max(span.start_s, g.start_s) for g in gaps if g.lead == span.lead]
    return sum(max(0.0, s) for s in shared) >= (span.stop_s - span.start_s) / 2


def _spans(flag: str, lead: str, runs: NDArray[np.int64], fs: float) -> list[Span]:
    merged: list[list[float]] = []
    for start, stop in runs / fs:
        if merged and start - merged[-1][1] < _MERGE_S and flag != "gap":
            merged[-1][1] = float(stop)
        else:
            merged.append([float(start), float(stop)])
    return [Span(flag, lead, a, b) for a, b in merged]


def flat_spans(lead: str, runs: NDArray[np.int64], fs: float, gaps: Sequence[Span]) -> list[Span]:
    """Spans of the flat runs [k, 2] of one lead, less the straight lines that fill its gaps."""
    found = [Span("flat", lead, a / fs, b / fs) for a, b in runs]
    return [span for span in found if not _mostly_gap(span, gaps)]


def merged_spans(flag: str, lead: str, runs: NDArray[np.int64], fs: float) -> list[Span]:
    """Spans of runs [k, 2] of samples in order; those closer than a second are one, gaps excepted."""
    return _spans(flag, lead, runs, fs)
