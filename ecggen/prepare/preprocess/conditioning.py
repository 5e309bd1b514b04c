"""One recording judged, filtered and resampled as a whole; the settings that say how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.filters import choose_backend, condition, condition_spectrum, effective_high, fill_gaps
from ecggen.data.quality import spans as quality
from ecggen.data.quality.bands import JUDGED_FS, LOWEST
from ecggen.data.quality.flags import Span, flag_words, lasting, mostly_unusable, usable_share
from ecggen.data.spectrum import transform
from ecggen.io.records import RecordError, Recording
from ecggen.leads import LEADS
from ecggen.prepare.preprocess.long_records import Verdict, require_length
from ecggen.utils.config import ConfigError, DataConfig, PreprocessConfig


@dataclass(frozen=True)
class Conditioned(Verdict):
    """ecg [12, m] mV at the new rate, zero where not observed; frank [3, m] or None; and the verdict."""

    ecg: NDArray[np.float64]
    frank: NDArray[np.float64] | None


def preprocessing_settings(
    data: DataConfig, rules: PreprocessConfig, backend: str = "auto"
) -> dict[str, Any]:
    """All that a later program needs to treat another recording in the same way.

    high_hz is the corner that is applied: where it lies above 0.45 of data.fs it is lowered to that, and
    high_hz_asked keeps the wish. Raises ConfigError if the corners cannot be realised at data.fs.
    """
    high = effective_high(rules.high_hz, data.fs)
    if rules.low_hz >= high:
        raise ConfigError(
            f"preprocess.low_hz is {rules.low_hz:g}: at data.fs = {data.fs:g} Hz it must lie below "
            f"{high:g} Hz (the smaller of high_hz and 0.45 data.fs)."
        )
    settings = dataclasses.asdict(rules) | {
        "fs": data.fs,
        "high_hz": high,
        "backend": choose_backend(backend),
    }
    return settings | ({"high_hz_asked": rules.high_hz} if high < rules.high_hz else {})


def condition_recording(
    recording: Recording, fs: float, rules: PreprocessConfig, *, backend: str = "auto"
) -> Conditioned:
    """Judge, filter and resample one recording to fs in Hz.

    Runs of NaN up to max_gap_s are interpolated. Longer ones and flat stretches are kept as spans: windows
    that overlap them treat the lead as not observed, and a lead that is mostly gap or flat is not observed at
    all. Raises RecordError for a record that is too short, too slowly sampled, or without any usable lead.
    """
    n = recording.ecg.shape[1]
    seconds = require_length(n, recording.fs, rules)
    gap = int(rules.max_gap_s * recording.fs)
    ecg = np.zeros((len(LEADS), n))
    spans: list[Span] = []
    seen = np.flatnonzero(recording.observed)
    ecg[seen] = recording.ecg[seen]
    for row in seen[~np.isfinite(ecg[seen]).all(axis=1)]:
        ecg[row], runs = fill_gaps(recording.ecg[row], gap)
        spans += quality.gap_spans(LEADS[row], runs, recording.fs)
    # One transform serves the judging of the raw signal and the filter.
    lowest = min(rules.low_hz or LOWEST, LOWEST)
    spectrum = transform(ecg[seen], recording.fs, lowest, [fs, JUDGED_FS])
    spans += quality.raw_spans(ecg, recording.observed, recording.fs, rules, spans, spectrum)
    observed = recording.observed.copy()
    for row in np.flatnonzero(recording.observed):
        observed[row] = not mostly_unusable(spans, LEADS[row], seconds)
    if not observed.any():
        words = "; ".join(flag_words(spans, np.ones(len(LEADS), dtype=bool)))
        raise RecordError(f"no usable lead: {words}")
    filtering: dict[str, Any] = {"low_hz": rules.low_hz, "high_hz": rules.high_hz, "order": rules.order}
    rows = np.flatnonzero(observed)
    if spectrum is not None and choose_backend(backend) == "numpy":
        kept = spectrum if len(rows) == len(seen) else spectrum.rows(observed[seen])
        conditioned = condition_spectrum(kept, fs, **filtering)
    else:
        conditioned = condition(ecg[rows], recording.fs, fs, **filtering, backend=backend)
    made = np.zeros((len(LEADS), conditioned.shape[1]))
    made[rows] = conditioned
    spans += quality.conditioned_spans(made, observed, fs, rules)
    spans += [Span(flag, lead, 0.0, seconds) for flag, lead in recording.doubts]
    words_list = flag_words(spans, recording.observed)
    return Conditioned(
        ecg=made,
        frank=_condition_frank(recording, fs, gap, filtering | {"backend": backend}),
        observed=observed,
        spans=spans,
        words=words_list,
        quality=usable_share(observed, lasting(words_list, spans, seconds)),
    )


def _condition_frank(
    recording: Recording, fs: float, gap: int, filtering: Mapping[str, Any]
) -> NDArray[np.float64] | None:
    if recording.frank is None:
        return None
    filled = [fill_gaps(lead, gap) for lead in recording.frank]
    if any(len(runs) for _, runs in filled):
        return None  # a measured truth with holes is none
    return condition(np.stack([lead for lead, _ in filled]), recording.fs, fs, **filtering)


def with_spans(made: Verdict, observed: NDArray[np.bool_], more: Sequence[Span], seconds: float) -> Verdict:
    """The same with more spans; seconds: of the record."""
    if not more:
        return made
    spans = [*made.spans, *more]
    words = flag_words(spans, observed)
    share = usable_share(made.observed, lasting(words, spans, seconds))
    return dataclasses.replace(made, spans=spans, words=words, quality=share)
