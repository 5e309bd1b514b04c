"""data/records -> data/windows: records cut into windows, patients into splits, labels into classes.

The tables of the records are read twice, row by row: once to count the windows and to split the patients, and
once to write. What is held meanwhile are a few numbers per record and the names of patients.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.data.quality.flags import FLAGS, usable_share
from ecggen.io.annotations import Beat, present, within
from ecggen.io.npy_rows import NpyRows
from ecggen.leads import LEADS
from ecggen.prepare.check import check_exclude
from ecggen.prepare.window.labels import SplitCounts, choose_system, record_labels
from ecggen.prepare.window.plan import Plan, RecordRows, Window, WindowError, record_windows
from ecggen.prepare.window.signals import Signals, copies, fingerprint, robust_scale
from ecggen.prepare.window.splits import assign_splits, check_splits
from ecggen.utils.config import SPLITS, DataConfig, WindowConfig
from ecggen.utils.display import track
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
    if not (records / "records.csv").is_file():
        raise WindowError(
            f"No records.csv in {records}: run the preprocess stage first (dvc repro preprocess)."
        )
    check_exclude(config)
    meta = read_json(records / "meta.json")
    if meta["fs"] != data.fs:
        raise WindowError(
            f"The records in {records} are sampled at {meta['fs']:g} Hz and data.fs is {data.fs:g}: "
            "run the preprocess stage again."
        )
    system = choose_system(iter_csv(records / "records.csv"), config.labels)
    plan = Plan(record_windows(records, data, config))
    n = sum(plan.windows)
    if not n:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in plan.rejected.most_common(3))
        hint = "; window.exclude says which flags keep a window out"
        hint = hint if plan.flags_rejected.keys() & FLAGS else ""
        raise WindowError(f"No window is left of {plan.records} records: {reasons}{hint}.")
    split_of, rule = assign_splits(plan.patients, plan.folds, config, plan.databases)
    counts = _count(plan, split_of, meta["counts"])
    check_splits(counts["windows_by_split"], config)
    about = {"fs": data.fs, "time_len": data.time_len, "stride": config.stride, "scale": config.scale}
    about |= {"leads": list(LEADS), "preprocessing": meta["preprocessing"], "source": meta.get("source", {})}
    about |= {"label_system": system, "split_rule": rule, "counts": counts}
    try:
        with fresh_folder(out) as folder:
            labels, copied = _write(records, folder, data, config, split_of, system, plan.records)
            counts["windows_copied_across_splits"] = copied
            write_json(folder / "meta.json", about | labels)
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


def _count(plan: Plan, split_of: Mapping[str, str], before: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of meta.json; before: those of preprocess."""
    of_databases = SplitCounts(split_of)
    for patient, database, count in zip(plan.patients, plan.databases, plan.windows, strict=True):
        of_databases.add(patient, [[database]] * count)
    tables = of_databases.result()
    none = dict.fromkeys(SPLITS, 0)
    by_database = {
        key: {name: counted[name] for name in PASSED_ON if name in counted}
        | {kind: sum(table.get(key, none).values()) for kind, table in tables.items()}
        | {"windows_rejected": plan.rejected_in[key], "windows_by_split": tables["windows"].get(key, none)}
        for key, counted in sorted(before.get("by_database", {}).items())
    }
    counts: dict[str, Any] = {
        "records_listed": before["listed"],
        "records_absent": before["absent"],
        "records_unreadable": before["rejected"],
        "records_without_window": before["records"] - len(plan.windows),
        "windows_rejected": plan.rejected.total(),
        "windows_rejected_by_reason": dict(sorted(plan.flags_rejected.items())),
        "windows_by_flag": dict(sorted(plan.flags_kept.items())),
        "by_database": by_database,
    }
    for kind, table in tables.items():
        by_split = {split: sum(of[split] for of in table.values()) for split in SPLITS}
        counts |= {f"{kind}_by_split": by_split, kind: sum(by_split.values())}
    return counts


