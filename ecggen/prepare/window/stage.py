"""data/records -> data/windows: records cut into windows, patients into splits, labels into classes.

Which windows there are is settled from the tables alone, record by record. Then some windows in a row are a
task (window_writer.py), of this process or of some beside it, and this process writes the tables. What is
held meanwhile is a few numbers per record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.flags import FLAGS, check_words, usable_share
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.window.labels import (
    BEAT_COLUMNS,
    BEATS_FILE,
    LabelCounts,
    WindowLabels,
    window_beats,
)
from ecggen.prepare.window.plan import (
    ByRecord,
    Cut,
    CutRecord,
    Plan,
    cut_records,
    make_plan,
    window_starts,
)
from ecggen.prepare.window.splits import SPLITS, check_splits, split_codes
from ecggen.prepare.window.writer import SignalWriter, WindowError
from ecggen.utils.config import ConfigError, DataConfig, WindowConfig
from ecggen.utils.errors import disk_words
from ecggen.utils.files import csv_rows, fresh_folder, iter_csv, read_json, write_json
from ecggen.utils.parallel import cores, workers

__all__ = ["INDEX_COLUMNS", "WindowError", "window", "window_starts"]

INDEX_COLUMNS = (
    *("window", "record", "patient", "start_s", "split", "labels", "scale", "observed", "quality", "reasons"),
    *("recorded", "database"),
)
REJECTED_COLUMNS = ("record", "window", "reason")
#: Bytes of records from which local processes are worth their start, and how many have something to do: the
#: tables, which one process writes, take as long as the signals.
MANY_BYTES, MOST_PROCESSES = 100 << 20, 4


def window(records: Path, out: Path, data: DataConfig, rules: WindowConfig) -> dict[str, Any]:
    """Cut the records of `preprocess` into windows [12, data.time_len] and write out/ (see data/README.md).

    Signals stay in mV; the scale is stored, never applied. Returns the counts. Raises WindowError if nothing
    is left, data.fs is not the records' rate or the disk is full, SplitError for an empty split, LabelError
    for a label system that the records do not have, ConfigError for an unknown flag in rules.exclude,
    WorkerError for a local process that cannot be kept alive. Then `out` is as it was.
    """
    records = Path(records)
    meta = _check_records(records, data, rules)
    processes = data.workers or (cores() if _many(records / "signals.npy") else 1)
    with workers(processes=min(MOST_PROCESSES, processes)) as pool:
        in_order = {name: _in_order(records, name) for name in ("spans.csv", BEATS_FILE)}
        labels = WindowLabels(records, rules.labels, in_order=in_order[BEATS_FILE])
        plan = make_plan(cut_records(records, data, rules, in_order=in_order["spans.csv"]))
        if not len(plan.windows):
            raise WindowError(_nothing_left(plan))
        splits = _split(plan, rules)
        n = int(plan.windows.sum())
        try:
            with fresh_folder(out) as folder, ExitStack() as stack:
                signals = SignalWriter(records, folder, n, data.time_len, rules.shard_windows, rules.scale)
                writer = _Writer(folder, records, labels, data, (plan, splits), stack)
                cut = cut_records(records, data, rules, in_order=in_order["spans.csv"])
                for record, scales in signals.write(cut, pool):
                    writer.add(record, scales)
                stack.close()
                fingerprint = _fingerprint(signals, folder / "index.csv")
                found = _described(labels, writer, splits, data, rules, meta) | {"fingerprint": fingerprint}
                write_json(folder / "meta.json", found)
        except OSError as error:
            frank = len(FRANK) if (records / "frank.npy").is_file() else 0
            size = n * (len(LEADS) + frank) * data.time_len * 4
            raise WindowError(disk_words(error, out, size)) from error
    counts: dict[str, Any] = found["counts"]
    return counts


def _many(signals: Path) -> bool:
    """Whether local processes are worth their start."""
    return signals.is_file() and signals.stat().st_size >= MANY_BYTES


def _fingerprint(signals: SignalWriter, index: Path) -> str:
    """SHA-256 of the files of windows and index.csv, one after the other; after all is written."""
    digest = signals.digest.copy()
    with index.open("rb") as stream:
        while block := stream.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()


def _check_records(records: Path, data: DataConfig, rules: WindowConfig) -> dict[str, Any]:
    """meta.json of the records."""
    if not (records / "records.csv").is_file():
        raise WindowError(
            f"No records.csv in {records}: run the preprocess stage first (dvc repro preprocess)."
        )
    if wrong := check_words(rules.exclude):
        raise ConfigError(f"window.exclude has {wrong}.")
    meta: dict[str, Any] = read_json(records / "meta.json")
    if meta["fs"] != data.fs:
        raise WindowError(
            f"The records in {records} are sampled at {meta['fs']:g} Hz and data.fs is {data.fs:g}: "
            "run the preprocess stage again."
        )
    return meta


def _in_order(records: Path, name: str) -> bool:
    """Whether a table of the records' folder has the order of records.csv."""
    table = ByRecord(records / name, lambda row: None)
    if not table.over:
        for row in iter_csv(records / "records.csv"):
            table.of(row["record"])
    return table.over


