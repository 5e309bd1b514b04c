"""Records too long to be held in memory: judged and conditioned in pieces of a few minutes.

Three passes over the record, each a piece at a time: (1) where samples are missing, the extremes of each
lead, the header's checksums; (2) flat and saturated stretches, the median that the limb-lead algebra is
measured from; (3) filter and resampling, with as much context on both sides as the filter remembers. The
result is that of `condition_recording` on the whole record, to 1e-4 mV and better (tested), with these
exceptions: the algebra's median is taken of at most 2^16 samples, evenly spread; flags of
`quality.raw_spans` that are not named here are judged piece by piece, not on the record; a high-pass that
remembers more than 15 minutes (below 0.01 Hz) is cut off there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.filters import condition, effective_high, fill_gaps, find_runs
from ecggen.data.quality import spans as quality
from ecggen.data.quality.flags import (
    UNUSABLE,
    Span,
    flag_words,
    lasting,
    mostly_unusable,
    usable_share,
)
from ecggen.data.spectrum import resample_ratio
from ecggen.io.records import AnyRecord, RecordError
from ecggen.leads import FRANK, LEADS, LIMB
from ecggen.utils.config import PreprocessConfig

Array = NDArray[np.float64]
Runs = NDArray[np.int64]

#: Samples of the longest record that is conditioned as a whole (24 MB in twelve leads).
WHOLE = 1 << 18
#: Samples conditioned at a time in a longer one.
PIECE = 1 << 17
_MEDIAN_OF = 1 << 16
_FORGOTTEN = math.log(1e10)
_LONGEST_CONTEXT_S = 900.0
_SHORT_RUN = 64  # samples; a shorter run of NaN at the far end of the context makes no difference
_JOIN_S = 1.0  # as quality: findings closer than this are one span
_OF_THE_RECORD = ("flat", "saturated", "algebra")


def is_long(record: AnyRecord) -> bool:
    """Whether a record is to be conditioned in pieces."""
    return record.n_samples > WHOLE


@dataclass(frozen=True)
class Verdict:
    """What is said of a record: usable leads [12] bool, findings, their words, share of usable leads."""

    observed: NDArray[np.bool_]
    spans: list[Span]
    words: list[str]
    quality: float


def require_length(n: int, fs: float, rules: PreprocessConfig) -> float:
    """Seconds of n samples at fs. Raises RecordError for a record too short or too slow to be filtered."""
    seconds = n / fs
    if seconds < rules.min_seconds:
        raise RecordError(f"too short: {seconds:.2f} s, at least {rules.min_seconds:g} s is needed")
    if effective_high(rules.high_hz, fs) <= rules.low_hz:
        raise RecordError(f"sampled at {fs:g} Hz: too slow for a high-pass at {rules.low_hz:g} Hz")
    return seconds


def condition_long(
    record: AnyRecord,
    fs: float,
    rules: PreprocessConfig,
    write: Callable[[Array, Array | None], None],
    *,
    backend: str = "auto",
) -> Verdict:
    """Judge, filter and resample one record to fs in Hz, in pieces.

    write(ecg [12, k], frank [3, k] or None) is called once for each piece, in order, not before the record
    has been found usable. Raises RecordError as condition_recording does.
    """
    seconds = require_length(record.n_samples, record.fs, rules)
    filled = _Filled(record, int(rules.max_gap_s * record.fs))
    gaps: list[Span] = []
    for row in filled.leads:
        gaps += quality.gap_spans(LEADS[row], filled.gaps(row), record.fs)
    found, others, offsets = _judge(filled, rules, gaps)
    spans = [*gaps, *found]
    observed = record.observed.copy()
    for row in filled.leads:
        observed[row] = not mostly_unusable(spans, LEADS[row], seconds)
    if not observed.any():
        words = "; ".join(flag_words(spans, np.ones(len(LEADS), dtype=bool)))
        raise RecordError(f"no usable lead: {words}")
    frank = record.frank and not any(len(filled.gaps(row)) for row in filled.frank)
    filtering = {"low_hz": rules.low_hz, "high_hz": rules.high_hz, "order": rules.order, "backend": backend}
    broken: list[Runs] = []
    late: list[Span] = []
    for start, raw, ecg, vcg in _pieces(filled, fs, filtering, np.flatnonzero(observed), frank):
        broken.append(_broken(raw, filled, offsets, rules, spans, start))
        late += _shift(quality.conditioned_spans(ecg, observed, fs, rules), start / record.fs)
        write(ecg, vcg)
    spans += quality.merged_spans("algebra", "", np.concatenate(broken), record.fs)
    spans += _join(others) + _join(late)
    spans += [Span(flag, lead, 0.0, seconds) for flag, lead in filled.doubts]
    words_list = flag_words(spans, record.observed)
    return Verdict(observed, spans, words_list, usable_share(observed, lasting(words_list, spans, seconds)))


def context_seconds(low_hz: float, order: int) -> float:
    """How far the high-pass of a Butterworth band-pass, run both ways, reaches: to 1e-10 of its response.

    Its slowest pole decays with 2 pi low_hz sin(pi / (2 order)); without a high-pass a second is plenty.
    """
    if not low_hz:
        return 1.0
    rate = 2 * math.pi * low_hz * math.sin(math.pi / (2 * order))
    return 1.0 + min(_FORGOTTEN / rate, _LONGEST_CONTEXT_S)


class _Filled:
    """Stretches of a record without NaN, as fill_gaps makes them of the record as a whole.

    leads and frank: rows of what `read` returns; low, high: extremes of each row.
    """

    def __init__(self, record: AnyRecord, gap: int) -> None:
        self.record, self._gap = record, gap
        self.n = record.n_samples
        self.leads = [int(row) for row in np.flatnonzero(record.observed)]
        self.frank = list(range(len(LEADS), len(LEADS) + len(FRANK))) if record.frank else []
        self.low = np.full(len(LEADS) + len(FRANK), np.inf)
        self.high = -self.low
        self.doubts: list[tuple[str, str]] = []
        found = {row: _Missing(min(_SHORT_RUN, gap + 1)) for row in (*self.leads, *self.frank)}
        for start in range(0, self.n, PIECE):
            x = self._stack(start, min(start + PIECE, self.n))
            for row, missing in found.items():
                missing.add(x[row], start)
                good = x[row][np.isfinite(x[row])]
                if len(good):
                    self.low[row] = min(self.low[row], good.min())
                    self.high[row] = max(self.high[row], good.max())
        self._runs = {row: missing.runs(self.n) for row, missing in found.items()}

    def gaps(self, row: int) -> Runs:
        """[k, 2] runs of NaN longer than the allowed gap."""
        runs = self._runs[row][0]
        return runs[runs[:, 1] - runs[:, 0] > self._gap]

    def read(self, start: int, stop: int) -> Array:
        """[12 or 15, stop - start] mV; 0 where a lead is not in the record."""
        x = self._stack(start, stop)
        seen = {*self.leads, *self.frank}
        for row in range(len(x)):
            if row not in seen:
                x[row] = 0.0
            elif not np.isfinite(x[row]).all():
                x[row], _ = fill_gaps(x[row], 0)
                self._draw_lines(x[row], row, start)
        return x

    def _draw_lines(self, x: Array, row: int, start: int) -> None:
        """Long runs of NaN may reach beyond x: their line is that between their own two ends."""
        runs, ends = self._runs[row]
        first = np.searchsorted(runs[:, 1], start, side="right")
        last = np.searchsorted(runs[:, 0], start + len(x), side="left")
        for (a, b), (before, after) in zip(runs[first:last], ends[first:last], strict=True):
            at = np.arange(max(a, start), min(b, start + len(x)))
            places, values = np.array([[a - 1, b], [before, after]])[:, np.isfinite([before, after])]
            x[at - start] = np.interp(at, places, values) if len(places) else 0.0

    def _stack(self, start: int, stop: int) -> Array:
        part = self.record.read(start, stop)
        self.doubts = part.doubts
        return part.ecg if part.frank is None else np.concatenate([part.ecg, part.frank])


class _Missing:
    """Runs of at least `least` NaN of one signal that comes block by block, and the values beside them."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._found: list[tuple[int, int, float, float]] = []
        self._open: tuple[int, float] | None = None  # start, value before
        self._last = math.nan

    def add(self, x: Array, start: int) -> None:
        """x [n]: the samples from `start` on."""
        runs = find_runs(~np.isfinite(x))
        if self._open:
            stop = int(runs[0, 1]) if len(runs) and runs[0, 0] == 0 else 0
            runs = runs[1:] if stop else runs
            if stop == len(x):
                return
            self._keep(self._open[0], start + stop, self._open[1], float(x[stop]))
            self._open = None
        before = np.concatenate([[self._last], x])
        if len(runs) and runs[-1, 1] == len(x):
            self._open = (start + int(runs[-1, 0]), float(before[runs[-1, 0]]))
            runs = runs[:-1]
        for a, b in runs[runs[:, 1] - runs[:, 0] >= self._least]:
            self._keep(start + int(a), start + int(b), float(before[a]), float(x[b]))
        self._last = float(x[-1])

    def runs(self, n: int) -> tuple[Runs, Array]:
        """[k, 2] runs of the n samples and the values before and after each, NaN = none."""
        if self._open:
            self._keep(self._open[0], n, self._open[1], math.nan)
            self._open = None
        table = np.array(self._found, dtype=np.float64).reshape(-1, 4)
        return table[:, :2].astype(np.int64), table[:, 2:]

    def _keep(self, start: int, stop: int, before: float, after: float) -> None:
        if stop - start >= self._least:
            self._found.append((start, stop, before, after))


