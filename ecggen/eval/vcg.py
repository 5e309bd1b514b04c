"""The rendered VCG against measured Frank leads, beside Kors and inverse Dower, without any fitting.

Kors and inverse Dower need all eight independent leads; the model is also scored from fewer.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only, named_sets, recorded_windows
from ecggen.eval.metrics import LeadScores, nanmean, score_leads
from ecggen.eval.probe_features import window_peaks
from ecggen.eval.result import Array, Renderer, Rows, WindowFolder
from ecggen.leads import INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS

VCG_COLUMNS = (
    *("split", "method", "lead_set", "axis", "r", "r_low", "r_high", "rmse_mv"),
    *("n_windows", "n_patients"),
)
LOOP_COLUMNS = ("split", "source", "closure_median", "closure_mean", "n_beats", "n_windows")
AXES = ("x", "y", "z")
VCG_SETS = ("I+II+V2", "I+II+V1+V4")

VcgScores = dict[tuple[str, str], LeadScores]  # method, lead set -> scores [k, 3] of the axes


def matrix_vcg(matrix: Array, ecg: Array) -> Array:
    """[3, 8] @ independent leads of ecg [n, 12, T] -> [n, 3, T] mV."""
    return (matrix.astype(np.float32) @ ecg[:, list(INDEPENDENT_INDEX)]).astype(np.float32)


def vcg_scores(renderer: Renderer, folder: WindowFolder, rows: Array, whole: Array) -> VcgScores:
    """Scores of rows [k] of a folder with Frank leads, by method and lead set, rendered in one batch.

    whole [k, 3, T]: the model's own VCG from all recorded leads.
    """
    assert folder.frank is not None
    truth = np.asarray(folder.frank[rows], dtype=np.float32)
    ecg, observed = recorded_windows(folder, rows)
    complete = LeadSet("all", np.isin(np.arange(len(LEADS)), INDEPENDENT_INDEX)).usable(observed)
    recorded: Array = np.asarray(observed.all(axis=1))
    rendered = {
        ("kors", "all"): (matrix_vcg(KORS, ecg), complete),
        ("inverse_dower", "all"): (matrix_vcg(INVERSE_DOWER, ecg), complete),
        ("model", "all"): (whole, recorded),
    }
    for leads in named_sets(VCG_SETS):
        use = leads.usable(observed)
        vcg = np.zeros_like(truth)
        if use.any():
            shown = given_only(ecg[use], leads.mask)
            vcg[use] = renderer.render_windows(shown, leads.mask, batch_size=len(shown))["vcg"]
        rendered["model", leads.name] = vcg, use
    return {
        key: score_leads(truth, vcg, np.repeat(use[:, None], 3, axis=1))
        for key, (vcg, use) in rendered.items()
    }


def vcg_rows(split: str, scores: VcgScores, draws: PatientBootstrap) -> Rows:
    """Rows of the table `vcg` of one split from the scores of its windows."""
    rows: Rows = []
    for (method, lead_set), of_axes in scores.items():
        for axis, name in [*enumerate(AXES), (None, "mean")]:
            keep = slice(None) if axis is None else slice(axis, axis + 1)
            row: dict[str, Any] = {"split": split, "method": method, "lead_set": lead_set, "axis": name}
            row |= draws.cells(("r", "r_low", "r_high"), of_axes.r[:, keep])
            rows.append(row | {"rmse_mv": nanmean(of_axes.rmse[:, keep]), **draws.counts(of_axes)})
    return rows


def loop_closure(vcg: Array, reference: Array, fs: float) -> tuple[list[float], int]:
    """How far a beat's loop is from closed: |v(end) - v(start)| over the loop's largest |v|, per beat.

    vcg [n, 3, T] mV, reference [n, T] the signal whose R-peaks cut the beats midway. Returns the closures and
    the number of windows with at least one whole beat.
    """
    closures: list[float] = []
    windows = 0
    for loop, peaks in zip(vcg, window_peaks(reference, fs), strict=True):
        borders = (peaks[1:] + peaks[:-1]) // 2
        before = len(closures)
        for start, stop in itertools.pairwise(borders):
            size = np.linalg.norm(loop[:, start : stop + 1], axis=0).max()
            if size > 1e-6:
                closures.append(float(np.linalg.norm(loop[:, stop] - loop[:, start]) / size))
        windows += len(closures) > before
    return closures, windows
