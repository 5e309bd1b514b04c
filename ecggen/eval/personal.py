"""Personal rendering: all leads once (the reference), a few leads later.

halves: reference = first window of a record, test = its last window, scored only after the reference ends.
records: reference = first window of a patient's earlier record, test = the windows of the later ones.
The model holds the state it took from the reference (`model_personal`); for records, `model_another_day`
trusts it as far as that has been worth it between days. Beside them `model_one_pass`, the state before the
first inner step, `memory`, the closed-form part of the state alone (the reference's beat and covariances, no
network), and linear regression fitted to the same reference.
personal_gain: how much higher r of the protocol's own method is (halves: model_personal, records:
model_another_day), paired by window, with a 95 % interval over patients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.judge import (
    ANOTHER_DAY,
    HELD,
    MEMORY,
    ONE_PASS,
    OWN_REGRESSION,
    REGRESSION,
    Held,
    Judged,
    Scored,
    reference_states,
)
from ecggen.eval.lead_sets import LeadSet
from ecggen.eval.metrics import nanmedian
from ecggen.eval.result import Array, FolderLike, Rows, sampling_rate
from ecggen.eval.spread import Spread
from ecggen.utils.files import iter_csv

PERSONAL_COLUMNS = (
    "split",
    "method",
    "lead_set",
    "protocol",
    "r",
    "r_low",
    "r_high",
    "rmse_mv",
    "personal_gain",
    "gain_low",
    "gain_high",
    "days",
    "n",
    "n_patients",
)
PROTOCOLS = ("halves", "records")


@dataclass(frozen=True)
class Pairs:
    """Reference and test windows, side by side."""

    protocol: str
    reference: Array  # [m] rows of the folder
    test: Array  # [m]
    score_from: Array  # [m] first sample of the test window that counts
    days: Array  # [m] between the two recordings; NaN = unknown or the same record


def half_pairs(folder: FolderLike, rows: Array, fs: float) -> Pairs:
    """First and last window of each record; score_from leaves out samples that the reference holds."""
    length = folder.windows.shape[2]
    start = np.asarray(folder.start_s, dtype=np.float64)
    reference, test, first = [], [], []
    for group in _by_record(folder, rows).values():
        a, b = group[0], group[-1]
        overlap = max(0, round((start[a] - start[b]) * fs) + length)
        if a != b and overlap < length:
            reference.append(a)
            test.append(b)
            first.append(overlap)
    count = len(reference)
    return Pairs("halves", _ints(reference), _ints(test), _ints(first), np.full(count, np.nan))


def record_pairs(folder: FolderLike, rows: Array) -> Pairs:
    """First window of a patient's earliest record against every window of the later records."""
    dates = record_dates(folder)
    records: dict[str, list[list[int]]] = defaultdict(list)
    for group in _by_record(folder, rows).values():
        records[folder.patient[group[0]]].append(group)
    reference, test, days = [], [], []
    for groups in records.values():
        # Without dates the order of the index stands for the order in time.
        known = [dates.get(folder.record[group[0]]) for group in groups]
        if all(date is not None for date in known):
            groups = [groups[i] for i in sorted(range(len(groups)), key=lambda i: known[i] or datetime.min)]
        first = dates.get(folder.record[groups[0][0]])
        for group in groups[1:]:
            then = dates.get(folder.record[group[0]])
            gap = (then - first).total_seconds() / 86400 if then and first else float("nan")
            reference += [groups[0][0]] * len(group)
            test += group
            days += [gap] * len(group)
    zeros = np.zeros(len(test), dtype=np.int64)
    return Pairs("records", _ints(reference), _ints(test), zeros, np.asarray(days, dtype=np.float64))


def record_dates(folder: FolderLike) -> dict[str, datetime]:
    """Record -> time of recording, from the column `recorded` of index.csv where there is one."""
    path = folder.root / "index.csv"
    out: dict[str, datetime] = {}
    for row in iter_csv(path) if path.is_file() else ():
        try:
            out[row["record"]] = datetime.fromisoformat(row.get("recorded") or "")
        except ValueError:
            continue
    return out


def _ints(values: list[int]) -> Array:
    return np.asarray(values, dtype=np.int64)