def _nothing_left(plan: Plan) -> str:
    listed = "; ".join(f"{reason} ({count})" for reason, count in plan.rejected.most_common(3))
    hint = "; window.exclude says which flags keep a window out" if plan.flags_rejected.keys() & FLAGS else ""
    return f"No window is left of {plan.records} records: {listed}{hint}."


@dataclass(frozen=True)
class _Splits:
    """of_patient: number in SPLITS of each of plan.patients.distinct(); windows: how many each split has."""

    of_patient: NDArray[np.int8]
    rule: str
    windows: Mapping[str, int]


def _split(plan: Plan, rules: WindowConfig) -> _Splits:
    of_patient, rule = split_codes(plan.patients, plan.folds, rules, plan.databases)
    of_record = of_patient[plan.patients.codes]
    by_split = _by_split(of_record, plan.windows)
    check_splits(by_split, rules)
    return _Splits(of_patient, rule, by_split)


class _Writer:
    """Writes the tables of a folder of windows, one record after the other, and counts."""

    def __init__(
        self,
        folder: Path,
        records: Path,
        labels: WindowLabels,
        data: DataConfig,
        planned: tuple[Plan, _Splits],
        stack: ExitStack,
    ) -> None:
        """stack: closes the files."""
        self.labels, self.data = labels, data
        self.plan, self.splits = planned
        self.kept = self.done = 0  # records with a window, windows
        self.label_counts = LabelCounts(self.plan.patients.count_distinct)
        self._index = stack.enter_context(csv_rows(folder / "index.csv", INDEX_COLUMNS))
        self._reject = stack.enter_context(csv_rows(folder / "rejected.csv", REJECTED_COLUMNS))
        # A record that never became one has no window; its reason travels on, so that nothing vanishes.
        for row in iter_csv(records / "rejected.csv"):
            self._reject(row)
        self._beat = (
            stack.enter_context(csv_rows(folder / BEATS_FILE, BEAT_COLUMNS)) if labels.has_beats else None
        )

    def add(self, record: CutRecord, scales: Sequence[float]) -> None:
        """The next record of the table, and the scale of each of its windows in mV."""
        row, fs, length = record.row, self.data.fs, self.data.time_len
        beats = self.labels.beats_of(row["record"])
        for number, reason in record.rejected:
            self._reject({"record": row["record"], "window": number, "reason": reason})
        if not record.cuts:
            return
        patient = int(self.plan.patients.codes[self.kept])
        split = SPLITS[int(self.splits.of_patient[patient])]
        own = [self.labels.of(row, beats, c.start / fs, c.start / fs + length / fs) for c in record.cuts]
        self.label_counts.add(patient, split, own)
        for cut, names, scale in zip(record.cuts, own, scales, strict=True):
            self._index(_index_row(self.done, row, cut, split, scale, fs, names))
            if self._beat is not None:
                for beat in window_beats(self.done, beats, cut.start / fs, length, fs):
                    self._beat(beat)
            self.done += 1
        self.kept += 1


