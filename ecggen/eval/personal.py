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

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import recorded_windows
from ecggen.eval.metrics import LeadScores, nanmedian
from ecggen.eval.result import Array, Rows, WindowFolder, index_column, trained_steps
from ecggen.eval.workers import Workers, row_task
from ecggen.utils.config import MissingLeadConfig, TransferConfig

if TYPE_CHECKING:
    from ecggen.eval.score import Scoring, SetScores

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
    """Reference and test windows, side by side, of one protocol. A window is tested once at most.

    states [k, 2, S]: W of k references after and before the inner steps; state [m]: which of them is whose.
    """

    protocol: str
    reference: Array  # [m] rows of the folder
    test: Array  # [m]
    score_from: Array  # [m] first sample of the test window that counts
    days: Array  # [m] between the two recordings; NaN = unknown or the same record
    states: Array | None = None
    state: Array | None = None

    def among(self, rows: Array) -> Pairs:
        """The pairs that are tested in these rows, with the states of these alone."""
        keep = np.flatnonzero(np.isin(self.test, rows))
        reference, test, score_from, days = (
            each[keep] for each in (self.reference, self.test, self.score_from, self.days)
        )
        assert self.states is not None and self.state is not None
        states = self.states[self.state[keep]]
        return Pairs(self.protocol, reference, test, score_from, days, states, np.arange(len(keep)))


def _windows(folder: WindowFolder, rows: Array) -> pd.DataFrame:
    """Row, record, patient and start of windows: records in their order, each in time order."""
    chosen = {name: np.asarray(getattr(folder, name))[rows] for name in ("record", "patient", "start_s")}
    frame = pd.DataFrame({"row": rows, **chosen})
    frame["order"] = pd.factorize(frame["record"])[0]
    return frame.sort_values(["order", "start_s"], kind="stable")


def half_pairs(folder: WindowFolder, rows: Array) -> Pairs:
    """First and last window of each record; score_from leaves out samples that the reference holds."""
    records = _windows(folder, rows).groupby("order")
    first, last = (getattr(records, end)() for end in ("first", "last"))
    gap = ((first["start_s"] - last["start_s"]) * folder.fs).round() + folder.time_len
    overlap = gap.clip(lower=0).to_numpy(np.int64)
    keep = (first["row"] != last["row"]).to_numpy() & (overlap < folder.time_len)
    reference, test = (each["row"].to_numpy(np.int64)[keep] for each in (first, last))
    return Pairs("halves", reference, test, overlap[keep], np.full(len(test), np.nan))


def record_pairs(folder: WindowFolder, rows: Array) -> Pairs:
    """First window of a patient's earliest record against every window of the later records.

    Where a date is missing the order of the index stands for the order in time, and `days` is NaN.
    """
    frame = _windows(folder, rows)
    frame["day"] = frame["record"].map(record_days(folder)).astype(float)
    dated = frame["day"].notna().groupby(frame["patient"]).transform("all")
    frame["time"], frame["person"] = frame["day"].where(dated), pd.factorize(frame["patient"])[0]
    frame = frame.sort_values(["person", "time", "order", "start_s"], kind="stable")
    earliest = frame.drop_duplicates("person")[["person", "row", "record", "day"]]
    frame = frame.merge(earliest, on="person", suffixes=("", "_first"))
    later = frame[frame["record"] != frame["record_first"]]
    reference, test = (later[name].to_numpy(np.int64) for name in ("row_first", "row"))
    days = (later["day"] - later["day_first"]).to_numpy()
    return Pairs("records", reference, test, np.zeros_like(test), days)


def record_days(folder: WindowFolder) -> dict[str, float]:
    """Record -> time of recording in days, from the column `recorded` of index.csv where there is one.

    The time is that of the place of recording: a time zone, which some records of a database state and others
    do not, is left out. What is no date is counted: pairs without one are `n_undated`.
    """
    days = {}
    for record, text in index_column(folder, "recorded").items():
        with contextlib.suppress(ValueError):
            date = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 knows no "Z"
            days[record] = (date.replace(tzinfo=None) - datetime.min) / timedelta(days=1)
    return days


def reference_states(context: Scoring, job: tuple[str, Array]) -> dict[str, Array]:
    """A job: W [k, 2, S] after and before the inner steps of rows [k] of a folder, from all their leads."""
    name, rows = job
    renderer, most = context.renderer, context.batch_size
    ecg, observed = recorded_windows(context.folders[name], rows)
    path = renderer.state_path(ecg, observed, steps=trained_steps(renderer), batch_size=most)
    return {"states": np.stack([path[-1], path[0]], axis=1)}


def people(
    workers: Workers[Scoring], name: str, rows: Array, config: MissingLeadConfig | TransferConfig
) -> list[tuple[Pairs, PatientBootstrap]]:
    """Both protocols among the windows `rows` of a folder, with W of the references, and draws over the
    patients of the pairs; a protocol without a pair is left out."""
    folder = workers.context.folders[name]
    protocols = [half_pairs(folder, rows), record_pairs(folder, rows)]
    distinct = np.unique(np.concatenate([pairs.reference for pairs in protocols]))
    task = row_task(reference_states, distinct, workers.context.batch_size, name)
    states = next(workers.measure([task])).get("states")
    out = []
    for pairs in protocols:
        if len(pairs.test):
            patients = np.asarray(folder.patient)[pairs.test].tolist()
            draws = PatientBootstrap(patients, config.bootstrap, config.seed)
            at = np.searchsorted(distinct, pairs.reference)
            out.append((replace(pairs, states=states, state=at), draws))
    return out


def personal_rows(scores: SetScores) -> Rows:
    """Rows of the table `personal` of one split and lead set, without the split."""
    data, out = scores.data, []
    for pairs, draws in data.people:
        at = np.searchsorted(data.rows, pairs.test)
        best: Array | None = None
        for method in METHODS:
            if (pairs.protocol, method) not in scores.values:
                continue
            part = LeadScores(scores.values[pairs.protocol, method][at])
            best = part.r if best is None else best
            days = pairs.days[part.scored]
            row = {
                "method": method,
                "lead_set": scores.leads.name,
                "protocol": pairs.protocol,
                "rmse_mv": draws.estimate(part.rmse).value,
                "days": nanmedian(days),
                "n": len(days),
                "n_patients": draws.patients_in(part.scored),
                "n_undated": int(np.isnan(days).sum()) if pairs.protocol == "records" else "",
            }
            row |= draws.estimate(part.r).cells("r", "r_low", "r_high")
            out.append(row | draws.estimate(best - part.r).cells("personal_gain", "gain_low", "gain_high"))
    return out
