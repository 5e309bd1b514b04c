"""One record checked, filtered and resampled; the settings that say how.

A record of up to WHOLE samples is conditioned at once, a longer one (a Holter) by the same code in stretches
of PIECE samples with as much context on both sides as the filter remembers, 15 minutes at most (a high-pass
below 0.01 Hz remembers more). The signal is that of the whole record to 1e-5 mV, beside gaps longer than the
context to 1e-3 mV; flags are found in each stretch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.flags import UNUSABLE, Span, flag_words, lasting, usable_leads, usable_share
from ecggen.data.quality.spans import condition_and_check
from ecggen.data.signal import choose_backend, condition, effective_high, fill_gaps, resample_ratio
from ecggen.io.records import AnyRecord, RecordError, Recording
from ecggen.leads import LEADS
from ecggen.prepare.check import applied_high
from ecggen.utils.config import DataConfig, PreprocessConfig

Array = NDArray[np.float64]

WHOLE = 1 << 18  # samples of the longest record that is conditioned at once (24 MB in twelve leads)
PIECE = 1 << 17  # samples of a stretch of a longer one
_NEGLIGIBLE = 1e-10  # share of the filter's response that is left out beyond the context
_LONGEST_CONTEXT_S = 900.0
_JOIN_S = 1.0  # spans of one flag closer than this are one


@dataclass(frozen=True)
class Findings:
    """What is known of a record's quality: usable leads [12] bool, spans, flags, share of usable leads."""

    observed: NDArray[np.bool_]
    spans: list[Span]
    words: list[str]
    quality: float


def preprocessing_settings(
    data: DataConfig, config: PreprocessConfig, backend: str = "auto"
) -> dict[str, Any]:
    """All that a later program needs to treat another recording in the same way.

    high_hz is the corner that is applied: where it lies above 0.45 of data.fs it is lowered to that, and
    high_hz_asked is the configured one. Raises ConfigError if the corners cannot be realised at data.fs.
    """
    high = applied_high(config, data.fs)
    lowered = {"high_hz_asked": config.high_hz} if high < config.high_hz else {}
    applied = {"fs": data.fs, "high_hz": high, "backend": choose_backend(backend)}
    return dataclasses.asdict(config) | applied | lowered


def condition_record(
    record: AnyRecord,
    fs: float,
    config: PreprocessConfig,
    write: Callable[[Array, Array | None], None],
    *,
    flags: Sequence[str] = (),
    backend: str = "auto",
) -> Findings:
    """Check, filter and resample one record to fs in Hz; flags: those that hold for all of its database.

    write(ecg [12, k], frank [3, k] or None) is called for each stretch in order: mV, zero where not in the
    file. Only then it is known which leads are observed: leads that are not are to become zero.

    Runs of NaN up to max_gap_s are interpolated. Longer ones and flat stretches become spans: windows that
    overlap them treat the lead as not observed. A lead that is a gap or flat for half of the time is not
    observed at all. Raises RecordError for a record that is too short, too slowly sampled, or without any
    usable lead.
    """
    n, seconds = record.n_samples, record.n_samples / record.fs
    if seconds < config.min_seconds:
        raise RecordError(f"too short: {seconds:.2f} s, at least {config.min_seconds:g} s is needed")
    if effective_high(config.high_hz, record.fs) <= config.low_hz:
        raise RecordError(f"sampled at {record.fs:g} Hz: too slow for a high-pass at {config.low_hz:g} Hz")
    up, down = resample_ratio(record.fs, fs)
    spans: list[Span] = []
    doubts: list[tuple[str, str]] = []
    for stretch, begin, start, stop in _stretches(record, _context(record.fs, fs, config), down):
        ecg, frank, stretch_spans = _condition_stretch(stretch, fs, config, backend)
        first = (start - begin) // down * up
        last = first + (stop - start) // down * up if stop < n else None
        write(ecg[:, first:last], None if frank is None else frank[:, first:last])
        for span in stretch_spans:  # those of its core, in time of the record
            start_s = max(begin / record.fs + span.start_s, start / record.fs)
            stop_s = min(begin / record.fs + span.stop_s, stop / record.fs)
            if start_s < stop_s:
                spans.append(Span(span.flag, span.lead, start_s, stop_s))
        doubts = stretch.doubts
    if n > WHOLE:
        spans = _joined(spans)
    observed = usable_leads(record.observed, spans, seconds)
    if not observed.any():
        reasons = "; ".join(flag_words(spans, np.ones(len(LEADS), dtype=bool)))
        raise RecordError(f"no usable lead: {reasons}")
    spans += [Span(flag, lead, 0.0, seconds) for flag, lead in doubts]
    spans += [whole for flag in flags if (whole := Span(flag, "", 0.0, seconds)) not in spans]
    words = flag_words(spans, record.observed)
    return Findings(observed, spans, words, usable_share(observed, lasting(words, spans, seconds)))


