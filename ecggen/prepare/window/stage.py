"""data/records -> data/windows: records cut into windows, patients into splits, labels into classes.

The tables of the records are read twice, row by row: once to count the windows and to split the patients, and
once to write. What is held meanwhile are a few numbers per record and the names of patients.
"""

from __future__ import annotations

import warnings
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.data.quality.flags import FLAGS, usable_share
from ecggen.io.annotations import Beat, present, within
from ecggen.leads import LEADS
from ecggen.prepare.check import check_exclude
from ecggen.prepare.window.labels import LabelCounts, choose_system, record_labels
from ecggen.prepare.window.plan import Plan, RecordRows, WindowError, make_plan, record_windows
from ecggen.prepare.window.splits import assign_splits, check_splits
from ecggen.prepare.window.writer import SignalWriter, copies, robust_scale
from ecggen.utils.config import SPLITS, DataConfig, WindowConfig
from ecggen.utils.errors import disk_words
from ecggen.utils.files import csv_rows, fresh_folder, iter_csv, read_json, write_json

INDEX_COLUMNS = (
    *("window", "record", "patient", "start_s", "split", "labels", "scale", "observed", "quality", "reasons"),
    *("recorded", "database"),
)
REJECTED_COLUMNS = ("record", "window", "reason")
#: What meta.json of the windows says of each database as that of the records does.
PASSED_ON = ("listed", "absent", "rejected", "patients_from", "unknown_leads", "annotations_unreadable")
BEAT_COLUMNS = ("window", "sample", "symbol", "class")


def window(records: Path, out: Path, data: DataConfig, config: WindowConfig) -> dict[str, Any]:
    """Cut the records of `preprocess` into windows [12, data.time_len] and write out/ (see data/README.md).

    Signals stay in mV; the scale is stored, never applied. Returns the counts. Raises WindowError if nothing
    is left, data.fs is not the records' rate or the disk is full, SplitError for an empty split, LabelError
    for a label system that the records do not have, ConfigError for an unknown flag in config.exclude. Then
    `out` is as it was.
    """
    records = Path(records)
    meta = _check_records(records, data, config)
    system = choose_system(iter_csv(records / "records.csv"), config.labels)
    plan = make_plan(record_windows(records, data, config))
    n = sum(plan.windows)
    if not n:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in plan.rejected.most_common(3))
        hint = "; window.exclude says which flags keep a window out"
        hint = hint if plan.flags_rejected.keys() & FLAGS else ""
        raise WindowError(f"No window is left of {plan.records} records: {reasons}{hint}.")
    split_of, rule = assign_splits(plan.patients, plan.folds, config, plan.databases)
    counts = _count(plan, split_of, meta["counts"])
    check_splits(counts["windows_by_split"], config)
    try:
        with fresh_folder(out) as folder:
            about = {
                "fs": data.fs,
                "time_len": data.time_len,
                "stride": config.stride,
                "scale": config.scale,
                "leads": list(LEADS),
                "preprocessing": meta["preprocessing"],
                "source": meta.get("source", {}),
                "label_system": system,
                "split_rule": rule,
            }
            written, copied = _write(records, folder, n, data, config, split_of, system)
            counts["windows_copied_across_splits"] = copied
            write_json(folder / "meta.json", about | written | {"counts": counts})
    except OSError as error:
        leads = len(LEADS) + 3 * (records / "frank.npy").is_file()
        raise WindowError(disk_words(error, out, n * leads * data.time_len * 4)) from error
    if copied:
        warnings.warn(
            f"{copied} windows in {out} have the same samples as a window of another split: a recording is "
            "there under several names; keep one of them.",
            stacklevel=2,
        )
    return counts


def _check_records(records: Path, data: DataConfig, config: WindowConfig) -> dict[str, Any]:
    """meta.json of the records."""
    if not (records / "records.csv").is_file():
        raise WindowError(
            f"No records.csv in {records}: run the preprocess stage first (dvc repro preprocess)."
        )
    check_exclude(config)
    meta: dict[str, Any] = read_json(records / "meta.json")
    if meta["fs"] != data.fs:
        raise WindowError(
            f"The records in {records} are sampled at {meta['fs']:g} Hz and data.fs is {data.fs:g}: "
            "run the preprocess stage again."
        )
    return meta


