"""data/records -> data/windows: records cut into windows, patients into splits, labels into classes.

Which windows there are is settled from the tables alone; then the signals are copied, one window at a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.leads import LEADS
from ecggen.prepare.label_systems.window_labels import BEAT_COLUMNS, WindowLabels, count_labels
from ecggen.prepare.lead_quality.flags import FLAGS, UNUSABLE, Span, check_words, kinds, usable_share
from ecggen.prepare.splits import SPLITS, assign_splits, check_splits
from ecggen.utils.config import ConfigError, DataConfig, WindowConfig
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import fresh_folder, new_memmap, read_csv, read_json, write_csv, write_json

INDEX_COLUMNS = (
    *("window", "record", "patient", "start_s", "split", "labels", "scale", "observed", "quality", "reasons"),
    *("recorded", "database"),
)
_LEAST_SCALE = 1e-3  # mV; a window of nearly nothing must not be blown up


class WindowError(EcggenError):
    """Records from which no windows can be cut."""


@dataclass(frozen=True)
class Cut:
    """One window to be: row of its record's table, number and first sample within the record."""

    record: Mapping[str, str]
    number: int
    start: int
    observed: NDArray[np.bool_]
    words: list[str]


def window(records: Path, out: Path, data: DataConfig, rules: WindowConfig) -> dict[str, Any]:
    """Cut the records of `preprocess` into windows [12, data.time_len] and write out/ (see data/README.md).

    Signals stay in mV; the scale is stored, never applied. Returns the counts. Raises WindowError if nothing
    is left or data.fs is not the records' rate, SplitError for an empty split, LabelError for a label system
    that the records do not have, ConfigError for an unknown flag in rules.exclude.
    """
    records = Path(records)
    table, meta = _read_records(records, data, rules)
    labels = WindowLabels(table, records, rules.labels)
    cuts, rejected = _plan(table, _read_spans(records), data, rules)
    unreadable = read_csv(records / "rejected.csv")
    if not cuts:
        reasons = Counter(row["reason"] for row in rejected).most_common(3)
        listed = "; ".join(f"{reason} ({count})" for reason, count in reasons)
        flagged = any(kinds(row["reason"].split(";")) & FLAGS.keys() for row in rejected)
        hint = "; window.exclude says which flags keep a window out" if flagged else ""
        raise WindowError(f"No window is left of {len(table)} records: {listed}{hint}.")
    folds = [_fold(cut.record["fold"]) for cut in cuts]
    owners = [c.record.get("database", "") for c in cuts]
    split, rule = assign_splits([c.record["patient"] for c in cuts], folds, rules, owners)
    by_split = Counter(split[c.record["patient"]] for c in cuts)
    check_splits(by_split, rules)
    span = data.time_len / data.fs
    own = [labels.of(c.record, c.start / data.fs, c.start / data.fs + span) for c in cuts]
    label_counts = count_labels(
        (c.record["patient"], c.record["record"], split[c.record["patient"]], names)
        for c, names in zip(cuts, own, strict=True)
    )
    patients_with = label_counts["patients"]
    classes = [name for name, n in patients_with.items() if n["train"] >= rules.min_label_count]
    with fresh_folder(out) as folder:
        scales = _write_signals(records, folder, cuts, data.time_len, rules.scale)
        rows = [_index_row(i, c, split, scales[i], data.fs, own[i]) for i, c in enumerate(cuts)]
        write_csv(folder / "index.csv", rows, INDEX_COLUMNS)
        if labels.beats:
            _write_beats(folder / "beats.csv", cuts, labels, data)
        # A record that never became one has no window; its reason travels on, so that nothing vanishes.
        write_csv(folder / "rejected.csv", [*unreadable, *rejected], ("record", "window", "reason"))
        counts = _counts(cuts, rejected, split, by_split, meta)
        described = {
            "fs": data.fs,
            "time_len": data.time_len,
            "stride": rules.stride,
            "scale": rules.scale,
            "leads": list(LEADS),
            "preprocessing": meta["preprocessing"],
            "source": meta.get("source", {}),
            "label_system": labels.system,
            "label_classes": classes,
            "label_patients": patients_with,
            "label_records": label_counts["records"],
            "label_windows": label_counts["windows"],
            "split_rule": rule,
            "counts": counts,
            "fingerprint": _fingerprint(folder / "windows.npy", folder / "index.csv"),
        }
        write_json(folder / "meta.json", described)
    return counts