def _write(
    records: Path,
    out: Path,
    data: DataConfig,
    config: WindowConfig,
    split_of: Mapping[str, str],
    system: str,
    count: int,
) -> tuple[dict[str, Any], int]:
    """Write the signals and tables of the windows; system: of their labels; count: of the records.

    Returns the entries of meta.json about labels and fingerprint, and the number of `copies`.
    """
    beat_rows, counts = RecordRows(records / "beats.csv"), SplitCounts(split_of)
    splits, hashes = array("b"), array("q")  # of each window: its place in SPLITS; equal for equal samples
    with ExitStack() as stack:
        names = ["signals.npy", "frank.npy"][: 1 + (records / "frank.npy").is_file()]
        sources = [Signals(records / name) for name in names]
        files = [
            stack.enter_context(closing(NpyRows(out / name, source.channels, data.time_len)))
            for name, source in zip(("windows.npy", "frank.npy"), sources, strict=False)
        ]
        tables = {"index.csv": INDEX_COLUMNS, "rejected.csv": REJECTED_COLUMNS}
        tables |= {"beats.csv": BEAT_COLUMNS} if beat_rows.exists else {}
        add = {name: stack.enter_context(csv_rows(out / name, rows)) for name, rows in tables.items()}
        # A record that never became one has no window; its reason travels on, so that nothing vanishes.
        for rejected in iter_csv(records / "rejected.csv"):
            add["rejected.csv"](rejected)
        for record in track("records", record_windows(records, data, config), count):
            row, windows = record.row, record.windows
            beats = [Beat(float(beat["time_s"]), beat["symbol"]) for beat in beat_rows.of(row["record"])]
            for number, reason in record.rejected:
                add["rejected.csv"]({"record": row["record"], "window": number, "reason": reason})
            if not windows:
                continue
            starts = [int(row["offset"]) + one.start for one in windows]
            ecg, *frank = (source.windows(starts, data.time_len) for source in sources)
            ecg[~np.stack([one.observed for one in windows])] = 0.0
            hashes.extend(hash(window.tobytes()) for window in ecg)
            for file, rows in zip(files, (ecg, *frank), strict=True):
                file.append(rows)
            split, labels = split_of[row["patient"]], []
            for one, samples in zip(windows, ecg, strict=True):
                window_beats = _beats(beats, one.start, len(splits), data)
                classes = present(beat["symbol"] for beat in window_beats)
                labels.append(classes if system == "beats" else record_labels(row, system))
                scale = robust_scale(samples, one.observed) if config.scale == "rms" else 1.0
                entry = {"window": len(splits), "split": split, "labels": ";".join(labels[-1])}
                add["index.csv"](_index_row(row, one, data.fs) | entry | {"scale": scale})
                for beat in window_beats:
                    add["beats.csv"](beat)
                splits.append(SPLITS.index(split))
            counts.add(row["patient"], labels)
        beat_rows.close()
    of_labels = counts.result()
    classes = [name for name, of in of_labels["patients"].items() if of["train"] >= config.min_label_count]
    entries: dict[str, Any] = {f"label_{kind}": of for kind, of in of_labels.items()}
    entries |= {
        "label_classes": classes,
        "fingerprint": fingerprint(out / "windows.npy", out / "index.csv"),
    }
    return entries, copies(hashes, splits)


def _index_row(row: Mapping[str, str], window: Window, fs: float) -> dict[str, Any]:
    """What index.csv says of a window, but for number, split, labels and scale; row: of records.csv."""
    return {
        "record": row["record"],
        "patient": row["patient"],
        "start_s": repr(round(window.start / fs, 6)),
        "observed": "".join("01"[seen] for seen in window.observed.tolist()),
        "quality": usable_share(window.observed, window.flags),
        "reasons": ";".join(window.flags),
        "recorded": row.get("recorded", ""),
        "database": row["database"],
    }


def _beats(beats: Sequence[Beat], start: int, number: int, data: DataConfig) -> list[dict[str, Any]]:
    """Rows of beats.csv of a window: its beats, from all of the record."""
    start_s = start / data.fs
    return [
        {
            "window": number,
            "sample": min(data.time_len - 1, round((beat.time_s - start_s) * data.fs)),
            "symbol": beat.symbol,
            "class": beat.aami,
        }
        for beat in within(beats, start_s, start_s + data.time_len / data.fs)
    ]
