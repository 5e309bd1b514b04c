"""The rendered VCG against measured Frank leads, beside Kors and inverse Dower, without any fitting.

Kors and inverse Dower need all eight independent leads; the model is also scored from fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only, named_sets
from ecggen.eval.metrics import LeadScores, nanmean, nanmedian, score_leads
from ecggen.eval.probe_features import window_peaks
from ecggen.eval.result import Array, FolderLike, RendererLike, Rows
from ecggen.leads import INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS

VCG_COLUMNS = (
    "split",
    "method",
    "lead_set",
    "axis",
    "r",
    "r_low",
    "r_high",
    "rmse_mv",
    "n_windows",
    "n_patients",
)
LOOP_COLUMNS = ("split", "source", "closure_median", "closure_mean", "n_beats", "n_windows")
AXES = ("x", "y", "z")
VCG_SETS = ("I+II+V2", "I+II+V1+V4")


def matrix_vcg(matrix: Array, ecg: Array) -> Array:
    """[3, 8] @ independent leads of ecg [n, 12, T] -> [n, 3, T] mV."""
    return (matrix.astype(np.float32) @ ecg[:, list(INDEPENDENT_INDEX)]).astype(np.float32)


def batches(count: int, most: int) -> list[slice]:
    """Places of `count` windows, `most` at a time."""
    return [slice(at, at + most) for at in range(0, count, most)]


def vcg_scores(
    renderer: RendererLike,
    folder: FolderLike,
    *,
    splits: Sequence[str] = ("validation", "test"),
    batch_size: int = 128,
    bootstrap: int = 500,
    seed: int = 0,
) -> Rows:
    """Rows of the table `vcg`; none where the folder holds no Frank leads.

    `splits` may hold "train" or "all": a database that the model was not trained on is judged as a whole.
    """
    if folder.frank is None:
        return []
    out: Rows = []
    for split in splits:
        rows = np.asarray(folder.rows(split), dtype=np.int64)
        if not len(rows):
            continue
        patients = [str(folder.patient[row]) for row in rows]
        draws = PatientBootstrap(patients, bootstrap, seed)
        cuts = batches(len(rows), batch_size)
        parts = [vcg_parts(renderer, folder, rows[at]) for at in cuts]
        out += vcg_rows(split, joined_parts(parts, cuts, len(rows)), draws)
    return out


Parts = dict[tuple[str, str], LeadScores]  # method, lead set -> scores [k, 3] of the axes


def vcg_parts(renderer: RendererLike, folder: FolderLike, rows: Array, whole: Array | None = None) -> Parts:
    """Scores of rows [k] of a folder with Frank leads, by method and lead set, rendered in one batch.

    whole [k, 3, T]: the model's own VCG from all recorded leads, where it was rendered already.
    """
    assert folder.frank is not None
    truth = np.asarray(folder.frank[rows], dtype=np.float32)
    observed = np.asarray(folder.observed[rows], dtype=bool)
    ecg = given_only(np.asarray(folder.windows[rows]), observed)
    complete: Array = np.asarray(observed[:, list(INDEPENDENT_INDEX)].all(axis=1))
    made = {
        ("kors", "all"): (matrix_vcg(KORS, ecg), complete),
        ("inverse_dower", "all"): (matrix_vcg(INVERSE_DOWER, ecg), complete),
    }
    for leads in [LeadSet("all", np.ones(len(LEADS), dtype=bool)), *named_sets(VCG_SETS)]:
        use = leads.usable(observed)
        vcg = np.zeros_like(truth)
        if use.any() and leads.name == "all" and whole is not None:
            vcg[use] = whole[use]
        elif use.any():
            shown = given_only(ecg[use], leads.mask)
            vcg[use] = renderer.render_windows(shown, leads.mask, batch_size=len(shown))["vcg"]
        made["model", leads.name] = vcg, use
    return {
        key: score_leads(truth, vcg, np.repeat(use[:, None], 3, axis=1)) for key, (vcg, use) in made.items()
    }


def joined_parts(parts: Sequence[Parts], cuts: Sequence[slice], count: int) -> Parts:
    """Scores [count, 3] from those of consecutive pieces."""
    places = [np.arange(count)[at] for at in cuts]
    return {
        key: LeadScores.joined([(at, part[key]) for at, part in zip(places, parts, strict=True)], count)
        for key in parts[0]
    }


def vcg_rows(split: str, parts: Parts, draws: PatientBootstrap) -> Rows:
    """Rows of the table `vcg` of one split from the scores of its windows."""
    return [
        row
        for (method, name), scores in parts.items()
        for row in _axis_rows(split, method, name, scores, draws)
    ]


def _axis_rows(split: str, method: str, lead_set: str, scores: LeadScores, draws: PatientBootstrap) -> Rows:
    use: Array = np.asarray(np.isfinite(scores.rmse).any(axis=1))
    out: Rows = []
    for axis, name in [*enumerate(AXES), (None, "mean")]:
        keep = slice(None) if axis is None else slice(axis, axis + 1)
        r, low, high = draws.mean(scores.r[:, keep])
        out.append(
            {
                "split": split,
                "method": method,
                "lead_set": lead_set,
                "axis": name,
                "r": r,
                "r_low": low,
                "r_high": high,
                "rmse_mv": nanmean(scores.rmse[:, keep]),
                "n_windows": int(use.sum()),
                "n_patients": draws.patients_in(use),
            }
        )
    return out


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


def closure_row(split: str, source: str, closures: Sequence[float], windows: int) -> dict[str, object]:
    """A row of the table `closed_loop` from what `loop_closure` found."""
    values = np.asarray(closures)
    return {
        "split": split,
        "source": source,
        "closure_median": nanmedian(values),
        "closure_mean": nanmean(values),
        "n_beats": len(values),
        "n_windows": windows,
    }