def window_starts(n: int, length: int, stride: int) -> list[int]:
    """First samples of the windows of a record of n samples: every stride, the last one at the very end.

    A record that is shorter than one window has none.
    """
    if n < length:
        return []
    starts = list(range(0, n - length + 1, stride))
    return starts if starts[-1] == n - length else [*starts, n - length]


def robust_scale(ecg: NDArray[np.floating], observed: NDArray[np.bool_]) -> float:
    """RMS in mV of the observed leads of a window [12, T], samples beyond their 99th percentile clipped."""
    x = np.abs(np.asarray(ecg, dtype=np.float64)[np.asarray(observed, dtype=bool)])
    if not x.size:
        return 1.0
    return max(_LEAST_SCALE, float(np.sqrt(np.mean(np.minimum(x, np.percentile(x, 99)) ** 2))))


def _read_records(
    records: Path, data: DataConfig, rules: WindowConfig
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    if not (records / "records.csv").is_file():
        raise WindowError(
            f"No records.csv in {records}: run the preprocess stage first (dvc repro preprocess)."
        )
    if wrong := check_words(rules.exclude):
        raise ConfigError(f"window.exclude has {wrong}.")
    meta = read_json(records / "meta.json")
    if meta["fs"] != data.fs:
        raise WindowError(
            f"The records in {records} are sampled at {meta['fs']:g} Hz and data.fs is {data.fs:g}: "
            "run the preprocess stage again."
        )
    return read_csv(records / "records.csv"), meta


def _read_spans(records: Path) -> dict[str, list[Span]]:
    spans: dict[str, list[Span]] = defaultdict(list)
    for row in read_csv(records / "spans.csv"):
        span = Span(row["flag"], row["lead"], float(row["start_s"]), float(row["stop_s"]))
        spans[row["record"]].append(span)
    return spans


def _plan(
    table: Sequence[Mapping[str, str]],
    spans: Mapping[str, Sequence[Span]],
    data: DataConfig,
    rules: WindowConfig,
) -> tuple[list[Cut], list[dict[str, Any]]]:
    """Windows to keep, and (record, window, reason) of those that are not."""
    cuts: list[Cut] = []
    rejected: list[dict[str, Any]] = []
    for record in table:
        n = int(record["n_samples"])
        owner = {"database": record.get("database", "")}
        starts = window_starts(n, data.time_len, rules.stride)
        if not starts:
            reason = f"shorter than one window of {data.time_len} samples"
            rejected.append({"record": record["record"], "window": "", "reason": reason, **owner})
        for number, start in enumerate(starts):
            cut = _cut(record, number, start, spans.get(record["record"], ()), data)
            barred = [w for w in cut.words if w in rules.exclude or w.split(":")[0] in rules.exclude]
            if not cut.observed.any():
                barred = ["no usable lead"]
            if barred:
                reason = ";".join(barred)
                rejected.append({"record": record["record"], "window": number, "reason": reason, **owner})
            else:
                cuts.append(cut)
    return cuts, rejected


def _cut(record: Mapping[str, str], number: int, start: int, spans: Sequence[Span], data: DataConfig) -> Cut:
    """What holds within one window: leads that are flat or missing in it are not observed in it."""
    begin, end = start / data.fs, (start + data.time_len) / data.fs
    here = [span for span in spans if span.start_s < end and span.stop_s > begin]
    observed = np.array([bit == "1" for bit in record["observed"]])
    words = {span.word for span in here}
    # Flags of leads that the whole record lacks hold in each of its windows.
    for word in record["reasons"].split(";"):
        lead = word.partition(":")[2]
        if lead in LEADS and not observed[LEADS.index(lead)]:
            words.add(word)
    for span in here:
        if span.flag in UNUSABLE:
            observed[LEADS.index(span.lead)] = False
    return Cut(record, number, start, observed, sorted(words))


def _write_signals(
    records: Path, folder: Path, cuts: Sequence[Cut], length: int, scale: str
) -> NDArray[np.float64]:
    """windows.npy, frank.npy where the records have it, and the scale of each window in mV."""
    signals = np.load(records / "signals.npy", mmap_mode="r")
    windows = new_memmap(folder / "windows.npy", (len(cuts), len(LEADS), length))
    scales = np.ones(len(cuts))
    for i, cut in enumerate(cuts):
        at = int(cut.record["offset"]) + cut.start
        ecg = np.where(cut.observed[:, None], signals[at : at + length].T, np.float32(0))
        windows[i] = ecg
        if scale == "rms":
            scales[i] = robust_scale(ecg, cut.observed)
    windows.flush()
    if (records / "frank.npy").is_file():
        source = np.load(records / "frank.npy", mmap_mode="r")
        frank = new_memmap(folder / "frank.npy", (len(cuts), source.shape[1], length))
        for i, cut in enumerate(cuts):
            at = int(cut.record["offset"]) + cut.start
            frank[i] = source[at : at + length].T
        frank.flush()
    return scales


def _fold(text: str) -> int | str | None:
    """A number, the name of a split, or None for an empty cell."""
    if not text:
        return None
    return text if text in SPLITS else int(text)


def _write_beats(path: Path, cuts: Sequence[Cut], labels: WindowLabels, data: DataConfig) -> None:
    rows: list[dict[str, Any]] = []
    for i, cut in enumerate(cuts):
        rows += labels.beat_rows(i, cut.record["record"], cut.start / data.fs, data.time_len, data.fs)
    write_csv(path, rows, BEAT_COLUMNS)


def _index_row(
    i: int, cut: Cut, split: Mapping[str, str], scale: float, fs: float, labels: Sequence[str]
) -> dict[str, Any]:
    return {
        "window": i,
        "record": cut.record["record"],
        "patient": cut.record["patient"],
        "start_s": repr(round(cut.start / fs, 6)),
        "split": split[cut.record["patient"]],
        "recorded": cut.record.get("recorded", ""),
        "labels": ";".join(labels),
        "database": cut.record.get("database", ""),
        "scale": scale,
        "observed": "".join("1" if seen else "0" for seen in cut.observed),
        "quality": usable_share(cut.observed, cut.words),
        "reasons": ";".join(cut.words),
    }


def _counts(
    cuts: Sequence[Cut],
    rejected: Sequence[Mapping[str, Any]],
    split: Mapping[str, str],
    by_split: Mapping[str, int],
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    before = meta["counts"]
    kept = {cut.record["record"] for cut in cuts}
    flags = Counter(flag for row in rejected for flag in kinds(row["reason"].split(";")))
    carried = Counter(flag for cut in cuts for flag in kinds(cut.words))
    record_split = {cut.record["record"]: split[cut.record["patient"]] for cut in cuts}
    return {
        "records_listed": before["listed"],
        "records_absent": before["absent"],
        "records_unreadable": before["rejected"],
        "records_without_window": before["records"] - len(kept),
        "records": len(kept),
        "patients": len({cut.record["patient"] for cut in cuts}),
        "windows": len(cuts),
        "windows_rejected": len(rejected),
        "windows_rejected_by_reason": dict(sorted(flags.items())),
        "windows_by_flag": dict(sorted(carried.items())),
        "windows_by_split": {name: by_split.get(name, 0) for name in SPLITS},
        "records_by_split": {name: sum(s == name for s in record_split.values()) for name in SPLITS},
        "patients_by_split": {
            name: len({c.record["patient"] for c in cuts if split[c.record["patient"]] == name})
            for name in SPLITS
        },
        "by_database": _by_database(cuts, rejected, split, before),
    }


def _by_database(
    cuts: Sequence[Cut],
    rejected: Sequence[Mapping[str, Any]],
    split: Mapping[str, str],
    before: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Per database: what preprocess counted, and the windows kept, rejected and by split."""
    out: dict[str, dict[str, Any]] = {}
    for key, counted in sorted(before.get("by_database", {}).items()):
        own = [cut for cut in cuts if cut.record.get("database") == key]
        by_split = Counter(split[cut.record["patient"]] for cut in own)
        out[key] = {name: counted[name] for name in ("listed", "absent", "rejected")} | {
            "records": len({cut.record["record"] for cut in own}),
            "patients": len({cut.record["patient"] for cut in own}),
            "windows": len(own),
            "windows_rejected": sum(row["database"] == key for row in rejected),
            "windows_by_split": {name: by_split.get(name, 0) for name in SPLITS},
        }
    return out


def _fingerprint(*paths: Path) -> str:
    """SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
