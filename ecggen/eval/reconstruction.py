"""All leads given: what the dipole carries, what the residual carries, how stable the state is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap
from ecggen.eval.judge import state_path, trained_steps
from ecggen.eval.lead_sets import given_only
from ecggen.eval.metrics import LeadScores, energy_share, nanmean, nanmedian, score_leads
from ecggen.eval.probe_features import reference_lead
from ecggen.eval.result import (
    Array,
    FolderLike,
    RendererLike,
    Result,
    Rows,
    check_split,
    rounded,
    sampling_rate,
)
from ecggen.eval.spread import Machines, Spread
from ecggen.eval.state import STATE_COLUMNS, stability_pairs, state_stability
from ecggen.eval.vcg import (
    LOOP_COLUMNS,
    VCG_COLUMNS,
    Parts,
    batches,
    closure_row,
    joined_parts,
    loop_closure,
    matrix_vcg,
    vcg_parts,
    vcg_rows,
)
from ecggen.leads import DOWER, EXPAND, INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS
from ecggen.utils.config import ReconstructionConfig

OVERALL_COLUMNS = ("split", "part", *SUMMARY, "n_windows", "n_patients", "n_constant")
LEAD_COLUMNS = ("split", "part", "lead", *SUMMARY)
ENERGY_COLUMNS = ("split", "part", "share_median", "share_mean", "explained_median", "explained_mean")
COLUMNS = {
    "overall": OVERALL_COLUMNS,
    "per_lead": LEAD_COLUMNS,
    "energy": ENERGY_COLUMNS,
    "closed_loop": LOOP_COLUMNS,
    "state": STATE_COLUMNS,
    "vcg": VCG_COLUMNS,
}
EXAMPLES = 3
_EIGHT = list(INDEPENDENT_INDEX)


def fixed_dower(ecg: Array) -> Array:
    """[n, 12, T]: the least-squares dipole of Dower's field, from all eight independent leads."""
    project = (EXPAND @ DOWER @ np.linalg.pinv(DOWER)).astype(np.float32)
    return np.asarray(project @ ecg[:, _EIGHT], dtype=np.float32)


def best_subspace(ecg: Array, dimensions: int) -> Array:
    """[n, 12, T]: each window's own best lead field of that many dimensions (singular vectors)."""
    x = ecg[:, _EIGHT].astype(np.float64)
    _, vectors = np.linalg.eigh(x @ x.transpose(0, 2, 1))  # ascending
    top = vectors[:, :, -dimensions:]
    return np.asarray(EXPAND @ (top @ (top.transpose(0, 2, 1) @ x)), dtype=np.float32)


def reconstruction(
    renderer: RendererLike, folder: FolderLike, rules: ReconstructionConfig, *, processes: int | Machines = 1
) -> Result:
    """Tables overall, per_lead, energy, closed_loop, state, vcg.

    Nothing is fitted, so a folder of test windows alone will do. processes: see
    `ecggen.eval.spread.Spread`; the numbers do not depend on it. Raises EvalError for an empty test split.
    """
    tables: dict[str, Rows] = {name: [] for name in COLUMNS}
    test = check_split(folder, "test")
    splits = {"validation": check_split(folder, "validation")} if len(folder.rows("validation")) else {}
    splits["test"] = test
    pairs = stability_pairs(folder, rules)
    wanted = np.unique(np.concatenate([test[:0], *(row for pair in pairs.values() for row in pair)]))
    cuts_of = {split: batches(len(rows), rules.batch_size) for split, rows in splits.items()}
    with Spread(_Context(renderer, folder, rules, wanted), renderer.device, processes) as spread:
        # One list of jobs: a split of a few batches alone does not keep all workers busy.
        results = spread.map(_windows, [rows[at] for split, rows in splits.items() for at in cuts_of[split]])
        for split, rows in splits.items():
            patients = [str(folder.patient[row]) for row in rows]
            draws = PatientBootstrap(patients, rules.bootstrap, rules.seed)
            cuts = cuts_of[split]
            found = list(itertools.islice(results, len(cuts)))
            places = [np.arange(len(rows))[at] for at in cuts]
            for part in found[0].scores:
                each = [(at, one.scores[part]) for at, one in zip(places, found, strict=True)]
                overall, leads = _part_rows(split, part, LeadScores.joined(each, len(rows)), draws)
                tables["overall"].append(overall)
                tables["per_lead"] += leads
            tables["energy"] += _energy_rows(split, found)
            for source in found[0].closures:
                closures = [value for one in found for value in one.closures[source][0]]
                windows = sum(one.closures[source][1] for one in found)
                tables["closed_loop"].append(closure_row(split, source, closures, windows))
            if folder.frank is not None:
                scores = joined_parts([one.vcg for one in found], cuts, len(rows))
                tables["vcg"] += vcg_rows(split, scores, draws)
    states = wanted, np.concatenate([one.states for one in found])
    tables["state"] = state_stability(renderer, folder, rules, states=states)
    result = Result(arrays=_examples(renderer, folder, test, rules))
    for name, columns in COLUMNS.items():
        result.add_table(name, columns, tables[name])
    result.metrics = _metrics(result.tables)
    return result


