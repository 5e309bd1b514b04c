"""Where a recording is doubtful: spans of time with a flag (flags.py) and a lead.

Thresholds are those of PreprocessConfig.
- flat: the lead's range stays below flat_mv for at least flat_seconds;
- saturated: runs of at least 20 ms (and three samples) that sit exactly at the lead's largest or smallest
  value, where together they make more than saturated_share of the record;
- algebra: limb leads further than max_algebra_mv from what Einthoven and Goldberger ask. Each relation's own
  median is taken out first, because leads may be stored with different offsets; stretches where a limb lead
  is flat or missing do not count;
- amplitude: |signal| above max_abs_mv;
- gap: NaN for longer than max_gap_s;
- noise: level or excess above max_noise_mv and max_motion_mv (noise.py);
- swap, polarity: electrodes or leads that are interchanged or inverted, with evidence of swap_evidence or
  more (electrodes.py).
All but amplitude are looked for in the raw signal, because a filter hides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.electrodes import lasting_faults
from ecggen.data.quality.flags import UNUSABLE, Span, usable_leads
from ecggen.data.quality.noise import CHECK_FS, LOWEST_HZ, Bands, largest_of, noisy_runs
from ecggen.data.signal import (
    Spectrum,
    condition,
    fill_gaps,
    find_runs,
    resample,
    transform,
)
from ecggen.leads import EXPAND, LEADS, LIMB
from ecggen.utils.config import PreprocessConfig

Signal = NDArray[np.floating]
Runs = NDArray[np.int64]
_NO_RUNS: Runs = np.zeros((0, 2), dtype=np.int64)
_LEAST_FS = 90.0  # Hz; below, the band of the noise is not in the recording
_MERGE_S = 1.0  # runs closer than this are one span


def condition_and_check(
    signal: Signal,
    observed: NDArray[np.bool_],
    fs: float,
    fs_out: float,
    config: PreprocessConfig,
    backend: str = "auto",
) -> tuple[NDArray[np.float64], list[Span]]:
    """Filter and resample signal [12, n] in mV (NaN allowed) from fs to fs_out in Hz, and check it.

    Returns (ecg [12, m] mV with gaps filled, zero where a lead is not observed [12]; all spans).
    """
    rows = np.flatnonzero(observed)
    raw = np.zeros(signal.shape)
    spans: list[Span] = []
    for row in rows:
        raw[row], gaps = fill_gaps(signal[row], int(config.max_gap_s * fs))
        spans += [Span("gap", LEADS[row], float(start / fs), float(stop / fs)) for start, stop in gaps]
    # One transform serves the checks of the raw signal and the filter.
    spectrum = transform(raw[rows], fs, min(config.low_hz or LOWEST_HZ, LOWEST_HZ), [fs_out, CHECK_FS])
    spans += raw_spans(raw, observed, fs, config, spans, spectrum)
    band: dict[str, Any] = {"low_hz": config.low_hz, "high_hz": config.high_hz, "order": config.order}
    filtered = condition(raw[rows], fs, fs_out, **band, backend=backend, spectrum=spectrum)
    ecg = np.zeros((len(LEADS), filtered.shape[1]))
    ecg[rows] = filtered
    usable = usable_leads(observed, spans, signal.shape[1] / fs)
    return ecg, spans + conditioned_spans(ecg, usable, fs_out, config)


def raw_spans(
    ecg: Signal,
    observed: NDArray[np.bool_],
    fs: float,
    config: PreprocessConfig,
    gaps: Sequence[Span] = (),
    spectrum: Spectrum | None = None,
) -> list[Span]:
    """All but gap and amplitude spans of ecg [12, n] (mV, no NaN) at its own rate fs in Hz.

    gaps: known gap spans; spectrum: of the observed leads, where it is known, ready to be resampled to
    CHECK_FS.
    """
    rows = np.flatnonzero(observed)
    flat, saturated = _flat_runs(ecg[rows], fs, config), _saturated_runs(ecg[rows], fs, config)
    spans: list[Span] = []
    for row, flat_here, saturated_here in zip(rows, flat, saturated, strict=True):
        lead = LEADS[row]
        flat_spans = [Span("flat", lead, float(a / fs), float(b / fs)) for a, b in flat_here]
        spans += [span for span in flat_spans if not _mostly_gap(span, gaps)]
        if not len(flat_here):
            spans += _merged("saturated", lead, saturated_here, fs)
    broken = _algebra_broken(ecg, observed, config.max_algebra_mv)
    if broken.any():
        for span in (*gaps, *spans):
            if span.flag in UNUSABLE and span.lead in LIMB:
                broken[int(span.start_s * fs) : int(np.ceil(span.stop_s * fs)) + 1] = False
        spans += _merged("algebra", "", find_runs(broken), fs)
    return spans + _shape_spans(ecg, observed, fs, config, (*gaps, *spans), spectrum)


def _shape_spans(
    ecg: Signal,
    observed: NDArray[np.bool_],
    fs: float,
    config: PreprocessConfig,
    known: Sequence[Span],
    spectrum: Spectrum | None,
) -> list[Span]:
    """Noise, swap (of all of ecg) and polarity spans of the leads that the known spans leave usable."""
    seconds = ecg.shape[1] / fs
    usable = usable_leads(observed, known, seconds)
    if not usable.any() or fs < _LEAST_FS:
        return []
    if spectrum is None:
        spectrum = transform(ecg[usable], fs, LOWEST_HZ, [CHECK_FS])
    elif not usable[observed].all():
        spectrum = spectrum.rows(usable[observed])
    if spectrum is None:  # an odd rate
        spectrum = transform(resample(ecg[usable], fs, CHECK_FS), CHECK_FS, LOWEST_HZ)
        assert spectrum is not None  # nothing is resampled
    bands = Bands(spectrum, usable)
    spans: list[Span] = []
    for row, runs in noisy_runs(bands, usable, config.max_noise_mv, config.max_motion_mv).items():
        spans += _merged("noise", LEADS[row], runs, CHECK_FS)
    for word in lasting_faults(bands, usable, config.swap_evidence):
        flag, _, what = word.partition(":")
        spans.append(Span(flag, what, 0.0, seconds))
    return spans


def conditioned_spans(
    ecg: Signal, observed: NDArray[np.bool_], fs: float, config: PreprocessConfig
) -> list[Span]:
    """Amplitude spans of filtered ecg [12, n] in mV at fs in Hz."""
    large = np.abs(ecg) > config.max_abs_mv
    rows = np.flatnonzero(observed & large.any(axis=1))
    return [span for row in rows for span in _merged("amplitude", LEADS[row], find_runs(large[row]), fs)]


def _merged(flag: str, lead: str, runs: Runs, fs: float) -> list[Span]:
    """Spans of runs [k, 2] of samples in order; those closer than _MERGE_S are one."""
    merged: list[list[float]] = []
    for start, stop in runs / fs:
        if merged and start - merged[-1][1] < _MERGE_S:
            merged[-1][1] = float(stop)
        else:
            merged.append([float(start), float(stop)])
    return [Span(flag, lead, start, stop) for start, stop in merged]


def _mostly_gap(span: Span, gaps: Sequence[Span]) -> bool:
    """Whether a flat span is the straight line that fills a gap."""
    shared = [min(span.stop_s, g.stop_s) - max(span.start_s, g.start_s) for g in gaps if g.lead == span.lead]
    return sum(max(0.0, s) for s in shared) >= (span.stop_s - span.start_s) / 2


def _flat_runs(x: Signal, fs: float, config: PreprocessConfig) -> list[Runs]:
    """Of each lead of x [L, n] in mV the runs [k, 2] whose range stays below flat_mv for flat_seconds.

    A record shorter than flat_seconds is looked at as a whole.
    """
    limit, n = max(config.flat_mv, 1e-12), x.shape[1]
    width = min(n, max(2, round(config.flat_seconds * fs)))
    block = max(1, width // 4)
    count = n // block
    if width < 8 or count < 4:  # too short for blocks
        return [np.array([[0, n]]) if whole else _NO_RUNS for whole in np.ptp(x, axis=1) < limit]
    # Blocks of a quarter of flat_seconds, four in a row: the range is exact, the ends to one block.
    parts = x[:, : count * block].reshape(len(x), count, block)
    starts = largest_of(parts.max(axis=2), 4) + largest_of(-parts.min(axis=2), 4) < limit
    out = [_NO_RUNS] * len(x)
    for row in np.flatnonzero(starts.any(axis=1)):
        flat = np.zeros(count, dtype=bool)
        for shift in range(4):
            flat[shift : shift + count - 3] |= starts[row]
        runs = find_runs(flat) * block
        if runs[-1, 1] == count * block and float(np.ptp(x[row, runs[-1, 1] - block :])) < limit:
            runs[-1, 1] = n
        out[row] = runs
    return out


def _saturated_runs(x: Signal, fs: float, config: PreprocessConfig) -> list[Runs]:
    """Of each lead of x [L, n] the runs [k, 2] stuck at its extremes, if they make more than
    saturated_share.
    """
    share, n = config.saturated_share, x.shape[1]
    least = max(3, int(np.ceil(0.02 * fs)))
    lowest, highest = x == x.min(axis=1, keepdims=True), x == x.max(axis=1, keepdims=True)
    out = [_NO_RUNS] * len(x)
    for row in np.flatnonzero(lowest.sum(axis=1) + highest.sum(axis=1) > share * n):
        runs = np.concatenate([find_runs(lowest[row]), find_runs(highest[row])])
        runs = runs[runs[:, 1] - runs[:, 0] >= least]
        if (runs[:, 1] - runs[:, 0]).sum() > share * n:
            out[row] = runs[np.argsort(runs[:, 0], kind="stable")]
    return out


def _algebra_broken(ecg: Signal, observed: NDArray[np.bool_], limit_mv: float) -> NDArray[np.bool_]:
    """[n] where an observed limb lead departs from the limb-lead algebra by more than the limit.

    Against leads I and II where both are observed, else against the least-squares fit of (I, II) to the
    observed limb leads; nowhere with fewer than three limb leads, which always agree.
    """
    limb = np.flatnonzero(observed[:6])
    if len(limb) < 3:
        return np.zeros(ecg.shape[1], dtype=bool)
    algebra = EXPAND[:6, :2]
    i_ii = ecg[:2] if observed[:2].all() else np.linalg.pinv(algebra[limb]) @ ecg[limb]
    deviation = algebra[limb] @ i_ii - ecg[limb]
    # A range within the limit is within it on both sides of the median, which then need not be found.
    if np.ptp(deviation, axis=1).max() <= limit_mv:
        return np.zeros(ecg.shape[1], dtype=bool)
    return np.abs(deviation - np.median(deviation, axis=1, keepdims=True)).max(axis=0) > limit_mv
