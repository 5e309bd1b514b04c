"""data/raw -> data/records: every record read, judged, filtered, resampled; nothing dropped without a reason.

One record at a time is in memory, or a piece of a long one. The outputs depend on the records and the rules
alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import FRANK, LEADS
from ecggen.prepare import quality
from ecggen.prepare.filters import choose_backend, condition, effective_high, fill_gaps
from ecggen.prepare.labels import RecordInfo
from ecggen.prepare.lead_quality.flags import Span, flag_words, kinds, lasting, mostly_unusable, usable_share
from ecggen.prepare.long_records import Verdict, condition_long, is_long, require_length
from ecggen.prepare.records import AnyRecord, RecordError, Recording
from ecggen.prepare.run_parts import BEAT_COLUMNS, database_counts, described, each_record, read_parts
from ecggen.utils.config import ConfigError, DataConfig, PreprocessConfig
from ecggen.utils.files import fresh_folder, write_csv, write_json

RECORD_COLUMNS = (
    *("record", "patient", "offset", "n_samples", "fs_raw", "observed", "labels", "fold", "age", "sex"),
    *("recorded", "quality", "reasons", "database", "label_system", "all_labels"),
)
SPAN_COLUMNS = ("record", "flag", "lead", "start_s", "stop_s")


@dataclass(frozen=True)
class Conditioned(Verdict):
    """ecg [12, m] mV at the new rate, zero where not observed; frank [3, m] or None; and the verdict."""

    ecg: NDArray[np.float64]
    frank: NDArray[np.float64] | None


def preprocess(
    raw: Path, out: Path, data: DataConfig, rules: PreprocessConfig, *, backend: str = "auto"
) -> dict[str, Any]:
    """Read the records that raw/source.json lists and write out/ (see data/README.md). Returns the counts.

    Raises RecordError if no record is usable, SourceError for a broken list, ConfigError for a filter that
    cannot be built. A single bad record goes to rejected.csv with its reason.
    """
    parts = read_parts(raw, data.limit)
    settings = preprocessing_settings(data, rules, backend)
    rows: list[dict[str, Any]] = []
    spans: list[dict[str, Any]] = []
    rejected: list[dict[str, str]] = []  # with the database, which rejected.csv need not say
    with (
        fresh_folder(out) as folder,
        NpyAppender(folder / "signals.npy", len(LEADS)) as signals,
        NpyAppender(folder / "frank.npy", len(FRANK)) as frank,
    ):
        for part, name, record in each_record(parts):
            before = signals.rows, frank.rows
            try:
                opened = part.open(name)
                made = _condition(opened, data.fs, rules, signals, frank, backend=settings["backend"])
            except RecordError as error:
                signals.cut(before[0])
                frank.cut(before[1])
                rejected.append({"record": record, "reason": str(error), "database": part.source.label})
                continue
            seconds = opened.n_samples / opened.fs
            made = _with_spans(made, opened.observed, part.known_spans(seconds, made.spans), seconds)
            info = part.info(name, opened.comments, opened.fs)
            rows.append(_row(record, info, (before[0], signals.rows), opened.fs, made) | part.columns(info))
            spans += [_span_row(record, span) for span in made.spans]
        _require_records(rows, rejected)
        frank.close()
        if frank.rows != signals.rows:
            (folder / "frank.npy").unlink()
        by_database = database_counts(parts, rows, rejected)
        counts = _counts(by_database, rows, rejected, frank.rows == signals.rows)
        write_csv(folder / "records.csv", rows, RECORD_COLUMNS)
        write_csv(folder / "spans.csv", spans, SPAN_COLUMNS)
        write_csv(folder / "rejected.csv", rejected, ("record", "reason"))
        beats = [row for part in parts for row in part.beats]
        if beats:
            write_csv(folder / "beats.csv", beats, BEAT_COLUMNS)
        meta = {
            "fs": data.fs,
            "leads": list(LEADS),
            "preprocessing": settings,
            "source": described(parts),
            "counts": counts,
        }
        write_json(folder / "meta.json", meta)
    return counts


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
    for row in np.flatnonzero(recording.observed):
        ecg[row], runs = fill_gaps(recording.ecg[row], gap)
        spans += quality.gap_spans(LEADS[row], runs, recording.fs)
    spans += quality.raw_spans(ecg, recording.observed, recording.fs, rules, gaps=spans)
    observed = recording.observed.copy()
    for row in np.flatnonzero(recording.observed):
        observed[row] = not mostly_unusable(spans, LEADS[row], seconds)
    if not observed.any():
        words = "; ".join(flag_words(spans, np.ones(len(LEADS), dtype=bool)))
        raise RecordError(f"no usable lead: {words}")
    filtering: Mapping[str, Any] = {
        "low_hz": rules.low_hz,
        "high_hz": rules.high_hz,
        "order": rules.order,
        "backend": backend,
    }
    rows = np.flatnonzero(observed)
    conditioned = condition(ecg[rows], recording.fs, fs, **filtering)
    made = np.zeros((len(LEADS), conditioned.shape[1]))
    made[rows] = conditioned
    spans += quality.conditioned_spans(made, observed, fs, rules)
    spans += [Span(flag, lead, 0.0, seconds) for flag, lead in recording.doubts]
    words_list = flag_words(spans, recording.observed)
    return Conditioned(
        ecg=made,
        frank=_condition_frank(recording, fs, gap, filtering),
        observed=observed,
        spans=spans,
        words=words_list,
        quality=usable_share(observed, lasting(words_list, spans, seconds)),
    )


def _condition(
    record: AnyRecord,
    fs: float,
    rules: PreprocessConfig,
    signals: NpyAppender,
    frank: NpyAppender,
    *,
    backend: str,
) -> Verdict:
    """Append one record to the arrays, a long one in pieces, and say what is to be said of it."""

    def write(ecg: NDArray[np.float64], vcg: NDArray[np.float64] | None) -> None:
        signals.append(ecg.T)
        if vcg is not None:
            frank.append(vcg.T)

    if is_long(record):
        return condition_long(record, fs, rules, write, backend=backend)
    made = condition_recording(record.read(), fs, rules, backend=backend)
    write(made.ecg, made.frank)
    return made


def _condition_frank(
    recording: Recording, fs: float, gap: int, filtering: Mapping[str, Any]
) -> NDArray[np.float64] | None:
    if recording.frank is None:
        return None
    filled = [fill_gaps(lead, gap) for lead in recording.frank]
    if any(len(runs) for _, runs in filled):
        return None  # a measured truth with holes is none
    return condition(np.stack([lead for lead, _ in filled]), recording.fs, fs, **filtering)


class NpyAppender:
    """Writes a float32 .npy file [rows, columns] of which the number of rows is known only at the end."""

    _HEADER = 128

    def __init__(self, path: Path, columns: int) -> None:
        self.rows = 0
        self._columns = columns
        self._stream = path.open("wb")
        self._stream.write(b" " * self._HEADER)

    def append(self, block: NDArray[np.floating]) -> None:
        """Add rows: block [k, columns]."""
        assert block.ndim == 2 and block.shape[1] == self._columns, block.shape
        self._stream.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
        self.rows += len(block)

    def cut(self, rows: int) -> None:
        """Take back what was added beyond that many rows."""
        if rows < self.rows:
            self._stream.truncate(self._HEADER + rows * self._columns * 4)
            self._stream.seek(0, os.SEEK_END)
            self.rows = rows

    def close(self) -> None:
        """Write the header. Closing twice does nothing."""
        if self._stream.closed:
            return
        shape = f"({self.rows}, {self._columns})"
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        length = self._HEADER - 10
        header = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
        self._stream.seek(0)
        self._stream.write(header + text.ljust(length - 1).encode("latin1") + b"\n")
        self._stream.close()

    def __enter__(self) -> NpyAppender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_spans(made: Verdict, observed: NDArray[np.bool_], more: Sequence[Span], seconds: float) -> Verdict:
    """The same with more spans; seconds: of the record."""
    if not more:
        return made
    spans = [*made.spans, *more]
    words = flag_words(spans, observed)
    share = usable_share(made.observed, lasting(words, spans, seconds))
    return dataclasses.replace(made, spans=spans, words=words, quality=share)


def _row(name: str, info: RecordInfo, rows: tuple[int, int], fs_raw: float, made: Verdict) -> dict[str, Any]:
    return {
        "record": name,
        "patient": info.patient,
        "offset": rows[0],
        "n_samples": rows[1] - rows[0],
        "fs_raw": fs_raw,
        "observed": "".join("1" if seen else "0" for seen in made.observed),
        "labels": ";".join(info.labels),
        "fold": "" if info.fold is None else info.fold,
        "age": "" if info.age is None else info.age,
        "sex": info.sex,
        "recorded": info.recorded,
        "quality": made.quality,
        "reasons": ";".join(made.words),
    }


def _span_row(name: str, span: Span) -> dict[str, str]:
    times = {"start_s": f"{span.start_s:.4f}", "stop_s": f"{span.stop_s:.4f}"}
    return {"record": name, "flag": span.flag, "lead": span.lead} | times


def _require_records(rows: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, str]]) -> None:
    if rows:
        return
    # The record's own name would make every reason look different.
    reasons = Counter(re.sub(rf"\b{re.escape(Path(r['record']).name)}\b", "*", r["reason"]) for r in rejected)
    listed = "; ".join(f"{text.rstrip('.')} ({count})" for text, count in reasons.most_common(3))
    raise RecordError(
        f"None of the {len(rejected)} records is usable: {listed or 'the list of records is empty'}."
    )


def _counts(
    by_database: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    rejected: Sequence[Mapping[str, str]],
    frank: bool,
) -> dict[str, Any]:
    flags = Counter(flag for r in rows for flag in kinds(r["reasons"].split(";")))
    return {
        "listed": sum(count["listed"] for count in by_database.values()),
        "absent": sum(count["absent"] for count in by_database.values()),
        "records": len(rows),
        "rejected": len(rejected),
        "patients": len({r["patient"] for r in rows}),
        "labelled": sum(bool(r["labels"]) for r in rows),
        "all_leads_observed": sum(r["observed"] == "1" * len(LEADS) for r in rows),
        "records_by_flag": dict(sorted(flags.items())),
        "frank": frank,
        "by_database": by_database,
    }