@dataclass
class _Context:
    """What all jobs share; wanted: rows whose state is asked for."""

    renderer: RendererLike
    folder: FolderLike
    rules: ReconstructionConfig
    wanted: Array


@dataclass
class _Windows:
    """What a job found. Of k windows: scores [k, 12], share and explained [k] (see `_energies`) by part;
    closures by source, see `loop_closure`; states of those windows whose row is wanted; vcg: see
    `vcg_parts`."""

    scores: dict[str, LeadScores]
    share: dict[str, Array]
    explained: dict[str, Array]
    closures: dict[str, tuple[list[float], int]]
    states: Array
    vcg: Parts


def _windows(context: _Context, rows: Array) -> _Windows:
    """The job: rows [k] of the folder, all leads given, rendered after each number of inner steps."""
    folder, rules = context.folder, context.rules
    observed = np.asarray(folder.observed[rows], dtype=bool)
    ecg = given_only(np.asarray(folder.windows[rows]), observed)
    out, start, more = _renderings(context.renderer, ecg, observed, rules)
    complete: Array = np.asarray(observed[:, _EIGHT].all(axis=1))
    # The references need all eight leads: they are judged on the windows that have them.
    parts = {
        "leads": (np.asarray(out["leads"]), observed),
        "dipole": (np.asarray(out["dipole"]), observed),
        "dipole_one_pass": (np.asarray(start["dipole"]), observed),  # W before the first inner step
        "fixed_dower": (fixed_dower(ecg), observed & complete[:, None]),
        "best_subspace_3": (best_subspace(ecg, 3), observed & complete[:, None]),
        "best_subspace_4": (best_subspace(ecg, 4), observed & complete[:, None]),
    }
    if more is not None:
        parts["dipole_more_steps"] = np.asarray(more["dipole"]), observed
    share, explained = _energies(ecg, parts, np.asarray(out["residual"]))
    whole = np.asarray(out["vcg"])
    loops = {"model": whole, "kors": matrix_vcg(KORS, ecg), "inverse_dower": matrix_vcg(INVERSE_DOWER, ecg)}
    reference = ecg[np.arange(len(ecg)), reference_lead(observed)][complete]
    return _Windows(
        {part: score_leads(ecg, made, seen) for part, (made, seen) in parts.items()},
        share,
        explained,
        {name: loop_closure(vcg[complete], reference, sampling_rate(folder)) for name, vcg in loops.items()},
        np.asarray(out["state"])[np.isin(rows, context.wanted)],
        {} if folder.frank is None else vcg_parts(context.renderer, folder, rows, whole),
    )


def _renderings(
    renderer: RendererLike, ecg: Array, observed: Array, rules: ReconstructionConfig
) -> tuple[Mapping[str, Array], Mapping[str, Array], Mapping[str, Array] | None]:
    """As trained, before the first inner step, and after `ttt_steps` of them; one run of the loop for all."""
    trained, size = trained_steps(renderer), rules.batch_size
    last = max(trained, rules.ttt_steps)
    path = state_path(renderer, ecg, observed, last, size)
    asked = [trained, 0, *([rules.ttt_steps] if rules.ttt_steps else [])]
    found = [
        renderer.render_windows(
            ecg, observed, batch_size=size, **({"steps": n} if path is None else {"state": path[n]})
        )
        for n in asked
    ]
    return found[0], found[1], found[2] if rules.ttt_steps else None