def _condition_stretch(
    recording: Recording, fs: float, config: PreprocessConfig, backend: str
) -> tuple[Array, Array | None, list[Span]]:
    """ecg [12, m] at fs, zero where not in the file; frank [3, m], None where it has a gap; spans."""
    ecg, spans = condition_and_check(recording.ecg, recording.observed, recording.fs, fs, config, backend)
    if recording.frank is None:
        return ecg, None, spans
    frank = [fill_gaps(lead, int(config.max_gap_s * recording.fs)) for lead in recording.frank]
    if any(len(runs) for _, runs in frank):
        return ecg, None, spans  # a measured truth with holes is none
    signals = np.stack([signal for signal, _ in frank])
    band: dict[str, Any] = {"low_hz": config.low_hz, "high_hz": config.high_hz, "order": config.order}
    return ecg, condition(signals, recording.fs, fs, **band, backend=backend), spans


def _context(fs_in: float, fs: float, config: PreprocessConfig) -> int:
    """Samples before and after a stretch that its filter, resampling and checks need.

    A Butterworth high-pass, run both ways, is followed to 1e-10 of its response: its slowest pole decays with
    2 pi low_hz sin(pi / (2 order)). Without a high-pass a second is plenty.
    """
    filter_s = 1.0
    if config.low_hz:
        rate = 2 * math.pi * config.low_hz * math.sin(math.pi / (2 * config.order))
        filter_s += min(-math.log(_NEGLIGIBLE) / rate, _LONGEST_CONTEXT_S)
    reach = max(filter_s, 2 * config.flat_seconds, 2 * config.max_gap_s)
    return math.ceil((reach + 20.0 / min(fs, fs_in)) * fs_in)


def _stretches(record: AnyRecord, context: int, down: int) -> Iterator[tuple[Recording, int, int, int]]:
    """(signal of samples begin to stop + context, begin, start, stop): its core is start to stop.

    begin and start are multiples of `down`, so that the resampled grid is the record's. Each sample is read
    once, in order, so that the record can compare all of them with the header's checksums.
    """
    n = record.n_samples
    if n <= WHOLE:
        yield record.read(), 0, 0, n
        return
    context = math.ceil(context / down) * down
    step = max(1, round(PIECE / down)) * down
    begin, end = 0, min(step + context, n)
    signal = record.read(0, end)
    for start in range(0, n, step):
        stop = min(start + step, n)
        if start:
            drop, begin = max(0, start - context) - begin, max(0, start - context)
            parts = [signal]
            if end < (until := min(stop + context, n)):
                parts.append(record.read(end, until))
                end = until
            frank = [part.frank for part in parts if part.frank is not None]
            signal = dataclasses.replace(
                parts[-1],
                ecg=np.concatenate([part.ecg for part in parts], axis=1)[:, drop:],
                frank=np.concatenate(frank, axis=1)[:, drop:] if frank else None,
            )
        yield signal, begin, start, stop


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans of one flag and lead that touch become one; but for gaps, also those closer than a second."""
    by_kind: dict[tuple[str, str], list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_s):
        kind = by_kind.setdefault((span.flag, span.lead), [])
        near = 1e-9 if span.flag in UNUSABLE else _JOIN_S
        if kind and span.start_s - kind[-1].stop_s < near:
            stop = max(span.stop_s, kind[-1].stop_s)
            kind[-1] = Span(span.flag, span.lead, kind[-1].start_s, stop)
        else:
            kind.append(span)
    return [span for kind in by_kind.values() for span in kind]
