"""The rendered VCG against measured Frank leads, beside Kors and inverse Dower, without any fitting.

Kors and inverse Dower need all eight independent leads; the model is also scored from fewer.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ecggen.data.rpeaks import max_beats
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only, independent, named_sets
from ecggen.eval.metrics import LeadScores, nanmean, score_leads
from ecggen.eval.probe_features import window_peaks
from ecggen.eval.result import Array, Renderer, Rows
from ecggen.eval.workers import Measured
from ecggen.leads import INDEPENDENT_INDEX, INVERSE_DOWER, KORS

VCG_COLUMNS = (
    *("split", "method", "lead_set", "axis", "r", "r_low", "r_high", "rmse_mv"),
    *("n_windows", "n_patients"),
)
LOOP_COLUMNS = ("split", "source", "closure_median", "closure_mean", "n_beats", "n_windows")
AXES = ("x", "y", "z")
VCG_SETS = ("I+II+V2", "I+II+V1+V4")


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
        part = scores if name == "mean" else scores.select(np.arange(3) == axis)
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
