"""Signal quality in words: which lead is flat, saturated or missing, and where.

The words are those of flags.py. Thresholds are those of PreprocessConfig.

flat: the lead's range stays below flat_mv for at least flat_seconds. saturated: runs of at least 20 ms (and
three samples) that sit exactly at the lead's largest or smallest value, where together they make more than
saturated_share of the record. algebra: limb leads further than max_algebra_mv from what Einthoven and
Goldberger ask. amplitude: |signal| above max_abs_mv. gap: NaN for longer than max_gap_s. noise: level or
excess above max_noise_mv and max_motion_mv (noise.py). swap, polarity: electrodes or leads that are
interchanged or inverted, with evidence of swap_evidence or more (electrodes.py).
All but amplitude are judged on the raw signal, because a filter hides them; for the algebra each relation's
own median is taken out first, because leads may be stored with different offsets, and stretches where a limb
lead is flat or missing do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.bands import JUDGED_FS, LOWEST, bands_at_100, bands_of
from ecggen.data.quality.electrodes import lasting_faults
from ecggen.data.quality.flags import UNUSABLE, Span, mostly_unusable
from ecggen.data.quality.noise import noisy_runs
from ecggen.data.signal import Spectrum, find_runs, resample, transform
from ecggen.leads import EXPAND, LEADS, LIMB
from ecggen.utils.config import PreprocessConfig

NO_RUNS: NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)
_LEAST_FS = 90.0  # Hz; below, the band of the noise is not in the recording
_MERGE_S = 1.0  # findings closer than this are one span


def raw_spans(
    ecg: NDArray[np.floating],
    observed: NDArray[np.bool_],
    fs: float,
    rules: PreprocessConfig,
    gaps: Sequence[Span] = (),
    spectrum: Spectrum | None = None,
) -> list[Span]:
    """All but gap and amplitude spans of ecg [12, n] (mV, no NaN) at its own rate fs in Hz.

    spectrum: of the observed leads, where it is known, ready to be resampled to JUDGED_FS.
    """
    spans: list[Span] = []
    rows = np.flatnonzero(observed)
    # Nearly all leads are neither flat nor saturated: what tells it of all at once spares a closer look.
    for row, may_be_flat, may_be_saturated in zip(rows, *_suspected(ecg[rows], fs, rules), strict=True):
        flat = flat_runs(ecg[row], fs, rules) if may_be_flat else NO_RUNS
        spans += flat_spans(LEADS[row], flat, fs, gaps)
        if not len(flat) and may_be_saturated:
            spans += merged_spans("saturated", LEADS[row], saturated_runs(ecg[row], fs, rules), fs)
    broken = algebra_broken(ecg, observed, rules.max_algebra_mv)
    if broken.any():
        for span in (*gaps, *spans):
            if span.flag in UNUSABLE and span.lead in LIMB:
                broken[int(span.start_s * fs) : int(np.ceil(span.stop_s * fs)) + 1] = False
        spans += merged_spans("algebra", "", find_runs(broken), fs)
    return spans + shape_spans(ecg, observed, fs, rules, (*gaps, *spans), spectrum)


def _suspected(
    x: NDArray[np.floating], fs: float, rules: PreprocessConfig
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether flat_runs, and saturated_runs, can find anything in each of x [L, n]: False is certain."""
    block, count = _blocks(x.shape[1], fs, rules)
    flat = np.ones(len(x), dtype=bool)
    if count >= 4:
        low, high = _range_of_four(x, block, count)
        flat[:] = (high - low < _flat_limit(rules)).any(axis=1)
    stuck = (x == x.min(axis=1, keepdims=True)).sum(axis=1) + (x == x.max(axis=1, keepdims=True)).sum(axis=1)
    return flat, stuck > rules.saturated_share * x.shape[1]


def shape_spans(
    ecg: NDArray[np.floating],
    observed: NDArray[np.bool_],
    fs: float,
    rules: PreprocessConfig,
    known: Sequence[Span],
    spectrum: Spectrum | None = None,
) -> list[Span]:
    """Noise, swap and polarity spans of ecg [12, n]; leads that `known` calls flat or missing do not count.

    A swap or an inverted lead holds for all of ecg. spectrum: as for raw_spans.
    """
    seconds = ecg.shape[1] / fs
    usable = observed.copy()
    for row in np.flatnonzero(observed):
        usable[row] = not mostly_unusable(known, LEADS[row], seconds)
    if not usable.any() or fs < _LEAST_FS:
        return []
    if spectrum is None:
        spectrum = transform(ecg[usable], fs, LOWEST, [JUDGED_FS])
    elif not usable[observed].all():
        spectrum = spectrum.rows(usable[observed])
    if spectrum is None:  # an odd rate
        slow = np.zeros((len(LEADS), int(np.ceil(seconds * JUDGED_FS))))
        slow[usable] = resample(ecg[usable], fs, JUDGED_FS, n_out=slow.shape[1])
        bands = bands_at_100(slow, usable)
    else:
        bands = bands_of(spectrum, usable)
    noisy = noisy_runs(bands, usable, rules.max_noise_mv, rules.max_motion_mv)
    spans = [
        span for row, runs in noisy.items() for span in merged_spans("noise", LEADS[row], runs, JUDGED_FS)
    ]
    for word in lasting_faults(bands, usable, rules.swap_evidence):
        flag, _, what = word.partition(":")
        spans.append(Span(flag, what, 0.0, seconds))
    return spans