def _index_row(
    i: int, row: Mapping[str, str], cut: Cut, split: str, scale: float, fs: float, labels: Sequence[str]
) -> dict[str, Any]:
    return {
        "window": i,
        "record": row["record"],
        "patient": row["patient"],
        "start_s": repr(round(cut.start / fs, 6)),
        "split": split,
        "recorded": row.get("recorded", ""),
        "labels": ";".join(labels),
        "database": row.get("database", ""),
        "scale": scale,
        "observed": "".join("1" if seen else "0" for seen in cut.observed.tolist()),
        "quality": usable_share(cut.observed, cut.words),
        "reasons": ";".join(cut.words),
    }


def _described(
    labels: WindowLabels,
    writer: _Writer,
    splits: _Splits,
    data: DataConfig,
    rules: WindowConfig,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """meta.json but for the fingerprint."""
    counted = writer.label_counts.result()
    patients_with = counted["patients"]
    return {
        "fs": data.fs,
        "time_len": data.time_len,
        "stride": rules.stride,
        "scale": rules.scale,
        "leads": list(LEADS),
        "preprocessing": meta["preprocessing"],
        "source": meta.get("source", {}),
        "label_system": labels.system,
        "label_classes": [name for name, n in patients_with.items() if n["train"] >= rules.min_label_count],
        "label_patients": patients_with,
        "label_records": counted["records"],
        "label_windows": counted["windows"],
        "split_rule": splits.rule,
        "counts": _counts(writer.plan, splits, meta["counts"]),
    }


def _counts(plan: Plan, splits: _Splits, before: Mapping[str, Any]) -> dict[str, Any]:
    kept = len(plan.windows)
    of_record = splits.of_patient[plan.patients.codes]
    return {
        "records_listed": before["listed"],
        "records_absent": before["absent"],
        "records_unreadable": before["rejected"],
        "records_without_window": before["records"] - kept,
        "records": kept,
        "patients": plan.patients.count_distinct,
        "windows": int(plan.windows.sum()),
        "windows_rejected": plan.rejected.total(),
        "windows_rejected_by_reason": dict(sorted(plan.flags_rejected.items())),
        "windows_by_flag": dict(sorted(plan.flags_kept.items())),
        "windows_by_split": dict(splits.windows),
        "records_by_split": _by_split(of_record),
        "patients_by_split": _by_split(splits.of_patient),
        "by_database": _by_database(plan, of_record, before),
    }


def _by_split(numbers: NDArray[np.int8], weights: NDArray[np.integer] | None = None) -> dict[str, int]:
    own = {name: numbers == number for number, name in enumerate(SPLITS)}
    return {name: int((rows if weights is None else weights[rows]).sum()) for name, rows in own.items()}


def _by_database(
    plan: Plan, of_record: NDArray[np.int8], before: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Per database: what preprocess counted, and the windows kept, rejected and by split."""
    out: dict[str, dict[str, Any]] = {}
    for key, counted in sorted(before.get("by_database", {}).items()):
        own = plan.databases.codes == plan.databases.code(key)
        people = np.zeros(plan.patients.count_distinct, dtype=bool)
        people[plan.patients.codes[own]] = True
        out[key] = {name: counted[name] for name in ("listed", "absent", "rejected")} | {
            "records": int(own.sum()),
            "patients": int(people.sum()),
            "windows": int(plan.windows[own].sum()),
            "windows_rejected": plan.rejected_in[key],
            "windows_by_split": _by_split(of_record[own], plan.windows[own]),
        }
    return out