def _by_record(folder: FolderLike, rows: Array) -> dict[str, list[int]]:
    """Record -> its rows in time order."""
    start = np.asarray(folder.start_s)
    out: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        out[folder.record[row]].append(int(row))
    return {name: sorted(group, key=lambda row: float(start[row])) for name, group in out.items()}


@dataclass(frozen=True)
class Known:
    """Pairs of one protocol, with W of their references: states, start [k, S] after and before the inner
    steps, of every reference once for all protocols; at [m]: which of them a pair has."""

    pairs: Pairs
    states: Array
    start: Array
    at: Array

    def held(self, rows: Array) -> Held | None:
        """What a block of rows [k] of the folder needs to know; None where no pair is tested there."""
        order = np.argsort(rows)
        at = np.minimum(np.searchsorted(rows, self.pairs.test, sorter=order), len(rows) - 1)
        mine = np.flatnonzero(rows[order[at]] == self.pairs.test)
        if not len(mine):
            return None
        found = order[at][mine]
        mine, found = mine[np.argsort(found)], np.sort(found)
        pairs = self.pairs
        return Held(
            pairs.protocol,
            found,
            pairs.reference[mine],
            pairs.score_from[mine],
            self.states[self.at[mine]],
            self.start[self.at[mine]],
        )


def known_people(spread: Spread[Judged], part: str, rows: Array) -> list[Known]:
    """Both protocols among the windows `rows` of a folder, each with the states of its references."""
    folder, most = spread.context.folders[part], spread.context.batch_size
    found = [half_pairs(folder, rows, sampling_rate(folder)), record_pairs(folder, rows)]
    distinct = np.unique(np.concatenate([pairs.reference for pairs in found]))
    jobs = [(part, distinct[at : at + most]) for at in range(0, len(distinct), most)]
    parts = list(spread.map(reference_states, jobs))
    if not parts:
        return []
    states, start = (np.concatenate(each) for each in zip(*parts, strict=True))
    out = []
    for pairs in found:
        back = np.searchsorted(distinct, pairs.reference)
        if len(back):
            out.append(Known(pairs, states, start, back))
    return out


def personal_rows(
    split: str,
    leads: LeadSet,
    known: Sequence[Known],
    rows: Array,
    scored: Scored,
    draws: Mapping[str, PatientBootstrap],
) -> Rows:
    """Rows of the table `personal` of one split and lead set; rows [n] of the folder, scored: of them,
    draws: by protocol, over the patients of its pairs."""
    out: Rows = []
    for each in known:
        pairs = each.pairs
        at = np.searchsorted(rows, pairs.test)
        order = (ANOTHER_DAY, HELD, ONE_PASS, "model", MEMORY, OWN_REGRESSION, REGRESSION)
        made = {m: scored.scores[pairs.protocol, m] for m in order if (pairs.protocol, m) in scored.scores}
        first: Array | None = None
        for method, scores in made.items():
            r, rmse = scores.r[at], scores.rmse[at]
            first = r if first is None else first
            row = {"split": split, "method": method, "lead_set": leads.name, "protocol": pairs.protocol}
            own = draws[pairs.protocol]
            gain = dict(zip(("personal_gain", "gain_low", "gain_high"), own.mean(first - r), strict=True))
            out.append(row | _figures(r, rmse, pairs, own) | gain)
    return out


def pair_draws(
    folder: FolderLike, known: Sequence[Known], bootstrap: int, seed: int
) -> dict[str, PatientBootstrap]:
    """By protocol, the draws over the patients of its pairs."""
    return {
        each.pairs.protocol: PatientBootstrap(
            [str(folder.patient[row]) for row in each.pairs.test], bootstrap, seed
        )
        for each in known
    }


def _figures(r: Array, rmse: Array, pairs: Pairs, draws: PatientBootstrap) -> dict[str, object]:
    mean_r, low, high = draws.mean(r)
    scored: Array = np.asarray(np.isfinite(rmse).any(axis=1))
    return {
        "r": mean_r,
        "r_low": low,
        "r_high": high,
        "rmse_mv": draws.mean(rmse)[0],
        "days": nanmedian(pairs.days[scored]),
        "n": int(scored.sum()),
        "n_patients": draws.patients_in(scored),
    }
