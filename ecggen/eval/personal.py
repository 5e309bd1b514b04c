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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from ecggen.eval.baselines import LinearRegression, Training
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, all_sets, given_only
from ecggen.eval.metrics import nanmedian, score_leads
from ecggen.eval.moments import ridge_solve
from ecggen.eval.result import Array, FolderLike, RendererLike, Rows, check_split
from ecggen.utils.config import MissingLeadConfig
from ecggen.utils.files import read_csv

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
ANOTHER_DAY = "model_another_day"
REFERENCE_RIDGE = 1e-3  # relative; a reference of a few seconds holds few independent samples


@dataclass(frozen=True)
class Pairs:
    """Reference and test windows, side by side."""

    protocol: str
    reference: Array  # [m] rows of the folder
    test: Array  # [m]
    score_from: Array  # [m] first sample of the test window that counts
    days: Array  # [m] between the two recordings; NaN = unknown or the same record


class OwnStates:
    """States that windows found from their own given leads, kept so that the inner loop runs once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Array, Array]] = {}

    def keep(self, split: str, lead_set: str, rows: Array, states: Array) -> None:
        """rows [m] of the folder, ascending; states [m, S]."""
        assert len(rows) == len(states), f"{len(rows)} rows, {len(states)} states"
        self._known[split, lead_set] = rows, states

    def of(self, split: str, lead_set: str, rows: Array) -> Array | None:
        """[k, S] for rows [k] of the folder; None where one of them is not known."""
        if (split, lead_set) not in self._known:
            return None
        known, states = self._known[split, lead_set]
        at = np.minimum(np.searchsorted(known, rows), len(known) - 1)
        return states[at] if (known[at] == rows).all() else None


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
    for row in read_csv(path) if path.is_file() else []:
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


def reference_regression(reference: Array, test: Array, given: Array) -> Array:
    """Every lead regressed on the given leads of its own reference, instantaneous, one fit per window.

    reference, test [m, 12, T] mV, given [12] bool -> [m, 12, T] float32.
    """
    full = reference.astype(np.float64)
    inputs = full[:, given]
    gram = inputs @ inputs.transpose(0, 2, 1)
    weights = ridge_solve(gram, inputs @ full.transpose(0, 2, 1), REFERENCE_RIDGE)
    return (weights.transpose(0, 2, 1).astype(np.float32) @ test[:, given]).astype(np.float32)


def personal(
    renderer: RendererLike,
    folder: FolderLike,
    rules: MissingLeadConfig,
    training: Training,
    own: OwnStates | None = None,
    splits: Sequence[str] = ("validation", "test"),
) -> Rows:
    """Rows of the table `personal`: every split, both protocols, every lead set."""
    population = LinearRegression()
    population.fit(training)
    out: Rows = []
    for split in splits:
        rows = check_split(folder, split)
        for pairs in (half_pairs(folder, rows, training.fs), record_pairs(folder, rows)):
            if len(pairs.test):
                out += _protocol(renderer, folder, rules, population, split, pairs, own or OwnStates())
    return out


def _protocol(
    renderer: RendererLike,
    folder: FolderLike,
    rules: MissingLeadConfig,
    population: LinearRegression,
    split: str,
    pairs: Pairs,
    own: OwnStates,
) -> Rows:
    size = rules.batch_size
    observed = np.asarray(folder.observed, dtype=bool)
    distinct, back = np.unique(pairs.reference, return_inverse=True)
    reference = given_only(np.asarray(folder.windows[distinct]), observed[distinct])
    states, start = (
        np.asarray(renderer.states(reference, observed[distinct], steps=steps, batch_size=size))[back]
        for steps in (None, 0)
    )
    ecg = np.asarray(folder.windows[pairs.test], dtype=np.float32)
    # A lead without a reference cannot be learned from it: it is scored for no method.
    scorable = observed[pairs.test] & observed[pairs.reference]
    patients = np.asarray(folder.patient, dtype=str)[pairs.test]
    draws = PatientBootstrap(patients.tolist(), rules.bootstrap, rules.seed)
    out: Rows = []
    for leads in all_sets(rules.lead_sets, rules.leave_one_out):
        use = np.flatnonzero(leads.usable(scorable))
        if not len(use):
            continue
        given = given_only(ecg[use], leads.mask)
        held = [("model_personal", states[use]), ("model_one_pass", start[use])]
        if pairs.protocol == "records":
            held.insert(0, (ANOTHER_DAY, states[use]))
        rendered = {
            method: renderer.render_windows(
                given, leads.mask, state=state, another_day=method == ANOTHER_DAY, batch_size=size
            )["leads"]
            for method, state in (*held, ("model", own.of(split, leads.name, pairs.test[use])))
        } | {
            "memory": renderer.remembered_windows(given, leads.mask, states[use], batch_size=size),
            "linear_regression_reference": reference_regression(reference[back[use]], given, leads.mask),
            "linear_regression": population.predict(given, leads.mask),
        }
        first: Array | None = None
        for method, made in rendered.items():
            row = {"split": split, "method": method, "lead_set": leads.name, "protocol": pairs.protocol}
            r, figures = _scores(ecg, np.asarray(made), scorable, use, leads, pairs, draws)
            first = r if first is None else first
            gain = dict(zip(("personal_gain", "gain_low", "gain_high"), draws.mean(first - r), strict=True))
            out.append(row | figures | gain)
    return out


def _scores(
    ecg: Array,
    rendered: Array,
    scorable: Array,
    use: Array,
    leads: LeadSet,
    pairs: Pairs,
    draws: PatientBootstrap,
) -> tuple[Array, dict[str, object]]:
    part = score_leads(ecg[use], rendered, leads.headline & scorable[use], pairs.score_from[use])
    r, rmse = (np.full(scorable.shape, np.nan) for _ in range(2))
    r[use], rmse[use] = part.r, part.rmse
    mean_r, low, high = draws.mean(r)
    scored: Array = np.asarray(np.isfinite(rmse).any(axis=1))
    return r, {
        "r": mean_r,
        "r_low": low,
        "r_high": high,
        "rmse_mv": draws.mean(rmse)[0],
        "days": nanmedian(pairs.days[scored]),
        "n": int(scored.sum()),
        "n_patients": draws.patients_in(scored),
    }