def _judge(
    filled: _Filled, rules: PreprocessConfig, gaps: Sequence[Span]
) -> tuple[list[Span], list[Span], Array]:
    """Flat and saturated spans, spans of other flags, and the median [k, 1] of each limb-lead relation."""
    fs, n, observed = filled.record.fs, filled.n, filled.record.observed
    width = min(n, max(2, round(rules.flat_seconds * fs)))
    block = max(1, width // 4)  # as in quality.flat_runs
    step = max(1, PIECE // block) * block
    flat: dict[int, list[Runs]] = {row: [] for row in filled.leads}
    stuck: dict[int, list[Runs]] = {row: [] for row in filled.leads}
    others: list[Span] = []
    sample: list[Array] = []
    stride = -(-n // _MEDIAN_OF)
    least = max(3, int(np.ceil(0.02 * fs)))
    for start in range(0, n, step):
        stop = min(start + step, n)
        begin, end = max(0, start - 4 * block), min(n, stop + 4 * block)
        x = filled.read(begin, end)
        core = x[: len(LEADS), start - begin : stop - begin]
        for row in filled.leads:
            if width >= 8:
                flat[row].append(quality.flat_runs(x[row], fs, rules) + begin)
            stuck[row].append(_stuck(core[row], filled.low[row], filled.high[row], least) + start)
        # A copy: a view would keep all of the deviation in memory.
        sample.append(quality.limb_deviation(core, observed)[:, -start % stride :: stride].copy())
        near = _shift((g for g in gaps if g.start_s < stop / fs and g.stop_s > start / fs), -start / fs)
        more = quality.raw_spans(core, observed, fs, rules, near)
        others += _shift((span for span in more if span.flag not in _OF_THE_RECORD), start / fs)
    spans: list[Span] = []
    for row in filled.leads:
        runs = _union(flat[row])
        if width < 8 and filled.high[row] - filled.low[row] < max(rules.flat_mv, 1e-12):
            runs = np.array([[0, n]])  # too short for blocks: the lead is judged as a whole
        spans += quality.flat_spans(LEADS[row], runs, fs, gaps)
        if not len(runs):
            runs = _union(stuck[row])
            runs = runs[runs[:, 1] - runs[:, 0] >= least]
            if (runs[:, 1] - runs[:, 0]).sum() > rules.saturated_share * n:
                spans += quality.merged_spans("saturated", LEADS[row], runs, fs)
    return spans, others, np.median(np.concatenate(sample, axis=1), axis=1, keepdims=True)


def _stuck(x: Array, low: float, high: float, least: int) -> Runs:
    """Runs of x [n] at low or at high, if `least` long or at one end of x, where they may go on."""
    runs = np.concatenate([find_runs(x == low), find_runs(x == high)])
    long = runs[:, 1] - runs[:, 0] >= least
    return runs[long | (runs[:, 0] == 0) | (runs[:, 1] == len(x))]


def _pieces(
    filled: _Filled, fs: float, filtering: dict[str, Any], rows: NDArray[np.int64], frank: bool
) -> Iterator[tuple[int, Array, Array, Array | None]]:
    """(first sample, raw [12, k], conditioned [12, m], Frank leads [3, m] or None) of each piece.

    Pieces and their context are whole multiples of `down` samples, so that the output grid is the record's.
    """
    fs_in, n = filled.record.fs, filled.n
    up, down = resample_ratio(fs_in, fs)
    reach = context_seconds(filtering["low_hz"], filtering["order"]) + 20.0 / min(fs, fs_in)
    context = math.ceil(reach * fs_in / down) * down
    step = max(1, round(PIECE / down)) * down
    take = [*rows, *(filled.frank if frank else [])]
    for start in range(0, n, step):
        stop = min(start + step, n)
        begin, end = max(0, start - context), min(n, stop + context)
        x = filled.read(begin, end)
        made = condition(x[take], fs_in, fs, **filtering)
        first = (start - begin) // down * up
        length = (stop - start) // down * up if stop < n else made.shape[1] - first
        made = made[:, first : first + length]
        ecg = np.zeros((len(LEADS), length))
        ecg[rows] = made[: len(rows)]
        vcg = made[len(rows) :] if frank else None
        yield start, x[: len(LEADS), start - begin : stop - begin], ecg, vcg


def _broken(
    raw: Array, filled: _Filled, offsets: Array, rules: PreprocessConfig, spans: Iterable[Span], start: int
) -> Runs:
    """Runs of a piece [12, k] in which limb leads contradict each other; unusable stretches do not count."""
    fs = filled.record.fs
    deviation = quality.limb_deviation(raw, filled.record.observed)
    if not len(deviation):
        return np.zeros((0, 2), dtype=np.int64)
    broken = np.abs(deviation - offsets).max(axis=0) > rules.max_algebra_mv
    for span in spans:
        if span.flag in UNUSABLE and span.lead in LIMB:
            first, last = int(span.start_s * fs) - start, int(np.ceil(span.stop_s * fs)) + 1 - start
            broken[max(0, first) : max(0, last)] = False
    return find_runs(broken) + start


def _union(parts: Sequence[Runs]) -> Runs:
    """Runs that overlap or touch become one."""
    merged: list[list[int]] = []
    runs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *parts])
    for start, stop in runs[np.argsort(runs[:, 0], kind="stable")]:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], int(stop))
        else:
            merged.append([int(start), int(stop)])
    return np.array(merged, dtype=np.int64).reshape(-1, 2)


def _shift(spans: Iterable[Span], seconds: float) -> list[Span]:
    return [Span(s.flag, s.lead, s.start_s + seconds, s.stop_s + seconds) for s in spans]


def _join(spans: Iterable[Span]) -> list[Span]:
    """Findings of one flag and lead that lie closer than a second become one, across pieces."""
    by_kind: dict[tuple[str, str], list[Span]] = {}
    for span in sorted(spans, key=lambda s: s.start_s):
        kind = by_kind.setdefault((span.flag, span.lead), [])
        if kind and span.start_s - kind[-1].stop_s < _JOIN_S:
            stop = max(span.stop_s, kind[-1].stop_s)
            kind[-1] = Span(span.flag, span.lead, kind[-1].start_s, stop)
        else:
            kind.append(span)
    return [span for kind in by_kind.values() for span in kind]