def conditioned_spans(
    ecg: NDArray[np.floating], observed: NDArray[np.bool_], fs: float, rules: PreprocessConfig
) -> list[Span]:
    """Amplitude spans of filtered ecg [12, n] in mV at fs in Hz."""
    if np.abs(ecg).max(initial=0.0) <= rules.max_abs_mv:
        return []
    spans: list[Span] = []
    for row in np.flatnonzero(observed):
        spans += merged_spans("amplitude", LEADS[row], find_runs(np.abs(ecg[row]) > rules.max_abs_mv), fs)
    return spans


def gap_spans(lead: str, runs: NDArray[np.int64], fs: float) -> list[Span]:
    """Spans of the runs [k, 2] of invalid samples of one lead."""
    return merged_spans("gap", lead, runs, fs)


def flat_runs(x: NDArray[np.floating], fs: float, rules: PreprocessConfig) -> NDArray[np.int64]:
    """[k, 2] runs of x [n] in mV whose range stays below flat_mv for at least flat_seconds.

    A record shorter than flat_seconds is judged as a whole.
    """
    limit = _flat_limit(rules)
    block, count = _blocks(len(x), fs, rules)
    if count < 4:  # too short for blocks
        whole = float(np.ptp(x)) < limit
        return np.array([[0, len(x)]] if whole else np.zeros((0, 2)), dtype=np.int64)
    # Blocks of a quarter of flat_seconds, four in a row: the range is exact, the ends to one block.
    low, high = _range_of_four(x, block, count)
    flat = np.zeros(count, dtype=bool)
    for shift in range(4):
        flat[shift : shift + count - 3] |= high - low < limit
    runs = find_runs(flat) * block
    if len(runs) and runs[-1, 1] == count * block and float(np.ptp(x[runs[-1, 1] - block :])) < limit:
        runs[-1, 1] = len(x)
    return runs


def _flat_limit(rules: PreprocessConfig) -> float:
    return max(rules.flat_mv, 1e-12)


def _blocks(n: int, fs: float, rules: PreprocessConfig) -> tuple[int, int]:
    """Samples of a block of flat_runs and how many there are: 0 where n or flat_seconds are too short."""
    width = min(n, max(2, round(rules.flat_seconds * fs)))
    block = max(1, width // 4)
    return block, n // block if width >= 8 else 0


def _range_of_four(
    x: NDArray[np.floating], block: int, count: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Smallest and largest values [..., count - 3] of each four blocks in a row of x [..., n]."""
    parts = x[..., : count * block].reshape(*x.shape[:-1], count, block)
    low, high = parts.min(axis=-1), parts.max(axis=-1)
    view = np.lib.stride_tricks.sliding_window_view
    return view(low, 4, axis=-1).min(axis=-1), view(high, 4, axis=-1).max(axis=-1)


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


def algebra_broken(
    ecg: NDArray[np.floating], observed: NDArray[np.bool_], limit_mv: float
) -> NDArray[np.bool_]:
    """[n] where algebra_deviation is above the limit."""
    deviation = limb_deviation(ecg, observed)
    # A range within the limit is within it on both sides of the median, which then need not be found.
    if not len(deviation) or (deviation.max(axis=1) - deviation.min(axis=1)).max() <= limit_mv:
        return np.zeros(ecg.shape[-1], dtype=bool)
    return algebra_deviation(ecg, observed) > limit_mv


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


def _mostly_gap(span: Span, gaps: Iterable[Span]) -> bool:
    """Whether a flat span is the straight line that fills a gap."""
    shared = [min(span.stop_s, g.stop_s) - max(span.start_s, g.start_s) for g in gaps if g.lead == span.lead]
    return sum(max(0.0, s) for s in shared) >= (span.stop_s - span.start_s) / 2


def merged_spans(flag: str, lead: str, runs: NDArray[np.int64], fs: float) -> list[Span]:
    """Spans of runs [k, 2] of samples in order; those closer than a second are one, gaps excepted."""
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
