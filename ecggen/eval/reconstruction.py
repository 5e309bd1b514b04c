"""All leads given: what the dipole carries, what the residual carries, how stable the state is.

Where Frank leads were measured the rendered VCG is scored against them, beside Kors and inverse Dower without
any fitting. These two need all eight independent leads; the model is also scored from fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ecggen.data.rpeaks import max_beats
from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only, independent, named_sets, recorded_windows
from ecggen.eval.metrics import LeadScores, energy, energy_share, nanmean, nanmedian, score_leads
from ecggen.eval.probe_features import reference_lead, window_peaks
from ecggen.eval.result import (
    Array,
    Renderer,
    Result,
    Rows,
    WindowFolder,
    check_split,
    trained_steps,
)
from ecggen.eval.state import (
    STATE_COLUMNS,
    STATE_DESCRIPTORS,
    second_moments,
    stability_pairs,
    state_stability,
)
from ecggen.eval.workers import Measured, Workers, row_task
from ecggen.leads import DOWER, EXPAND, INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS
from ecggen.utils.config import ReconstructionConfig

VCG_COLUMNS = (
    *("split", "method", "lead_set", "axis", "r", "r_low", "r_high", "rmse_mv"),
    *("n_windows", "n_patients"),
)
LOOP_COLUMNS = ("split", "source", "closure_median", "closure_mean", "n_beats", "n_windows")
AXES = ("x", "y", "z")
VCG_SETS = ("I+II+V2", "I+II+V1+V4")
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


def reconstruction(
    renderer: Renderer, folder: WindowFolder, config: ReconstructionConfig, *, processes: int | str = 1
) -> Result:
    """Tables COLUMNS.

    Nothing is fitted, so a folder of test windows alone will do. processes: see
    `ecggen.eval.workers.Workers`; the numbers do not depend on it. Raises EvalError for an empty test split.
    """
    test = check_split(folder, "test")
    pairs = stability_pairs(folder, config)
    state_rows = np.unique(np.concatenate([test[:0], *(row for pair in pairs.values() for row in pair)]))
    validation = check_split(folder, "validation") if len(folder.rows("validation")) else test[:0]
    # The states of some windows alone are needed: these are measured apart.
    others = np.setdiff1d(test, state_rows)
    parts = [("validation", validation, False), ("test", state_rows, True), ("test", others, False)]
    tasks = [row_task(_measure, rows, config.batch_size, with_state) for _, rows, with_state in parts]
    of_state: Measured = {}
    splits: dict[str, list[tuple[Array, Measured]]] = {}
    with Workers((renderer, folder, config), renderer.device, processes) as workers:
        for (split, rows, _), measured in zip(parts, workers.measure(tasks), strict=True):
            of_state |= {name: measured.pop(name) for name in STATE_DESCRIPTORS if name in measured}
            if len(rows):
                splits.setdefault(split, []).append((rows, dict(measured)))
    result = Result(columns=COLUMNS)
    for split, measures in splits.items():
        patients = np.asarray(folder.patient)[np.concatenate([rows for rows, _ in measures])]
        draws = PatientBootstrap(patients.tolist(), config.bootstrap, config.seed)
        whole = {name: np.concatenate([part[name] for _, part in measures]) for name in measures[0][1]}
        for name, table in _split_rows(whole, draws).items():
            result.tables[name] += [{"split": split, **row} for row in table]
    result.tables["state"] = state_stability(renderer, folder, pairs, state_rows, of_state)
    return result


def _measure(
    context: tuple[Renderer, WindowFolder, ReconstructionConfig], job: tuple[bool, Array]
) -> Measured:
    """A job: rows [k] of the folder, all leads given, rendered after each number of inner steps.

    ("score", part) [k, 12, 4]; what `_energies` and `vcg_scores` return; ("closure", source), see
    `loop_closure`; STATE_DESCRIPTORS of windows whose state is needed.
    """
    (renderer, folder, config), (with_state, rows) = context, job
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
    measured: Measured = {
        ("score", part): score_leads(ecg, rendered, scored).values
        for part, (rendered, scored) in parts.items()
    }
    measured |= _energies(ecg, parts, np.asarray(out["residual"]))
    reference = ecg[np.arange(len(ecg)), reference_lead(observed)]
    reference[~observed[:, _EIGHT].all(axis=1)] = 0  # no beat, and so no loop
    loops = {
        "model": out["vcg"],
        "kors": matrix_vcg(KORS, ecg),
        "inverse_dower": matrix_vcg(INVERSE_DOWER, ecg),
    }
    for source, vcg in loops.items():
        measured["closure", source] = loop_closure(vcg, reference, folder.fs)
    if folder.frank is not None:
        frank = np.asarray(folder.frank[rows], dtype=np.float32)
        measured |= vcg_scores(renderer, frank, ecg, observed, out["vcg"])
    if with_state:
        measured |= {"state": out["state"], "second_moments": second_moments(ecg)}
    return measured


def _energies(ecg: Array, parts: Parts, residual: Array) -> Measured:
    """("share", part) and ("explained", part) [k], the residual among the parts, over independent leads.

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
    shares = {("share", part): values for part, values in share.items()}
    return shares | {("explained", part): values for part, values in explained.items()}