def _independent(scored: Array) -> Array:
    keep = np.zeros(len(LEADS), dtype=bool)
    keep[_EIGHT] = True
    return scored & keep


def _part_rows(
    split: str, part: str, scores: LeadScores, draws: PatientBootstrap
) -> tuple[dict[str, Any], Rows]:
    eight = scores.select(np.isin(np.arange(len(LEADS)), _EIGHT))
    used: Array = np.asarray(np.isfinite(eight.rmse).any(axis=1))
    overall = {
        "split": split,
        "part": part,
        **draws.summary(eight),
        "n_windows": int(used.sum()),
        "n_patients": draws.patients_in(used),
        "n_constant": int(eight.constant.sum()),
    }
    leads = [
        {"split": split, "part": part, "lead": name, **draws.summary(scores.select(np.arange(12) == i))}
        for i, name in enumerate(LEADS)
    ]
    return overall, leads


def _energies(
    ecg: Array, parts: Mapping[str, tuple[Array, Array]], residual: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(share, explained) [k] of each part and of the residual, over the independent leads.

    share = |part|^2 / |x|^2; explained = 1 - |x - part|^2 / |x|^2 (residual: what it adds to the dipole).
    The two agree for an orthogonal projection, not for a network.
    """
    explained = {name: energy_share(ecg, made, _independent(seen)) for name, (made, seen) in parts.items()}
    explained["residual"] = explained["leads"] - explained["dipole"]
    share = {}
    for name, part in [*((n, made) for n, (made, _) in parts.items()), ("residual", residual)]:
        scored = _independent(parts.get(name, parts["leads"])[1])
        energy, own = (
            ((scored[:, :, None] * x.astype(np.float64)) ** 2).sum(axis=(1, 2)) for x in (ecg, part)
        )
        share[name] = np.where(energy > 1e-12, own / np.maximum(energy, 1e-12), np.nan)
    return share, explained


def _energy_rows(split: str, found: Sequence[_Windows]) -> Rows:
    rows: Rows = []
    for name in found[0].share:
        share, explained = (
            np.concatenate([values[name] for values in each])
            for each in ([one.share for one in found], [one.explained for one in found])
        )
        rows.append(
            {
                "split": split,
                "part": name,
                "share_median": nanmedian(share),
                "share_mean": nanmean(share),
                "explained_median": nanmedian(explained),
                "explained_mean": nanmean(explained),
            }
        )
    return rows


def _examples(
    renderer: RendererLike, folder: FolderLike, split: Array, rules: ReconstructionConfig
) -> dict[str, Array]:
    rows = split[np.asarray(folder.observed[split], dtype=bool).all(axis=1)]
    rows = rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]
    if not len(rows):
        return {}
    ecg = np.asarray(folder.windows[rows], dtype=np.float32)
    out = renderer.render_windows(ecg, np.ones(len(LEADS), dtype=bool), batch_size=rules.batch_size)
    names = {"example_rendered": "leads", "example_dipole": "dipole", "example_vcg": "vcg"}
    found = {name: np.asarray(out[key]) for name, key in names.items()}
    if folder.frank is not None:
        found["example_frank"] = np.asarray(folder.frank[rows])
    return {"example_recorded": ecg, "fs": np.asarray(sampling_rate(folder)), **found}


def _metrics(tables: dict[str, Rows]) -> dict[str, Any]:
    out: dict[str, Any] = {"validation": {}, "test": {}, "state": {}, "vcg": {}, "energy": {}}
    for row in tables["overall"]:
        names = ("r", "r_low", "r_high", "rmse_mv", "snr_db")
        out[row["split"]][row["part"]] = {name: row[name] for name in names}
    for row in tables["energy"]:
        if row["split"] == "test":
            out["energy"][row["part"]] = row["explained_median"]
    for row in tables["state"]:
        of_protocol = out["state"].setdefault(row["protocol"], {})
        of_protocol[row["descriptor"]] = {k: row[k] for k in ("icc_mean", "retrieval", "chance", "n")}
    for row in tables["vcg"]:
        if row["split"] == "test" and row["axis"] == "mean":
            out["vcg"].setdefault(row["lead_set"], {})[row["method"]] = row["r"]
    return rounded(out)
