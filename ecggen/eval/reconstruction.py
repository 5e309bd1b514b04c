"""All leads given: what the dipole carries, what the residual carries, how stable the state is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap
from ecggen.eval.lead_sets import independent, recorded_windows
from ecggen.eval.metrics import LeadScores, energy, energy_share, nanmean, nanmedian, score_leads
from ecggen.eval.probe_features import reference_lead
from ecggen.eval.result import (
    Array,
    Renderer,
    Result,
    Rows,
    WindowFolder,
    check_split,
    rounded,
    trained_steps,
)
from ecggen.eval.state import STATE_COLUMNS, stability_pairs, state_stability
from ecggen.eval.vcg import (
    LOOP_COLUMNS,
    VCG_COLUMNS,
    VcgScores,
    loop_closure,
    matrix_vcg,
    vcg_rows,
    vcg_scores,
)
from ecggen.eval.workers import Workers
from ecggen.leads import DOWER, EXPAND, INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS
from ecggen.utils.config import ReconstructionConfig

COLUMNS = {
    "overall": ("split", "part", *SUMMARY, "n_windows", "n_patients", "n_constant"),
    "per_lead": ("split", "part", "lead", *SUMMARY),
    "energy": (
        *("split", "part", "share_median", "share_mean", "explained_median", "explained_mean"),
        "n_windows",
    ),
    "closed_loop": LOOP_COLUMNS,
    "state": STATE_COLUMNS,
    "vcg": VCG_COLUMNS,
}
EXAMPLES = 3
_EIGHT = list(INDEPENDENT_INDEX)

Parts = dict[str, tuple[Array, Array]]  # name -> rendered [k, 12, T] mV, scored [k, 12] bool


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


def rendered_parts(ecg: Array, observed: Array, out: Mapping[str, Array]) -> Parts:
    """The model's rendering and its dipole, and what fixed and free lead fields make of the leads themselves.

    The latter need all eight independent leads: they are scored on the windows that have them.
    """
    complete = observed & observed[:, _EIGHT].all(axis=1, keepdims=True)
    return {
        "leads": (np.asarray(out["leads"]), observed),
        "dipole": (np.asarray(out["dipole"]), observed),
        "fixed_dower": (fixed_dower(ecg), complete),
        "best_subspace_3": (best_subspace(ecg, 3), complete),
        "best_subspace_4": (best_subspace(ecg, 4), complete),
    }


def batches(rows: Array, most: int) -> list[Array]:
    """The rows, `most` at a time."""
    return [rows[at : at + most] for at in range(0, len(rows), most)]


def reconstruction(
    renderer: Renderer, folder: WindowFolder, config: ReconstructionConfig, *, processes: int | str = 1
) -> Result:
    """Tables overall, per_lead, energy, closed_loop, state, vcg.

    Nothing is fitted, so a folder of test windows alone will do. processes: see
    `ecggen.eval.workers.Workers`; the numbers do not depend on it. Raises EvalError for an empty test split.
    """
    tables: dict[str, Rows] = {name: [] for name in COLUMNS}
    test = check_split(folder, "test")
    splits = {"validation": check_split(folder, "validation")} if len(folder.rows("validation")) else {}
    splits["test"] = test
    pairs = stability_pairs(folder, config)
    state_rows = np.unique(np.concatenate([test[:0], *(row for pair in pairs.values() for row in pair)]))
    parts = {split: batches(rows, config.batch_size) for split, rows in splits.items()}
    with Workers(_Context(renderer, folder, config, state_rows), renderer.device, processes) as workers:
        # One list of jobs: a split of a few batches alone does not keep all workers busy.
        results = workers.map(_job, itertools.chain(*parts.values()))
        for split, rows in splits.items():
            jobs = list(itertools.islice(results, len(parts[split])))
            patients = [str(folder.patient[row]) for row in rows]
            draws = PatientBootstrap(patients, config.bootstrap, config.seed)
            for name, table in _split_rows(split, jobs, draws).items():
                tables[name] += table
    states = state_rows, np.concatenate([job.states for job in jobs])
    tables["state"] = state_stability(renderer, folder, pairs, states, config.batch_size)
    result = Result(arrays=_examples(renderer, folder, test, config))
    for name, columns in COLUMNS.items():
        result.add_table(name, columns, tables[name])
    result.metrics = _metrics(result.tables)
    return result


@dataclass
class _Context:
    """What all jobs share; state_rows: rows whose state is needed."""

    renderer: Renderer
    folder: WindowFolder
    config: ReconstructionConfig
    state_rows: Array


@dataclass
class _Windows:
    """What a job measures on k windows: scores [k, 12], share and explained [k] (see `_energies`) by part;
    closures by source, see `loop_closure`; states of those windows whose row is in `state_rows`; vcg."""

    scores: dict[str, LeadScores]
    share: dict[str, Array]
    explained: dict[str, Array]
    closures: dict[str, tuple[list[float], int]]
    states: Array
    vcg: VcgScores


def _job(context: _Context, rows: Array) -> _Windows:
    """A job: rows [k] of the folder, all leads given, rendered after each number of inner steps."""
    folder, config, renderer = context.folder, context.config, context.renderer
    ecg, observed = recorded_windows(folder, rows)
    trained, size = trained_steps(renderer), config.batch_size
    path = renderer.state_path(ecg, observed, steps=max(trained, config.ttt_steps), batch_size=size)

    def render(steps: int) -> Mapping[str, Array]:
        return renderer.render_windows(ecg, observed, state=path[steps], batch_size=size)

    out = render(trained)
    parts = rendered_parts(ecg, observed, out)
    parts["dipole_one_pass"] = np.asarray(render(0)["dipole"]), observed  # W before the first inner step
    if config.ttt_steps:
        parts["dipole_more_steps"] = np.asarray(render(config.ttt_steps)["dipole"]), observed
    share, explained = _energies(ecg, parts, np.asarray(out["residual"]))
    whole = np.asarray(out["vcg"])
    loops = {"model": whole, "kors": matrix_vcg(KORS, ecg), "inverse_dower": matrix_vcg(INVERSE_DOWER, ecg)}
    complete: Array = np.asarray(observed[:, _EIGHT].all(axis=1))
    reference = ecg[np.arange(len(ecg)), reference_lead(observed)][complete]
    return _Windows(
        {part: score_leads(ecg, rendered, scored) for part, (rendered, scored) in parts.items()},
        share,
        explained,
        {name: loop_closure(vcg[complete], reference, folder.fs) for name, vcg in loops.items()},
        np.asarray(out["state"])[np.isin(rows, context.state_rows)],
        {} if folder.frank is None else vcg_scores(renderer, folder, rows, whole),
    )


def _energies(ecg: Array, parts: Parts, residual: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """(share, explained) [k] of each part and of the residual, over the independent leads.

    share = |part|^2 / |x|^2; explained = 1 - |x - part|^2 / |x|^2 (residual: what it adds to the dipole).
    The two agree for an orthogonal projection, not for a network.
    """
    eight = independent()
    explained = {name: energy_share(ecg, part, scored & eight) for name, (part, scored) in parts.items()}
    explained["residual"] = explained["leads"] - explained["dipole"]
    share = {}
    for name, (part, scored) in {**parts, "residual": (residual, parts["leads"][1])}.items():
        whole = energy(ecg, scored & eight)
        good = whole > 1e-12
        share[name] = np.where(good, energy(part, scored & eight) / np.where(good, whole, 1), np.nan)
    return share, explained


def _split_rows(split: str, jobs: Sequence[_Windows], draws: PatientBootstrap) -> dict[str, Rows]:
    """Rows of every table but `state` from the jobs of one split."""
    tables: dict[str, Rows] = {"overall": [], "per_lead": [], "energy": [], "closed_loop": []}
    for part in jobs[0].scores:
        scores = LeadScores.concatenated([job.scores[part] for job in jobs])
        tables["overall"].append({"split": split, "part": part, **part_row(scores, draws)})
        tables["per_lead"] += [
            {"split": split, "part": part, "lead": name, **draws.summary(scores.select(np.arange(12) == i))}
            for i, name in enumerate(LEADS)
        ]
    for part in jobs[0].share:
        share = np.concatenate([job.share[part] for job in jobs])
        explained = np.concatenate([job.explained[part] for job in jobs])
        row = {"split": split, "part": part, "n_windows": int(np.isfinite(explained).sum())}
        row |= {"share_median": nanmedian(share), "share_mean": nanmean(share)}
        row |= {"explained_median": nanmedian(explained), "explained_mean": nanmean(explained)}
        tables["energy"].append(row)
    for source in jobs[0].closures:
        closures = np.array([value for job in jobs for value in job.closures[source][0]])
        row = {"split": split, "source": source, "n_beats": len(closures)}
        row |= {"closure_median": nanmedian(closures), "closure_mean": nanmean(closures)}
        tables["closed_loop"].append(row | {"n_windows": sum(job.closures[source][1] for job in jobs)})
    vcg = {key: LeadScores.concatenated([job.vcg[key] for job in jobs]) for key in jobs[0].vcg}
    return tables | {"vcg": vcg_rows(split, vcg, draws)}


def part_row(scores: LeadScores, draws: PatientBootstrap) -> dict[str, Any]:
    """SUMMARY and counts of the independent leads of scores [n, 12]."""
    eight = scores.select(independent())
    return {**draws.summary(eight), **draws.counts(eight), "n_constant": int(eight.constant.sum())}


def _examples(
    renderer: Renderer, folder: WindowFolder, split: Array, config: ReconstructionConfig
) -> dict[str, Array]:
    rows = split[np.asarray(folder.observed[split], dtype=bool).all(axis=1)]
    rows = rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]
    if not len(rows):
        return {}
    ecg = np.asarray(folder.windows[rows], dtype=np.float32)
    out = renderer.render_windows(ecg, np.ones(len(LEADS), dtype=bool), batch_size=config.batch_size)
    names = {"example_rendered": "leads", "example_dipole": "dipole", "example_vcg": "vcg"}
    arrays = {name: np.asarray(out[key]) for name, key in names.items()}
    if folder.frank is not None:
        arrays["example_frank"] = np.asarray(folder.frank[rows])
    return {"example_recorded": ecg, "fs": np.asarray(folder.fs), **arrays}


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
