"""Personal rendering: all leads once (the reference), a few leads later.

halves: reference = first window of a record, test = its last window, scored only after the reference ends.
records: reference = first window of a patient's earlier record, test = the windows of the later ones.
The model keeps the state W of the reference (`model_personal`); for records, `model_another_day` weighs it by
how much hearts change between days. Beside them `model_one_pass`, the state before the first inner step,
`memory`, the closed-form part of the state alone (the reference's beat and covariances, no network), and
linear regression fitted to the same reference.
personal_gain: how much higher r of the protocol's own method is (halves: model_personal, records:
model_another_day), paired by window, with a 95 % interval over patients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, recorded_windows
from ecggen.eval.metrics import nanmedian
from ecggen.eval.result import Array, Rows, WindowFolder, trained_steps
from ecggen.eval.workers import Workers
from ecggen.utils.config import MissingLeadConfig, TransferConfig
from ecggen.utils.files import iter_csv

if TYPE_CHECKING:
    from ecggen.eval.score import Scores, Scoring

PERSONAL_COLUMNS = (
    *("split", "method", "lead_set", "protocol", "r", "r_low", "r_high", "rmse_mv"),
    *("personal_gain", "gain_low", "gain_high", "days", "n", "n_patients", "n_undated"),
)
PROTOCOLS = ("halves", "records")
PERSONAL, ONE_PASS, ANOTHER_DAY = "model_personal", "model_one_pass", "model_another_day"
MEMORY, REFERENCE_REGRESSION, REGRESSION = "memory", "linear_regression_reference", "linear_regression"
METHODS = (ANOTHER_DAY, PERSONAL, ONE_PASS, "model", MEMORY, REFERENCE_REGRESSION, REGRESSION)


@dataclass(frozen=True)
class Pairs:
    """Reference and test windows, side by side."""

    protocol: str
    reference: Array  # [m] rows of the folder
    test: Array  # [m]
    score_from: Array  # [m] first sample of the test window that counts
    days: Array  # [m] between the two recordings; NaN = unknown or the same record


def half_pairs(folder: WindowFolder, rows: Array) -> Pairs:
    """First and last window of each record; score_from leaves out samples that the reference holds."""
    length, start = folder.time_len, np.asarray(folder.start_s, dtype=np.float64)
    pairs = []
    for windows in _by_record(folder, rows).values():
        first, last = windows[0], windows[-1]
        overlap = max(0, round((start[first] - start[last]) * folder.fs) + length)
        if first != last and overlap < length:
            pairs.append((first, last, overlap))
    reference, test, score_from = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    return Pairs("halves", reference, test, score_from, np.full(len(test), np.nan))


def record_pairs(folder: WindowFolder, rows: Array) -> Pairs:
    """First window of a patient's earliest record against every window of the later records.

    Where a date is missing the order of the index stands for the order in time, and `days` is NaN.
    """
    dates = record_dates(folder)
    records: dict[str, list[list[int]]] = defaultdict(list)
    for windows in _by_record(folder, rows).values():
        records[folder.patient[windows[0]]].append(windows)
    reference, test, days = [], [], []
    for of_patient in records.values():
        dated = [(dates.get(folder.record[windows[0]]), windows) for windows in of_patient]
        if all(date is not None for date, _ in dated):
            dated.sort(key=lambda pair: pair[0] or datetime.min)
        (earliest, first), *later = dated
        for date, windows in later:
            gap = (date - earliest).total_seconds() / 86400 if date and earliest else float("nan")
            reference += [first[0]] * len(windows)
            test += windows
            days += [gap] * len(windows)
    first_rows, later_rows = (np.asarray(side, dtype=np.int64) for side in (reference, test))
    return Pairs("records", first_rows, later_rows, np.zeros_like(later_rows), np.asarray(days, dtype=float))


def record_dates(folder: WindowFolder) -> dict[str, datetime]:
    """Record -> time of recording, from the column `recorded` of index.csv where there is one.

    The time is that of the place of recording: a time zone, which some records of a database state and others
    do not, is left out.
    """
    path = folder.root / "index.csv"
    dates: dict[str, datetime] = {}
    for row in iter_csv(path) if path.is_file() else ():
        try:
            text = (row.get("recorded") or "").replace("Z", "+00:00")  # Python 3.10 knows no "Z"
            dates[row["record"]] = datetime.fromisoformat(text).replace(tzinfo=None)
        except ValueError:
            continue  # counted: pairs without a date are `n_undated`
    return dates


def _by_record(folder: WindowFolder, rows: Array) -> dict[str, list[int]]:
    """Record -> its rows in time order."""
    start = np.asarray(folder.start_s)
    out: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        out[folder.record[row]].append(int(row))
    return {name: sorted(windows, key=lambda row: float(start[row])) for name, windows in out.items()}


@dataclass(frozen=True)
class References:
    """Windows of a block whose person has a reference recording, one protocol.

    at [m]: which of the block; reference [m]: rows of the folder; score_from [m]: first sample that counts;
    states, start [m, S]: W of the reference after, and before, the inner steps.
    """

    protocol: str
    at: Array
    reference: Array
    score_from: Array
    states: Array
    start: Array


@dataclass(frozen=True)
class ReferencePairs:
    """Pairs of one protocol with W of their references.

    states, start [k, S]: after and before the inner steps, of every distinct reference of all protocols;
    at [m]: which of them a pair has. draws: over the patients of the pairs.
    """

    pairs: Pairs
    states: Array
    start: Array
    at: Array
    draws: PatientBootstrap

    def references(self, rows: Array) -> References | None:
        """The references of a block of rows [k] of the folder; None where no pair is tested there."""
        at = np.flatnonzero(np.isin(rows, self.pairs.test))
        if not len(at):
            return None
        pairs, order = self.pairs, np.argsort(self.pairs.test)
        chosen = order[np.searchsorted(pairs.test, rows[at], sorter=order)]
        states, start = self.states[self.at[chosen]], self.start[self.at[chosen]]
        return References(
            pairs.protocol, at, pairs.reference[chosen], pairs.score_from[chosen], states, start
        )


def reference_states(context: Scoring, job: tuple[str, Array]) -> tuple[Array, Array]:
    """A job: (W [k, S] after the inner steps, before them) of rows [k] of a folder, from all their leads."""
    name, rows = job
    folder, renderer = context.folders[name], context.renderer
    ecg, observed = recorded_windows(folder, rows)
    steps, size = trained_steps(renderer), context.batch_size
    path = np.asarray(renderer.state_path(ecg, observed, steps=steps, batch_size=size))
    return path[-1], path[0]


def reference_pairs(
    workers: Workers[Scoring],
    name: str,
    rows: Array,
    config: MissingLeadConfig | TransferConfig,
    personal: bool = True,
) -> list[ReferencePairs]:
    """Both protocols among the windows `rows` of a folder; a protocol without a pair is left out."""
    folder, most = workers.context.folders[name], workers.context.batch_size
    protocols = [half_pairs(folder, rows), record_pairs(folder, rows)]
    distinct = np.unique(np.concatenate([pairs.reference for pairs in protocols]))
    if not personal or not len(distinct):
        return []
    jobs = [(name, distinct[at : at + most]) for at in range(0, len(distinct), most)]
    parts = workers.map(reference_states, jobs)
    states, start = (np.concatenate(each) for each in zip(*parts, strict=True))
    out = []
    for pairs in protocols:
        if len(pairs.test):
            patients = [str(folder.patient[row]) for row in pairs.test]
            draws = PatientBootstrap(patients, config.bootstrap, config.seed)
            at = np.searchsorted(distinct, pairs.reference)
            out.append(ReferencePairs(pairs, states, start, at, draws))
    return out


def personal_rows(
    leads: LeadSet, protocols: Sequence[ReferencePairs], rows: Array, scores: Scores, **more: str
) -> Rows:
    """Rows of the table `personal` of one split and lead set; rows [n] of the folder, scores: of them; more:
    further cells of every row."""
    out: Rows = []
    for protocol in protocols:
        pairs, draws = protocol.pairs, protocol.draws
        at = np.searchsorted(rows, pairs.test)
        best: Array | None = None
        for method in METHODS:
            if (pairs.protocol, method) not in scores.leads:
                continue
            of_windows = scores.leads[pairs.protocol, method]
            r, rmse = of_windows.r[at], of_windows.rmse[at]
            best = r if best is None else best
            scored: Array = np.asarray(np.isfinite(rmse).any(axis=1))
            row = {
                **more,
                "method": method,
                "lead_set": leads.name,
                "protocol": pairs.protocol,
                "rmse_mv": draws.mean(rmse)[0],
                "days": nanmedian(pairs.days[scored]),
                "n": int(scored.sum()),
                "n_patients": draws.patients_in(scored),
                "n_undated": int(np.isnan(pairs.days[scored]).sum()) if pairs.protocol == "records" else "",
            }
            row |= draws.cells(("r", "r_low", "r_high"), r)
            out.append(row | draws.cells(("personal_gain", "gain_low", "gain_high"), best - r))
    return out