def _split_rows(measured: Measured, draws: PatientBootstrap) -> dict[str, Rows]:
    """Rows, without the split, of every table but `state`."""
    tables: dict[str, Rows] = {"overall": [], "per_lead": [], "energy": [], "closed_loop": [], "vcg": []}
    for name, values in measured.items():
        kind, part, *_ = name
        if kind == "score":
            scores = LeadScores(values)
            tables["overall"].append({"part": part, **part_row(scores, draws)})
            for at, lead in enumerate(LEADS):
                tables["per_lead"].append({"part": part, "lead": lead, **draws.summary(scores.lead(at))})
        elif kind == "share":
            explained = measured["explained", part]
            row = {"part": part, "n_windows": int(np.isfinite(explained).sum())}
            row |= {"share_median": nanmedian(values), "share_mean": nanmean(values)}
            row |= {"explained_median": nanmedian(explained), "explained_mean": nanmean(explained)}
            tables["energy"].append(row)
        elif kind == "closure":
            beats = np.isfinite(values)
            row = {"source": part, "n_beats": int(beats.sum()), "n_windows": int(beats.any(axis=1).sum())}
            row |= {"closure_median": nanmedian(values), "closure_mean": nanmean(values)}
            tables["closed_loop"].append(row)
        elif kind == "vcg":
            tables["vcg"] += vcg_rows(name[1], name[2], LeadScores(values), draws)
    return tables


def part_row(scores: LeadScores, draws: PatientBootstrap) -> dict[str, Any]:
    """SUMMARY and counts of the independent leads of scores [n, 12]."""
    eight = scores.select(independent())
    return {**draws.summary(eight), **draws.counts(eight)}


def matrix_vcg(matrix: Array, ecg: Array) -> Array:
    """[3, 8] @ independent leads of ecg [n, 12, T] -> [n, 3, T] mV."""
    return (matrix.astype(np.float32) @ ecg[:, list(INDEPENDENT_INDEX)]).astype(np.float32)


def vcg_scores(renderer: Renderer, frank: Array, ecg: Array, observed: Array, whole: Array) -> Measured:
    """("vcg", method, lead set) -> scores [k, 3, 4] of the axes against frank [k, 3, T], in one batch.

    ecg [k, 12, T], observed [k, 12]; whole [k, 3, T]: the model's own VCG from all recorded leads.
    """
    complete = LeadSet("all", independent()).usable(observed)
    rendered = {
        ("vcg", "kors", "all"): (matrix_vcg(KORS, ecg), complete),
        ("vcg", "inverse_dower", "all"): (matrix_vcg(INVERSE_DOWER, ecg), complete),
        ("vcg", "model", "all"): (whole, np.asarray(observed.all(axis=1))),
    }
    for leads in named_sets(VCG_SETS):
        use = leads.usable(observed)
        vcg = np.zeros_like(frank)
        if use.any():
            shown = given_only(ecg[use], leads.mask)
            vcg[use] = renderer.render_windows(shown, leads.mask, batch_size=len(shown))["vcg"]
        rendered["vcg", "model", leads.name] = vcg, use
    return {
        key: score_leads(frank, vcg, np.repeat(use[:, None], 3, axis=1)).values
        for key, (vcg, use) in rendered.items()
    }


def vcg_rows(method: str, lead_set: str, scores: LeadScores, draws: PatientBootstrap) -> Rows:
    """Rows of the table `vcg`, without the split: one per axis, and their mean."""
    counts = {name: draws.counts(scores)[name] for name in ("n_windows", "n_patients")}
    rows: Rows = []
    for axis, name in enumerate((*AXES, "mean")):
        part = scores if name == "mean" else scores.lead(axis)
        row: dict[str, Any] = {"method": method, "lead_set": lead_set, "axis": name, **counts}
        row |= draws.estimate(part.r).cells("r", "r_low", "r_high")
        rows.append(row | {"rmse_mv": nanmean(part.rmse)})
    return rows


def loop_closure(vcg: Array, reference: Array, fs: float) -> Array:
    """[n, beats] how far a beat's loop is from closed: |v(end) - v(start)| over the loop's largest |v|; NaN
    where there is no beat.

    vcg [n, 3, T] mV, reference [n, T] the signal whose R-peaks cut the beats midway.
    """
    closures = np.full((len(vcg), max_beats(reference.shape[1], fs)), np.nan)
    for closure, loop, peaks in zip(closures, vcg, window_peaks(reference, fs), strict=True):
        borders = (peaks[1:] + peaks[:-1]) // 2
        for beat, (start, stop) in enumerate(itertools.pairwise(borders)):
            size = np.linalg.norm(loop[:, start : stop + 1], axis=0).max()
            if size > 1e-6:
                closure[beat] = np.linalg.norm(loop[:, stop] - loop[:, start]) / size
    return closures