def _count(plan: Plan, split_of: Mapping[str, str], before: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of meta.json; before: those of preprocess."""
    records: defaultdict[str, Counter[str]] = defaultdict(Counter)  # database -> split -> how many
    windows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for patient, database, count in zip(plan.patients, plan.databases, plan.windows, strict=True):
        records[database][split_of[patient]] += 1
        windows[database][split_of[patient]] += count
        patients[database].add(patient)
    by_database = {
        key: {name: counted[name] for name in PASSED_ON if name in counted}
        | {
            "records": records[key].total(),
            "patients": len(patients[key]),
            "windows": windows[key].total(),
            "windows_rejected": plan.rejected_in[key],
            "windows_by_split": _by_split(windows[key]),
        }
        for key, counted in sorted(before.get("by_database", {}).items())
    }
    return {
        "records_listed": before["listed"],
        "records_absent": before["absent"],
        "records_unreadable": before["rejected"],
        "records_without_window": before["records"] - len(plan.windows),
        "records": len(plan.windows),
        "patients": len(split_of),
        "windows": sum(plan.windows),
        "windows_rejected": plan.rejected.total(),
        "windows_rejected_by_reason": dict(sorted(plan.flags_rejected.items())),
        "windows_by_flag": dict(sorted(plan.flags_kept.items())),
        "windows_by_split": _by_split(sum(windows.values(), Counter())),
        "records_by_split": _by_split(sum(records.values(), Counter())),
        "patients_by_split": _by_split(Counter(split_of.values())),
        "by_database": by_database,
    }


def _by_split(counts: Mapping[str, int]) -> dict[str, int]:
    return {split: counts.get(split, 0) for split in SPLITS}


def _write(
    records: Path,
    folder: Path,
    n: int,
    data: DataConfig,
    config: WindowConfig,
    split_of: Mapping[str, str],
    system: str,
) -> tuple[dict[str, Any], int]:
    """Write the signals and tables of n windows; system: of their labels.

    Returns the entries of meta.json about labels and fingerprint, and the number of `copies`.
    """
    beat_rows = RecordRows(records / "beats.csv")
    label_counts = LabelCounts(split_of)
    splits = array("b")  # of each window, as its place in SPLITS
    with ExitStack() as stack:
        signals, *frank = [
            stack.enter_context(SignalWriter(records / source, folder / target, n, data.time_len))
            for source, target in (("signals.npy", "windows.npy"), ("frank.npy", "frank.npy"))
            if source == "signals.npy" or (records / source).is_file()
        ]
        index = stack.enter_context(csv_rows(folder / "index.csv", INDEX_COLUMNS))
        reject = stack.enter_context(csv_rows(folder / "rejected.csv", REJECTED_COLUMNS))
        if beat_rows.exists:
            add_beat = stack.enter_context(csv_rows(folder / "beats.csv", BEAT_COLUMNS))
        # A record that never became one has no window; its reason travels on, so that nothing vanishes.
        for rejected in iter_csv(records / "rejected.csv"):
            reject(rejected)
        for record in record_windows(records, data, config):
            name, patient = record.row["record"], record.row["patient"]
            beats = [Beat(float(row["time_s"]), row["symbol"]) for row in beat_rows.of(name)]
            for number, reason in record.rejected:
                reject({"record": name, "window": number, "reason": reason})
            if not record.windows:
                continue
            starts = [int(record.row["offset"]) + one.start for one in record.windows]
            ecg = signals.add(starts, np.stack([one.observed for one in record.windows]))
            for writer in frank:
                writer.add(starts)
            labels = []
            for one, samples in zip(record.windows, ecg, strict=True):
                number, start_s = len(splits), one.start / data.fs
                inside = within(beats, start_s, start_s + data.time_len / data.fs)
                classes = present(beat.symbol for beat in inside)
                labels.append(classes if system == "beats" else record_labels(record.row, system))
                index(
                    {
                        "window": number,
                        "record": name,
                        "patient": patient,
                        "start_s": repr(round(start_s, 6)),
                        "split": split_of[patient],
                        "labels": ";".join(labels[-1]),
                        "scale": robust_scale(samples, one.observed) if config.scale == "rms" else 1.0,
                        "observed": "".join("1" if seen else "0" for seen in one.observed.tolist()),
                        "quality": usable_share(one.observed, one.flags),
                        "reasons": ";".join(one.flags),
                        "recorded": record.row.get("recorded", ""),
                        "database": record.row["database"],
                    }
                )
                for beat in inside:
                    sample = min(data.time_len - 1, round((beat.time_s - start_s) * data.fs))
                    row = {"sample": sample, "symbol": beat.symbol, "class": beat.aami}
                    add_beat(row | {"window": number})
                splits.append(SPLITS.index(split_of[patient]))
            label_counts.add(patient, labels)
        beat_rows.close()
    counted = label_counts.result()
    classes = [k for k, of in counted["patients"].items() if of["train"] >= config.min_label_count]
    written: dict[str, Any] = {f"label_{kind}": of for kind, of in counted.items()} | {
        "label_classes": classes
    }
    written["fingerprint"] = signals.fingerprint(folder / "index.csv")
    return written, copies(signals.hashes, splits)
