"""All leads given: what the dipole carries, what the residual carries, how stable the state is."""

from __future__ import annotations

from typing import Any

import numpy as np

from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap
from ecggen.eval.lead_sets import given_only
from ecggen.eval.metrics import energy_share, nanmean, nanmedian, score_leads
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
from ecggen.eval.state import STATE_COLUMNS, state_stability
from ecggen.eval.vcg import LOOP_COLUMNS, VCG_COLUMNS, closure_rows, matrix_vcg, vcg_scores
from ecggen.leads import DOWER, EXPAND, INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS
from ecggen.utils.config import ReconstructionConfig

OVERALL_COLUMNS = ("split", "part", *SUMMARY, "n_windows", "n_patients", "n_constant")
LEAD_COLUMNS = ("split", "part", "lead", *SUMMARY)
ENERGY_COLUMNS = ("split", "part", "share_median", "share_mean", "explained_median", "explained_mean")
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


def reconstruction(renderer: RendererLike, folder: FolderLike, rules: ReconstructionConfig) -> Result:
    """Tables overall, per_lead, energy, closed_loop, state, vcg.

    Nothing is fitted, so a folder of test windows alone will do. Raises EvalError for an empty test split.
    """
    result = Result()
    tables: dict[str, Rows] = {"overall": [], "per_lead": [], "energy": [], "closed_loop": []}
    for split in ("validation", "test"):
        if split == "validation" and not len(folder.rows(split)):
            continue
        rows = check_split(folder, split)
        observed = np.asarray(folder.observed[rows], dtype=bool)
        ecg = given_only(np.asarray(folder.windows[rows]), observed)
        out, start = (
            renderer.render_windows(ecg, observed, steps=steps, batch_size=rules.batch_size)
            for steps in (None, 0)
        )
        patients = np.asarray(folder.patient, dtype=str)[rows].tolist()
        draws = PatientBootstrap(patients, rules.bootstrap, rules.seed)
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
        if rules.ttt_steps:
            more = renderer.render_windows(ecg, observed, steps=rules.ttt_steps, batch_size=rules.batch_size)
            parts["dipole_more_steps"] = np.asarray(more["dipole"]), observed
        for part, (rendered, scored) in parts.items():
            overall, leads = _part_rows(split, part, ecg, rendered, scored, draws)
            tables["overall"].append(overall)
            tables["per_lead"] += leads
        tables["energy"] += _energy_rows(split, ecg, parts, np.asarray(out["residual"]))
        vcg = {
            "model": np.asarray(out["vcg"])[complete],
            "kors": matrix_vcg(KORS, ecg[complete]),
            "inverse_dower": matrix_vcg(INVERSE_DOWER, ecg[complete]),
        }
        tables["closed_loop"] += closure_rows(split, vcg, ecg[complete], observed[complete], folder)
        if split == "test":
            result.arrays = _examples(folder, rows, ecg, observed, out)
    columns = {
        "overall": OVERALL_COLUMNS,
        "per_lead": LEAD_COLUMNS,
        "energy": ENERGY_COLUMNS,
        "closed_loop": LOOP_COLUMNS,
    }
    for name, table in tables.items():
        result.add_table(name, columns[name], table)
    result.add_table("state", STATE_COLUMNS, state_stability(renderer, folder, rules))
    frank = vcg_scores(
        renderer, folder, batch_size=rules.batch_size, bootstrap=rules.bootstrap, seed=rules.seed
    )
    result.add_table("vcg", VCG_COLUMNS, frank)
    result.metrics = _metrics(result.tables)
    return result


def _independent(scored: Array) -> Array:
    keep = np.zeros(len(LEADS), dtype=bool)
    keep[_EIGHT] = True
    return scored & keep


def _part_rows(
    split: str, part: str, ecg: Array, rendered: Array, scored: Array, draws: PatientBootstrap
) -> tuple[dict[str, Any], Rows]:
    scores = score_leads(ecg, rendered, scored)
    eight = scores.select(_independent(scored))
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


def _energy_rows(split: str, ecg: Array, parts: dict[str, tuple[Array, Array]], residual: Array) -> Rows:
    """share = |part|^2 / |x|^2; explained = 1 - |x - part|^2 / |x|^2 (residual: what it adds to the dipole).

    Over the independent leads. The two agree for an orthogonal projection, not for a network.
    """
    rows: Rows = []
    explained = {name: energy_share(ecg, made, _independent(seen)) for name, (made, seen) in parts.items()}
    explained["residual"] = explained["leads"] - explained["dipole"]
    for name, part in [*((n, made) for n, (made, _) in parts.items()), ("residual", residual)]:
        scored = _independent(parts.get(name, parts["leads"])[1])
        energy, own = (
            ((scored[:, :, None] * x.astype(np.float64)) ** 2).sum(axis=(1, 2)) for x in (ecg, part)
        )
        share = np.where(energy > 1e-12, own / np.maximum(energy, 1e-12), np.nan)
        rows.append(
            {
                "split": split,
                "part": name,
                "share_median": nanmedian(share),
                "share_mean": nanmean(share),
                "explained_median": nanmedian(explained[name]),
                "explained_mean": nanmean(explained[name]),
            }
        )
    return rows


def _examples(folder: FolderLike, split: Array, ecg: Array, observed: Array, out: Any) -> dict[str, Array]:
    rows = np.flatnonzero(observed.all(axis=1))
    rows = rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]
    if not len(rows):
        return {}
    names = {"example_rendered": "leads", "example_dipole": "dipole", "example_vcg": "vcg"}
    found = {name: np.asarray(out[key])[rows] for name, key in names.items()}
    if folder.frank is not None:
        found["example_frank"] = np.asarray(folder.frank[split[rows]])
    return {"example_recorded": ecg[rows], "fs": np.asarray(sampling_rate(folder)), **found}


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
